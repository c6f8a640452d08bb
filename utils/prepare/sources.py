"""The datasets of a raw corpus, and which files make a split of each; only the names of files are looked at,
and the beginning of .json files.

A corpus is a folder tree, one file, a pattern of files, or a `.list` file that names files.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any, NamedTuple

from lit_gpt.checksums import file_sha256
from lit_gpt.errors import DataError, UserError
from utils.data.manifest import TEST, TRAIN, split_name
from utils.data.shards import shard_name
from utils.prepare.book_folders import BOOKS, NOT_BOOKS, REPORTS, UNCLEANED, has_books, is_of_reports
from utils.prepare.chat.conversation import Converter
from utils.prepare.dataset_cards import CARD, files_held_out
from utils.prepare.dataset_entries import DatasetEntry
from utils.prepare.file_formats import (
    ARROW,
    CONVERSATIONS,
    NOTE,
    PLAIN,
    READABLE,
    RECORDS,
    TABLE,
    CorpusFile,
    Unread,
    format_of,
    format_of_json,
    say_unread,
    stem_of,
    why_unread,
)
from utils.prepare.languages import language_of_code
from utils.prepare.saved_datasets import (
    DESCRIBE_SAVED,
    SPLITS,
    STATE,
    require_splits,
    saved_files,
    saved_split_is_held_out,
)
from utils.prepare.split_names import held_out_by, is_held_out, is_split, names_training, without_splits


@dataclass(frozen=True)
class Source:
    dataset: str
    split: str
    files: tuple[CorpusFile, ...]
    converter: Converter | None = None  # of the records in its files; None where they are plain text
    entry: DatasetEntry | None = None  # of --datasets, if it comes from there
    shared: int = 0  # of its last files: those of the dataset's other split, whose chats are divided among both

    def converter_of(self, file: CorpusFile) -> Converter | None:
        """What makes conversations of a file's records; None for plain text, as *.txt files are beside records."""
        return None if file.format in (CONVERSATIONS, PLAIN) else self.converter

    def with_converter(self, converter: Converter | None) -> "Source":
        """The source with this converter, if it has records."""
        has_records = any(file.format not in (CONVERSATIONS, PLAIN) for file in self.files)
        return replace(self, converter=converter if has_records else None)

    @property
    def own(self) -> "Source":
        """The split without files that it shares; of a dataset, each file is in one of them."""
        return replace(self, files=self.files[: len(self.files) - self.shared], shared=0)

    @property
    def name(self) -> str:
        """What the files of this split are named by in a data folder: `FR--Theatre-train`."""
        return split_name(self.dataset, self.split)

    @property
    def language(self) -> str:
        """`fr` for the dataset `FR/Theatre`; empty where the first part of the name is not a language code."""
        named = self.entry.language.lower() if self.entry else ""
        return named or language_of_code(self.dataset.split("/")[0])


def file_facts(source: Source, stop: Event | None = None) -> list[dict[str, Any]]:
    """The source files as the manifest names them; their checksums are wrong if `stop` is set on the way."""
    facts = []
    for file in source.files:
        fact = {"path": file.name, "bytes": file.path.stat().st_size, "sha256": file_sha256(file.path, stop)}
        if source.entry and source.entry.hub and not (stop and stop.is_set()):
            _require_blob(file.path, fact["sha256"])
        if file.span is not None:
            fact[f"{file.unit}s"] = list(file.span)  # those that were read
        if file.text_field:
            fact["text_field"] = file.text_field
        if file.join_field:
            fact["join_field"] = file.join_field
        facts.append(fact)
    return facts


def _require_blob(path: Path, sha256: str) -> None:
    """Raises a DataError if a file in the Hub's cache is not what its name there says, for large files a SHA-256."""
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name) and blob.name != sha256:
        raise DataError(f"{path} is not the file that the Hub lists; delete {blob} and run the same command again")


