"""Which documents of a corpus repeat another one: signatures of each split, then one decision over all.

1. `write_signatures`: a split's blocks are signed in parallel (`signatures.py`), and the signatures appended to files
   in `parts/<dataset>-<split>.signatures/`, so that memory does not grow with the corpus and a killed call does not
   start anew.
2. `decide`: test splits come first, so that of a text in both, the one for validation stays and training never sees it;
   then datasets by name, documents in their order. The first of equal ones stays.

A document that is longer than a block, and therefore in parts, is not compared.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np

from utils.data.manifest import TEST
from utils.files.atomic import naming, write_array, write_atomically
from utils.prepare.block_rows import BlockWorker, Work, length_problem
from utils.prepare.documents import parse
from utils.prepare.signatures import PERMUTATIONS, Signatures, find_repeats, sign_texts
from utils.prepare.sources import Source

OfSource = dict[tuple[int, int], dict[int, str]]
"""Number of a split's file and of a block in it → number of a document there → the document that it repeats."""
_PLACE = 4
"""Numbers that say where a document is: file, block, document in the block, byte or row."""


class Signed(NamedTuple):
    """A block's signatures, and of each document its number in the block and its byte or row: [documents, 2] int64."""

    signatures: Signatures
    places: np.ndarray


def sign(worker: BlockWorker, work: Work, near: bool) -> Signed:
    """Signatures of a block's whole documents of the right length; of near-duplicates too if `near`."""
    found, _ = parse(work.block, worker.recipe.text_field)
    kept = [
        (number, document)
        for number, document in enumerate(found)
        if document.ends and not document.context and not length_problem(document, worker.recipe)
    ]
    texts = [document.text.decode() for _, document in kept]
    places = np.array([(number, document.at) for number, document in kept], np.int64).reshape(-1, 2)
    return Signed(sign_texts(texts, near), places)


def signatures_folder(parts: Path, source: Source) -> Path:
    return parts / f"{source.name}.signatures"


def are_written(parts: Path, source: Source, key: str) -> bool:
    """Whether an earlier call wrote the signatures of just these files with just these settings."""
    done = signatures_folder(parts, source) / "done.json"
    return done.is_file() and json.loads(done.read_text(encoding="utf-8")) == key


def write_signatures(parts: Path, source: Source, key: str, blocks: Iterable[tuple[Work, Signed]]) -> None:
    """Writes a split's signatures: of each block, what `sign` made of it."""
    folder = signatures_folder(parts, source)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "done.json").unlink(missing_ok=True)
    try:
        _write_blocks(folder, blocks)
        write_atomically(folder / "done.json", json.dumps(key))
    except OSError:
        shutil.rmtree(folder)
        raise


def _write_blocks(folder: Path, blocks: Iterable[tuple[Work, Signed]]) -> None:
    with ExitStack() as files:
        names = ("exact", "sketches", "places")
        exact, sketches, places = (files.enter_context((folder / name).open("wb", buffering=0)) for name in names)
        for work, signed in blocks:
            where = np.empty((len(signed.places), _PLACE), np.int64)
            where[:, :2], where[:, 2:] = (work.file, work.number), signed.places
            with naming(folder):
                write_array(exact, signed.signatures.exact)
                write_array(places, where)
                if signed.signatures.sketches is not None:
                    write_array(sketches, signed.signatures.sketches)


def decide(parts: Path, sources: list[Source], threshold: float | None) -> dict[str, OfSource]:
    """By name of the split, what repeats another document; `threshold` is None where only equal texts do."""
    sources = sorted(sources, key=lambda source: (source.split != TEST, source.dataset))
    folders = [signatures_folder(parts, source) for source in sources]
    exact = np.concatenate([np.fromfile(folder / "exact", np.uint64).reshape(-1, 2) for folder in folders])
    places = np.concatenate([np.fromfile(folder / "places", np.int64).reshape(-1, _PLACE) for folder in folders])
    counts = [(folder / "exact").stat().st_size // 16 for folder in folders]
    source_of = np.repeat(np.arange(len(sources)), counts)
    sketches = None if threshold is None else _joined_sketches(parts, folders, len(exact))
    repeats = find_repeats(exact, sketches, threshold or 1.0)
    found: dict[str, OfSource] = {source.name: {} for source in sources}
    for document in np.flatnonzero(repeats >= 0).tolist():
        file, block, number, _ = places[document].tolist()
        original = int(repeats[document])
        of_file, *_, at = places[original].tolist()
        kept = sources[source_of[original]].files[of_file]
        unit = kept.unit
        of_block = found[sources[source_of[document]].name].setdefault((file, block), {})
        of_block[number] = f"{kept.name}, {unit} {at}"
    return found


def _joined_sketches(parts: Path, folders: list[Path], documents: int) -> np.ndarray:
    """The sketches of all splits as one memory map: 512 bytes per document are not held in memory."""
    if not documents:  # an empty file cannot be mapped
        return np.zeros((0, PERMUTATIONS), np.uint32)
    with TemporaryFile(dir=parts, buffering=0) as joined, naming(parts):
        for folder in folders:
            with (folder / "sketches").open("rb") as file:
                while chunk := file.read(1 << 20):
                    write_array(joined, np.frombuffer(chunk, np.uint8))
        return np.memmap(joined, np.uint32, "r", shape=(documents, PERMUTATIONS))


def digest(of_source: OfSource) -> str:
    """SHA-256 of what is left out of a split."""
    content = [[key, sorted(documents.items())] for key, documents in sorted(of_source.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
