"""From a block to rows: what goes in comes out, in rows or given back; what goes is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import SAMPLE, SHARED, TOKENIZER
from utils.data.parts import PARTS
from utils.prepare import block_rows, dialogue, encoding
from utils.prepare.block_rows import (
    GIVEN_BACK,
    BlockRows,
    BlockWorker,
    Dialogue,
    Pieces,
    Recipe,
    Remainder,
    Rows,
    Work,
    packed_rows,
    start_worker,
)
from utils.prepare.blocks import read_blocks
from utils.prepare.encoding import GIGATOKEN, Library
from utils.prepare.file_formats import CONVERSATIONS, LINES, PLAIN, CorpusFile

SLOW = Library("slow", "asked for")
RECIPE = Recipe(
    checkpoint_dir=TOKENIZER,
    vocab_size=Tokenizer(TOKENIZER).vocab_size,
    window=65,
    bos=True,
    eos=True,
    padding=True,
    text_field="text",
    min_characters=0,
    max_characters=None,
    seed=1,
)
WORDS = ["bonjour", "le", "marché,", "été", "12", "🙂", "oui!", "[rire]", "incompréhensiblement", "Привет"]


def random_texts(count: int, seed: int, turns: int = 9) -> list[str]:
    """Conversations, some of one word, some with a turn that is longer than most windows."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        lengths = rng.integers(1, 12, rng.integers(1, turns)) * np.where(rng.random() < 0.1, 20, 1)
        lines = [f"[speaker{turn % 3:03}:] " + " ".join(rng.choice(WORDS, size)) for turn, size in enumerate(lengths)]
        texts.append("\n".join(lines) if rng.random() < 0.9 else "oui")
    return texts


def works(
    folder: Path,
    texts: list[str],
    size: int = 2**22,
    dialogue: Dialogue | None = None,
    duplicates: dict[int, dict[int, str]] | None = None,
) -> list[Work]:
    path = folder / "full.txt"
    path.write_text("\n\n".join(texts) + "\n")
    blocks = read_blocks(CorpusFile(path, "A/full.txt", CONVERSATIONS), size, "text")
    return [Work(0, number, block, dialogue, (duplicates or {}).get(number, {})) for number, block in enumerate(blocks)]


def work_of(folder: Path, name: str, content: bytes) -> Work:
    """A file's first block."""
    path = folder / name
    path.write_bytes(content)
    file = CorpusFile(path, name, LINES if name.endswith("jsonl") else PLAIN)
    return Work(0, 0, next(iter(read_blocks(file, 2**22, "text"))), None, {})


def tokens_of(texts: Iterable[str], recipe: Recipe = RECIPE) -> list[list[int]]:
    tokenizer = Tokenizer(recipe.checkpoint_dir)
    before, after = [tokenizer.bos_id] * recipe.bos, [tokenizer.eos_id] * recipe.eos
    return [[*before, *ids, *after] for ids in tokenizer.encode_batch(list(texts))]


def bigrams(documents: Iterable[Iterable[int]]) -> Counter[tuple[int, int]]:
    """Each token with the one before it: what there is to predict."""
    return Counter(pair for document in documents for pair in zip(document, list(document)[1:], strict=False))


def targets_of(several: list[Rows], window: int) -> Counter[tuple[int, int]]:
    """The same of rows, which must be as a shard holds them."""
    found: Counter[tuple[int, int]] = Counter()
    for rows in several:
        assert rows.tokens.shape == (len(rows.row_segments) - 1, window)
        assert (rows.lengths.dtype, rows.overlaps.dtype, rows.row_segments[0]) == (np.int32, np.int32, 0)
        assert len(rows.lengths) == len(rows.overlaps) == rows.row_segments[-1]
        for row, tokens in enumerate(rows.tokens.tolist()):
            place = 0
            segments = range(rows.row_segments[row], rows.row_segments[row + 1])
            assert len(segments)
            for segment in segments:
                length, overlap = int(rows.lengths[segment]), int(rows.overlaps[segment])
                assert 1 <= overlap <= length
                piece = tokens[place : place + length]
                found.update(zip(piece[overlap - 1 :], piece[overlap:], strict=False))
                place += length
            assert place <= window and not any(tokens[place:])
    return found


def pieces_of(rest: Pieces) -> list[list[int]]:
    assert rest.lengths.sum() == len(rest.tokens)
    return [piece.tolist() for piece in np.split(rest.tokens, np.cumsum(rest.lengths))[: len(rest.lengths)]]


