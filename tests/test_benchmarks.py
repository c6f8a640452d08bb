"""The measuring scripts run, and their own arithmetic is right; nothing here is a measurement."""

from __future__ import annotations

import gc
import json
import re
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import pretrain
from benchmarks import chat_rows, generate, padding, prepare, prepare_peers, stagnation, steady, step
from tests.conftest import ROOT, SAMPLE, TOKENIZER, run
from utils import cli

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


def test_synthetic_conversations_are_the_same_for_the_same_seed_and_of_the_shape_that_is_promised(tmp_path, source):
    [first, again, longer] = [
        chat_rows.make_rows(tmp_path / name, source, count, 1).read_text(encoding="utf-8").splitlines()
        for name, count in (("first", 300), ("again", 300), ("longer", 1200))
    ]
    assert again == first and longer[: len(first)] == first and len(set(longer)) > 1150
    conversations = [json.loads(line)["messages"] for line in longer]
    turns = [[message["role"] for message in messages if message["role"] != "system"] for messages in conversations]
    assert all(roles == ["user", "assistant"] * (len(roles) // 2) and 2 <= len(roles) <= 10 for roles in turns)
    assert all(message["content"].strip() for messages in conversations for message in messages)
    text = "".join(longer)
    assert re.search("[а-я]", text) and re.search("[一-龥]", text) and "```python" in text and "<|" not in text


@pytest.mark.shared
def test_chat_measures_ours(tmp_path, source):
    where = ("--source", source, "--work_dir", tmp_path, "--no_record")
    output = run("benchmarks/chat.py", "--rows", 30, "--only", "ours", *where).stdout
    # less than the start is taken off where the machine is busy
    assert re.search(r"^ours +-?[\d,]+ rows/s \(.* s; whole .* s, processor .* s, peak .* MB\)$", output, re.MULTILINE)


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


@pytest.mark.shared
def test_books_are_cleaned_cut_and_packed(tmp_path):
    more = ("--work_dir", tmp_path, "--tokenizer", TOKENIZER, "--no_record")
    output = run("benchmarks/books.py", "--books", 3, "--workers", 1, *more).stdout
    for name in ("clean", "chunk", "chunk again"):
        assert re.search(rf"^{name} +[\d.]+ s +[\d.]+ MB/s +[\d.]+ GiB$", output, re.MULTILINE), output
    assert "ours: 100.0% of" in output and " 0 of " in output
    assert "is up to date" in output
    rows = {who: figures(output, who) for who in ("whole", "chunks", "joined")}
    assert rows["whole"][-1] == rows["joined"][-1] == 1 and rows["chunks"][-1] > 50


# A training step


class Connection:
    """Stands for the process that gives the turns."""

    def __init__(self, turns: list[int]) -> None:
        self.turns, self.answers = turns, []

    def recv(self) -> int:
        return self.turns.pop(0)

    def send(self, answer: object) -> None:
        self.answers.append(answer)


STEP = ("--shape", "tiny", "--positions", 64, "--batch", 2, "--rounds", 1, "--no_record")


@pytest.mark.parametrize(
    ("options", "candidates"),
    [
        ((), step.FULL),
        (("--lora", "--activation_checkpointing", "selective"), step.ADAPTED),
        (("--precision", "bf16-true"), ("ours",)),
    ],
)
def test_step_candidates_take_their_turns_with_one_model(tmp_path, data_dir, options, candidates):
    arguments = step.parse_arguments([*map(str, (*STEP, *options, "--data_dir", data_dir, "--tokenizer", TOKENIZER))])
    arguments.source, arguments.work_dir = SAMPLE / "french", tmp_path
    assert set(candidates) <= set(arguments.candidates)
    facts = {}
    for who in candidates:
        connection = Connection([1, 2, 1, 0])
        try:
            step.work(who, connection, arguments)
        finally:
            gc.enable()
        *turns, facts[who] = connection.answers
        assert len(turns) == 3 and min(turns) > 0
        assert 0.9 < facts[who].targets < 1 and facts[who].peak > 1e6 and facts[who].recompilations == 0
    assert len({answer.parameters for answer in facts.values()}) == 1
    apart = {"ours", "dense", "padded"} & facts.keys()
    flops = {who: answer.flops for who, answer in facts.items() if who != "padded"}
    assert len({flops[who] for who in flops if who not in apart}) <= 1
    if "unmasked" in flops:
        assert flops["ours"] < flops["unmasked"], "masked documents see fewer keys"


def test_step_compares_processes(data_dir):
    output = run("benchmarks/step.py", *STEP, "--data_dir", data_dir, "--candidates", "ours", "unmasked").stdout
    assert re.search(r"^ours +155,808 .* 1\.000 +1\.000 ", output, re.MULTILINE), output
    assert re.search(r"^document masks cost ours -?[\d.]+ % of the speed of unmasked$", output, re.MULTILINE), output


def test_step_measures_the_loss():
    output = run("benchmarks/step.py", "--loss_memory", "--shape", "tiny", "--positions", 8192, "--no_record").stdout
    ours, logits = (figures(output, name)[0] for name in ("our loss ", "all logits"))
    # 65,536 positions by 2,048 entries: 0.25 GiB in bf16, and several of them
    assert 0 < ours < logits / 2 and logits > 0.5, output


# Whole runs


def test_generate_compares_all_ways(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generate.py", "--rounds", "1", "--prompts", "2", "--tokens", "4", "--no_record"])
    generate.main()
    output = capsys.readouterr().out
    for name in ("ours, batched", "ours, one by one", "litgpt, one by one", "chat, cached", "chat, read anew"):
        assert figures(output, name)[0] > 0, output


def test_steady_watches_a_run():
    output = run("benchmarks/steady.py", "--minutes", 0.05, "--source", SAMPLE / "french", "--no_record").stdout
    (speed, memory), (last_speed, last_memory) = (figures(output, name) for name in ("first tenth", "last tenth"))
    assert min(speed, last_speed) > 100 and min(memory, last_memory) > 50, output
    ratio = float(re.search(r"^last / first: ([\d.]+); memory grew by -?[\d.]+ MB an hour$", output, re.MULTILINE)[1])
    assert ratio == pytest.approx(last_speed / speed, rel=0.01)


def test_tenths_leave_the_warm_up_out():
    speeds = [50] * 2 + [100] * 91 + [200] * 10  # of seconds 1 to 103
    lines = [(second, 100 * second, speed) for second, speed in enumerate(speeds, start=1)]
    names = ("split", "seconds", "tokens", "tokens_per_second")
    rows = [dict(zip(names, ("train", *map(str, line)), strict=True)) for line in lines]
    rows.insert(50, dict(zip(names, ("train", "50", "5000", ""), strict=True)))
    rows.insert(50, dict(zip(names, ("valid", "50", "5000", ""), strict=True)))
    assert steady.find_tenths(rows, warm_up=2) == pytest.approx((100, 11 / (1 + 10 * 0.5) * 100, 100))


def test_stagnation_goes_on_from_one_start_and_draws(tmp_path, monkeypatch, capsys, trained_run):
    parsed = {}

    def copy_run(folder: Path, name: str, *options: object) -> None:
        """Stands for pretrain.py, whose options it parses."""
        parsed[name] = cli.parse(pretrain.PretrainOptions, stagnation.pretrain_options(folder, name, *options))
        shutil.copytree(trained_run, folder / name)
        if name == "way-3":
            path = folder / name / "metrics.csv"
            path.write_text(path.read_text().replace(",train,,", ",train,,1"))  # 1 before the loss's first digit

    monkeypatch.setattr(stagnation, "run_pretrain", copy_run)
    where = ("--source", SAMPLE / "french", "--figure", tmp_path / "figure.svg")
    stagnation.main([*map(str, where), "--no_record"])
    printed = re.findall(r"^(\S.*?)  +([\d.]+)  ([\d.]+) of fp32's$", capsys.readouterr().out, re.MULTILINE)
    assert [way for way, _, _ in printed] == list(stagnation.WAYS)
    assert [float(ratio) == 1 for _, _, ratio in printed] == [True, True, True, False]
    foundations = {options.checkpoint_dir for name, options in parsed.items() if name != "start"}
    assert len(parsed) == 5 and len(foundations) == 1 and foundations.pop().name == "foundation"
    assert [options.master_weights for options in parsed.values()] == [True] * 4 + [False]
    assert "</svg>" in (tmp_path / "figure.svg").read_text()


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


def test_memory_is_that_of_all_processes_and_time_that_of_the_last(tmp_path, monkeypatch):
    held, enough, look = tmp_path / "held", tmp_path / "enough", prepare.session_memory
    held.mkdir()
    grow = f"""
import os, time; from pathlib import Path
memory = bytearray(b"x") * 100_000_000
Path({str(held)!r}, str(os.getpid())).touch()
while not Path({str(enough)!r}).exists():
    time.sleep(0.01)
"""
    first, ended = [], []

    def look_once_more(session):
        """Lets the processes end after a look at which both held their memory."""
        first.append(time.perf_counter())
        is_held = len(list(held.iterdir())) == 2
        found = look(session)
        if is_held and not ended:
            ended.append(time.perf_counter())
            enough.touch()
        return found

    monkeypatch.setattr(prepare, "session_memory", look_once_more)
    start = f"[subprocess.Popen([sys.executable, '-c', {grow!r}]) for _ in range(2)]"
    program = f"import subprocess, sys; [process.wait() for process in {start}]"
    began = time.perf_counter()
    seconds, peak, _ = prepare.measure([sys.executable, "-c", program])
    # began <= the start that is measured <= the first look <= the processes' ends <= the end that is measured <= now
    assert ended[0] - first[0] <= seconds <= time.perf_counter() - began
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


def test_export_measures_every_command(tmp_path):
    output = run("benchmarks/export.py", "--tiny", "--no_record", "--work_dir", tmp_path).stdout
    names = ("copy", "in", "merge", "merge, not verified", "litgpt's merge", "out", "consolidate")
    for name in names:
        (peak,) = re.findall(rf"^{name}  +[\d.]+ s, .* peak +(\d+) MB", output, re.MULTILINE)
        assert int(peak) > 10, output
    assert not list(tmp_path.iterdir())
