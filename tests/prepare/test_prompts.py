"""Groups of nearly equal prompts against brute force: sets of word pairs, all pairs of prompts, exact indices."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.prepare.test_contamination import plain_words
from tests.work_counts import assert_linear, work_of
from utils.prepare import prompts as prompts_module
from utils.prepare.duplicates import sketch_words
from utils.prepare.prompts import PAIR, SAME, find_groups, held_out, sign_prompts
from utils.prepare.signatures import digests_of, find_repeats

VOCABULARY = [f"w{number}" for number in range(3000)]


def pairs_of_words(prompt: str) -> set[tuple[str, ...]]:
    words = plain_words(prompt)
    if not words:
        return {("", prompt.strip())}
    return {tuple(words[at : at + 2]) for at in range(max(1, len(words) - 1))}


def are_near(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> bool:
    return len(one & other) >= SAME * len(one | other) - 1e-9


def components(prompts: list[str]) -> list[int]:
    """The first prompt of each one's component, by comparing all pairs."""
    first = list(range(len(prompts)))
    sets = [pairs_of_words(prompt) for prompt in prompts]
    for one, other in itertools.combinations(range(len(prompts)), 2):
        if first[one] != first[other] and are_near(sets[one], sets[other]):
            low, high = sorted((first[one], first[other]))
            first = [low if root == high else root for root in first]
    return first


def edited(prompt: str, rng: random.Random) -> str:
    words = prompt.split()
    at = rng.randrange(len(words) + 1)
    kind = rng.randrange(5)
    if kind == 0:
        return f"Please, {prompt}!"
    if kind == 1:
        return prompt.upper().replace(" ", ", ")
    if kind == 2:
        return " ".join([*words[:at], rng.choice(VOCABULARY), *words[at:]])
    if kind == 3:
        return " ".join([*words[:at], *words[at + 1 :]]) or "x"
    return prompt


def families(rng: random.Random, count: int) -> list[str]:
    """Prompts, of which many are edits of another one, and edits of edits."""
    prompts: list[str] = []
    while len(prompts) < count:
        if prompts and rng.random() < 0.6:
            prompts.append(edited(rng.choice(prompts), rng))
        else:
            prompts.append(" ".join(rng.choices(VOCABULARY, k=rng.choice([1, 2, 3, 5, 8, 13, 30, 60]))))
    return prompts


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("small", [prompts_module.SMALL, 2])
def test_groups_are_the_components_of_nearly_equal_prompts(monkeypatch, seed, small):
    monkeypatch.setattr(prompts_module, "SMALL", small)  # with 2, most buckets are gone through one by one
    prompts = families(random.Random(seed), 250)
    groups = find_groups(sign_prompts(prompts))
    assert groups.first.tolist() == components(prompts) and not groups.coarse
    assert 20 < len(set(groups.first.tolist())) < 200