class _Folder(NamedTuple):
    top: Path  # the corpus, or for a file of a list where the name of its dataset begins
    relative: str  # its path in `top`; "." for `top` itself
    names: set[str]
    hidden: frozenset[str] = frozenset()
    prefix: str = ""  # what the names of its files begin with
    has_books: bool = False  # whether a list names its files as books, which have titles

    @property
    def path(self) -> Path:
        return self.top / self.relative

    @property
    def home(self) -> Path:
        """The folder of its dataset, which `train`, `test` and the like in its name are parts of."""
        return self.top / without_splits(PurePosixPath(self.relative))

    def in_top(self, file: str) -> PurePosixPath:
        return PurePosixPath(self.relative, file)

    def name_of(self, file: str) -> str:
        return f"{self.prefix}{self.in_top(file)}"


def find_sources(
    source_path: Path,
    log: Callable[[str], None] = print,
    options: Collection[Path] = (),
    unread: list[Unread] | None = None,
    what: str = "--source_path",
    only: Collection[str] | None = None,
) -> list[Source]:
    """The splits of the datasets in a folder tree, of the files that a list names, or of one file, by dataset name.

    In a tree without conversations (full.txt, train.txt, test.txt) each other `*.txt` file is one document. `log` is
    told what is held out and what is not read, `unread` gets each file that is not; `options` are files that belong to
    options, `what` names the option of the path, and `only` the files of a folder to look at. Raises a UserError if
    `source_path` does not exist, a DataError if there is no dataset or one cannot be told from another.
    """
    if only is not None:
        folders = [
            _Folder(source_path, folder.as_posix(), names) for folder, names in _by_folder(map(Path, only)).items()
        ]
    elif source_path.is_dir():
        folders = list(_walk(source_path, source_path))
    elif source_path.is_file():
        folders = _listed(source_path, what)
    else:
        folders = _matching(source_path, what)
    folders = _without_book_lists(folders, log)
    reader = _FolderReader(folders, options)
    found: dict[tuple[str, str], list[CorpusFile]] = {}
    held_out: dict[str, Counter[str]] = {}
    homes: dict[str, tuple[Path, Path]] = {}
    for folder in folders:
        dataset = _dataset_name(folder)
        for file in reader.files_of(folder):
            reason = reader.held_out_by(folder, file)
            split = TEST if reason else TRAIN
            found.setdefault((dataset, split), []).append(file)
            if reason and (reason, file.format) != ("test.txt", CONVERSATIONS):
                held_out.setdefault(dataset, Counter())[reason] += 1
            _require_name_of_its_own(homes, shard_name(dataset, split, 0, 1), folder.home, file.path)
    for dataset, reasons in held_out.items():
        log(_held_out_line(dataset, len(found.get((dataset, TRAIN), [])), reasons))
    say_unread(reader.unread, log)
    if unread is not None:
        unread += reader.unread
    if not found:
        kinds = f"full.txt, train.txt, test.txt, {READABLE}"
        raise DataError(f"{source_path} holds no conversation and no other text: no folder in it has a {kinds}")
    sources = [Source(dataset, split, tuple(files)) for (dataset, split), files in found.items()]
    return sorted(sources, key=lambda source: (source.dataset, source.split != TRAIN))


def _without_book_lists(folders: list[_Folder], log: Callable[[str], None]) -> list[_Folder]:
    """The folders without lists of books and reports about them, which are named as what they are."""
    read = [folder for folder in folders if not is_of_reports(folder.path)]
    of_books = {folder.path for folder in read if has_books(folder.path)}
    if of_books:
        log(NOT_BOOKS)
    for folder in read:
        has_texts = folder.path in of_books and any(name.endswith(".txt") for name in folder.names)
        if has_texts and not (folder.path / REPORTS).is_dir():
            log(f"{folder.path} {UNCLEANED}")
    without_lists = (folder._replace(names=folder.names - {BOOKS}, has_books=True) for folder in read)
    return [new if new.path in of_books else old for old, new in zip(read, without_lists, strict=True)]


def _held_out_line(dataset: str, for_training: int, reasons: Counter[str]) -> str:
    """What is taken for what, where more is held out than a test.txt; ten names at most."""
    parts = [f"{reason} ({count})" if reason.endswith("/") else reason for reason, count in reasons.most_common(10)]
    more = f" and {len(reasons) - 10} more names" if len(reasons) > 10 else ""
    number = reasons.total()
    files = f"{number} file{'s' * (number > 1)}"
    return (
        f"{dataset}: {files} held out for validation by {', '.join(parts)}{more}; "
        f"{for_training} for training (to train on all, rename what says so)"
    )


