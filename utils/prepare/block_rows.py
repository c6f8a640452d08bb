"""A block of a corpus file in, rows out: what one process does by itself while data are prepared.

1. The block is parsed into documents; what is too short, too long or a duplicate is left out and named.
2. Conversations of a dialogue corpus are normalised, and their variants put beside them (`utils/prepare/dialogue.py`).
3. They are tokenised (`utils/prepare/encoding.py`) and packed into rows (`utils/prepare/packing.py`).
4. The emptiest rows are given back as pieces, for the one process that sees all blocks to put together: thereby small
   blocks cost no padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.data.shards import token_dtype
from utils.prepare import dialogue, packing
from utils.prepare.blocks import TextBlock
from utils.prepare.documents import Bad, Document, parse
from utils.prepare.encoding import Encoded, Encoder, Library, choose_library

GIVEN_BACK = 8
"""Rows that a block may give back. A hole of less than a 256th of the window is not worth it."""


@dataclass(frozen=True)
class Recipe:
    """What decides the rows of a block, but for its text."""

    checkpoint_dir: Path
    vocab_size: int
    window: int
    bos: bool
    eos: bool
    padding: bool
    text_field: str
    min_characters: int
    max_characters: int | None
    seed: int


@dataclass(frozen=True)
class Dialogue:
    """How the conversations of a dialogue corpus are treated: by their language, with up to `level` variants each."""

    language: str
    level: int


class Work(NamedTuple):
    """A block, its number in its file, that file's in its split, and how to treat it.

    duplicates: number of a document in the block → the document that it repeats.
    """

    file: int
    number: int
    block: TextBlock
    dialogue: Dialogue | None
    duplicates: dict[int, str]


class Removed(NamedTuple):
    """A document that was left out: why, where it begins, what is to be said of it, how its text begins."""

    reason: str
    at: int
    detail: str
    text: str


class Pieces(NamedTuple):
    """Whole documents, or pieces of one whose first token another piece has as its last: tokens [tokens], lengths."""

    tokens: np.ndarray
    lengths: np.ndarray


class Rows(NamedTuple):
    """tokens [rows, window]; lengths and overlaps [segments]; row_segments [rows + 1], as in a shard."""

    tokens: np.ndarray
    lengths: np.ndarray
    overlaps: np.ndarray
    row_segments: np.ndarray


class BlockRows(NamedTuple):
    """What became of a block. `tokens` counts every token of its documents once."""

    rows: Rows
    rest: Pieces
    documents: int
    variants: int
    turns: int
    words: int
    tokens: int
    library: Library
    bad: list[Bad]
    removed: list[Removed]


class BlockWorker:
    """Turns blocks into rows; for one process, which keeps the tokenizer."""

    def __init__(self, recipe: Recipe, library: Library) -> None:
        self.recipe = recipe
        self._library = library
        self._encoder = Encoder(recipe.checkpoint_dir, recipe.bos, recipe.eos, recipe.window, library)

    def __call__(self, work: Work) -> BlockRows:
        found, bad = parse(work.block, self.recipe.text_field)
        documents, removed = sift(found, work.duplicates, self.recipe)
        count = len(documents)
        if work.dialogue:
            documents = [form for document in documents for form in self._forms(document, work)]
        encoded = self._encoder(documents)
        removed += [_removed("no_tokens", documents[number], "") for number in encoded.empty]
        rows, rest = make_rows(encoded, self.recipe)
        return BlockRows(
            rows,
            rest,
            documents=len(encoded.lengths) - encoded.shared,
            variants=len(documents) - count,
            turns=encoded.turn_count,
            words=encoded.words,
            tokens=len(encoded.tokens) - encoded.shared,
            library=self._library,
            bad=bad,
            removed=removed,
        )

    def _forms(self, document: Document, work: Work) -> list[Document]:
        """The normalised conversation and its variants; a part of a conversation counts as one of its own."""
        assert work.dialogue is not None
        language, level = work.dialogue.language, work.dialogue.level
        normalised = dialogue.normalise(document.text[document.context :].decode(), language)
        place = f"{work.block.file.name} {document.at}"
        variants = (
            dialogue.variants(normalised, language, level, self.recipe.seed, place) if level and normalised else []
        )
        return [Document(form.encode(), document.at) for form in (normalised, *variants)]


def start_worker(recipe: Recipe, sample: list[str] | None) -> BlockWorker:
    """A worker with the fastest library that does `sample` right, the same in every process; None: with the own one."""
    return BlockWorker(recipe, choose_library(Tokenizer(recipe.checkpoint_dir), sample))


def sift(documents: list[Document], duplicates: dict[int, str], recipe: Recipe) -> tuple[list[Document], list[Removed]]:
    """The documents of a block that stay, and those that go."""
    kept, removed = [], []
    for number, document in enumerate(documents):
        if reason := length_problem(document, recipe):
            removed += [] if document.context else [_removed(reason, document, "")]
        elif number in duplicates:
            removed.append(_removed("duplicate", document, duplicates[number]))
        else:
            kept.append(document)
    return kept, removed


def length_problem(document: Document, recipe: Recipe) -> str:
    """Why the document's length does not do, or nothing. One that is in parts is longer than any limit."""
    if not recipe.min_characters and recipe.max_characters is None:
        return ""
    characters = len(document.text.decode())
    is_whole = document.ends and not document.context
    if recipe.max_characters is not None and (characters > recipe.max_characters or not is_whole):
        return "too_long"
    return "too_short" if is_whole and characters < recipe.min_characters else ""


