"""The formats of corpus files, by their names; a .json file is looked into. What is not read, and how it could be."""

import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

from utils.prepare.unpacking import packing_of, unpacked

CONVERSATIONS, PLAIN, LINES = "conversations", "plain", "lines"
PARQUET, ARROW, TABLE, RECORDS = "parquet", "arrow", "table", "records"  # RECORDS: JSON that is not one per line
ROWS = frozenset({PARQUET, ARROW, TABLE, RECORDS})  # whose positions count rows, not bytes
READABLE = "*.txt, *.jsonl, *.ndjson, *.json, *.csv, *.tsv (each also .gz, .bz2, .xz, .zst), *.parquet and *.arrow"

_FORMATS = {".txt": PLAIN, ".jsonl": LINES, ".ndjson": LINES, ".json": RECORDS, ".csv": TABLE, ".tsv": TABLE}
_BINARY = {".parquet": PARQUET, ".arrow": ARROW}
_CONVERSATIONS = ("full", "train", "test")
_DESCRIPTIONS = (
    "README.md",
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "SHA256SUMS",
)
_CACHE = re.compile(r"cache-[0-9a-f]{16}.*\.arrow")
_MAX_FIRST_LINE = 2**25

NOTE = "beside full.txt, train.txt and test.txt they are taken for notes"
_WAYS = {
    "archives; unpack them": "zip tar tgz tbz2 txz 7z rar",
    "make them .txt, say with pandoc -t plain": "docx doc odt rtf epub html htm xhtml xml md rst tex",
    "make them .txt, say with pdftotext": "pdf djvu ps",
    "save them as .csv": "xlsx xls ods",
    "make them .parquet or .jsonl": "feather h5 hdf5 lance orc avro db sqlite pkl pt npy npz warc",
}
_WAY_OF_SUFFIX = {f".{suffix}": way for way, suffixes in _WAYS.items() for suffix in suffixes.split()}


@dataclass(frozen=True)
class CorpusFile:
    path: Path
    name: str  # the path relative to the corpus, with `/`
    format: str
    span: tuple[int, int] | None = None  # the rows or bytes (`unit`) that are read, up to the second; None: all
    text_field: str = ""  # of its records of text, where it is not --text_field's
    join_field: str = ""  # of its records of text: consecutive ones with the same value in it are one document

    @property
    def begin(self) -> int:
        """The first row or byte that is read."""
        return self.span[0] if self.span else 0

    @property
    def unit(self) -> str:
        return "row" if self.format in ROWS else "byte"


class Unread(NamedTuple):
    name: str  # as that of a `CorpusFile`
    reason: str  # why it is not read, and the way to have it read


def format_of(name: str) -> str | None:
    """The format of a file by its name, None for what is not a corpus file; `RECORDS` for every .json."""
    stem, suffix, packing = _parted(name)
    if suffix in _BINARY and not packing:
        return _BINARY[suffix]
    if suffix == ".txt" and stem in _CONVERSATIONS:
        return CONVERSATIONS
    return _FORMATS.get(suffix)


def stem_of(name: str) -> str:
    """`full` for `full.txt` and `full.TXT.gz`."""
    return _parted(name)[0]


def _parted(name: str) -> tuple[str, str, str]:
    """A file name without its suffixes, its suffix, and that of its packing, both in lower case."""
    path = PurePath(name)
    packing = packing_of(path)
    if packing:
        path = path.with_suffix("")
    return path.stem, path.suffix.lower(), packing


def describes_data(name: str) -> bool:
    return PurePath(name).name in _DESCRIPTIONS


def why_unread(name: str) -> str | None:
    """Why a file, by its name or path, is never read, and what to do about it; None for one that is read."""
    name = PurePath(name).name
    if name in _DESCRIPTIONS:
        return "they describe data"
    if _CACHE.fullmatch(name):
        return "what `map` of datasets keeps repeats or changes other rows; save_to_disk what is to be read"
    if format_of(name) is not None:
        return None
    _, suffix, packing = _parted(name)
    if way := _WAY_OF_SUFFIX.get(suffix):
        return way
    if packing:
        return f"name them by what is in them, such as a.txt{packing} or a.jsonl{packing}"
    return f"unknown files; what is read is {READABLE}"


def format_of_json(path: Path) -> str:
    """`LINES` where a .json file has a record per line, else `RECORDS`; a DataError if it cannot be unpacked."""
    with unpacked(path) as stream:
        first = stream.read(2**16).removeprefix(BOM_UTF8).lstrip()
        if first.startswith(b"["):
            return RECORDS
        while b"\n" not in first and len(first) < _MAX_FIRST_LINE and (more := stream.read(2**20)):
            first += more
    line = first.partition(b"\n")[0].strip()
    return LINES if not line or line.endswith(b"}") else RECORDS


def say_unread(unread: list[Unread], log: Callable[[str], None]) -> None:
    """A line for each reason: how many files of which kinds, and the first three."""
    by_reason: dict[str, list[str]] = {NOTE: []} if any(reason == NOTE for _, reason in unread) else {}
    for name, reason in unread:
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        if reason == NOTE:
            kinds = ", ".join(sorted({_kind(name) for name in names}))
            log(f"ignored {len(names)} other {kinds} files: {NOTE}")
            continue
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(map(_kind, names)).most_common(10))
        examples = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        log(f"not read: {kinds} ({examples}): {reason}")


def _kind(name: str) -> str:
    name = PurePath(name).name
    if name.startswith("."):
        return "hidden"
    _, suffix, packing = _parted(name)
    return suffix + packing or "without a suffix"
