"""Runs of words that test files have, too: against a comparison by regular expressions and sets, text by text."""

from __future__ import annotations

import gzip
import json
import random
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gpt.errors import DataError, UserError
from utils.prepare import contamination, contamination_files
from utils.prepare.contamination import SHORTEST, write_runs
from utils.prepare.words import fold, words_of

N = 13
ALPHABET = "aB cdЖж ё\u0301é .,-—_\n\t中文กข\u00ad²ßﬁ"
SINGLE = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff]")


def plain_words(text: str) -> list[str]:
    """The words of a text, by another way than `fold`'s."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(c for c in text if unicodedata.category(c) != "Cf" and not 0x300 <= ord(c) < 0x370)
    text = SINGLE.sub(lambda found: f" {found[0]} " if found[0].isalnum() else found[0], text)
    return "".join(c if c.isalnum() else " " for c in text).split()


def plain_runs(items: list[str]) -> set[tuple[str, ...]]:
    runs = set()
    for words in map(plain_words, items):
        if SHORTEST <= len(words) < N:
            runs.add(tuple(words))
        runs |= {tuple(words[at : at + N]) for at in range(len(words) - N + 1)}
    return runs


def has_run(text: str, runs: set[tuple[str, ...]]) -> bool:
    words = plain_words(text)
    lengths = {len(run) for run in runs}
    return any(tuple(words[at : at + size]) in runs for size in lengths for at in range(len(words) - size + 1))


def write_lines(path: Path, items: list) -> Path:
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    return path


def sentence(rng: random.Random, count: int) -> str:
    return " ".join(f"w{rng.randrange(10**6)}" for _ in range(count))


@given(st.text(ALPHABET))
@settings(max_examples=300)
def test_words_are_those_of_another_way(text):
    assert fold(text).decode().split() == plain_words(text)
    words = words_of(["x", text, "", "y z"])
    count = len(plain_words(text))
    assert np.diff(words.begins).tolist() == [1, count, 0, 2]
    assert not count or words.written(1, count).split() == plain_words(text)
    assert len(set(words.hashes[1 : 1 + count].tolist())) == len(set(plain_words(text)))


@given(st.lists(st.text("ab ", max_size=60)), st.lists(st.text("aB. ", max_size=60), min_size=1))
@settings(max_examples=100, deadline=None)
def test_what_is_found_is_what_a_comparison_of_sets_finds(tmp_path_factory, items, texts):
    folder = tmp_path_factory.mktemp("runs")
    found = write_runs([write_lines(folder / "t.jsonl", items)], N, True, folder).find(texts)
    assert [hit is not None for hit in found] == [has_run(text, plain_runs(items)) for text in texts]


@pytest.mark.parametrize("slice_bits", [contamination.SLICE, 1024])
def test_planted_runs_are_found_and_nothing_else(tmp_path, monkeypatch, slice_bits):
    monkeypatch.setattr(contamination, "SLICE", slice_bits)
    rng = random.Random(0)
    items = [sentence(rng, rng.randint(1, 60)) for _ in range(400)]
    files = [write_lines(tmp_path / f"{n}.jsonl", items[n::3]) for n in range(3)]
    texts = []
    for number in range(500):
        words = rng.choice(items).split()
        start = rng.randrange(len(words))
        piece = words[start : start + rng.choice([7, 8, 12, 13, 20])]
        shown = rng.choice([" ", "\n", ", ", " — "]).join(piece)
        shown = shown.upper() if number % 2 else shown
        texts.append(f"{sentence(rng, rng.randint(0, 20))}. {shown}! {sentence(rng, rng.randint(0, 20))}")
    runs = [plain_runs(items[n::3]) for n in range(3)]
    found = write_runs(files, N, True, tmp_path / "runs").find(texts)
    assert 80 < sum(hit is not None for hit in found) < 400
    for text, hit in zip(texts, found, strict=True):
        assert (hit is not None) == any(has_run(text, of_file) for of_file in runs)
        if hit:
            assert has_run(hit.words, runs[int(hit.file[0])])
            assert f" {hit.words} " in f" {' '.join(plain_words(text))} "


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ("Столица Франции — Париж, а столица Италии — Рим; оба города стоят на реках.",
         "столица франции париж А СТОЛИЦА ИТАЛИИ\n\nРИМ ОБА ГО\u00adРОДА СТО\u0301ЯТ НА РЕКАХ"),
        ("The quick brown fox jumps over the lazy dog, doesn't it? Yes, it does so.",
         "THE_QUICK_BROWN_FOX_JUMPS_OVER_THE_LAZY_DOG_DOESN’T_IT_YES_IT_DOES_SO"),
        ("今天天气很好，我们去公园散步吧。", "今 天 天 气 很 好 我们去公园散步吧"),
        ("Straße um Straße, Haus um Haus, Fluß um Fluß, und so fort.",
         "STRASSE UM STRASSE HAUS UM HAUS FLUSS UM FLUSS UND SO FORT"),
    ],
)  # fmt: skip
def test_case_punctuation_and_white_space_hide_nothing(tmp_path, item, text):
    found = write_runs([write_lines(tmp_path / "t.jsonl", [{"a": [{"b": item}], "n": 1}])], N, True, tmp_path)
    [hit, other] = found.find([f"Frage: {text}?", "etwas anderes, das nicht in der Datei steht und lang genug ist"])
    assert hit is not None and hit.file == "t.jsonl" and other is None


def test_shorter_items_are_found_as_a_whole_and_the_shortest_not(tmp_path, capsys):
    eight, seven = "one two three four five six seven eight", "un deux trois quatre cinq six sept"
    runs = write_runs([write_lines(tmp_path / "t.jsonl", [eight, seven, "42", ""])], N, True, tmp_path / "runs")
    assert "2 texts of fewer than 8 words are not looked for" in capsys.readouterr().out
    found = runs.find([f"zero {eight} nine", eight[:-2], f"{seven} huit", ""])
    assert [hit is not None for hit in found] == [True, False, False, False]


def test_a_file_that_finds_nothing_is_said(tmp_path, capsys):
    runs = write_runs([write_lines(tmp_path / "t.jsonl", ["yes", "no"])], N, True, tmp_path / "runs")
    assert "nothing is found by it" in capsys.readouterr().out
    assert runs.find(["yes"] * 3) == [None] * 3


def test_texts_packed_files_and_arrays_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(contamination_files, "READ", 50)
    monkeypatch.setattr(contamination_files, "_LONG", 200)
    rng = random.Random(1)
    texts = [sentence(rng, 300) for _ in range(3)]
    with gzip.open(tmp_path / "a.txt.gz", "wt") as file:
        file.write("\r\n \r\n".join(text.replace(" ", "\n") for text in texts))
    (tmp_path / "b.json").write_text("\ufeff" + json.dumps([{"q": text} for text in texts], indent=1))
    (tmp_path / "c.json").write_text("\n".join(json.dumps({"q": text}) for text in texts))
    for name in ("a.txt.gz", "b.json", "c.json"):
        runs = write_runs([tmp_path / name], N, True, tmp_path / f"runs {name}")
        words = [text.split() for text in texts]
        every_run = [" ".join(of[at : at + N]) for of in words for at in range(300 - N + 1)]
        assert all(runs.find(every_run)), name
        over_two_texts = " ".join(words[0][-6:] + words[1][:7])
        assert runs.find([over_two_texts]) == [None]


def test_runs_are_written_anew_when_a_file_changed_and_only_then(tmp_path):
    path = write_lines(tmp_path / "t.jsonl", [sentence(random.Random(2), 20)])
    first = write_runs([path], N, True, tmp_path / "runs")
    written = (tmp_path / "runs" / "runs").stat().st_mtime_ns
    assert write_runs([path], N, True, tmp_path / "runs") == first
    assert (tmp_path / "runs" / "runs").stat().st_mtime_ns == written
    write_lines(path, [sentence(random.Random(3), 20)])
    assert write_runs([path], N, True, tmp_path / "runs").sha256 != first.sha256


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("t.jsonl", b'{"a": 1}\n{"a": \n', DataError, "no JSON in line 2"),
        ("t.jsonl", b'{"a": "\xff"}\n', DataError, "no JSON in line 1"),
        ("t.jsonl", b"[" * 100_000, DataError, "no JSON in line 1"),
        ("t.txt", b"a \xff", DataError, "no UTF-8"),
        ("t.parquet", b"PAR1", UserError, "none of *.jsonl"),
        ("t.jsonl.gz", b"no gzip", DataError, "truncated or no .gz file"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, error, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=re.escape(words)):
        write_runs([tmp_path / name], N, True, tmp_path / "runs")
    assert not (tmp_path / "runs" / "index.json").exists()
    with pytest.raises(UserError, match="is no file"):
        write_runs([tmp_path / "missing.jsonl"], N, True, tmp_path / "runs")