class _FolderReader:
    """Finds the corpus files of folders, and keeps those that are not read in `unread`."""

    def __init__(self, folders: list[_Folder], options: Collection[Path]) -> None:
        self.unread: list[Unread] = []
        self._options = {path.resolve() for path in options}
        self._conversational = any(map(_has_conversations, folders))
        self._by_card: dict[Path, str] = {}  # files that a dataset card holds out, and its name

    def files_of(self, folder: _Folder) -> Iterator[CorpusFile]:
        self.unread += [Unread(folder.name_of(name), "rename what is to be read") for name in sorted(folder.hidden)]
        saved = saved_files(folder.path, folder.names)
        if SPLITS in folder.names:
            require_splits(folder.path)
        if CARD in folder.names:
            self._by_card |= dict.fromkeys(files_held_out(folder.path), str(folder.in_top(CARD)))
        for name in sorted(folder.names):
            if (saved is not None and name in DESCRIBE_SAVED) or name == SPLITS:
                continue
            file_format, reason = self._format_of(folder, name, saved)
            if reason:
                self.unread.append(Unread(folder.name_of(name), reason))
            elif any("\ud800" <= character <= "\udfff" for character in name):  # not UTF-8, as Python has it
                raise DataError(f"the name of the file {str(folder.path / name)!r} is no UTF-8; rename it")
            else:
                yield CorpusFile(folder.path / name, folder.name_of(name), file_format)

    def _format_of(self, folder: _Folder, name: str, saved: set[str] | None) -> tuple[str, str]:
        """The format of a file, and why it is not read; empty where it is."""
        if reason := why_unread(name):
            return "", reason
        file_format = format_of(name)
        assert file_format is not None
        path = folder.path / name
        if file_format in (RECORDS, TABLE) and path.resolve() in self._options:
            return "", "files of other options"
        if file_format == ARROW and saved is not None and name not in saved:
            return "", f"{STATE} does not name them among the dataset's files; save the dataset again"
        if _has_conversations(folder):
            if file_format == PLAIN and is_split(stem_of(name)):
                return CONVERSATIONS, ""
            if file_format in (RECORDS, TABLE):
                return "", NOTE
        if file_format == PLAIN and self._conversational:
            return "", NOTE
        return (format_of_json(path) if file_format == RECORDS else file_format), ""

    def held_out_by(self, folder: _Folder, file: CorpusFile) -> str:
        """What says that a file is held out; empty for one to train on."""
        is_book = folder.has_books and file.format == PLAIN  # whose title may have the word test
        if reason := held_out_by(folder.in_top("book.txt" if is_book else file.path.name), file.format == PLAIN):
            return reason
        if card := self._by_card.get(file.path):
            return card
        if file.format == ARROW and STATE in folder.names and not names_training(PurePosixPath(folder.relative)):
            state = f"the split in {folder.in_top(STATE)}"
            if (folder.path.resolve().parent / SPLITS).is_file():  # its name is that of the folder
                return state if is_held_out(folder.path.resolve().name) else ""
            return state if saved_split_is_held_out(folder.path) else ""
        return ""


def _has_conversations(folder: _Folder) -> bool:
    return any(format_of(name) == CONVERSATIONS for name in folder.names)


def _dataset_name(folder: _Folder) -> str:
    """Raises a `DataError` if the folder's files contradict each other, or its name cannot be read."""
    conversations = {stem_of(name) for name in folder.names if format_of(name) == CONVERSATIONS}
    if "full" in conversations and (others := conversations & {"train", "test"}):
        other = max(others)  # train.txt where both are there
        raise DataError(f"{folder.path} has full.txt and {other}.txt; keep either full.txt, or train.txt and test.txt")
    relative = without_splits(PurePosixPath(folder.relative)).as_posix()
    dataset = _own_name(folder.top) if relative == "." else relative
    if not dataset.isprintable():
        raise DataError(f"the name of the folder {dataset!r} is no readable text; rename it")
    return dataset


