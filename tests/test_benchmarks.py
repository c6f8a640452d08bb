"""The measuring scripts of data preparation run, and their own arithmetic is right; nothing here is a measurement."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks import padding, prepare, prepare_peers
from tests.conftest import ROOT, SAMPLE, TOKENIZER, run

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A play of 40 scenes whose words are half common, half rare."""
    rng = np.random.default_rng(0)
    common = ["madame", "cœur", "jamais", "monsieur", "l'amour", "point"]
    rare = ["".join(rng.choice(list("bdlmnrstaeioué"), 9)) for _ in range(400)]
    scenes = []
    for _ in range(40):
        words = [[str(rng.choice(common)), str(rng.choice(rare))] for _ in range(60)]
        turns = [" ".join(word for pair in words[first : first + 6] for word in pair) for first in range(0, 60, 6)]
        scenes.append("\n".join(f"[Name{number % 2}:] {turn}." for number, turn in enumerate(turns)))
    path = tmp_path_factory.mktemp("plays") / "FR" / "Play" / "train.txt"
    path.parent.mkdir(parents=True)
    path.write_text("\n\n".join(scenes) + "\n", encoding="utf-8")
    return path.parents[2]


def figures(output: str, name: str) -> list[float]:
    """The numbers of the table's lines that begin with `name`."""
    lines = [line for line in output.splitlines() if line.startswith(name)]
    return [float(number.replace(",", "")) for line in lines for number in re.findall(r"[\d.,]*\d", line[len(name) :])]


# The scripts


def test_prepare_compares_what_is_installed(tmp_path, source):
    sizes = ("--megabytes", 0.2, 0.3, "--peer_megabytes", 0.1, "--rounds", 1, "--alone", "sentencepiece")
    where = ("--source", source, "--work_dir", tmp_path, "--tokenizer", TOKENIZER, "--no_record")
    output = run("benchmarks/prepare.py", *sizes, *where).stdout
    for name in ("ours", "sentencepiece alone", "sentencepiece alone, with its start"):
        sizes = [row[0] for row in re.findall(rf"^{name} +(([\d.]+) .*)$", output, re.MULTILINE)]
        assert [row.split()[0] for row in sizes] == ["0.2", "0.3"], output
    for name in ("loop", "litdata"):
        assert re.search(rf"^{name} +0\.1 |^.*{name}.* left out: ", output, re.MULTILINE), output
    # one text, so one number of tokens: MB/s over M tokens/s is the same for ours and the tokenizer alone
    bytes_per_token = {
        row[0]: float(row[1]) / float(row[2]) for row in re.findall(r"(.*?)  +0\.3 +(\S+) +(\S+)", output)
    }
    assert bytes_per_token["ours"] == pytest.approx(bytes_per_token["sentencepiece alone"], rel=0.05)


def test_sample_order_prints_every_place():
    output = run("benchmarks/sample_order.py", "--samples", 48, "--datasets", 1, 35, "--no_record").stdout
    for shape in ("1 datasets, 8 processes", "35 datasets, 8192 processes"):
        assert len(figures(output, shape.rjust(26))) == 4, output
    assert "35 datasets: counts off by at most 0." in output


def test_padding_shows_three_ways():
    output = run(
        *("benchmarks/padding.py", "--source", SAMPLE / "french", "--tokenizers", TOKENIZER, "--windows", 129),
        "--no_record",
    ).stdout
    rows = {line.split()[2]: line.split()[-6:] for line in output.splitlines() if " 129  " in line}
    assert set(rows) == {"ours", "per", "concatenated"}, output
    assert rows["ours"][3] == "0", "a token is lost"
    assert float(rows["ours"][1][:-1]) < float(rows["per"][1][:-1])


# The text


