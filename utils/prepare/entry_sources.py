"""The files of each entry of --datasets, by split: an entry is one dataset, whatever folders its files lie in.

Without `split` an entry has all files, and those that are held out by their names or by the dataset's card make its
test split. With `split` it has the rows of these splits: those with a name such as `test` or `validation` are held out.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path, PurePath

from lit_gpt.errors import DataError, UserError
from utils.data.manifest import TEST, TRAIN
from utils.prepare.dataset_cards import CARD, find_configs, splits_of_subset
from utils.prepare.dataset_entries import TEXT, DatasetEntry
from utils.prepare.file_formats import CorpusFile, Unread, say_unread, why_unread
from utils.prepare.named_splits import SplitPart, files_by_split, parse_split
from utils.prepare.row_spans import count_rows, with_rows
from utils.prepare.saved_datasets import SPLITS, STATE
from utils.prepare.sources import Source, find_sources
from utils.prepare.split_names import is_held_out

Log = Callable[[str], None]


def find_entry_sources(
    entries: list[DatasetEntry],
    log: Log = print,
    options: Collection[Path] = (),
    unread: list[Unread] | None = None,
    first_alone: bool = False,
) -> list[Source]:
    """A source or two for each entry, in the order that `find_sources` has; its arguments are the same.

    `first_alone`: of a dataset of the Hub that is not here, the first file of each split is downloaded, for a look.
    """
    sources = []
    for entry in entries:
        try:
            sources += _sources_of(entry, log, options, [] if unread is None else unread, first_alone)
        except (UserError, DataError) as e:
            where = where_of(entry)
            if str(e).startswith(where):
                raise
            raise type(e)(f"{where}: {e}") from None
    return sorted(sources, key=lambda source: (source.dataset, source.split != TRAIN))


def _sources_of(
    entry: DatasetEntry, log: Log, options: Collection[Path], unread: list[Unread], first_alone: bool
) -> list[Source]:
    only = None
    path = Path(entry.path)
    if entry.hub:
        # it and the Hub's client take 0.6 s, which only such a dataset needs
        from utils.prepare.hub_datasets import fetch_dataset

        entry, path, only = fetch_dataset(entry, wanted_files, log, first_files if first_alone else None)
    named = bool(entry.split or entry.subset)  # then the names of files do not decide what is held out
    own_unread: list[Unread] = []
    found = find_sources(path, _say_nothing if named else log, options, own_unread, where_of(entry), only)
    unread += own_unread
    files: dict[str, list[CorpusFile]] = {TRAIN: [], TEST: []}
    for source in found:
        files[source.split] += source.files
    if named:
        say_unread(own_unread, log)
        everything = {file.name: file for of_split in files.values() for file in of_split}
        card = path / CARD if (path / CARD).is_file() else None
        by_split = _by_split(entry, list(everything), card, (path / SPLITS).is_file())
        files = {TRAIN: [], TEST: []}
        for part in _parts_of(entry, by_split):
            chosen = [everything[name] for name in _files_of(part, by_split)]
            files[TEST if is_held_out(part.split) else TRAIN] += _rows_of(part, chosen)
        log(_split_line(entry, files))
    converter = None if entry.converter.name == TEXT else entry.converter
    sources = []
    for split, of_split in files.items():
        named_files = tuple(
            replace(file, name=f"{entry.name}/{file.name}", text_field=entry.text_field) for file in of_split
        )
        if named_files:
            sources.append(Source(entry.name, split, named_files, entry=entry).with_converter(converter))
    if not sources:
        raise DataError(f"the split {entry.split} has no rows")
    return sources


def _say_nothing(_: str) -> None:
    """For what `find_sources` takes to be held out: an entry's own split decides."""


def wanted_files(entry: DatasetEntry, names: list[str], card: Path | None) -> list[str]:
    """The files that an entry needs of a dataset's, by its card, subset and split; descriptions are wanted always."""
    data = [name for name in names if not why_unread(name)]
    described = [name for name in names if why_unread(name)]
    if not entry.split and not entry.subset and not find_configs(card, data):
        return names
    by_split = _by_split(entry, data, card, SPLITS in described)
    wanted = {name for part in _parts_of(entry, by_split) for name in _files_of(part, by_split)}
    return [name for name in names if name in wanted or name in described]


def first_files(entry: DatasetEntry, names: list[str], card: Path | None) -> list[str]:
    """Of what `wanted_files` gives, the first file of each split, but all where rows are counted for a part of one."""
    is_saved = any(PurePath(name).name == STATE for name in names)  # by `datasets`, which names its files
    if is_saved or not all(part.is_whole for part in _parts_of(entry, {})):
        return names
    data = [name for name in names if not why_unread(name)]
    by_split = _by_split(entry, data, card, is_saved=False)
    first = {files[0] for files in by_split.values() if files}
    return [name for name in names if name in first or name not in data]


def _by_split(entry: DatasetEntry, names: list[str], card: Path | None, is_saved: bool) -> dict[str, list[str]]:
    if configs := find_configs(card, names):
        return splits_of_subset(configs, entry.subset, names)
    if entry.subset:
        raise UserError("it has no subsets: no dataset card (README.md) describes any")
    if is_saved:  # by `datasets`: its splits are folders
        saved: dict[str, list[str]] = {}
        for name in sorted(names):
            saved.setdefault(name.split("/")[0], []).append(name)
        return saved
    return files_by_split(names)


def _parts_of(entry: DatasetEntry, by_split: dict[str, list[str]]) -> list[SplitPart]:
    return parse_split(entry.split) if entry.split else [SplitPart(split) for split in by_split]


def _files_of(part: SplitPart, by_split: dict[str, list[str]]) -> list[str]:
    names = by_split.get(part.split)
    if not names:
        there = ", ".join(split for split, files in by_split.items() if files)
        raise UserError(f"it has no split '{part.split}' but {there or 'none'}")
    return names


def _rows_of(part: SplitPart, files: list[CorpusFile]) -> list[CorpusFile]:
    """The files of a split with the rows that its part takes; files of which it takes none are left out."""
    if part.is_whole:
        return files
    counts = [count_rows(file) for file in files]
    begin, end = part.rows(sum(counts))
    taken = []
    before = 0
    for file, count in zip(files, counts, strict=True):
        first, last = max(begin - before, 0), min(end - before, count)
        if first < last:
            taken.append(file if last - first == count else with_rows(file, first, last))
        before += count
    return taken


def _split_line(entry: DatasetEntry, files: dict[str, list[CorpusFile]]) -> str:
    what = f"split {entry.split}" if entry.split else f"subset {entry.subset}"
    return f"{entry.name}: {what}: {len(files[TRAIN])} files for training, {len(files[TEST])} held out for validation"


def where_of(entry: DatasetEntry) -> str:
    return f"--datasets, {entry.name}"
