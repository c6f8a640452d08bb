"""Deduplication against brute force: shingles by regular expressions, exact Jaccard indices, all pairs."""

from __future__ import annotations

import hashlib
import random
import re
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_gpt.errors import UserError
from tests.conftest import SAMPLE, SHARED
from tests.work_counts import assert_linear
from utils.prepare import signatures
from utils.prepare.signatures import PERMUTATIONS, find_repeats, sign_texts

NOTHING = np.iinfo(np.uint32).max
GOLDEN = "8fba6f3b81a0df8668102f2a73a8a956d44da613b76a0c717abeb348eb073099"
SEPARATORS = re.compile("[^0-9A-Za-z\u0080-\U0010ffff]|[\u0080-\u00bf\u2000-\u207f\u3000-\u303f]")
WORDS = re.compile("[\u0800-\U0010ffff][^\u0800-\U0010ffff]*|[^\u0800-\U0010ffff]+")
PIECES_OF_TEXT = [
    *"ab c,.d \n\t",
    "À",
    "é",
    " ",
    "«",
    "l’",
    "—",
    "中",
    "文",
    "。",
    "ก",
    "😀",
    "Word",
    "word",
    "x" * 65,
    "é" * 33,
]


def shingles(text):
    """The set that a sketch stands for, in the words of the docstring of `sign_texts`."""
    small = re.sub("[A-Z]+", lambda found: found[0].lower(), text.strip())
    words = []
    for run in SEPARATORS.sub(" ", small).split(" "):
        words += list(run) if len(run.encode()) > 64 else WORDS.findall(run)
    return {tuple(words[start : start + 5]) for start in range(max(1, len(words) - 4))}


def jaccard(one, other):
    return len(one & other) / len(one | other)


def hashes_of(text):
    hashes, offsets = signatures._shingle_hashes([text.strip().encode()])
    assert offsets.tolist() == [0, len(hashes)]
    return set(hashes.tolist())


def estimated(sketches, one, other):
    return float((sketches[one] == sketches[other]).mean())


def edited(text, rate, seed):
    """`text` with about `rate` of its words replaced."""
    rng = random.Random(seed)
    return " ".join(f"word{rng.random()}" if rng.random() < rate else word for word in text.split(" "))


def random_texts(count, words, seed):
    rng = random.Random(seed)
    return [" ".join(f"w{rng.randrange(10**6)}" for _ in range(words)) for _ in range(count)]


def random_families(rng, documents, families, changed):
    """Sketches [documents, slots] that agree with one of `families` random ones but in `changed` of the slots."""
    bases = rng.integers(0, NOTHING, (families, PERMUTATIONS), dtype=np.uint32)
    sketches = bases[rng.integers(0, families, documents)]
    noise = rng.random(sketches.shape) < changed
    sketches[noise] = rng.integers(0, NOTHING, int(noise.sum()), dtype=np.uint32)
    return sketches


def distinct_digests(count):
    return np.stack([np.arange(count), np.zeros(count)], axis=1).astype(np.uint64)


# Signatures


@given(st.lists(st.sampled_from(PIECES_OF_TEXT), max_size=60), st.lists(st.sampled_from(PIECES_OF_TEXT), max_size=60))
@example([], ["a"])
@example(["x" * 65], ["x" * 64])
@example(["w w w w acknowledge a w w w w acknowledge b"], ["w w w w acknowledge\ncompletely"])
@settings(max_examples=300, deadline=None)
def test_hashes_are_those_of_the_texts_shingles(one, other):
    """As many distinct hashes as shingles, in each text and in both: so the hashes' Jaccard index is the texts'."""
    texts = "".join(one), "".join(other)
    found, expected = [hashes_of(text) for text in texts], [shingles(text) for text in texts]
    assert [len(hashes) for hashes in found] == [len(words) for words in expected]
    assert len(found[0] & found[1]) == len(expected[0] & expected[1])


@given(st.lists(st.text(max_size=20), max_size=12), st.data())
@settings(max_examples=100, deadline=None)
def test_a_signature_depends_on_its_own_text_only(texts, data):
    whole = sign_texts(texts, near=True)
    assert (whole.exact.shape, whole.exact.dtype) == ((len(texts), 2), np.uint64)
    assert (whole.sketches.shape, whole.sketches.dtype) == ((len(texts), PERMUTATIONS), np.uint32)
    cut = data.draw(st.integers(0, len(texts)))
    parts = [sign_texts(part, near=True) for part in (texts[:cut], texts[cut:])]
    assert np.array_equal(np.concatenate([part.exact for part in parts]), whole.exact)
    assert np.array_equal(np.concatenate([part.sketches for part in parts]), whole.sketches)
    assert not (whole.sketches == NOTHING).all(axis=1).any(), "a text without a sketch"


