"""The datasets of a raw corpus, and which files make a split of each; only the names of the files are looked at.

A corpus is a folder tree, one file, or a `.list` file that names files.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from lit_gpt.errors import DataError, UserError
from utils.data.manifest import TEST, TRAIN
from utils.data.shards import shard_name
from utils.files.checksums import file_sha256

CONVERSATIONS, PLAIN, LINES, PARQUET = "conversations", "plain", "lines", "parquet"  # the formats of corpus files
SPLIT_OF_FILE = {"full.txt": TRAIN, "train.txt": TRAIN, "test.txt": TEST}
LINES_FILE = re.compile(r".+\.jsonl(\.gz|\.zst)?")
TEST_FILE = re.compile(r"(test|valid|validation|val|dev|eval)([-_.].*)?", flags=re.IGNORECASE)  # .jsonl, .parquet


@dataclass(frozen=True)
class CorpusFile:
    path: Path
    name: str  # the path relative to the corpus, with `/`
    format: str

    @property
    def unit(self) -> str:
        return "row" if self.format == PARQUET else "byte"


@dataclass(frozen=True)
class Source:
    dataset: str
    split: str
    files: tuple[CorpusFile, ...]

    @property
    def name(self) -> str:
        """What the files of this split are named by in a data folder: `FR--Theatre-train`."""
        return f"{self.dataset.replace('/', '--')}-{self.split}"

    @property
    def language(self) -> str:
        """`fr` for the dataset `FR/Theatre`; empty where the first part of the name is not a language code."""
        first = self.dataset.split("/")[0].lower()
        return first if re.fullmatch("[a-z]{2,3}", first) else ""


def file_facts(source: Source, stop: Event | None = None) -> list[dict[str, Any]]:
    """The source files as the manifest names them; their checksums are wrong if `stop` is set on the way."""
    return [
        {"path": file.name, "bytes": file.path.stat().st_size, "sha256": file_sha256(file.path, stop)}
        for file in source.files
    ]


class _Folder(NamedTuple):
    relative: str  # its path in the corpus; "." for the corpus itself
    path: Path
    names: set[str]


def find_sources(source_path: Path, log: Callable[[str], None] = print) -> list[Source]:
    """The splits of the datasets in a folder tree, of the files that a list names, or of one file, by dataset name.

    In a tree without conversations (full.txt, train.txt, test.txt) each other `*.txt` file is one document. Raises a
    UserError if `source_path` does not exist, a DataError if there is no dataset or one cannot be told from another.
    """
    if source_path.is_dir():
        folders = [_Folder(path.relative_to(source_path).as_posix(), path, names) for path, names in _walk(source_path)]
    elif source_path.is_file():
        folders = _listed(source_path)
    else:
        raise UserError(f"--source_path: {source_path} is neither a directory nor a file")
    conversational = any(folder.names & SPLIT_OF_FILE.keys() for folder in folders)
    found: dict[tuple[str, str], list[CorpusFile]] = {}
    ignored = 0
    for folder in folders:
        dataset = _dataset_name(folder)
        for name in sorted(folder.names):
            kind = _kind_of(name, conversational)
            if kind is None:
                ignored += name.endswith(".txt")
                continue
            split, file_format = kind
            relative = name if folder.relative == "." else f"{folder.relative}/{name}"
            found.setdefault((dataset, split), []).append(CorpusFile(folder.path / name, relative, file_format))
    if ignored:
        log(f"ignored {ignored} other .txt files: beside full.txt, train.txt and test.txt they are taken for notes")
    if not found:
        kinds = "full.txt, train.txt, test.txt, *.txt, *.jsonl or *.parquet"
        raise DataError(f"{source_path} holds no conversation and no other text: no folder in it has a {kinds}")
    sources = [Source(dataset, split, tuple(files)) for (dataset, split), files in found.items()]
    _require_names_of_their_own(sources)
    return sorted(sources, key=lambda source: (source.dataset, source.split != TRAIN))


def _dataset_name(folder: _Folder) -> str:
    """Raises a `DataError` if the folder's files contradict each other, or its name cannot be read."""
    if "full.txt" in folder.names and (others := folder.names & {"train.txt", "test.txt"}):
        other = max(others)  # train.txt where both are there
        raise DataError(f"{folder.path} has full.txt and {other}; keep either full.txt, or train.txt and test.txt")
    dataset = _own_name(folder.path) if folder.relative == "." else folder.relative
    if not dataset.isprintable():
        raise DataError(f"the name of the folder {dataset!r} is no readable text; rename it")
    return dataset