def _removed(reason: str, document: Document, detail: str) -> Removed:
    return Removed(reason, document.at, detail, document.text[:320].decode("utf-8", "ignore")[:80])


def make_rows(encoded: Encoded, recipe: Recipe) -> tuple[Rows, Pieces]:
    """Packed rows of the documents, and what the emptiest of them held."""
    if recipe.padding:
        packed = packing.pack(encoded.lengths, encoded.turns, recipe.window)
    else:
        packed = packing.join(encoded.lengths, recipe.window)
    return part_rows(packed, encoded.tokens, encoded.lengths, recipe, GIVEN_BACK)


def part_rows(
    packed: packing.Rows, tokens: np.ndarray, lengths: np.ndarray, recipe: Recipe, give_back: int
) -> tuple[Rows, Pieces]:
    """The rows' tokens, and the pieces of the `give_back` emptiest ones, which are no rows then."""
    firsts = np.cumsum(lengths) - lengths
    used = np.add.reduceat(packed.end - packed.start, packed.row_pieces[:-1]) if len(packed.row_pieces) > 1 else []
    holes = recipe.window - np.asarray(used, np.int64)
    emptiest = np.argsort(-holes, kind="stable")[:give_back]
    left = np.zeros(len(holes), bool)
    left[emptiest[holes[emptiest] > recipe.window >> 8]] = True
    rest = _pieces(_select(packed, left), tokens, firsts)
    kept = _select(packed, ~left)
    filled, segments = packing.fill(kept, tokens, firsts, recipe.window)
    return Rows(filled, segments, kept.overlap.astype(np.int32), kept.row_pieces), rest


def _select(rows: packing.Rows, chosen: np.ndarray) -> packing.Rows:
    """The rows that are `chosen`, bool [rows]."""
    counts = np.diff(rows.row_pieces)
    pieces = np.repeat(chosen, counts)
    row_pieces = np.concatenate([[0], np.cumsum(counts[chosen])])
    return packing.Rows(*(values[pieces] for values in rows[:4]), row_pieces)


def _pieces(rows: packing.Rows, tokens: np.ndarray, firsts: np.ndarray) -> Pieces:
    """The pieces of `rows`, each from the one token on that is no target."""
    begins = (firsts[rows.document] + rows.start + rows.overlap - 1).tolist()
    ends = (firsts[rows.document] + rows.end).tolist()
    parts = [tokens[begin:end] for begin, end in zip(begins, ends, strict=True)]
    lengths = np.array([len(part) for part in parts], np.int64)
    return Pieces(np.concatenate([np.zeros(0, tokens.dtype), *parts]), lengths)


class Remainder:
    """The pieces that blocks give back, until there are enough of them for rows."""

    def __init__(self, recipe: Recipe, emit: Callable[[Rows], None]) -> None:
        self._recipe, self._emit = recipe, emit
        self._parts: list[Pieces] = []
        self._size = 0

    def add(self, rest: Pieces) -> None:
        self._parts.append(rest)
        self._size += len(rest.tokens)
        if self._size >= 256 * self._recipe.window:
            self._pack(GIVEN_BACK)

    def close(self) -> None:
        """Makes rows of all that is left."""
        self._pack(0)

    def _pack(self, give_back: int) -> None:
        dtype = token_dtype(self._recipe.vocab_size)
        tokens = np.concatenate([np.zeros(0, dtype), *(part.tokens for part in self._parts)])
        lengths = np.concatenate([np.zeros(0, np.int64), *(part.lengths for part in self._parts)])
        encoded_turns = np.zeros(0, np.int64)
        if self._recipe.padding:
            packed = packing.pack(lengths, encoded_turns, self._recipe.window)
        else:
            packed = packing.join(lengths, self._recipe.window)
        rows, rest = part_rows(packed, tokens, lengths, self._recipe, give_back)
        self._emit(rows)
        self._parts, self._size = [rest], len(rest.tokens)