@pytest.mark.parametrize("words", [5, 9, 36, 200])
def test_pairs_at_the_threshold_are_missed_less_than_once_in_a_thousand(words):
    """Prompts of `words` pairs, of which the last ninth are other ones: an index of SAME or a little above."""
    rng = random.Random(words)
    prompts = []
    for _ in range(1000):
        own = [f"x{rng.randrange(10**9)}" for _ in range(words + 1)]
        kept = max(-(-int(np.ceil(SAME * 2 * words / (1 + SAME) - 1e-9)) // 1), 1)
        prompts += [
            " ".join(own),
            " ".join([*own[: kept + 1], *(f"y{rng.randrange(10**9)}" for _ in range(words - kept))]),
        ]
    sets = [pairs_of_words(prompt) for prompt in prompts]
    near = [are_near(*pair) for pair in zip(sets[::2], sets[1::2], strict=True)]
    first = find_groups(sign_prompts(prompts)).first
    together = first[::2] == first[1::2]
    assert all(near) and (~together).sum() <= 2


def test_the_scripts_of_the_world():
    same = [
        ("Столица Франции?", "СТОЛИЦА ФРАНЦИИ"),
        ("法国的首都是哪里", "法国的首都是哪里？"),
        ("ประเทศไทยอยู่ที่ไหน", "ประเทศไทย อยู่ที่ไหน"),
        ("???", " ??? "),
        ("🙂", "🙂"),
    ]
    other = [
        ("Столица Франции", "Столица Испании"),
        ("法国的首都", "日本的首都"),
        ("???", "!!!"),
        ("🙂", "👍"),
        ("", "."),
    ]
    for pairs, expected in ((same, [0, 0]), (other, [0, 1])):
        for pair in pairs:
            assert find_groups(sign_prompts(list(pair))).first.tolist() == expected, pair


def test_a_template_with_other_words_in_it_is_not_one_group():
    """1,500 prompts with an index of about 0.7 with each other, which meet in buckets of 500."""
    rng = random.Random(0)
    template = [f"t{number}" for number in range(28)]
    prompts = [" ".join([*template, *(f"x{rng.randrange(10**9)}" for _ in range(6))]) for _ in range(1500)]
    groups = find_groups(sign_prompts(prompts))
    assert len(set(groups.first.tolist())) == 1500 and not groups.coarse


def test_what_is_too_much_to_compare_is_one_group(monkeypatch):
    monkeypatch.setattr(prompts_module, "MOST_CELLS", 500)
    rng = random.Random(0)
    template = [f"t{number}" for number in range(28)]
    prompts = [" ".join([*template, *(f"x{rng.randrange(10**9)}" for _ in range(6))]) for _ in range(500)]
    groups = find_groups(sign_prompts(prompts))
    assert len(set(groups.first.tolist())) < 10 and groups.coarse > 400


@given(st.integers(0, 10**6), st.floats(0.05, 0.6))
@settings(max_examples=10, deadline=None)
def test_no_nearly_equal_prompts_are_on_both_sides_and_others_do_not_move(seed, share):
    rng = random.Random(seed)
    prompts = families(rng, 70)
    sides, sets = sides_of(prompts, share), [pairs_of_words(prompt) for prompt in prompts]
    for one, other in itertools.combinations(range(len(prompts)), 2):
        assert sides[one] == sides[other] or not are_near(sets[one], sets[other])
    order = rng.sample(range(len(prompts)), len(prompts))
    assert sides_of([prompts[at] for at in order], share) == [sides[at] for at in order]
    more = [edited(rng.choice(prompts), rng) for _ in range(5)] + families(rng, 15)
    grown, groups = [*more, *prompts], components([*more, *prompts])
    changed = {groups[at] for at in range(len(more))}
    for at, side in enumerate(sides_of(grown, share)[len(more) :]):
        assert side == sides[at] or groups[len(more) + at] in changed


def sides_of(prompts: list[str], share: float) -> list[bool]:
    signed = sign_prompts(prompts)
    return held_out(signed.exact, find_groups(signed).first, share, np.zeros(len(prompts), bool)).tolist()


def test_the_share_is_kept_by_groups_of_any_size():
    rng = random.Random(0)
    prompts = []
    for _ in range(3000):
        prompt = " ".join(rng.choices(VOCABULARY, k=12))
        prompts += [prompt + "!" * number for number in range(rng.choice([1, 1, 20]))]
    signed = sign_prompts(prompts)
    first = find_groups(signed).first
    sides = held_out(signed.exact, first, 0.2, np.zeros(len(prompts), bool))
    sizes = np.bincount(first)[first]
    assert abs(sides[sizes == 1].mean() - 0.2) < 0.03 and abs(sides[sizes == 20].mean() - 0.2) < 0.04


def test_a_group_with_a_prompt_of_a_test_file_is_held_out():
    prompts = ["what is the capital of France", "What is the capital of France?", "how old is the moon"]
    signed = sign_prompts(prompts)
    first = find_groups(signed).first
    assert held_out(signed.exact, first, 0.0, np.array([False, True, False])).tolist() == [True, True, False]


def test_nothing_to_group():
    signed = sign_prompts([])
    assert len(find_groups(signed).first) == 0
    assert len(held_out(signed.exact, find_groups(signed).first, 0.5, np.zeros(0, bool))) == 0


def test_work_and_memory_grow_with_the_prompts_and_no_faster():
    """Half of them nearly equal to another one: under 600 bytes each beyond the prompts' own."""
    rng = np.random.default_rng(0)
    words = np.array([f"w{number}" for number in range(20_000)])
    drawn = [" ".join(words[rng.integers(0, 20_000, 20)]) for _ in range(2_000)]
    texts = [text for one in drawn for text in (one, f"Please, {one}")]
    signed = {count: sign_prompts(texts[:count]) for count in (1_000, 2_000, 4_000)}

    def group(count: int) -> None:
        groups = find_groups(signed[count])
        held_out(signed[count].exact, groups.first, 0.05, np.zeros(count, bool))
        assert len(np.unique(groups.first)) == count // 2

    assert_linear(group, 1_000)
    assert work_of(lambda: group(4_000)).peak < 600 * 4_000


def test_near_duplicates_by_prompt_beside_exact_indices():
    """Of the pairs that are alike at least 95 % are found, and of those found at least 90 % are alike: the rest is
    within the standard deviation of 0.035 of an index that is estimated."""
    prompts = families(random.Random(7), 600)
    sets = [pairs_of_words(prompt) for prompt in prompts]
    exact = digests_of(prompts)
    repeats = find_repeats(exact, sketch_words(prompts, PAIR, exact), SAME).tolist()
    stay = [number for number, original in enumerate(repeats) if original < 0]
    gone = [(number, original) for number, original in enumerate(repeats) if original >= 0]
    right = sum(are_near(sets[number], sets[original]) for number, original in gone)
    missed = sum(are_near(sets[one], sets[other]) for one, other in itertools.combinations(stay, 2))
    assert len(gone) > 200 and right >= 0.9 * len(gone) and missed <= 0.05 * len(gone), (len(gone), right, missed)