def run(worker: BlockWorker, some: list[Work]) -> tuple[list[BlockRows], list[Rows]]:
    """What becomes of the blocks, and all rows of them, those of what they give back last."""
    rows: list[Rows] = []
    remainder = Remainder(worker.recipe, rows.append)
    results = []
    for work in some:
        result = worker(work)
        results.append(result)
        rows.append(result.rows)
        remainder.add(result.rest)
    remainder.close()
    return results, rows


def total(results: list[BlockRows], name: str) -> int:
    return sum(getattr(result, name) for result in results)


def assert_conserved(
    results: list[BlockRows], rows: list[Rows], documents: list[list[int]], recipe: Recipe = RECIPE
) -> None:
    """Every token of each document but its first is a target exactly once, after the token it comes after."""
    assert targets_of(rows, recipe.window) == bigrams(documents)
    assert total(results, "documents") == len(documents)
    assert total(results, "tokens") == sum(map(len, documents))
    whole = [f" {' '.join(map(str, document))} " for document in documents]
    for part in rows:
        ends = np.cumsum(part.lengths)
        used = np.concatenate([tokens[: sum(part.lengths[a:b])] for tokens, a, b in zip(
            part.tokens, part.row_segments, part.row_segments[1:], strict=False)] or [[]])  # fmt: skip
        for begin, end in list(zip(ends - part.lengths, ends, strict=True))[:20]:
            piece = f" {' '.join(map(str, used[begin:end]))} "
            assert any(piece in document for document in whole)


@pytest.fixture(scope="module", params=[SLOW, Library(GIGATOKEN, "")], ids=["slow", "fast"])
def library(request) -> Library:
    return request.param


# --- nothing is lost


@pytest.mark.parametrize("padding", [True, False])
@pytest.mark.parametrize("window", [2, 9, 65, 300, 2049])
def test_one_block(tmp_path, window, padding, library):
    recipe = replace(RECIPE, window=window, padding=padding)
    texts = random_texts(60, seed=window)
    results, rows = run(BlockWorker(recipe, library), works(tmp_path, texts))
    assert len(results) == 1 and not results[0].bad and not results[0].left_out
    assert_conserved(results, rows, tokens_of(texts), recipe)
    assert results[0].words == sum(len(one.split()) for one in texts)
    assert results[0].turns == sum(one.count("[speaker") for one in texts)
    assert results[0].variants == 0


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    size=st.integers(200, 5000),
    window=st.integers(2, 130),
    flags=st.tuples(*[st.booleans()] * 3),
)
def test_several_blocks_and_documents_in_parts(tmp_path_factory, count, seed, size, window, flags):
    bos, eos, padding = flags
    recipe = replace(RECIPE, window=window, bos=bos, eos=eos, padding=padding)
    texts = random_texts(count, seed)
    some = works(tmp_path_factory.getbasetemp(), texts, size)
    results, rows = run(BlockWorker(recipe, SLOW), some)
    assert_conserved(results, rows, tokens_of(texts, recipe), recipe)
    assert total(results, "words") == sum(len(one.split()) for one in texts)
    assert total(results, "turns") == sum(one.count("[speaker") for one in texts)


@pytest.mark.parametrize("padding", [True, False])
def test_small_blocks_cost_little_padding(tmp_path, padding, monkeypatch):
    recipe = replace(RECIPE, window=129, padding=padding)
    texts = random_texts(500, seed=7)
    some = works(tmp_path, texts, 4000)
    assert len(some) > 50
    shares = []
    for give_back in (GIVEN_BACK, 0):
        monkeypatch.setattr(block_rows, "GIVEN_BACK", give_back)
        results, rows = run(BlockWorker(recipe, SLOW), some)
        assert max(len(result.rest.tokens) for result in results) <= give_back * recipe.window
        used, size = sum(int(part.lengths.sum()) for part in rows), sum(part.tokens.size for part in rows)
        shares.append(1 - used / size)
    assert shares[0] < 0.01 and shares[0] < 0.5 * shares[1]


@pytest.mark.shared
def test_a_real_corpus(tmp_path):
    path = SHARED / "data/claire/FR/TheatreMarivaux/test.txt"
    texts = [part.strip() for part in path.read_text().split("\n\n") if part.strip()]
    recipe = replace(RECIPE, window=513)
    results, rows = run(BlockWorker(recipe, SLOW), works(tmp_path, texts, 30_000))
    assert len(results) > 3
    assert_conserved(results, rows, tokens_of(texts), recipe)


