"""A block of a corpus file in, rows out: what one process does by itself while data are prepared.

The block is parsed into documents; what is too short, too long or a duplicate is left out and named. Conversations are
normalised, and their variants put beside them (`dialogue.py`). The documents are tokenised (`encoding.py`) and packed
(`packing.py`). The emptiest rows are given back as pieces; the one process that sees all blocks packs these together
(`Remainder`), so that small blocks cost no padding.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.data.parts import PARTS, TARGET, predicted, sums_between
from utils.data.shards import token_dtype
from utils.prepare import dialogue
from utils.prepare.blocks import TextBlock
from utils.prepare.chat.conversation import ChatRecipe, Converter, LeftOut
from utils.prepare.contamination import WordRuns, screen
from utils.prepare.documents import Bad, Document, parse
from utils.prepare.encoding import Encoder, Library, choose_library
from utils.prepare.gigatoken_proof import Proof
from utils.prepare.packing import Packing, fill, join, pack

GIVEN_BACK = 8  # rows that a block may give back; a hole of less than a 256th of the window is not worth it


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
    special_tokens_in_text: bool = False
    chat: ChatRecipe | None = None  # where there are conversations of records
    test_runs: WordRuns | None = None  # runs of words of test files, which nothing may have


@dataclass(frozen=True)
class Dialogue:
    language: str
    level: int  # variants per conversation, at most


class Work(NamedTuple):
    file: int  # number of the block's file in its split
    number: int  # number of the block in its file
    block: TextBlock
    dialogue: Dialogue | None
    duplicates: dict[int, str]  # number of a document in the block → the document that it repeats
    converter: Converter | None = None  # what makes chats of the block's records; None where they are texts
    others: np.ndarray | None = None  # numbers of the conversations in the block that are of the other split
    is_shared: bool = False  # whether the other split has this block, too, and names what is malformed in it


class Pieces(NamedTuple):
    """Whole documents, or pieces of one whose first token another piece has as its last."""

    tokens: np.ndarray  # [tokens]: the pieces, one after the other
    lengths: np.ndarray  # [pieces] int64
    parts: np.ndarray | None = None  # [tokens] uint8: what each token is (utils/data/parts.py); None: all are targets


class Rows(NamedTuple):
    tokens: np.ndarray  # [rows, window]
    lengths: np.ndarray  # [segments] int32
    overlaps: np.ndarray  # [segments] int32: how many of a segment's first tokens are not targets
    row_segments: np.ndarray  # [rows + 1] int64: where the segments of each row begin
    parts: np.ndarray | None = None  # [rows, window] uint8: what each token is; None: all are targets

    def count_parts(self) -> Counter[str]:
        """How many of the tokens that are not left context are each part, targets among them."""
        if self.parts is None:
            return Counter({PARTS[TARGET]: int(self.lengths.sum() - self.overlaps.sum())})
        used = sums_between(self.row_segments, self.lengths)
        is_token = np.arange(self.parts.shape[1]) < used[:, None]
        found = self.parts[is_token][predicted(self.lengths, self.overlaps)]
        counts = np.bincount(found, minlength=len(PARTS))
        return Counter(dict(zip(PARTS, counts.tolist(), strict=True)))


class BlockRows(NamedTuple):
    rows: Rows
    rest: Pieces  # what the emptiest rows held
    documents: int  # documents with their variants, but a document in parts only once
    variants: int
    turns: int
    words: int
    tokens: int  # every token of the documents once
    text_bytes: int  # UTF-8 bytes of the documents' text
    target_bytes: int  # of the text that is predicted
    named: Counter[str]  # how often the text has each name of a control token
    library: Library
    bad: list[Bad]
    left_out: list[LeftOut]
    conversations: int = 0  # of which documents were made: samples
    messages: int = 0
    shortened: int = 0  # conversations from whose end turns were left out
    turns_left_out: int = 0
    hits: Sequence[LeftOut] = ()  # what has a run of words of a test file: its reason is the file, its detail the words


class BlockWorker:
    def __init__(self, recipe: Recipe, library: Library) -> None:
        self.recipe = recipe
        self._library = replace(library, avoid=())  # to be said, block by block
        self._encoder = Encoder(
            recipe.checkpoint_dir, recipe.bos, recipe.eos, recipe.window, library, recipe.special_tokens_in_text
        )

    def __call__(self, work: Work) -> BlockRows:
        """Packs a block's documents into rows; a DataError if gigatoken gives other tokens than the tokenizer."""
        found, bad = parse(work.block, self.recipe.text_field)
        documents, left_out = sift(found, work.duplicates, self.recipe)
        # of a document in parts, only the part is left out
        documents, contaminated, hits = screen(documents, self.recipe.test_runs, _texts_of, _beginning)
        left_out += contaminated
        count = len(documents)
        if work.dialogue:
            forms = [self._forms(document, work) for document in documents]
            documents = list(chain.from_iterable(forms))
        encoded = self._encoder(documents)
        left_out += [_left_out("no_tokens", documents[number]) for number in encoded.empty]
        rows, rest = packed_rows(Pieces(encoded.tokens, encoded.lengths), encoded.turns, self.recipe, GIVEN_BACK)
        return BlockRows(
            rows,
            rest,
            documents=len(encoded.lengths) - encoded.shared,
            variants=len(documents) - count,
            turns=encoded.turn_count,
            words=encoded.words,
            tokens=len(encoded.tokens) - encoded.shared,
            text_bytes=encoded.text_bytes,
            target_bytes=encoded.text_bytes,
            named=encoded.named,
            library=self._library,
            bad=bad,
            left_out=left_out,
            hits=hits,
        )

    def _forms(self, document: Document, work: Work) -> list[Document]:
        """The normalised conversation and its variants; a part of a conversation counts as one of its own."""
        assert work.dialogue is not None
        language, level = work.dialogue.language, work.dialogue.level
        conversation = dialogue.normalise(document.text[document.context :].decode(), language)
        forms = [conversation]
        if level and conversation:
            name = f"{work.block.file.name} {document.at}"
            forms += dialogue.variants(conversation, language, level, self.recipe.seed, name)
        return [Document(form.encode(), document.at) for form in forms]


