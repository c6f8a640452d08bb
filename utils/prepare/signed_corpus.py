"""The signatures of all of a corpus' documents (`duplicates.py` writes them), and what is decided put by split."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from lit_gpt.errors import naming
from utils.data.manifest import TEST, TRAIN
from utils.files.arrays import write_array
from utils.prepare.duplicates import PLACE, signatures_folder
from utils.prepare.plan import Sifted
from utils.prepare.prompts import Prompts
from utils.prepare.signatures import PERMUTATIONS
from utils.prepare.sources import Source

_PLACE = np.dtype([("file", "i4"), ("block", "i4"), ("number", "i4"), ("at", "i8")])  # PLACE without the beginning


@dataclass(frozen=True)
class SignedCorpus:
    """The signatures of all sources' own files, as one array each, in the order in which documents are compared."""

    parts_dir: Path
    all_sources: list[Source]

    @cached_property
    def sources(self) -> list[Source]:
        with_files = [source.own for source in self.all_sources if source.own.files]
        return sorted(with_files, key=lambda source: (source.split != TEST, source.dataset))

    @cached_property
    def _by_source(self) -> list[np.ndarray]:
        return [self._places(source) for source in self.sources]

    def _places(self, source: Source) -> np.ndarray:
        written = self._mapped(source, "locations", PLACE)
        places = np.empty(len(written), _PLACE)
        for name in _PLACE.names or ():
            places[name] = written[name]
        return places

    @cached_property
    def places(self) -> np.ndarray:
        """[documents] _PLACE: where each is, in 20 bytes."""
        return np.concatenate(self._by_source)

    @cached_property
    def source_of(self) -> np.ndarray:
        """[documents]: the number of each one's source."""
        return np.repeat(np.arange(len(self.sources)), [len(places) for places in self._by_source])

    def exact(self) -> np.ndarray:
        """[documents, 2] uint64"""
        return np.concatenate([self._mapped(source, "exact", np.uint64).reshape(-1, 2) for source in self.sources])

    @cached_property
    def is_chat(self) -> np.ndarray:
        kinds = [np.zeros(0, bool)]
        for source, places in zip(self.sources, self._by_source, strict=True):
            of_files = np.array([source.converter_of(file) is not None for file in source.files])
            kinds.append(of_files[places["file"]])
        return np.concatenate(kinds)

    @cached_property
    def is_test(self) -> np.ndarray:
        return np.array([source.split == TEST for source in self.sources])[self.source_of]

    def sketches(self, chosen: np.ndarray) -> np.ndarray:
        """Those of `chosen` [documents] as one memory map: 512 bytes per document are not held in memory."""
        ends = np.cumsum([len(places) for places in self._by_source]).tolist()
        of_sources = [chosen[end - len(places) : end] for places, end in zip(self._by_source, ends, strict=True)]
        return self._joined("sketches", np.uint32, of_sources).reshape(-1, PERMUTATIONS)

    def prompts(self) -> Prompts:
        """Those of the chats; of what takes the most room, memory maps."""
        exact = [self._mapped(source, "prompt_exact", np.uint64) for source in self.sources]
        counts = [self._mapped(source, "prompt_counts", np.int64) for source in self.sources]
        return Prompts(
            exact=np.concatenate(exact).reshape(-1, 2),
            sketches=self._joined("prompt_sketches", np.uint8).reshape(-1, PERMUTATIONS),
            counts=np.concatenate(counts),
            shingles=self._joined("prompt_shingles", np.uint32),
        )

    def _joined(self, name: str, dtype: type, chosen: list[np.ndarray] | None = None) -> np.ndarray:
        """The sources' files `name` as one memory map; of sketches, the rows that are `chosen` of each source."""
        with TemporaryFile(dir=self.parts_dir, buffering=0) as joined, naming(self.parts_dir):
            for number, source in enumerate(self.sources):
                values = self._mapped(source, name, dtype)
                if chosen is None:
                    write_array(joined, values)
                    continue
                rows = values.reshape(-1, PERMUTATIONS)
                for start in range(0, len(rows), 4096):
                    part = slice(start, start + 4096)
                    write_array(joined, rows[part][chosen[number][part]])
            if not joined.tell():  # an empty file cannot be mapped
                return np.zeros(0, dtype)
            return np.memmap(joined, dtype, "r")

    def _mapped(self, source: Source, name: str, dtype: np.typing.DTypeLike) -> np.ndarray:
        path = signatures_folder(self.parts_dir, source) / name
        if not path.is_file() or not path.stat().st_size:
            return np.zeros(0, dtype)
        return np.memmap(path, dtype, "r")

    def beginning(self, document: int) -> str:
        """How a document begins."""
        number = self.source_of[document]
        before = sum(len(places) for places in self._by_source[:number])
        written = self._mapped(self.sources[number], "locations", PLACE)
        return bytes(written["beginning"][document - before]).decode("utf-8", "ignore")

    def where(self, document: int) -> str:
        """The file of a document, and its byte or row."""
        file = self.sources[self.source_of[document]].files[self.places["file"][document]]
        return f"{file.name}, {file.unit} {self.places['at'][document]}"

    def by_split(self, repeats: np.ndarray, is_moved: np.ndarray) -> dict[str, Sifted]:
        """What is decided, for the splits that have the documents in the end."""
        sifted = {source.name: Sifted({}, {}) for source in self.all_sources}
        numbers = self.places["number"]
        for source, file, block, documents in self._blocks():
            moved = is_moved[documents]
            for split, index, takes_moved in self._homes(self.sources[source], file):
                of_split = moved == takes_moved
                own, others = documents[of_split], documents[~of_split]
                if len(others):
                    sifted[split.name].others[index, block] = numbers[others].astype(np.int32)
                copies = own[repeats[own] >= 0]
                if len(copies):
                    details = map(self.where, repeats[copies].tolist())
                    of_block = dict(zip(numbers[copies].tolist(), details, strict=True))
                    sifted[split.name].duplicates[index, block] = of_block
        return sifted

    def _blocks(self) -> Iterator[tuple[int, int, int, np.ndarray]]:
        """The number of a source, of a file in it, of a block in that, and the documents of the block."""
        places = self.places
        ids = np.stack([self.source_of, places["file"], places["block"]], axis=1)
        begins = np.flatnonzero(np.append(len(ids) > 0, (ids[1:] != ids[:-1]).any(axis=1))).tolist()
        for begin, end in zip(begins, [*begins[1:], len(ids)], strict=False):
            source, file, block = ids[begin].tolist()
            yield source, file, block, np.arange(begin, end)

    def _homes(self, source: Source, file: int) -> Iterator[tuple[Source, int, bool]]:
        """The splits that read a file of a source, its number there, and whether that split takes what is moved."""
        splits = self._splits[source.dataset]
        yield splits[source.split], file, False
        if source.split == TRAIN and file in self._shared[source.dataset]:
            yield splits[TEST], self._shared[source.dataset][file], True

    @cached_property
    def _splits(self) -> dict[str, dict[str, Source]]:
        splits: dict[str, dict[str, Source]] = {}
        for source in self.all_sources:
            splits.setdefault(source.dataset, {})[source.split] = source
        return splits

    @cached_property
    def _shared(self) -> dict[str, dict[int, int]]:
        """Of each dataset, the files of its training split that the other one reads, too, and their numbers there."""
        shared = {}
        for dataset, splits in self._splits.items():
            train, test = splits.get(TRAIN), splits.get(TEST)
            shared[dataset] = {}
            if train and test and test.shared:
                chats = [number for number, file in enumerate(train.files) if train.converter_of(file)]
                first = len(test.files) - test.shared
                shared[dataset] = {number: first + place for place, number in enumerate(chats)}
        return shared