def test_a_block_is_a_function_of_its_text(tmp_path):
    some = works(tmp_path, random_texts(100, seed=3), 3000, Dialogue("fr", 3))
    one, other = BlockWorker(RECIPE, SLOW), BlockWorker(RECIPE, SLOW)
    for number, work in enumerate(reversed(some)):
        other(some[number])
        for values, again in zip(
            (*one(work).rows, *one(work).rest), (*other(work).rows, *other(work).rest), strict=True
        ):
            assert np.array_equal(values, again) and np.asarray(values).dtype == np.asarray(again).dtype


# --- dialogue


@pytest.mark.parametrize("level", [0, 1, 4])
@pytest.mark.parametrize("size", [1500, 2**22])
def test_variants_stand_beside_the_normalised_conversations(tmp_path, level, size):
    texts = [one for one in random_texts(80, seed=5) if len(one) < 1000]
    results, rows = run(BlockWorker(RECIPE, SLOW), works(tmp_path, texts, size, Dialogue("fr", level)))
    forms, at = [], 0
    for one in texts:
        normalised = dialogue.normalise(one, "fr")
        forms += [normalised, *dialogue.variants(normalised, "fr", level, RECIPE.seed, f"A/full.txt {at}")]
        at += len(one.encode()) + 2
    assert_conserved(results, rows, tokens_of(forms))
    assert total(results, "variants") == len(forms) - len(texts) >= 0.8 * level * len(texts)
    assert total(results, "words") == sum(len(form.split()) for form in forms)


def test_a_conversation_without_words_is_left_out(tmp_path):
    texts = ["[A:] [bruit]\n[B:] [rire]", "[A:] oui", "[A:]"]
    results, _ = run(BlockWorker(RECIPE, SLOW), works(tmp_path, texts, dialogue=Dialogue("fr", 8)))
    assert [(one.reason, one.at) for one in results[0].left_out] == [
        ("no_tokens", 0),
        ("no_tokens", len("".join(texts[:2])) + 4),
    ]
    assert results[0].documents - results[0].variants == 1 and results[0].variants > 0


def test_a_part_of_a_conversation_is_one_of_its_own(tmp_path):
    texts = ["\n".join(f"[speaker{n % 2 + 1:03}:] mot{n} {n} fois." for n in range(400))]
    for level in (0, 2):
        some = works(tmp_path, texts, 1000, Dialogue("fr", level))
        results, rows = run(BlockWorker(RECIPE, SLOW), some)
        assert len(some) > 5 and total(results, "documents") == (1 + level) * len(some)
        assert total(results, "variants") == level * len(some)
        if not level:
            assert total(results, "words") == len(dialogue.normalise(texts[0], "fr").split())
        assert targets_of(rows, RECIPE.window).total() == total(results, "tokens") - total(results, "documents")


# --- what is left out


def test_too_short_and_too_long_documents(tmp_path):
    texts = [*random_texts(100, seed=8), "é" * 20, "é" * 19, "é" * 300, "é" * 301]
    recipe = replace(RECIPE, min_characters=20, max_characters=300)
    results, rows = run(BlockWorker(recipe, SLOW), works(tmp_path, texts, 2000))
    kept = [one for one in texts if 20 <= len(one) <= 300]
    assert_conserved(results, rows, tokens_of(kept), recipe)
    removed = [(one.reason, one.text) for result in results for one in result.left_out]
    assert removed == [
        ("too_short" if len(one) < 20 else "too_long", one[:80]) for one in texts if not 20 <= len(one) <= 300
    ]


def test_a_document_in_parts_is_longer_than_any_limit(tmp_path):
    texts = ["un mot", " ".join(f"mot{n}" for n in range(1000)), "deux mots"]
    for limit, kept in ((1000, 2), (None, 3)):
        recipe = replace(RECIPE, min_characters=1, max_characters=limit)
        results, rows = run(BlockWorker(recipe, SLOW), works(tmp_path, texts, 500))
        assert total(results, "documents") == kept
        removed = [(one.reason, one.at) for result in results for one in result.left_out]
        assert removed == [("too_long", 8)] * (3 - kept)
        assert_conserved(results, rows, tokens_of(texts if kept == 3 else texts[::2]), recipe)


