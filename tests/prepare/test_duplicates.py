"""prepare_data.py --deduplicate: what repeats a document goes, the original stays and is named, all else stays too."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import prepare_data
from tests.conftest import ROOT
from tests.prepare.test_prepare_data import (
    WORDS,
    arguments,
    assert_conserved,
    content_of,
    documents_in,
    forms_of,
    kept_documents,
    prepare,
    random_corpus,
    report_of,
    times_of,
    with_small_blocks,
    write,
    write_parquet,
    written_since,
)
from utils.data.manifest import Manifest
from utils.prepare import duplicates, plan


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "BLOCK_BYTES", 9000)


def sentences(rng: random.Random, count: int) -> str:
    """So many words, of which hardly two texts share five in a row."""
    return " ".join(rng.choice(WORDS) + str(rng.randint(0, 999)) for _ in range(count))


def in_order(source: Path, folder: Path) -> Iterator[tuple[str, str, int, str]]:
    """All documents, those of test splits first: split, file, place, text."""
    entries = sorted(Manifest.load(folder).splits, key=lambda entry: (entry.split != "test", entry.dataset))
    for entry in entries:
        for file in entry.sources:
            for document in documents_in(source, file["path"]):
                yield f"{entry.dataset} {entry.split}", document.file, document.begin, document.text


def removed(folder: Path) -> dict[tuple[str, int], str]:
    """File and place of each duplicate → the original that is named."""
    return {
        (line["file"], line.get("byte", line.get("row"))): line["detail"]
        for entry in Manifest.load(folder).splits
        for line in report_of(folder, entry)
        if line["reason"] == "duplicate"
    }


def copies_in(source: Path, folder: Path) -> dict[tuple[str, int], str]:
    """Every document that equals an earlier one, and the first of these."""
    first: dict[str, str] = {}
    copies = {}
    for _, file, at, content in in_order(source, folder):
        if content in first:
            copies[file, at] = first[content]
        else:
            first[content] = f"{file}, {'row' if file.endswith('.parquet') else 'byte'} {at}"
    return copies


def corpus_with_copies(folder: Path, seed: int) -> Path:
    rng = random.Random(seed)
    texts = [sentences(rng, rng.randint(1, 300)) for _ in range(120)]
    pick = lambda count: [rng.choice(texts) for _ in range(count)]  # noqa: E731
    for name in ("FR/A/train.txt", "FR/A/test.txt", "EN/B/full.txt", "EN/A/train.txt"):
        write(folder, name, "\n\n".join([*pick(40), "x"]))
    write(folder, "EN/C/x.jsonl", "\n".join(json.dumps({"text": f" {text}\r\n"}) for text in pick(60)))
    write(folder, "EN/C/y.jsonl", "\n".join(json.dumps({"text": text}) for text in pick(20)))
    write_parquet(folder / "EN/D/valid.parquet", pick(30))
    return folder


@pytest.mark.parametrize("seed", range(3))
def test_every_copy_goes_and_nothing_else(tmp_path, seed):
    source, data = corpus_with_copies(tmp_path / "source", seed), tmp_path / "data"
    assert prepare(source, data, "--deduplicate", "exact") == 0
    copies = copies_in(source, data)
    assert len(copies) > 80 and removed(data) == copies
    manifest = assert_conserved(source, data)
    assert manifest.made_by["deduplicate"] == "exact"
    assert sum(entry.skipped.get("duplicate", 0) for entry in manifest.splits) == len(copies)
    kept = [d.text for entry in manifest.splits for d in kept_documents(source, data, entry)]
    assert len(kept) == len(set(kept))


def test_of_a_text_in_both_splits_the_test_split_s_stays(tmp_path):
    source, data, rng = tmp_path / "source", tmp_path / "data", random.Random(1)
    shared, own = sentences(rng, 50), sentences(rng, 50)
    write(source, "FR/A/train.txt", f"{own}\n\n{shared}")
    write(source, "FR/Z/test.txt", f"{sentences(rng, 9)}\n\n{shared}")
    write(source, "EN/A/train.txt", f"{shared}\n\n{own}")
    assert prepare(source, data, "--deduplicate", "near") == 0
    place = len((source / "FR/Z/test.txt").read_bytes()) - len(shared.encode())
    assert removed(data) == {
        ("FR/A/train.txt", 0): f"EN/A/train.txt, byte {len(shared.encode()) + 2}",
        ("FR/A/train.txt", len(own.encode()) + 2): f"FR/Z/test.txt, byte {place}",
        ("EN/A/train.txt", 0): f"FR/Z/test.txt, byte {place}",
    }
    assert [entry.documents for entry in assert_conserved(source, data).splits] == [1, 0, 2]


def shingles(text: str) -> set[tuple[str, ...]]:
    apart = {"🙂": " 🙂 "}  # such characters are words
    words = "".join(apart.get(c, c if c.isalnum() else " ") for c in text.lower()).split()
    return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def similarity(one: str, other: str) -> float:
    left, right = shingles(one), shingles(other)
    return len(left & right) / len(left | right)


def changed(rng: random.Random, text: str, words: int) -> str:
    """The text with so many other words, other spaces, and ASCII letters in upper case."""
    parts = text.split()
    for place in rng.sample(range(len(parts)), words):
        parts[place] = f"autre{rng.randint(0, 10**6)}"
    return "".join(c.upper() if c.isascii() else c for c in "  ".join(parts))


@pytest.mark.parametrize("threshold", [0.8, 0.5])
def test_near_copies_go_and_what_is_less_alike_stays(tmp_path, threshold):
    """By comparison of the sets of five words: the estimate's standard deviation is 0.044 at most."""
    source, data, rng = tmp_path / "source", tmp_path / "data", random.Random(3)
    texts = [sentences(rng, rng.randint(150, 250)) for _ in range(60)]
    near = [changed(rng, text, words) for text in texts for words in (0, 1, 6, 12, 25)]
    rng.shuffle(near)
    write(source, "FR/A/train.txt", "\n\n".join(texts))
    write(source, "FR/B/train.txt", "\n\n".join(near))
    assert prepare(source, data, "--deduplicate", "near", "--similarity", threshold) == 0
    gone, text_at = removed(data), {(file, at): text for _, file, at, text in in_order(source, data)}
    assert 60 < len(gone) < 300
    for place, original in gone.items():
        file, at = original.split(", byte ")
        assert (file, int(at)) not in gone
        assert similarity(text_at[place], text_at[file, int(at)]) > threshold - 0.18
    for file, at in text_at.keys() - gone.keys():
        if file == "FR/B/train.txt":
            assert all(similarity(text_at[file, at], text) < threshold + 0.18 for text in texts)
    assert_conserved(source, data)