def start_worker(recipe: Recipe, sample: list[str] | None, proof: Proof | None = None) -> BlockWorker:
    """A worker with the fastest library that tokenises `sample` right; without a sample, with the tokenizer's own."""
    library = choose_library(Tokenizer(recipe.checkpoint_dir), sample, proof, recipe.special_tokens_in_text)
    return BlockWorker(recipe, library)


def sift(documents: list[Document], duplicates: dict[int, str], recipe: Recipe) -> tuple[list[Document], list[LeftOut]]:
    kept, left_out = [], []
    for number, document in enumerate(documents):
        if reason := length_problem(document, recipe):
            if not document.context:  # of a document in parts the first one is named
                left_out.append(_left_out(reason, document))
        elif number in duplicates:
            left_out.append(_left_out("duplicate", document, duplicates[number]))
        else:
            kept.append(document)
    return kept, left_out


def length_problem(document: Document, recipe: Recipe) -> str:
    if not recipe.min_characters and recipe.max_characters is None:
        return ""
    characters = len(document.text.decode())
    # a document in parts is longer than any limit
    if recipe.max_characters is not None and (characters > recipe.max_characters or not document.is_whole):
        return "too_long"
    if document.is_whole and characters < recipe.min_characters:
        return "too_short"
    return ""


def _left_out(reason: str, document: Document, detail: str = "") -> LeftOut:
    return LeftOut(reason, document.at, detail, _beginning(document))


def _texts_of(document: Document) -> list[str]:
    return [document.text.decode()]


def _beginning(document: Document) -> str:
    return document.text[:320].decode("utf-8", "ignore")[:80]  # 80 characters of up to four bytes


