"""Dialogue made uniform and its variants: cases of the Claire models' own functions, properties, hostile input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT, SHARED
from tests.work_counts import hang_limit
from utils.prepare.dialogue import (
    anonymise,
    dashed,
    has_punctuation,
    has_speaker_names,
    has_upper_case,
    invent_names,
    lower_case,
    normalise,
    restore_names,
    variants,
    without_punctuation,
    without_tags,
)

VECTORS = SHARED / "reference" / "text_vectors.json"
VECTOR_COUNT = 26
# One argument apart from its default makes all 26 equal, in each of two:
# - The original leaves a last turn that has lost its words, `[Intervenant 12:]`, though it leaves out such a turn
#   anywhere else. That suits a prompt (`open_end`), but as training data it is an answer of nothing.
# - It anonymises English speakers in French, as `[Intervenant 1:]`.
ORIGINAL_ANONYMISES_IN = "fr"

names = st.sampled_from(
    ["speaker001", "SPEAKER_2", "jean", "ANNE-MARIE", "Dr. No", "l'Abbé", "KING HENRY VI", "?", "Ж"]
)
tags = st.sampled_from(["[rire]", "[LAUGHTER]", "[NOISE]", "[toux]", "[SINGING]", "[pause]"])
words = st.text(st.sampled_from("aéÉZœßİ0'-_"), min_size=1, max_size=5)
marks = st.sampled_from([",", ".", "…", " ?", "?", "!", " :", ":", ";", "...", " .", '"', " »", "« ", "[...]", "5.5"])
spaces = st.sampled_from([" ", "  ", "\t", "\u00a0", "\n"])
spoken = st.lists(st.one_of(words, words, tags, marks, spaces), max_size=8).map("".join)
turns = st.tuples(names, st.sampled_from(["", " ", "\n"]), spoken).map(lambda turn: f"[{turn[0]}:]{turn[1]}{turn[2]}")
conversations = st.tuples(st.sampled_from(["", "Acte I\n"]), st.lists(turns, max_size=6)).map(
    lambda parts: parts[0] + "\n".join(parts[1])
)
anything = st.text(st.sampled_from("ab:[]\n .,?!'\u2028\x1c…AIß") | st.characters(codec="utf-8"), max_size=40)
languages = st.sampled_from(["fr", "en"])
SPECIAL = re.compile(r"\[(rire|bruit|LAUGHTER|NOISE|toux|SINGING|pause)\]")


def turns_of(conversation: str) -> list[tuple[str, str]]:
    """The name and the words of each turn, found by hand."""
    found = []
    for piece in conversation.split("[")[1:]:
        name, colon, said = piece.partition(":]")
        if colon and "]" not in name:
            found.append((name, said))
        elif found:
            found[-1] = found[-1][0], found[-1][1] + "[" + piece
    return found


def words_of(conversation: str) -> Counter[str]:
    """The words, but for names and special tags."""
    without = SPECIAL.sub(" ", re.sub(r"\[[^\[\]]+:\]", " ", conversation))
    return Counter(re.findall(r"\w+", without))


# --- the original's cases


@pytest.mark.shared
@pytest.mark.parametrize("number", range(VECTOR_COUNT))
def test_equal_to_the_claire_models_functions(number):
    cases = json.loads(VECTORS.read_text(encoding="utf-8"))
    assert len(cases) == VECTOR_COUNT
    case = cases[number]
    raw, language, expected = case["input"], case["language"], case["normalized"]
    assert normalise(raw, language, keep_specials=True, open_end=True) == case["normalized_keep_specials"]
    assert normalise(raw, language, open_end=True) == expected
    assert anonymise(expected, ORIGINAL_ANONYMISES_IN) == case["anonymized"]
    assert lower_case(expected) == case["lower_case"]
    assert without_punctuation(expected) == case["without_punctuation"]
    assert dashed(expected) == case["dashed"]
    assert has_speaker_names(expected) == case["has_speaker_names"]
    assert has_upper_case(expected) == case["has_upper_case"]
    assert has_punctuation(expected) == case["has_punctuation"]
    # and without these two arguments: the same but for a last turn without words, and English in English
    assert normalise(raw, language) == re.sub(r"\n\[[^\]]+:\]$", "", expected)
    own = anonymise(expected, language)
    assert own == case["anonymized"].replace("[Intervenant", "[Speaker" if language == "en" else "[Intervenant")


# --- normalise


@pytest.mark.parametrize(
    ("language", "raw", "expected"),
    [
        ("fr", "", ""),
        ("fr", " \n\t\n", ""),
        ("fr", "[speaker001:]\n[speaker002:] [rire]\n[Anne:] .", ""),
        ("fr", "Il pleut ,  dit-elle.\n \n  Fin ?\n", "Il pleut, dit-elle.\nFin ?"),
        ("en", "Act I\n[A:] yes\n[B:] no", "Act I\n[A:] yes\n[B:] no"),
        ("en", "[speaker001:] yes\nand\u00a0 no\n[SPEAKER_02:]well", "[Speaker 1:] yes and no\n[Speaker 2:] well"),
        ("fr", "[Speaker 010:] oui\n[intervenant 2:] non", "[Intervenant 10:] oui\n[Intervenant 2:] non"),
        ("fr", "[A:] l'[h]omme [V]ous [...] [PII] [x y]", "[A:] l'[h]omme [V]ous [...] [PII] [x y]"),
        ("fr", "[A:] x [[rire] y\n[B:] [[toux]] z", "[A:] x [ y\n[B:] [ ] z"),
        ("en", "[A:] a [:] b [ :] c", "[A:] a [:] b [ :] c"),
        ("en", "[A:] x\n[B:] [C:] y", "[A:] x\n[C:] y"),
        ("en", "[A:] x\n[a:] y\n[B:]\n[ A :] z", "[A:] x y z"),
        (
            "fr",
            "[A:] Quoi? Oui! Non;\u00a0donc: 12:30, 3,5 http://a?b :-) .5",
            "[A:] Quoi ? Oui ! Non ; donc : 12:30, 3,5 http://a?b :-) .5",
        ),
        ("en", "[A:] What ? Yes , no ; he said : 'go !' :-) .5", "[A:] What? Yes, no; he said: 'go!' :-) .5"),
        ("en", "[A:] ... yes\n[B:] ?\n[C:] , no", "[A:] ... yes\n[B:] ?\n[C:] , no"),
    ],
)
def test_conversations_have_one_form(language, raw, expected):
    assert normalise(raw, language) == expected


@pytest.mark.parametrize("language", ["fr", "en"])
def test_special_tags_are_kept_translated_or_dropped(language):
    raw = "[A:] a [rire] b [LAUGHTER] c [Bruit] d [NOISE] e [toux] f [SINGING] g"
    laughter, noise = ("[rire]", "[bruit]") if language == "fr" else ("[LAUGHTER]", "[NOISE]")
    assert normalise(raw, language) == "[A:] a b c d e f g"
    kept = f"[A:] a {laughter} b {laughter} c {noise} d {noise} e f g"
    assert normalise(raw, language, keep_specials=True) == kept


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("PETER", "Peter"),
        ("mme de la tour-d'AUVERGNE", "Mme De La Tour-D'Auvergne"),
        ("KING HENRY VI", "King Henry VI"),
        ("DUCHESS OF YORK", "Duchess Of York"),
        ("JULIET'S nurse", "Juliet's Nurse"),
        ("J.R. O’NEILL", "J.R. O’Neill"),
        ("McDonald  JR", "McDonald JR"),
        ("émile ÉTIENNE", "Émile Étienne"),
        ("анна ИВАНОВА", "Анна Иванова"),
        ("李明", "李明"),
        ("speaker 7 bis", "Speaker 7 Bis"),
    ],
)
def test_names_are_capitalised(raw, name):
    assert normalise(f"[{raw}:] x", "en") == f"[{name}:] x"


@given(conversations | anything, languages, st.booleans(), st.booleans())
@settings(max_examples=400, deadline=None)
def test_what_is_normal_stays(raw, language, keep_specials, open_end):
    once = normalise(raw, language, keep_specials, open_end)
    assert normalise(once, language, keep_specials, open_end) == once


@given(conversations, languages, st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_word_is_lost_and_no_turn_is_empty(raw, language, keep_specials):
    result = normalise(raw, language, keep_specials)
    assert words_of(result) == words_of(raw)
    found = turns_of(result)
    assert all(SPECIAL.sub("", said).strip() for _, said in found)
    assert all(one[0] != other[0] for one, other in pairwise(found))
    assert not re.search(r"[^\S \n]|  | \n|\n |\n\n", result)
    assert bool(SPECIAL.search(result)) <= keep_specials


def test_a_turn_is_one_line_and_a_new_turn_never_arises():
    """Where a bracket opens in one turn and closes in the speaker's next, joining them would make a name of it."""
    assert normalise("[A:] a [b\n[A:] c:] d", "en") == "[A:] a [b\n[A:] c:] d"
    assert normalise("[A:] a [b\nc:] d", "en") == "[A:] a [B C:] d"