def test_signatures_are_the_same_everywhere():
    """On every machine and with every version of rensa, or the tasks of one preparation would not fit together."""
    text = "« L'amour est un tyran — qui n'épargne personne », 中文 text, a" + "b" * 100
    found = sign_texts([f"\n {text}\t"], near=True)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    assert [int(half) for half in found.exact[0]] == [
        int.from_bytes(digest[:8], "little"),
        int.from_bytes(digest[8:], "little"),
    ]
    assert hashlib.sha256(found.sketches.astype("<u4").tobytes()).hexdigest() == GOLDEN


def test_sketches_estimate_the_jaccard_index():
    texts = random_texts(40, 400, seed=1)
    errors = []
    for seed, text in enumerate(texts * 5):
        other = edited(text, rate=(0.03, 0.05, 0.1, 0.15, 0.2)[seed // 40], seed=seed)
        true = jaccard(shingles(text), shingles(other))
        error = estimated(sign_texts([text, other], near=True).sketches, 0, 1) - true
        errors.append(error / np.sqrt(true * (1 - true) / PERMUTATIONS))
    assert abs(np.mean(errors)) < 0.25
    assert 0.8 < np.std(errors) < 1.2


def test_a_long_text_is_hashed_in_pieces():
    text = " ".join(random_texts(1, 150_000, seed=2))
    assert len(text) > 3 * signatures.PIECE
    other = f"Not the same beginning. {edited(text, rate=0.01, seed=3)}"
    sketches = sign_texts(["short", text, text[: len(text) // 2], other, "short"], near=True).sketches
    assert abs(estimated(sketches, 1, 3) - jaccard(shingles(text), shingles(other))) < 0.1
    assert abs(estimated(sketches, 1, 2) - 0.5) < 0.13
    assert estimated(sketches, 0, 4) == 1 and estimated(sketches, 0, 1) == 0


def test_what_a_near_duplicate_may_differ_in():
    texts = [
        "Il dit : « l'amour » — et s'en va !",
        "IL DIT l’amour et s’en va",
        "Il dit la mort et s'en va",
        "...",
        "",
        "?!",
    ]
    assert find_repeats(*sign_texts(texts, near=True), 0.8).tolist() == [-1, 0, -1, -1, 3, 3]
    assert find_repeats(*sign_texts(texts, near=False), 0.8).tolist() == [-1] * 6


def test_texts_without_blanks_are_compared_by_characters():
    rng = random.Random(4)
    for alphabet in ("".join(map(chr, range(0x4E00, 0x5200))), "ACGT"):
        text = "".join(rng.choices(alphabet, k=3000 if len(alphabet) > 4 else 200))
        longer = alphabet[:2] + text
        assert jaccard(shingles(text), shingles(longer)) > 0.9
        other = "".join(rng.choices(alphabet, k=3000)) if len(alphabet) > 4 else text[:100] + "N" * 1000
        assert find_repeats(*sign_texts([text, other, longer], near=True), 0.8).tolist() == [-1, -1, 0]


def test_near_duplicates_need_rensa(monkeypatch):
    monkeypatch.setitem(sys.modules, "rensa", None)
    assert sign_texts(["a"], near=False).sketches is None
    with pytest.raises(UserError, match="pip install rensa"):
        sign_texts(["a"], near=True)


# Exact duplicates


@given(st.lists(st.text(alphabet="ab \n", max_size=4), max_size=40), st.booleans())
@example([], True)
@example(["", " ", "\n"], True)
@settings(deadline=None)
def test_equal_texts_are_always_found(texts, near):
    expected = []
    for index, text in enumerate(texts):
        first = [other.strip() for other in texts].index(text.strip())
        expected.append(first if first < index else -1)
    found = find_repeats(*sign_texts(texts, near), 1.0)
    assert found.dtype == np.int64
    assert near or found.tolist() == expected
    assert all(one >= 0 for one, first in zip(found, expected, strict=True) if first >= 0)


def test_digests_that_agree_in_one_half_only_are_different():
    exact = np.array([[1, 2], [1, 3], [4, 2], [1, 2], [4, 2], [2, 1]], dtype=np.uint64)
    assert find_repeats(exact, None, 0.8).tolist() == [-1, -1, -1, 0, 2, -1]


# Near-duplicates


def slow_find(sketches, threshold):
    """Document by document and pair by pair; only those alike in a whole band are compared."""
    bands, rows = signatures._banding(PERMUTATIONS, threshold)
    stayed, result = [], []
    for index, sketch in enumerate(sketches):
        of = -1
        for other in stayed:
            equal = sketches[other] == sketch
            if equal.mean() >= threshold and any(equal[b * rows : (b + 1) * rows].all() for b in range(bands)):
                of = other
                break
        result.append(of)
        if of < 0:
            stayed.append(index)
    return result


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 80),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.05, 0.1, 0.2]),
    st.sampled_from([0.3, 0.5, 0.75, 0.8, 0.95, 1.0]),
)
@settings(max_examples=200, deadline=None)
def test_the_first_that_stays_is_named(seed, documents, families, changed, threshold):
    sketches = random_families(np.random.default_rng(seed), documents, families, changed)
    found = find_repeats(distinct_digests(documents), sketches, threshold)
    if Counter(found.tolist())[-1] <= signatures.MAX_COMPARED:  # so few stay that no bucket reaches its limit
        assert found.tolist() == slow_find(sketches, threshold)
    later = np.flatnonzero(found >= 0)
    assert (found[later] < later).all() and (found[found[later]] == -1).all()


def test_nothing_goes_on_account_of_what_is_gone():
    first = np.arange(PERMUTATIONS, dtype=np.uint32)
    second, third = first.copy(), first.copy()
    second[:20] += 1000
    third[:20] += 1000
    third[-20:] += 1000
    sketches = np.stack([first, second, third, second, third, first])
    assert find_repeats(distinct_digests(6), sketches, 0.8).tolist() == [-1, 0, -1, 0, 2, 0]
    # copies of a document that goes are copies of the one it goes for; without the first, the second stays
    exact = np.array([[0, 0], [1, 1], [2, 2], [1, 1], [2, 2], [0, 0]], dtype=np.uint64)
    assert find_repeats(exact, sketches, 0.8).tolist() == [-1, 0, -1, 0, 2, 0]
    assert find_repeats(exact[1:5], sketches[1:5], 0.8).tolist() == [-1, 0, 0, 0]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
def test_banding_lets_few_pairs_through_its_fingers(threshold):
    """At the threshold itself, by simulation."""
    bands, rows = signatures._banding(PERMUTATIONS, threshold)
    assert bands * rows <= PERMUTATIONS
    equal = np.random.default_rng(5).random((4000, PERMUTATIONS)) < threshold
    found = equal[:, : bands * rows].reshape(-1, bands, rows).all(axis=2).any(axis=1)
    assert found.mean() > signatures.MIN_FOUND - 0.02


def assert_sound(sets, signed, threshold):
    """All pairs, exactly: what must be found and what must not be removed. Returns how many there were of each."""
    found = find_repeats(*signed, threshold)
    where: dict[tuple, list[int]] = {}
    must, missed, kept = 0, 0, 0
    for index, words in enumerate(sets):
        shared = Counter(other for word in words for other in where.get(word, []))
        best = max((common / (len(words) + len(sets[other]) - common) for other, common in shared.items()), default=0)
        if found[index] >= 0:
            assert found[index] < index and found[found[index]] == -1
            assert jaccard(words, sets[found[index]]) > threshold - 0.2
        must += best >= threshold + 0.1
        missed += best >= threshold + 0.1 and found[index] < 0
        kept += best <= threshold - 0.2
        for word in words if found[index] < 0 else ():
            where.setdefault(word, []).append(index)
    assert missed <= 0.05 * must
    return must, kept


def with_copies(texts, seed):
    """`texts` and after them an edited copy of each, from hardly touched to hardly recognisable."""
    rng = random.Random(seed)
    return [*texts, *(edited(text, rng.choice([0, 0.003, 0.01, 0.03, 0.06, 0.1]), rng.random()) for text in texts)]


def test_the_sample_against_all_pairs():
    texts = [text for path in sorted(SAMPLE.rglob("*.txt")) for text in path.read_text(encoding="utf-8").split("\n\n")]
    texts = with_copies(texts, seed=6)
    sets, signed = [shingles(text) for text in texts], sign_texts(texts, near=True)
    for threshold in (0.4, 0.6, 0.8):
        must, kept = assert_sound(sets, signed, threshold)
        assert must > 10 and kept > 10, threshold


@pytest.mark.shared
def test_plays_against_all_pairs():
    paths = sorted((SHARED / "data" / "claire").rglob("*.txt"))
    texts = [text for path in paths for text in path.read_text(encoding="utf-8").split("\n\n")]
    texts = with_copies(texts, seed=7)
    sets, signed = [shingles(text) for text in texts], sign_texts(texts, near=True)
    for threshold in (0.5, 0.8):
        must, kept = assert_sound(sets, signed, threshold)
        assert must > 300 and kept > 1000, threshold


@pytest.mark.parametrize("changed", [0.03, 0.25], ids=["near-identical", "one template"])
def test_the_work_is_linear_in_the_size_of_a_family(changed):
    sketches = random_families(np.random.default_rng(8), 4_000, 1, changed)
    assert_linear(lambda documents: find_repeats(distinct_digests(documents), sketches[:documents], 0.8), 1_000)