def test_dialogue_with_variants(tmp_path):
    """Its blocks are smaller, and documents are known by their number in a block."""
    source, data, rng = tmp_path / "source", tmp_path / "data", random.Random(4)
    plays = [f"[speaker001:] {sentences(rng, 60)}.\n[speaker002:] {sentences(rng, 60)}." for _ in range(90)]
    write(source, "FR/A/train.txt", "\n\n".join(plays[:60]))
    write(source, "FR/B/train.txt", "\n\n".join(plays[20:90]))
    metadata = write(tmp_path, "metadata.csv", "dataset,language,augmentation_level\nFR/A,fr,\nFR/B,fr,4\n")
    given = ("--metadata", metadata, "--deduplicate", "exact")
    assert prepare(source, data, *given) == 0
    assert removed(data) == copies_in(source, data) and len(removed(data)) == 40
    assert_conserved(source, data, forms=forms_of(source, data, {"FR/A train": ("fr", 1), "FR/B train": ("fr", 4)}))
    (data / "manifest.json").unlink()
    assert prepare(source, data, *given, "--augmentation_level", 1) == 0
    assert removed(data) == copies_in(source, data)


def test_a_document_in_parts_is_not_compared(tmp_path):
    source, data, rng = tmp_path / "source", tmp_path / "data", random.Random(5)
    long, short = sentences(rng, 9000), sentences(rng, 20)
    write(source, "FR/A/train.txt", "\n\n".join([short, long, short, long, short]))
    assert prepare(source, data, "--deduplicate", "near") == 0
    assert len(removed(data)) == 2
    (entry,) = assert_conserved(source, data).splits
    assert entry.documents == 3


def test_documents_of_the_wrong_length_are_no_originals(tmp_path):
    source, data = tmp_path / "source", tmp_path / "data"
    write(source, "FR/A/train.txt", "oui\n\noui\n\nnon, merci\n\nnon, merci")
    assert prepare(source, data, "--deduplicate", "near", "--min_characters", 5) == 0
    (entry,) = assert_conserved(source, data).splits
    assert entry.skipped == {"duplicate": 1, "too_short": 2}
    assert prepare(source, data, "--deduplicate", "near", "--min_characters", 50) == 0
    (entry,) = Manifest.load(data).splits
    assert (entry.documents, entry.skipped) == (0, {"too_short": 4})
    text = sentences(random.Random(2), 60)
    write(source, "FR/A/train.txt", f"{text} longer\n\n{text}")
    assert prepare(source, data, "--deduplicate", "near", "--max_characters", len(text)) == 0
    (entry,) = assert_conserved(source, data).splits
    assert (entry.documents, entry.skipped) == (1, {"too_long": 1})