def packed_rows(documents: Pieces, turns: np.ndarray, recipe: Recipe, give_back: int) -> tuple[Rows, Pieces]:
    """Documents in rows but for the `give_back` emptiest ones, and the pieces that those would hold.

    `turns` int64 [boundaries], ascending, counts through all tokens: where a document longer than a window is best cut.
    """
    tokens, lengths, parts = documents
    packed = pack(lengths, turns, recipe.window) if recipe.padding else join(lengths, recipe.window)
    firsts = np.cumsum(lengths) - lengths
    used = np.zeros(0, np.int64)
    if len(packed.row_pieces) > 1:
        used = np.add.reduceat(packed.end - packed.start, packed.row_pieces[:-1])
    holes = recipe.window - used
    emptiest = np.argsort(-holes, kind="stable")[:give_back]
    left = np.zeros(len(holes), bool)
    left[emptiest[holes[emptiest] > recipe.window >> 8]] = True
    rest = _pieces(_select(packed, left), documents, firsts)
    kept = _select(packed, ~left)
    filled, segments = fill(kept, tokens, firsts, recipe.window)
    filled_parts = None
    if parts is not None:
        filled_parts, _ = fill(kept, parts, firsts, recipe.window)
    return Rows(filled, segments, kept.overlap.astype(np.int32), kept.row_pieces, filled_parts), rest


def _select(packed: Packing, chosen: np.ndarray) -> Packing:
    counts = np.diff(packed.row_pieces)
    pieces = np.repeat(chosen, counts)
    row_pieces = np.concatenate([[0], np.cumsum(counts[chosen])])
    return Packing(
        packed.document[pieces], packed.start[pieces], packed.end[pieces], packed.overlap[pieces], row_pieces
    )


def _pieces(packed: Packing, documents: Pieces, firsts: np.ndarray) -> Pieces:
    """The pieces of all rows, each from its last token on that is not a target."""
    begins = firsts[packed.document] + packed.start + packed.overlap - 1
    ends = firsts[packed.document] + packed.end
    slices = [slice(begin, end) for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
    tokens, parts = documents.tokens, documents.parts
    cut_tokens = np.concatenate([tokens[:0], *(tokens[piece] for piece in slices)])
    cut_parts = None
    if parts is not None:
        cut_parts = np.concatenate([parts[:0], *(parts[piece] for piece in slices)])
    return Pieces(cut_tokens, ends - begins, cut_parts)


class Remainder:
    def __init__(self, recipe: Recipe, emit: Callable[[Rows], None]) -> None:
        self._recipe, self._emit = recipe, emit
        self._rests: list[Pieces] = []
        self._size = 0

    def add(self, rest: Pieces) -> None:
        self._rests.append(rest)
        self._size += len(rest.tokens)
        if self._size >= 256 * self._recipe.window:
            self._pack(GIVEN_BACK)

    def close(self) -> None:
        self._pack(0)

    def _pack(self, give_back: int) -> None:
        no_turns = np.zeros(0, np.int64)  # pieces are no longer than a window, so none is cut
        rows, rest = packed_rows(self._joined(), no_turns, self._recipe, give_back)
        self._emit(rows)
        self._rests, self._size = [rest], len(rest.tokens)

    def _joined(self) -> Pieces:
        dtype = token_dtype(self._recipe.vocab_size)
        tokens = np.concatenate([np.zeros(0, dtype), *(rest.tokens for rest in self._rests)])
        lengths = np.concatenate([np.zeros(0, np.int64), *(rest.lengths for rest in self._rests)])
        if all(rest.parts is None for rest in self._rests):
            return Pieces(tokens, lengths)
        parts = []
        for rest in self._rests:
            # the pieces of one block may all be targets where those of another are not
            all_targets = np.full(len(rest.tokens), TARGET, np.uint8)
            parts.append(all_targets if rest.parts is None else rest.parts)
        return Pieces(tokens, lengths, np.concatenate(parts))
