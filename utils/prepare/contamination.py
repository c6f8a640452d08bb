"""Which texts of a corpus have runs of words in common with test files.

`write_runs` hashes every run of `--contamination_words` words of the test files into sorted arrays on the disk, which
all processes map and share; `WordRuns.find` looks a block's texts up in them. Case, punctuation and white space do not
count (`words.py`). A test item of fewer words, but at least `SHORTEST`, is looked for as a whole; what is shorter than
that is found in too much that has nothing to do with it, and is not looked for.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np

from lit_gpt.checksums import file_sha256
from lit_gpt.errors import naming
from utils.files.arrays import write_array
from utils.files.atomic import write_atomically
from utils.prepare.chat.conversation import Conversation, LeftOut
from utils.prepare.contamination_files import read_texts, require_readable
from utils.prepare.documents import Document
from utils.prepare.progress import say
from utils.prepare.words import Words, in_batches, runs_of

TEST_RUNS = "test_runs"  # the folder for them, beside the splits' parts
SHORTEST = 8  # words; a shorter run, such as "what is the capital of the country of", is no sign of a copy
TABLE_BITS = 16  # per run: so one in sixteen runs that are not in the test files has to be looked for
SLICE = 1 << 23  # bits of the table made at a time


class Hit(NamedTuple):
    file: str  # the test file
    words: str  # the run of words, without case and punctuation


@dataclass(frozen=True)
class WordRuns:
    """The runs of words of some test files, as `write_runs` left them in `folder`."""

    folder: Path
    leave_out: bool  # whether what has one of them is left out, or reported alone
    sha256: str  # of all that decides them

    @cached_property
    def _index(self) -> "_Index":
        values = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
        runs, table = np.zeros(0, np.uint64), np.zeros(1 << values["bits"] >> 3, np.uint8)
        if values["begins"][-1]:
            runs = np.memmap(self.folder / "runs", np.uint64, "r")
            table = np.memmap(self.folder / "table", np.uint8, "r")
        return _Index(values["files"], values["begins"], values["lengths"], values["bits"], runs, table)

    def find(self, texts: list[str]) -> list[Hit | None]:
        """The first run of each text that a test file has, too."""
        return [hit for words in in_batches(texts) for hit in self._index.find(words)]


Item = TypeVar("Item", Conversation, Document)


def screen(
    items: list[Item], runs: WordRuns | None, texts_of: Callable[[Item], list[str]], beginning: Callable[[Item], str]
) -> tuple[list[Item], list[LeftOut], list[LeftOut]]:
    """What stays, what is left out because test files have some of it, too, and all of which they have some.

    The last ones' reason is the test file, and their detail the words.
    """
    if runs is None:
        return items, [], []
    texts = [texts_of(item) for item in items]
    hits_of_texts = iter(runs.find(list(chain.from_iterable(texts))))
    kept, hits = [], []
    for item, of_item in zip(items, texts, strict=True):
        found = [hit for hit in islice(hits_of_texts, len(of_item)) if hit]
        if found:
            hits.append(LeftOut(found[0].file, item.at, found[0].words, beginning(item)))
        else:
            kept.append(item)
    if not runs.leave_out:
        return items, [], hits
    return kept, [LeftOut("contaminated", hit.at, f"{hit.reason}: {hit.detail}", hit.text) for hit in hits], hits


class _Index(NamedTuple):
    files: list[str]
    begins: list[int]  # [files + 1]: where the runs of each file begin
    lengths: list[int]  # words of a run
    bits: int  # of a hash, the first so many: its place in `table`
    runs: np.ndarray  # [runs] uint64, sorted for each file
    table: np.ndarray  # [2**bits / 8] uint8: a set bit where there is such a run

    def find(self, words: Words) -> list[Hit | None]:
        found: dict[int, tuple[int, int, int]] = {}  # text → first word of the run, its length, file
        for length, hashes, firsts in runs_of(words, self.lengths):
            slots = hashes >> np.uint64(64 - self.bits)
            likely = np.flatnonzero(self.table[slots >> 3] >> (slots & 7).astype(np.uint8) & 1)
            likely = likely[np.argsort(hashes[likely])]  # so that the pages of a large file are read in order
            for file in range(len(self.files) if len(likely) else 0):
                of_file = self.runs[self.begins[file] : self.begins[file + 1]]
                if not len(of_file):
                    continue
                places = np.searchsorted(of_file, hashes[likely])
                is_there = of_file[np.minimum(places, len(of_file) - 1)] == hashes[likely]
                hits = np.sort(firsts[likely[is_there]])
                texts, which = np.unique(np.searchsorted(words.begins, hits, side="right") - 1, return_index=True)
                for text, first in zip(texts.tolist(), hits[which].tolist(), strict=True):
                    hit = (first, length, file)
                    found[text] = min(found.get(text, hit), hit)
        result: list[Hit | None] = [None] * (len(words.begins) - 1)
        for text, (first, length, file) in found.items():
            result[text] = Hit(self.files[file], words.written(first, length))
        return result


def write_runs(paths: list[Path], length: int, leave_out: bool, folder: Path) -> WordRuns:
    """Writes into `folder` what the runs of `length` words of test files are, unless it holds them already.

    Takes 10 bytes per word on the disk, and in memory those of the longest file at most, as pages of a mapped file.
    """
    for path in paths:
        require_readable(path)
    content = [[path.name, file_sha256(path)] for path in paths]
    key = json.dumps([1, content, length, SHORTEST])
    index = folder / "index.json"
    if not index.is_file() or json.loads(index.read_text(encoding="utf-8"))["key"] != key:
        index.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(index, json.dumps({"key": key, **_write(paths, length, folder)}))
    return WordRuns(folder, leave_out, hashlib.sha256(key.encode()).hexdigest())


def _write(paths: list[Path], length: int, folder: Path) -> dict[str, object]:
    begins, lengths = [0], set()
    with (folder / "runs").open("wb", buffering=0) as file, naming(folder):
        for path in paths:
            counts = _write_file(path, length, file)
            begins.append(begins[-1] + counts.total() - counts[0])
            lengths |= counts.keys() - {0}
            if not begins[-1] - begins[-2]:
                say(f"warning: --contamination: {path} has no text of {SHORTEST} words or more: nothing is found by it")
            elif counts[0]:
                say(f"--contamination: {path}: {counts[0]:,} texts of fewer than {SHORTEST} words are not looked for")
    total = begins[-1]
    bits = max((TABLE_BITS * total).bit_length(), 10)
    with (folder / "table").open("wb", buffering=0) as file, naming(folder):
        if total:
            _write_table(np.memmap(folder / "runs", np.uint64, "r+"), begins, bits, file)
    files = _distinct_names(paths)
    return {"files": files, "begins": begins, "lengths": sorted(lengths), "bits": bits}


def _distinct_names(paths: list[Path]) -> list[str]:
    """The files' names; where two have the same one, their whole paths."""
    names = Counter(path.name for path in paths)
    return [path.name if names[path.name] == 1 else str(path) for path in paths]