@pytest.mark.parametrize("language", ["de", "", "FR"])
def test_another_language_is_the_users_error(language):
    calls = [
        lambda: normalise("[A:] x", language),
        lambda: anonymise("[A:] x", language),
        lambda: invent_names("[A:] x", language, 1),
        lambda: variants("[A:] x", language, 0, 1, "x"),
        lambda: restore_names("[A:] x", "", language),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"language '{language}' .* en and fr"):
            call()


# --- and back


@pytest.mark.parametrize(
    ("original", "continuation", "restored"),
    [
        (
            "[speaker001:] a\n[speaker002:]",
            " b\n[Speaker 1:] c\n[Speaker 13:] d",
            " b\n[speaker001:] c\n[speaker013:] d",
        ),
        ("[Intervenant_2:] a", "\n[Speaker 2:] b\n[Speaker 3:] c", "\n[Intervenant_2:] b\n[Intervenant_3:] c"),
        ("[ANNE:] a\n[speaker 7:] b", "\n[Anne:] c\n[Speaker 8:] d\n[Bob:] e", "\n[ANNE:] c\n[speaker 8:] d\n[Bob:] e"),
        ("[Anne:] a\n[ANNE:] b", "\n[Anne:] c", "\n[Anne:] c"),
        ("no turns", "\n[Speaker 1:] a [NOISE] [x] [", "\n[Speaker 1:] a [NOISE] [x] ["),
        ("- a\n- b", "\n- c", "\n- c"),
        ("", "", ""),
    ],
)
def test_names_come_back_as_they_were_written(original, continuation, restored):
    assert restore_names(continuation, original, "en") == restored