def test_a_second_call_changes_nothing(tmp_path, capsys):
    source, data = corpus_with_copies(tmp_path / "source", 7), tmp_path / "data"
    assert prepare(source, data, "--deduplicate", "near") == 0
    content, before, manifest = content_of(data), times_of(data), (data / "manifest.json").stat().st_mtime_ns
    capsys.readouterr()
    assert prepare(source, data, "--deduplicate", "near") == 0
    assert capsys.readouterr().out.count(": kept\n") == 6
    assert content_of(data) == content and (data / "manifest.json").stat().st_mtime_ns == manifest
    assert not written_since(before, data)


def test_what_a_changed_file_does_not_touch_is_kept(tmp_path):
    source, data, rng = tmp_path / "source", tmp_path / "data", random.Random(8)
    texts = [sentences(rng, 40) for _ in range(30)]
    for index, name in enumerate(("EN/A", "FR/A", "FR/B", "FR/C")):
        write(source, f"{name}/train.txt", "\n\n".join(texts[7 * index : 7 * index + 9]))
    assert prepare(source, data, "--deduplicate", "exact") == 0
    before = times_of(data)
    write(source, "FR/B/train.txt", "\n\n".join([sentences(rng, 10), *texts[14:20]]))  # without what FR/C repeats
    assert prepare(source, data, "--deduplicate", "exact") == 0
    assert written_since(before, data) == {"FR--B-train", "FR--C-train"}
    assert_conserved(source, data)
    before = times_of(data)
    assert prepare(source, data) == 0
    assert written_since(before, data) == {"FR--A-train", "FR--B-train"}  # those without copies stay
    assert assert_conserved(source, data).made_by["deduplicate"] == "no"
    assert not list((data / "reports").iterdir())


def test_signatures_of_a_call_that_did_not_end_are_used(tmp_path, monkeypatch):
    source, data, rng = tmp_path / "source", tmp_path / "data", random.Random(9)
    for name in "ABC":
        write(source, f"FR/{name}/train.txt", "\n\n".join(sentences(rng, 30) for _ in range(20)))
    write(source, "FR/C/train.txt", (source / "FR/C/train.txt").read_bytes() + b"\n\n\xff")
    with monkeypatch.context() as patched:
        patched.setattr(prepare_data, "prepare_splits", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(source, data, "--deduplicate", "near", "--on_bad_input", "skip")
    folders = sorted((data / "parts").glob("*.signatures"))
    times = {path: path.stat().st_mtime_ns for folder in folders for path in folder.iterdir()}
    assert len(folders) == 3 and len(times) == 12
    (folders[1] / "done.json").unlink()
    write(folders[1], "exact", b"half")
    write(source, "FR/C/train.txt", (source / "FR/C/train.txt").read_bytes() + b"\n\nfin")
    signed = []
    real = duplicates.write_signatures
    monkeypatch.setattr(duplicates, "write_signatures", lambda *given: signed.append(given[1].name) or real(*given))
    assert prepare(source, data, "--deduplicate", "near", "--on_bad_input", "skip") == 0
    assert signed == ["FR--B-train", "FR--C-train"]
    assert prepare(source, tmp_path / "fresh", "--deduplicate", "near", "--on_bad_input", "skip") == 0
    assert content_of(data) == content_of(tmp_path / "fresh")


def test_near_duplicates_need_rensa(tmp_path):
    write(tmp_path / "source", "FR/A/train.txt")
    given = arguments(tmp_path / "source", tmp_path / "data", "--deduplicate", "near")
    command = with_small_blocks(9000, *given)
    command[2] = "import sys; sys.modules['rensa'] = None; " + command[2]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and "needs rensa: pip install rensa" in done.stderr, done.stderr


@pytest.mark.parametrize("how", ["exact", "near"])
def test_the_number_of_processes_makes_no_difference(tmp_path, how):
    source = random_corpus(tmp_path / "source", 5, 40_000, seed=10)
    for workers in (1, 2, 3):
        given = ("--deduplicate", how, "--num_workers", workers)
        assert prepare(source, tmp_path / f"data{workers}", *given) == 0
    assert content_of(tmp_path / "data1") == content_of(tmp_path / "data2") == content_of(tmp_path / "data3")