def test_duplicates(tmp_path):
    texts = random_texts(30, seed=9)
    number_of_blocks = len(works(tmp_path, texts, 1000))
    chosen = {number: {0: "B/a.jsonl, byte 7"} for number in range(0, number_of_blocks, 2)}
    some = works(tmp_path, texts, 1000, duplicates=chosen)
    every, _ = run(BlockWorker(RECIPE, SLOW), [work._replace(duplicates={}) for work in some])
    results, _ = run(BlockWorker(RECIPE, SLOW), some)
    gone = [one for result in results for one in result.left_out]
    assert {(one.reason, one.detail) for one in gone} == {("duplicate", "B/a.jsonl, byte 7")}
    assert len(gone) == len(chosen) == total(every, "documents") - total(results, "documents")
    content = (tmp_path / "full.txt").read_bytes()
    assert all(content[one.at :].decode("utf-8", "ignore").startswith(one.text) for one in gone)


def test_what_is_no_document_is_named(tmp_path):
    content = b'{"text": "un"}\n{\n{"text": ""}\n{"body": "x"}\n{"text": "trois"}\n'
    result = BlockWorker(RECIPE, SLOW)(work_of(tmp_path, "a.jsonl", content))
    assert [(bad.reason, bad.at) for bad in result.bad] == [("broken_json", 15), ("no_field", 30)]
    assert [(one.reason, one.at, one.text) for one in result.left_out] == [("no_tokens", 17, "")]
    assert (result.documents, result.words) == (2, 2)


@pytest.mark.parametrize("content", [b" \n\n \n", b'{"text": ""}\n', b"\xff"])
@pytest.mark.parametrize("padding", [True, False])
def test_a_block_with_nothing_in_it(tmp_path, content, padding):
    recipe = replace(RECIPE, padding=padding)
    work = work_of(tmp_path, "a.jsonl" if b"{" in content else "a.txt", content)
    results, rows = run(BlockWorker(recipe, SLOW), [work, work])
    assert_conserved(results, rows, [], recipe)
    assert all(part.tokens.shape == (0, 65) and part.tokens.dtype == np.uint16 for part in rows)
    assert (total(results, "words"), total(results, "turns"), total(results, "variants")) == (0, 0, 0)


def test_a_block_whose_documents_all_go(tmp_path):
    recipe = replace(RECIPE, min_characters=10**6)
    results, rows = run(BlockWorker(recipe, SLOW), works(tmp_path, random_texts(20, seed=1)))
    assert_conserved(results, rows, [], recipe)
    assert len(results[0].left_out) == 20


def test_a_worker_chooses_its_library(tmp_path, monkeypatch):
    def fail(folder: Path) -> None:
        raise ImportError

    texts = random_texts(20, seed=2)
    (work,) = works(tmp_path, texts)
    for name in (GIGATOKEN, "sentencepiece"):
        results, rows = run(start_worker(RECIPE, ["un"]), [work])
        assert results[0].library.name == name and results[0].library.reason
        assert_conserved(results, rows, tokens_of(texts))
        monkeypatch.setattr(encoding, "load_gigatoken", fail)


# --- what is given back


@st.composite
def given_back(draw) -> tuple[int, list[list[list[int]]]]:
    """A window, and of several blocks the pieces."""
    window = draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    blocks = draw(st.integers(0, 60))
    longest = draw(st.integers(1, window))
    return window, [
        [rng.integers(1, 1000, rng.integers(1, longest + 1)).tolist() for _ in range(rng.integers(0, 20))]
        for _ in range(blocks)
    ]


@settings(max_examples=150, deadline=None)
@given(case=given_back(), padding=st.booleans())
def test_what_is_given_back_is_packed_once(case, padding):
    window, blocks = case
    recipe = replace(RECIPE, window=window, padding=padding)
    rows: list[Rows] = []
    remainder = Remainder(recipe, rows.append)
    for pieces in blocks:
        tokens = np.array([token for piece in pieces for token in piece], np.uint16)
        remainder.add(Pieces(tokens, np.array([len(piece) for piece in pieces], np.int64)))
        assert remainder._size < 256 * window, "it does not grow with the corpus"
    remainder.close()
    assert targets_of(rows, window) == bigrams(piece for pieces in blocks for piece in pieces)
    kept = Counter(token for part in rows for token in part.tokens.reshape(-1).tolist() if token)
    given_tokens = Counter(token for pieces in blocks for piece in pieces for token in piece)
    assert all(kept[token] >= given_tokens[token] for token in given_tokens)
    before = len(rows)
    remainder.close()
    assert all(not len(part.tokens) for part in rows[before:])