def test_copies_differ_and_the_vocabulary_grows(tmp_path, source):
    path = prepare.make_corpus(source, tmp_path, 0.5, seed=3)
    text = path.read_text(encoding="utf-8")
    assert 0.49 * MEGABYTE < path.stat().st_size <= 0.5 * MEGABYTE
    words = re.findall(r"\w+", text)
    seen = [len(set(words[: len(words) * part // 4])) for part in (1, 2, 3, 4)]
    assert all(later > 1.3 * earlier for earlier, later in pairwise(seen)), seen
    turns = [line for line in text.split("\n") if line]
    assert all(line.startswith("[Name") for line in turns), "a turn was torn"
    assert len(set(turns)) == len(turns), "two copies have a turn in common"
    original = re.findall(r"\w+", next(source.rglob("train.txt")).read_text(encoding="utf-8"))
    shares = [kept.count("madame") / len(kept) for kept in (original, words)]
    assert shares[0] == pytest.approx(shares[1], rel=0.05), "a common word was respelled"


def test_a_smaller_text_begins_a_larger_one_and_a_seed_makes_another(tmp_path, source):
    small, large = (prepare.make_corpus(source, tmp_path, size, seed=3).read_bytes() for size in (0.1, 0.3))
    assert large.startswith(small)
    assert prepare.make_corpus(source, tmp_path, 0.1, seed=4).read_bytes() != small


def test_split_text_keeps_every_document(tmp_path, source):
    path = prepare.make_corpus(source, tmp_path, 0.1, seed=3)
    parts = prepare.split_text(path, 3)
    documents = [document for part in parts for document in prepare_peers.read_documents(part)]
    assert documents == path.read_text(encoding="utf-8").strip().split("\n\n")
    sizes = [part.stat().st_size for part in parts]
    assert max(sizes) - min(sizes) < 0.1 * sum(sizes)


# Measuring


def test_memory_is_that_of_all_processes_and_time_that_of_the_last():
    grow = "import time; held = bytearray(b'x') * 100_000_000; time.sleep(1)"
    start = f"[subprocess.Popen([sys.executable, '-c', {grow!r}]) for _ in range(2)]"
    program = f"import subprocess, sys; [process.wait() for process in {start}]"
    began = time.perf_counter()
    seconds, peak, _ = prepare.measure([sys.executable, "-c", program])
    assert 1 < seconds <= time.perf_counter() - began
    assert 200e6 < peak < 260e6, peak


def test_a_failing_program_is_named():
    with pytest.raises(SystemExit, match=r"exited with 3:\nwhy"):
        prepare.measure([sys.executable, "-c", "print('why'); raise SystemExit(3)"])


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("tokenizer: gigatoken (the same tokens as tokenizers)", "gigatoken"),
        ("Tokenizer: Hugging Face tokenizers, as gigatoken is not installed", "hf"),
        ("tokenised by sentencepiece: gigatoken gives other tokens", "sentencepiece"),
    ],
)
def test_the_chosen_tokenizer_is_the_first_one_named(line, kind):
    assert prepare.chosen_tokenizer(f"something else\n{line}\n") == kind


def test_alone_counts_the_tokens_of_all_processes(tmp_path, source):
    from sentencepiece import SentencePieceProcessor

    text = next(source.rglob("train.txt"))
    processor = SentencePieceProcessor(model_file=str(TOKENIZER / "tokenizer.model"))
    expected = sum(map(len, processor.encode(text.read_text(encoding="utf-8").strip().split("\n\n"))))
    command = [sys.executable, ROOT / "benchmarks" / "prepare_peers.py", "alone", "--kind", "sentencepiece"]
    command += ["--tokenizer", TOKENIZER, "--source", text, "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert prepare.read_answer(done.stdout)["tokens"] == expected


# What the other ways of making rows cost


@pytest.mark.parametrize("seed", range(20))
def test_waste_is_that_of_rows_made_token_by_token(seed):
    rng = np.random.default_rng(seed)
    lengths, window = rng.integers(1, 30, rng.integers(1, 40)), int(rng.integers(2, 12))
    stream = [(document, place) for document, length in enumerate(lengths) for place in range(length)]
    joined = [stream[first : first + window] for first in range(0, len(stream) - window + 1, window)]
    padded = [
        [(document, place) for place in range(first, min(first + window, length))]
        for document, length in enumerate(lengths)
        for first in range(0, length, window)
    ]
    for rows, waste in (
        (joined, padding.concatenate(lengths, window)),
        (padded, padding.pad_documents(lengths, window)),
    ):
        targets = {token for row in rows for token in row[1:]}
        whole = {
            document
            for row in rows
            for document, length in enumerate(lengths)
            if {(document, place) for place in range(length)} <= set(row)
        }
        cut = [document for document in range(len(lengths)) if document not in whole]
        assert waste.rows == len(rows)
        assert waste.lost == len([token for token in stream if token[1] > 0 and token not in targets])
        assert (waste.cut, waste.avoidable) == (len(cut), sum(lengths[document] <= window for document in cut))
        free = sum(window - len(row) for row in rows)
        assert waste.padding == pytest.approx(free / max(1, len(rows) * window))