@given(conversations | anything, languages)
@settings(max_examples=200, deadline=None)
def test_a_conversation_that_repeats_itself_has_its_names_back(raw, language):
    """Of its own normal form, each name comes back as the text first writes it."""
    normal = normalise(raw, language, open_end=True)
    back = restore_names(normal, raw, language)
    assert normalise(back, language, open_end=True) == normal
    written = {name.strip() for name, _ in turns_of(raw)}
    assert {name.strip() for name, _ in turns_of(back)} <= written


# --- single changes


@given(conversations, languages, st.integers(0, 100))
@settings(max_examples=200, deadline=None)
def test_speakers_are_renamed_one_to_one(raw, language, seed):
    conversation = normalise(raw, language)
    before = turns_of(conversation)
    for renamed in (anonymise(conversation, language), invent_names(conversation, language, seed)):
        after = turns_of(renamed)
        assert [said for _, said in after] == [said for _, said in before]
        pairs = {(old, new) for (old, _), (new, _) in zip(before, after, strict=True)}
        assert len(pairs) == len({old for old, _ in pairs}) == len({new for _, new in pairs})
    numbers = [int(name.split()[1]) for name, _ in turns_of(anonymise(conversation, language))]
    firsts = list(dict.fromkeys(numbers))
    assert firsts == list(range(1, len(firsts) + 1))


@pytest.mark.parametrize("language", ["fr", "en"])
def test_invented_names_are_names_and_differ(language):
    crowd = "\n".join(f"[speaker{i}:] x" for i in range(6000))
    invented = [name for name, _ in turns_of(invent_names(crowd, language, 5))]
    assert len(set(invented)) == 6000
    pair = "[speaker1:] x\n[speaker2:] y"
    drawn = {invent_names(pair, language, seed) for seed in range(300)}
    assert len(drawn) > 250
    assert all(has_speaker_names(form) and normalise(form, language) == form for form in drawn)


def test_lower_case_spares_names_and_tags():
    assert (
        lower_case("Acte I\n[Anne:] Où [NOISE] l'ÉTÉ [V]ous [PII]") == "acte i\n[Anne:] où [NOISE] l'été [v]ous [PII]"
    )
    assert not has_upper_case("[Anne:] où [NOISE] ?")


@pytest.mark.parametrize(
    ("marked", "bare"),
    [
        ("[A:] Le 3.5, à 12:30 ; oui,non !", "[A:] Le 3.5 à 12:30 oui non"),
        ("[A:] « Bonjour », dit-il… [...]", "[A:] Bonjour dit-il"),
        ('[?:] "x"\n[???:] y.\n[J.R.:] z', "[?:] x\n[?:] y\n[J R:] z"),
        ("...", ""),
        ("", ""),
    ],
)
def test_punctuation_goes_with_its_spaces(marked, bare):
    assert without_punctuation(marked) == bare
    assert without_punctuation(bare) == bare
    assert not has_punctuation(bare)


@given(conversations, languages)
@settings(max_examples=200, deadline=None)
def test_punctuation_takes_no_word_with_it(raw, language):
    conversation = normalise(raw, language)
    bare = without_punctuation(conversation)
    assert words_of(bare) == words_of(conversation)
    assert len(turns_of(bare)) == len(turns_of(conversation))
    assert not re.search(r"  | \n|\n | $", bare)
    assert not has_punctuation(bare)


def test_a_monologue_without_its_tag():
    assert without_tags("Discours\n[Anne:] Bonjour.") == "Discours\nBonjour."


# --- variants