def test_the_emptiest_rows_are_given_back(tmp_path):
    recipe = replace(RECIPE, window=1025)
    texts = [one for one in random_texts(300, seed=11) if len(one) < 900]  # none that is longer than the window
    result = BlockWorker(recipe, SLOW)(works(tmp_path, texts)[0])
    ends = np.append(0, np.cumsum(result.rows.lengths))[result.rows.row_segments]
    holes = 1025 - np.diff(ends)
    assert holes.max() <= 4  # a 256th of the window
    assert 0 < len(result.rest.tokens) <= GIVEN_BACK * 1025
    assert targets_of([result.rows], 1025) + bigrams(pieces_of(result.rest)) == bigrams(tokens_of(texts))


def test_the_sample(tmp_path):
    for path in sorted(SAMPLE.rglob("train.txt")):
        texts = [part.strip() for part in path.read_text().split("\n\n") if part.strip()]
        results, rows = run(BlockWorker(RECIPE, SLOW), works(tmp_path, texts, 2000))
        assert_conserved(results, rows, tokens_of(texts))


def documents_with_parts(
    count: int, seed: int, longest: int, all_targets: bool
) -> tuple[list[list[tuple[int, int]]], Pieces]:
    """Random documents as lists of (token, part), and as arrays; all tokens of all documents are different."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        length = int(rng.integers(1, longest))
        parts = [0] * length if all_targets else rng.integers(0, len(PARTS), length).tolist()
        first = sum(map(len, documents)) + 10_000 * seed
        documents.append(list(zip(range(first, first + length), parts, strict=True)))
    flat = np.array([pair for document in documents for pair in document]).reshape(-1, 2)
    parts = None if all_targets else flat[:, 1].astype(np.uint8)
    return documents, Pieces(flat[:, 0].astype(np.uint32), np.array([*map(len, documents)], np.int64), parts)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(0, 40),
    st.sampled_from([8, 33, 65]),
    st.sampled_from([20, 65, 200]),
    st.booleans(),
    st.sampled_from([0, 3, 8]),
)
def test_every_token_is_found_once_with_its_part(blocks, count, window, longest, padding, give_back):
    """In however many blocks documents come, some of which are all targets. The twin looks at one token after another.

    What a token is goes with it wherever it is: as target or masked in one place, and as left context.
    """
    recipe = replace(RECIPE, window=window, padding=padding, vocab_size=2**20)
    several: list[Rows] = []
    remainder = Remainder(recipe, several.append)
    part_of: dict[int, int] = {}
    firsts = set()
    for block in range(1, blocks + 1):
        documents, arrays = documents_with_parts(count, block, longest, all_targets=block % 3 == 0)
        part_of |= {token: part for document in documents for token, part in document}
        firsts |= {document[0][0] for document in documents}
        rows, rest = packed_rows(arrays, np.zeros(0, np.int64), recipe, give_back)
        several.append(rows)
        remainder.add(rest)
        if arrays.parts is None:
            assert rows.parts is None and rest.parts is None, "what is all targets costs an array"
    remainder.close()
    found: Counter[int] = Counter()
    counts: Counter[str] = Counter()
    for rows in several:
        counts.update(rows.count_parts())
        for row, tokens in enumerate(rows.tokens.tolist()):
            place = 0
            for segment in range(rows.row_segments[row], rows.row_segments[row + 1]):
                for offset in range(rows.lengths[segment]):
                    token = tokens[place + offset]
                    part = 0 if rows.parts is None else int(rows.parts[row, place + offset])
                    assert part == part_of[token]
                    if offset >= rows.overlaps[segment]:
                        found[token] += 1
                place += rows.lengths[segment]
    assert found == Counter(part_of.keys() - firsts), "a token is not counted exactly once"
    by_hand = Counter(PARTS[part_of[token]] for token in part_of.keys() - firsts)
    assert +counts == by_hand


def test_bytes_of_text_are_those_of_the_documents(tmp_path):
    """However a file is cut into blocks: the words that a part of a document repeats are not counted again."""
    texts = [*random_texts(100, seed=5), " ".join(f"mot{number}" for number in range(900))]
    expected = sum(len(text.encode()) for text in texts)
    worker = BlockWorker(RECIPE, SLOW)
    for size in (2**22, 3000, 1000):
        results = [worker(work) for work in works(tmp_path, texts, size)]
        assert total(results, "text_bytes") == total(results, "target_bytes") == expected