def _require_names_of_their_own(sources: list[Source]) -> None:
    """Raises a `DataError` if two folders make one dataset, or two datasets would have one name for their shards."""
    by_prefix: dict[str, Path] = {}
    for source in sources:
        for file in source.files:
            other = by_prefix.setdefault(shard_name(source.dataset, source.split, 0, 1), file.path)
            if other.parent != file.path.parent:
                raise DataError(f"{other} and {file.path} would have the same shard names; rename a folder")


def _kind_of(name: str, conversational: bool) -> tuple[str, str] | None:
    """The split and the format of a file by its name, None for what is not a corpus file."""
    split = TEST if TEST_FILE.fullmatch(name) else TRAIN
    if name in SPLIT_OF_FILE:
        return SPLIT_OF_FILE[name], CONVERSATIONS
    if LINES_FILE.fullmatch(name):
        return split, LINES
    if name.endswith(".parquet"):
        return split, PARQUET
    if name.endswith(".txt") and not conversational:
        return TRAIN, PLAIN
    return None


def _listed(path: Path) -> list[_Folder]:
    """The folders of the files that `path`, a `.list` file, names by line; or that of `path` with this file alone."""
    if path.suffix != ".list":
        if _kind_of(path.name, False) is None:
            raise UserError(f"--source_path: {path} is none of *.txt, *.jsonl(.gz/.zst), *.parquet and *.list")
        return [_Folder(".", path.parent, {path.name})]
    names_of: dict[Path, set[str]] = {}
    for file in _read_list(path):
        names_of.setdefault(file.parent, set()).add(file.name)
    all_names = {name for names in names_of.values() for name in names}
    if all_names & SPLIT_OF_FILE.keys():
        notes = sorted(name for name in all_names if _kind_of(name, True) is None)
        if notes:
            raise UserError(f"{path}: {notes[0]} is no conversation, and beside conversations *.txt files are not read")
    found = []
    for folder, names in names_of.items():
        # a dataset is named by its folder as the list has it, or by the folder's own name where that is outside
        is_outside = folder.is_absolute() or ".." in folder.parts
        directory = path.parent / folder
        found.append(_Folder(_own_name(directory) if is_outside else folder.as_posix(), directory, names))
    return found


def _read_list(path: Path) -> Iterator[Path]:
    seen: set[Path] = set()
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")  # as Python has file names
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        file = Path(line.strip())
        if not (path.parent / file).is_file():
            raise UserError(f"{path}, line {number}: {path.parent / file} does not exist")
        if _kind_of(file.name, False) is None:
            raise UserError(f"{path}, line {number}: {file} is none of *.txt, *.jsonl(.gz/.zst) and *.parquet")
        if (path.parent / file).resolve() in seen:
            raise UserError(f"{path}, line {number}: {file} is there twice")
        seen.add((path.parent / file).resolve())
        yield file


def _own_name(folder: Path) -> str:
    return folder.resolve().name or "corpus"  # the root directory has no name


def _walk(top: Path) -> Iterator[tuple[Path, set[str]]]:
    """Every folder from `top` down and the names of its files; follows links, but yields no folder twice."""

    def fail(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for folder, subfolders, names in os.walk(top, followlinks=True, onerror=fail):
        if os.path.realpath(folder) in seen:
            subfolders.clear()
            continue
        seen.add(os.path.realpath(folder))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield Path(folder), {name for name in names if not name.startswith(".")}