@given(conversations | anything, languages, st.integers(0, 12), st.integers(), st.text(max_size=5))
@settings(max_examples=300, deadline=None)
def test_variants_are_distinct_repeatable_and_grow_with_the_level(raw, language, level, seed, document):
    conversation = normalise(raw, language)
    found = variants(conversation, language, level, seed, document)
    assert len(found) <= level
    assert len({conversation, *found}) == len(found) + 1
    assert found == variants(conversation, language, level, seed, document)
    assert found == variants(conversation, language, level + 3, seed, document)[: len(found)]
    if len(found) < level:
        assert found == variants(conversation, language, level + 3, seed, document)


@pytest.mark.parametrize(
    ("conversation", "count"),
    [
        ("", 0),
        ("bonjour", 0),
        ("Bonjour.", 3),  # lower case, no punctuation
        ("[A:] bonjour", 2),  # anonymous, no tag
        ("[A:] Bonjour.", 11),
        ("[A:] Oui.\n[B:] Non.", 11),  # and dashes
        ("[Intervenant 1:] Oui.\n[Intervenant 2:] Non.", 11),  # invented names instead of anonymous
        ("[A:] Oui.\n[B:] Non.\n[C:] Si.", 7),
        ("[Intervenant 1:] oui\n[Intervenant 2:] non\n[Intervenant 3:] si", 1),
    ],
)
def test_every_change_that_makes_sense_is_made(conversation, count):
    found = variants(conversation, "fr", 100, 0, "x")
    assert len(found) == count
    assert len(variants(conversation, "fr", 8, 0, "x")) == min(count, 8)
    assert variants(conversation, "fr", 0, 0, "x") == []


def test_all_that_a_pair_of_speakers_can_become():
    found = variants("[Anne:] Oui, moi.\n[Luc:] Ah ?", "en", 100, 0, "x")
    tags = [("[Anne:]", "[Luc:]"), ("[Speaker 1:]", "[Speaker 2:]"), ("-", "-")]
    lines = [("Oui, moi.", "Ah ?"), ("Oui moi", "Ah"), ("oui, moi.", "ah ?"), ("oui moi", "ah")]
    every = {f"{one} {first}\n{two} {second}" for one, two in tags for first, second in lines}
    assert set(found) == every - {"[Anne:] Oui, moi.\n[Luc:] Ah ?"}


def test_a_turn_that_was_only_punctuation_is_not_left_empty():
    found = variants("[A:] oui\n[B:] ...\n[A:] non", "fr", 100, 0, "x")
    assert "[A:] oui non" in found
    assert not any(line.endswith((":]", "-")) for form in found for line in form.split("\n"))


def test_variants_depend_on_seed_and_document_and_on_no_process():
    conversation = "[A:] Oui, moi.\n[B:] Non !"
    every = set(variants(conversation, "fr", 100, 0, "x"))
    for places in ([(0, f"{i}\udcff") for i in range(100)], [(seed, "x") for seed in range(100)]):
        firsts = Counter(variants(conversation, "fr", 1, *place)[0] for place in places)
        assert firsts.keys() == every
    numbered = "[speaker1:] Oui"
    assert len({variants(numbered, "fr", 100, 0, str(i))[0] for i in range(20)}) > 5
    code = (
        f"from utils.prepare.dialogue import variants; print(ascii(variants({conversation!r}, 'fr', 8, 3, 'FR/X 17')))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {ascii(variants(conversation, "fr", 8, 3, "FR/X 17")) + "\n"}


# --- time


HOSTILE = {
    "brackets": "[" * 1000,
    "open names": "[a:" * 300,
    "colons": "[" + ":" * 1000,
    "spaces": " " * 1000 + "x",
    "spaced bracket": "[" + " " * 1000,
    "dots": "x" + " ." * 500,
    "marks": "!?.," * 250 + "x",
    "zeros": "[speaker" + "0" * 1000 + "x:]",
    "turns": "[speaker1:] [rire]\n[b:] , .\n" * 30,
    "many names": "",
    "blank lines": " \n" * 500,
    "nested": "[[rire] " * 100 + "]" * 100,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_time_is_linear_in_the_text(kind):
    """A thousand times more text of the worst kinds, as one piece: a quadratic step would not end."""
    block = HOSTILE[kind]
    raw = block * 1000 if block else "\n".join(f"[n{i}:] x" for i in range(80_000))
    if kind in ("colons", "spaced bracket", "zeros"):
        raw = block[0:8] + block[8:-4] * 1000 + block[-4:]
    with hang_limit(300):  # 2 s at the most; 10^12 steps of a regular expression take half an hour
        for language in ("fr", "en"):
            variants(normalise(raw, language), language, 3, 0, "x")
            variants(raw, language, 3, 0, "x")
        without_punctuation(raw)
        restore_names(raw, raw, "fr")