def _write_file(path: Path, length: int, file: IO[bytes]) -> Counter[int]:
    """Writes the runs of one file; counts them by their number of words, and under 0 the texts that are too short."""
    counts: Counter[int] = Counter()
    for words in in_batches(read_texts(path, 4 * length)):
        sizes = np.diff(words.begins)
        counts[0] += int(((sizes > 0) & (sizes < SHORTEST)).sum())
        shorter = set(sizes[(sizes >= SHORTEST) & (sizes < length)].tolist())
        for run, hashes, firsts in runs_of(words, sorted({*shorter, length})):
            if run < length:
                hashes = hashes[np.searchsorted(firsts, words.begins[:-1][sizes == run])]
            if len(hashes):
                counts[run] += len(hashes)
                write_array(file, hashes)
    return counts


def _write_table(runs: np.ndarray, begins: list[int], bits: int, file: IO[bytes]) -> None:
    """Sorts each file's runs in place, and writes a bit for every hash of `bits` bits, set where a run has it."""
    of_files = [runs[begin:end] for begin, end in pairwise(begins)]
    for of_file in of_files:
        of_file.sort()
    count = min(SLICE, 1 << bits)
    for start in range(0, 1 << bits, count):
        table = np.zeros(count, np.uint8)
        low, high = start << (64 - bits), ((start + count) << (64 - bits)) - 1
        for of_file in of_files:
            first = np.searchsorted(of_file, np.uint64(low))
            last = np.searchsorted(of_file, np.uint64(high), side="right")
            table[(of_file[first:last] >> np.uint64(64 - bits)).astype(np.int64) - start] = 1
        write_array(file, np.packbits(table, bitorder="little"))
