"""The files of each entry of --datasets, by split: an entry is one dataset, whatever folders its files lie in."""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from utils.data.manifest import TEST, TRAIN
from utils.prepare.dataset_entries import TEXT, DatasetEntry
from utils.prepare.file_formats import CorpusFile, Unread
from utils.prepare.sources import Source, find_sources


def find_entry_sources(
    entries: list[DatasetEntry],
    log: Callable[[str], None] = print,
    options: Collection[Path] = (),
    unread: list[Unread] | None = None,
) -> list[Source]:
    """A source or two for each entry, in the order that `find_sources` has; its arguments are the same."""
    sources = []
    for entry in entries:
        sources += _sources_of(entry, log, options, unread)
    return sorted(sources, key=lambda source: (source.dataset, source.split != TRAIN))


def _sources_of(
    entry: DatasetEntry, log: Callable[[str], None], options: Collection[Path], unread: list[Unread] | None
) -> list[Source]:
    files: dict[str, list[CorpusFile]] = {TRAIN: [], TEST: []}
    for source in find_sources(Path(entry.path), log, options, unread, where_of(entry)):
        for file in source.files:
            files[source.split].append(replace(file, name=f"{entry.name}/{file.name}"))
    converter = None if entry.converter.name == TEXT else entry.converter
    return [
        Source(entry.name, split, tuple(of_split), converter, entry.language.lower(), entry.group)
        for split, of_split in files.items()
        if of_split
    ]


def where_of(entry: DatasetEntry) -> str:
    return f"--datasets, {entry.name}"