def _require_name_of_its_own(homes: dict[str, tuple[Path, Path]], prefix: str, home: Path, file: Path) -> None:
    """Raises a `DataError` if two folders make one dataset, or two datasets would have one name for their shards."""
    other_home, other = homes.setdefault(prefix, (home, file))
    if other_home != home:
        raise DataError(f"{other} and {file} would have the same shard names; rename a folder")


def _listed(path: Path, what: str) -> list[_Folder]:
    """The folders of the files that `path`, a `.list` file, names by line; or that of `path` with this file alone."""
    if path.suffix != ".list":
        if why_unread(path.name):
            raise UserError(f"{what}: {path} is none of {READABLE}, and no *.list")
        return [_Folder(path.parent, ".", {path.name})]
    names_of = _by_folder(_read_list(path))
    all_names = {name for names in names_of.values() for name in names}
    if any(format_of(name) == CONVERSATIONS for name in all_names):
        notes = sorted(name for name in all_names if format_of(name) == PLAIN and not is_split(stem_of(name)))
        if notes:
            raise UserError(f"{path}: {notes[0]} is no conversation, and beside conversations *.txt files are not read")
    return [_listed_folder(path.parent, folder, names) for folder, names in names_of.items()]


def _by_folder(files: Iterable[Path]) -> dict[Path, set[str]]:
    names_of: dict[Path, set[str]] = {}
    for file in files:
        names_of.setdefault(file.parent, set()).add(file.name)
    return names_of


def _matching(pattern: Path, what: str) -> list[_Folder]:
    """The folders of what a pattern such as `chats/*.jsonl` matches: files, and folders with all that is in them."""
    is_plain = [not set(part) & set("*?[") for part in pattern.parts]
    if all(is_plain):
        raise UserError(f"{what}: {pattern} is neither a directory nor a file")
    first = is_plain.index(False)
    top = Path(*pattern.parts[:first])
    matches = sorted(top.glob(str(Path(*pattern.parts[first:]))))
    files = [path.relative_to(top) for path in matches if path.is_file() and not why_unread(path.name)]
    folders = [_Folder(top, folder.as_posix(), names) for folder, names in _by_folder(files).items()]
    for path in matches:
        if path.is_dir():
            folders += _walk(path, top)
    if not folders:
        raise UserError(f"{what}: {pattern} matches no file that is read ({READABLE})")
    return folders


def _listed_folder(parent: Path, folder: Path, names: set[str]) -> _Folder:
    """A folder as the list names it; one outside the list's own folder is named by itself, `test` by the one above."""
    if not folder.is_absolute() and ".." not in folder.parts:
        return _Folder(parent, folder.as_posix(), names)
    directory = (parent / folder).resolve()
    top = directory
    while is_split(top.name):
        top = top.parent
    return _Folder(top, directory.relative_to(top).as_posix(), names, prefix=f"{_own_name(top)}/")


def _read_list(path: Path) -> Iterator[Path]:
    seen: set[Path] = set()
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")  # as Python has file names
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        file = Path(line.strip())
        if not (path.parent / file).is_file():
            raise UserError(f"{path}, line {number}: {path.parent / file} does not exist")
        if why_unread(file.name):
            raise UserError(f"{path}, line {number}: {file} is none of {READABLE}")
        if (path.parent / file).resolve() in seen:
            raise UserError(f"{path}, line {number}: {file} is there twice")
        seen.add((path.parent / file).resolve())
        yield file


def _own_name(folder: Path) -> str:
    return folder.resolve().name or "corpus"  # the root directory has no name


def _walk(start: Path, top: Path) -> Iterator[_Folder]:
    """Every folder from `start` down and the names of its files; follows links, but yields no folder twice."""

    def fail(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for folder, subfolders, names in os.walk(start, followlinks=True, onerror=fail):
        if os.path.realpath(folder) in seen:
            subfolders.clear()
            continue
        seen.add(os.path.realpath(folder))
        hidden = {name for name in names if name.startswith(".")}
        hidden |= {name for name in subfolders if name.startswith(".")}
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield _Folder(top, Path(folder).relative_to(top).as_posix(), set(names) - hidden, frozenset(hidden))
