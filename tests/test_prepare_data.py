"""prepare_data.py as its user meets it: what it writes adds up, can be stopped anywhere, and errors are plain."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from safetensors.numpy import load_file

import prepare_data
from lit_gpt import command
from lit_gpt.tokenizer import Tokenizer
from tests.conftest import ROOT, SAMPLE, SHARED, TOKENIZER, assert_error, command_line, run
from utils.corpus import Source
from utils.shards import DatasetSplit, Manifest, verify_shards

CLAIRE, MISTRAL = SHARED / "data" / "claire", SHARED / "tokenizers" / "mistral-7b-v0.1"
WORDS = [
    "bonjour",
    "le",
    "marché",
    "été",
    "ça",
    "12",
    "🙂",
    "oui!",
    "[rire]",
    "incompréhensiblement",
    "et,",
    "de",
    "la",
]


def arguments(source: Path, destination: Path, *more: object, tokenizer: Path = TOKENIZER) -> list[object]:
    given = ["--source_path", source, "--checkpoint_dir", tokenizer, "--destination_path", destination]
    lengths = [] if "--max_length" in more else ["--max_length", 64]
    return [*given, *lengths, *([] if "--num_workers" in more else ["--num_workers", 1]), *more]


def prepare(source: Path, destination: Path, *more: object, tokenizer: Path = TOKENIZER) -> int:
    """The exit code of the program, called in this process."""
    given = map(str, arguments(source, destination, *more, tokenizer=tokenizer))
    return command.run(prepare_data.PrepareOptions, prepare_data.main, list(given))


def write(folder: Path, name: str, content: bytes | str = "[A:] un\n[B:] deux\n\n[A:] trois\n") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def random_corpus(folder: Path, datasets: int, size: int, seed: int) -> Path:
    """`datasets` files of about `size` characters: short documents, long ones, some turns longer than a window."""
    rng = np.random.default_rng(seed)
    for index in range(datasets):
        documents: list[str] = []
        while sum(map(len, documents)) < size:
            turns = rng.integers(1, 40 if rng.random() < 0.2 else 6)
            lengths = [rng.integers(1, 200 if rng.random() < 0.05 else 12) for _ in range(turns)]
            turns_text = [
                f"[speaker{n % 3:03}:] " + " ".join(rng.choice(WORDS, length)) for n, length in enumerate(lengths)
            ]
            documents.append("\n".join(turns_text))
        write(folder, f"FR/Set{index:02}/{('train', 'test')[index % 2]}.txt", "\n\n".join(documents) + "\n")
    return folder


def content_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file by its relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def times_of(folder: Path) -> dict[str, int]:
    """When each shard was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


def written_since(before: dict[str, int], folder: Path) -> set[str]:
    """The datasets and splits of the shards that are new."""
    return {name.rsplit("-", 3)[0] for name, at in times_of(folder).items() if before.get(name) != at}


def bigrams(pieces: list[np.ndarray], leading: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Each pair (token before, target) and how often it occurs; a piece's first `leading` tokens are no targets."""
    pairs = [piece[first - 1 : -1] * 2**32 + piece[first:] for piece, first in zip(pieces, leading, strict=True)]
    return np.unique(np.concatenate(pairs), return_counts=True)


def pieces_of(folder: Path, entry: DatasetSplit, window: int) -> tuple[list[np.ndarray], list[int], int]:
    """Every piece in the shards, its leading tokens that are no targets, and the padding, which must be zeros."""
    pieces, leading, padding = [], [], 0
    for shard in entry.shards:
        arrays = load_file(folder / shard.file)
        assert arrays["tokens"].shape == (shard.rows, window)
        for row in range(shard.rows):
            position = 0
            for segment in range(*arrays["row_segments"][row : row + 2]):
                length = arrays["segment_lengths"][segment]
                pieces.append(arrays["tokens"][row, position : position + length].astype(np.int64))
                leading.append(int(arrays["segment_overlaps"][segment]))
                position += length
            assert not arrays["tokens"][row, position:].any()
            padding += window - position
    return pieces, leading, padding


def assert_conserved(source: Path, folder: Path, tokenizer_dir: Path = TOKENIZER) -> Manifest:
    """The manifest adds up, and every token of each document but its first is a target exactly once.

    Derived from the shards and the text alone: the targets with the token before each are those of the documents, and
    every piece lies in a document as it is.
    """
    manifest, tokenizer = Manifest.load(folder), Tokenizer(tokenizer_dir)
    verify_shards(folder, manifest.splits)
    before = [tokenizer.bos_id] if manifest.bos else []
    after = [tokenizer.eos_id] if manifest.eos else []
    for entry in manifest.splits:
        text = (source / entry.sources[0]["path"]).read_text(encoding="utf-8-sig")
        texts = [part.strip() for part in text.split("\n\n") if part.strip()]
        documents = [np.array(before + ids + after) for ids in tokenizer.encode_batch(texts)]
        assert entry.documents == len(documents) and entry.words == len(text.split())
        assert entry.tokens == sum(map(len, documents)) and entry.targets == entry.tokens - entry.documents
        assert entry.rows * manifest.window == entry.tokens + entry.overlap + entry.padding
        rows = [shard.rows for shard in entry.shards]
        assert len(rows) % manifest.made_by["multiple_of"] == 0 and max(rows) - min(rows) <= 1
        pieces, leading, padding = pieces_of(folder, entry, manifest.window)
        assert padding == entry.padding and min(leading) >= 1
        assert sum(map(len, pieces)) == entry.tokens + entry.overlap
        for found, expected in zip(bigrams(pieces, leading), bigrams(documents, [1] * len(documents)), strict=True):
            assert np.array_equal(found, expected)
        whole = b"".join(document.astype(">i8").tobytes() + b"\xff" * 8 for document in documents)
        some = pieces[:: 1 + len(pieces) // 200]
        assert all(piece.astype(">i8").tobytes() in whole for piece in some)
    return manifest


# --- what is written


def test_the_sample_adds_up(data_dir):
    manifest = assert_conserved(SAMPLE / "french", data_dir)
    assert (manifest.window, manifest.dtype, manifest.bos, manifest.eos) == (65, "uint16", True, True)
    assert [(entry.dataset, entry.split) for entry in manifest.splits] == [
        (f"FR/{name}", split) for name in ("Bibliotheque", "Cuisine", "Marche") for split in ("train", "test")
    ]
    assert {entry.language for entry in manifest.splits} == {"fr"}
    for entry in manifest.splits:
        text = (SAMPLE / "french" / entry.sources[0]["path"]).read_text(encoding="utf-8")
        assert entry.turns == sum(line.startswith("[") and ":]" in line for line in text.splitlines())
        assert entry.padding < 0.02 * entry.tokens


@pytest.mark.parametrize(
    "more",
    [
        ("--max_length", 8),
        ("--max_length", 1),
        ("--max_length", 100, "--padding", "false"),
        ("--max_length", 2000, "--multiple_of", 3, "--add_bos", "false"),
        ("--max_length", 30, "--add_eos", "false", "--multiple_of", 1),
    ],
)
def test_random_corpora_add_up(tmp_path, more):
    source = random_corpus(tmp_path / "source", 3, 6000, seed=len(more) + int(more[1]))
    assert prepare(source, tmp_path / "data", *more) == 0
    assert_conserved(source, tmp_path / "data")


def test_without_padding_only_the_last_row_is_padded(tmp_path):
    source = random_corpus(tmp_path / "source", 2, 20000, seed=3)
    assert prepare(source, tmp_path / "data", "--padding", "false") == 0
    manifest = assert_conserved(source, tmp_path / "data")
    assert manifest.made_by["padding"] is False
    assert all(entry.padding < manifest.window for entry in manifest.splits)
    assert all(entry.overlap <= entry.rows + manifest.window for entry in manifest.splits)


@pytest.mark.shared
def test_a_real_corpus_leaves_next_to_no_padding(tmp_path):
    run("prepare_data.py", *arguments(CLAIRE, tmp_path, "--max_length", 2048, "--num_workers", 2, tokenizer=MISTRAL))
    manifest = assert_conserved(CLAIRE, tmp_path, MISTRAL)
    tokens = sum(entry.tokens for entry in manifest.splits)
    assert len(manifest.splits) == 6 and tokens > 1_900_000
    assert sum(entry.padding for entry in manifest.splits) <= 0.001 * tokens


def test_one_sentence(tmp_path):
    source = tmp_path / "source"
    write(source, "full.txt", "Bonjour.")
    assert prepare(source, tmp_path / "data") == 0
    (entry,) = assert_conserved(source, tmp_path / "data").splits
    assert (entry.dataset, entry.documents, entry.rows, entry.turns, entry.language) == ("source", 1, 1, 0, "")
    assert [shard.rows for shard in entry.shards].count(0) == 7


def test_line_ends_and_byte_order_marks_make_no_difference(tmp_path):
    text = "[A:] un été\n[B:] deux\n\n[A:] trois\n"
    for name, content in {
        "plain": text.encode(), "crlf": text.replace("\n", "\r\n").encode(), "mark": text.encode("utf-8-sig")
    }.items():  # fmt: skip
        write(tmp_path / name, "FR/A/train.txt", content)
        assert prepare(tmp_path / name, tmp_path / f"{name}-data") == 0
    shards = [
        {name: sha for name, sha in content_of(tmp_path / f"{name}-data").items() if name.endswith("safetensors")}
        for name in ("plain", "crlf", "mark")
    ]
    assert len(shards[0]) == 8 and shards[0] == shards[1] == shards[2]


def test_an_empty_file_among_others(tmp_path, capsys):
    write(tmp_path / "source", "FR/A/train.txt")
    write(tmp_path / "source", "FR/B/train.txt", " \n\n")
    assert prepare(tmp_path / "source", tmp_path / "data") == 0
    full, empty = Manifest.load(tmp_path / "data").splits
    assert (full.documents, empty.documents, empty.rows, empty.tokens, empty.shards) == (2, 0, 0, 0, [])
    assert "warning: FR/B train: no documents in FR/B/train.txt" in capsys.readouterr().out


@pytest.mark.parametrize("space", [" ", ""])
def test_a_gigantic_line_is_cut_at_the_window(tmp_path, space):
    rng = np.random.default_rng(0)
    write(tmp_path / "source", "train.txt", space.join(rng.choice(WORDS, 400_000)))
    assert prepare(tmp_path / "source", tmp_path / "data", "--max_length", 512) == 0
    (entry,) = assert_conserved(tmp_path / "source", tmp_path / "data").splits
    assert entry.documents == 1 and entry.sources[0]["bytes"] > 2e6 and entry.padding == 0
    assert entry.overlap <= entry.rows + 512


def test_groups(tmp_path):
    write(tmp_path / "source", "FR/Marche/train.txt")
    write(tmp_path / "source", "FR/Other/train.txt")
    groups = ("--group_datasets_by_genre", SAMPLE / "groups.json")
    assert prepare(tmp_path / "source", tmp_path / "data", *groups) == 0
    assert [entry.group for entry in Manifest.load(tmp_path / "data").splits] == ["FR/Assistance", "FR/Other"]
    before = times_of(tmp_path / "data")
    assert prepare(tmp_path / "source", tmp_path / "data") == 0
    assert [entry.group for entry in Manifest.load(tmp_path / "data").splits] == ["FR/Marche", "FR/Other"]
    assert not written_since(before, tmp_path / "data")


# --- the same call again


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Path, Path]:
    """A corpus of 2 MB in 24 datasets, and its shards."""
    folder = tmp_path_factory.mktemp("large")
    source = random_corpus(folder / "source", 24, 90_000, seed=9)
    run("prepare_data.py", *arguments(source, folder / "data"))
    return source, folder / "data"


def test_the_number_of_processes_makes_no_difference(large, tmp_path):
    source, data = large
    run("prepare_data.py", *arguments(source, tmp_path / "data", "--num_workers", 2))
    assert content_of(tmp_path / "data") == content_of(data)


def children_of(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.002)


def test_killed_half_way(large, tmp_path):
    source, data = large
    given, parts = arguments(source, tmp_path / "data", "--num_workers", 2), tmp_path / "data" / "parts"
    with subprocess.Popen(command_line("prepare_data.py", *given), stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: parts.is_dir() and len(list(parts.glob("*.json"))) >= 3)
        children = children_of(process.pid)
        process.send_signal(signal.SIGKILL)
    assert len(children) >= 2
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "data" / "manifest.json").exists()
    wait_until(lambda: not any(map(is_alive, children)))
    write(tmp_path / "data", ".FR--Set03-test-00001-of-00008.safetensors.tmp", b"half")
    write(parts, ".FR--Set03-test.json.tmp", b"{")
    write(tmp_path / "data", ".srun-1-0-0", b"127.0.0.1 1")  # where the tasks of a Slurm step wanted to meet
    write(parts, "FR--Set00-train.json", (parts / "FR--Set00-train.json").read_bytes()[:-30])
    done = run("prepare_data.py", *given)
    assert "FR/Set01 test: kept" in done.stdout and "FR/Set00 train: kept" not in done.stdout
    assert content_of(tmp_path / "data") == content_of(data)


@pytest.fixture
def three(tmp_path, capsys) -> tuple[Path, Path]:
    """A corpus of three splits and its shards."""
    source, data = tmp_path / "source", tmp_path / "data"
    for name in ("FR/A/train.txt", "FR/A/test.txt", "FR/B/train.txt"):
        write(source, name, f"[A:] {name}\n\n" * 30)
    assert prepare(source, data) == 0
    capsys.readouterr()
    return source, data


def test_nothing_is_done_twice(three, capsys):
    source, data = three
    before, manifest = times_of(data), (data / "manifest.json").stat().st_mtime_ns
    assert prepare(source, data) == 0
    assert not written_since(before, data) and (data / "manifest.json").stat().st_mtime_ns == manifest
    out = capsys.readouterr().out
    assert out.count(": kept\n") == 3 and "documents" not in out


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?")]
)
def test_a_damaged_split_is_made_again(three, damage):
    source, data = three
    whole, before = content_of(data), times_of(data)
    damage(data / "FR--A-test-00003-of-00008.safetensors")
    assert prepare(source, data) == 0
    assert written_since(before, data) == {"FR--A-test"} and content_of(data) == whole


def test_a_changed_a_new_and_a_removed_dataset(three, tmp_path, capsys):
    source, data = three
    before = times_of(data)
    write(source, "FR/A/train.txt", "[A:] autre\n")
    write(source, "FR/C/full.txt")
    shutil.rmtree(source / "FR/B")
    own = write(data, "notes.txt", "mine"), write(data / "parts", "mine.txt", "mine")
    assert prepare(source, data) == 0
    assert written_since(before, data) == {"FR--A-train", "FR--C-train"}
    assert not list(data.rglob("FR--B*")) and all(path.read_text() == "mine" for path in own)
    assert "deleted FR--B-train-00000-of-00008.safetensors" in capsys.readouterr().out
    for path in own:
        path.unlink()
    assert prepare(source, tmp_path / "fresh") == 0
    assert content_of(data) == content_of(tmp_path / "fresh")


@pytest.mark.parametrize(
    "more", [("--max_length", 9), ("--padding", "false"), ("--multiple_of", 2), ("--add_bos", "false")]
)
def test_another_recipe_is_done_from_scratch(three, tmp_path, more):
    source, data = three
    assert prepare(source, data, *more) == 0
    assert prepare(source, tmp_path / "fresh", *more) == 0
    assert content_of(data) == content_of(tmp_path / "fresh")


def test_what_did_not_end_has_no_manifest(three, tmp_path):
    source, data = three
    good = (source / "FR/B/train.txt").read_bytes()
    before = content_of(data)
    write(source, "FR/B/train.txt", good + b"\xff\n")
    assert prepare(source, data) == 65
    assert set(before) - set(content_of(data)) == {"manifest.json"}
    write(source, "FR/B/train.txt", good)
    assert prepare(source, data) == 0
    assert content_of(data) == before


# --- shared among tasks


def sources_of(sizes: list[int]) -> list[Source]:
    names = [f"Set{index:04}" for index in range(len(sizes))]
    return [Source(name, "train", Path(name, "train.txt"), f"{name}/train.txt") for name in names]


@hypothesis.given(st.lists(st.integers(0, 1000), min_size=1, max_size=60), st.integers(1, 80))
def test_every_source_is_one_task_s_and_no_task_has_far_too_much(sizes, tasks):
    sources = sources_of(sizes)
    shares = prepare_data.share_out(sources, sizes, tasks)
    assert len(shares) == tasks
    assert sorted(source.name for share in shares for source in share) == [source.name for source in sources]
    size_of = dict(zip(sources, sizes, strict=True))
    loads = [sum(size_of[source] for source in share) for share in shares]
    # the busiest task had at most the mean of all others' bytes when it got its last source
    assert max(loads) <= sum(sizes) / tasks + (1 - 1 / tasks) * max(sizes) + 1e-9


@hypothesis.given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 9), st.randoms())
def test_the_order_of_equal_sources_does_not_matter(sizes, tasks, rng):
    sources = sources_of(sizes)
    shares = prepare_data.share_out(sources, sizes, tasks)
    pairs = list(zip(sources, sizes, strict=True))
    rng.shuffle(pairs)
    again = prepare_data.share_out([source for source, _ in pairs], [size for _, size in pairs], tasks)
    assert list(map(set, again)) == list(map(set, shares))


def test_the_largest_come_first():
    sizes = [1, 1, 1, 1, 2, 6]
    sources = sources_of(sizes)
    assert prepare_data.share_out(sources, sizes, 1) == [sources]
    assert prepare_data.share_out(sources, sizes, 2) == [sources[5:], sources[:5]]
    assert prepare_data.share_out(sources, sizes, 8)[6:] == [[], []]


def test_a_single_process_does_not_wait_for_torch(tmp_path):
    given = ["prepare_data.py", *arguments(SAMPLE / "french", tmp_path)]
    program = f"""
import os, runpy, sys
os.environ.update(SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0", SLURM_STEP_ID="0", SLURM_JOB_ID="1")
sys.argv = {list(map(str, given))}
try:
    runpy.run_path("prepare_data.py", run_name="__main__")
except SystemExit as e:
    sys.exit(e.code or "torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
    assert Manifest.load(tmp_path)


# --- errors


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def assert_refused(capsys, code: int, exit_code: int, destination: Path, *words: str) -> None:
    err = capsys.readouterr().err
    assert code == exit_code, err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err
    assert not files_in(destination)


@pytest.mark.parametrize(
    ("files", "exit_code", "words"),
    [
        ({}, 2, ("source is not a directory",)),
        ({"FR/A/notes.txt": b"x"}, 65, ("no conversation",)),
        ({"FR/A/train.txt": b"", "FR/A/test.txt": b"\n \n"}, 65, ("no conversation",)),
        ({"FR/A/full.txt": b"x", "FR/A/train.txt": b"x"}, 65, ("FR/A has full.txt and train.txt",)),
        ({"FR/A/train.txt": b"good\n\nbad \xff\n"}, 65, ("FR/A/train.txt", "UTF-8", "byte offset 10")),
        ({"FR/A/train.txt": b"\xef\xbb\xbfgood\r\n\r\nb\x00d\n"}, 65, ("FR/A/train.txt", "NUL", "byte offset 12")),
        ({"FR/A/train.txt": "un texte".encode("utf-16")}, 65, ("FR/A/train.txt", "byte offset 0")),
    ],
)
def test_wrong_corpora(tmp_path, capsys, files, exit_code, words):
    for name, content in files.items():
        write(tmp_path / "source", name, content)
    code = prepare(tmp_path / "source", tmp_path / "data")
    assert_refused(capsys, code, exit_code, tmp_path / "data", *words)


def test_errors_of_the_program_itself(tmp_path):
    write(tmp_path / "source", "FR/A/train.txt", b"good\n\nbad \xff\n")
    for more, exit_code, words in (((), 65, ("FR/A/train.txt", "byte offset 10")), (("--nope", 1), 2, ("--nope",))):
        done = run("prepare_data.py", *arguments(tmp_path / "source", tmp_path / "data", *more), check=False)
        assert_error(done, exit_code, *words)
        assert not files_in(tmp_path / "data")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--nope", 1), ("--nope",)),
        (
            ("--max_length", 0, "--multiple_of", 0, "--num_workers", -1),
            ("--max_length", "--multiple_of", "--num_workers"),
        ),
        (("--on_bad_input", "ignore"), ("--on_bad_input must be one of 'error', 'skip'",)),
        (("--group_datasets_by_genre", "nowhere.json"), ("nowhere.json does not exist",)),
    ],
)
def test_wrong_options(tmp_path, capsys, more, words):
    write(tmp_path / "source", "FR/A/train.txt")
    assert_refused(capsys, prepare(tmp_path / "source", tmp_path / "data", *more), 2, tmp_path / "data", *words)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"FR/A": 3}', b'"x"', b"\xff"])
def test_wrong_groups(tmp_path, capsys, content):
    write(tmp_path / "source", "FR/A/train.txt")
    groups = write(tmp_path, "groups.json", content)
    code = prepare(tmp_path / "source", tmp_path / "data", "--group_datasets_by_genre", groups)
    assert_refused(capsys, code, 2, tmp_path / "data", "--group_datasets_by_genre", str(groups))


def test_wrong_tokenizers(tmp_path, capsys):
    write(tmp_path / "source", "FR/A/train.txt")
    source, data, folder = tmp_path / "source", tmp_path / "data", tmp_path / "tokenizer"
    assert_refused(
        capsys, prepare(source, data, tokenizer=folder), 2, data, "neither tokenizer.json nor tokenizer.model"
    )
    shutil.copytree(TOKENIZER, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 99999}')
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<other>"}))
    assert_refused(capsys, prepare(source, data, tokenizer=folder), 65, data, "token 99999")
    write(folder, "tokenizer.model", b"no model")
    assert_refused(capsys, prepare(source, data, tokenizer=folder), 65, data, str(folder))


@pytest.mark.parametrize(
    ("name", "content", "window"),
    [
        ("model_config.yaml", "block_size: 40\n", 41),
        ("model_config.yaml", "block_size: 40\nsliding_window_size: 16\n", 17),
        ("config.json", '{"max_position_embeddings": 32, "sliding_window": null}', 33),
        ("config.json", '{"max_position_embeddings": 32, "sliding_window": 8, "use_sliding_window": false}', 33),
        ("config.json", '{"n_positions": 20}', 21),
        ("config.json", '{"n_layer": 20}', None),
        ("config.json", "{", None),
    ],
)
def test_the_window_is_the_model_s_context(tmp_path, capsys, name, content, window):
    source, data, folder = tmp_path / "source", tmp_path / "data", tmp_path / "model"
    write(source, "FR/A/train.txt")
    shutil.copytree(TOKENIZER, folder)
    given = ["--source_path", source, "--checkpoint_dir", folder, "--destination_path", data]

    def call() -> int:
        return command.run(prepare_data.PrepareOptions, prepare_data.main, list(map(str, given)))

    assert_refused(capsys, call(), 2, data, "--max_length", str(folder))
    write(folder, name, content)
    if window is None:
        assert_refused(capsys, call(), 65, data, "--max_length", name)
    else:
        assert call() == 0 and Manifest.load(data).window == window


def test_bad_documents_may_be_skipped(tmp_path, capsys):
    write(tmp_path / "source", "FR/A/train.txt", b"\xff\n\nun\n\nde\x00ux\n\ntrois\n")
    assert prepare(tmp_path / "source", tmp_path / "data", "--on_bad_input", "skip") == 0
    out = capsys.readouterr().out
    assert "byte offset 0" in out and "NUL character at byte offset 9" in out and "2 skipped (bad_input)" in out
    (entry,) = Manifest.load(tmp_path / "data").splits
    assert (entry.documents, entry.skipped) == (2, {"bad_input": 2})
    assert prepare(tmp_path / "source", tmp_path / "data") == 65  # what was made with skipping is not kept


def test_a_destination_that_is_a_file(tmp_path, capsys):
    write(tmp_path / "source", "FR/A/train.txt")
    code = prepare(tmp_path / "source", write(tmp_path, "data"))
    assert_refused(capsys, code, 2, tmp_path / "nowhere", "is not a directory")


@contextmanager
def full_disk(folder: Path, kilobytes: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`folder` on a disk of that size; where mounting is not permitted, writes fail after as many bytes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if os.geteuid() == 0 and shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        return

    def fsync(_: int) -> None:
        if sum(path.stat().st_size for path in files_in(folder)) > kilobytes * 1024:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("utils.shards.os.fsync", fsync)
        yield


@pytest.mark.parametrize("multiple_of", [1, 8])
def test_a_full_disk(tmp_path, capsys, monkeypatch, multiple_of):
    source = random_corpus(tmp_path / "source", 1, 300_000, seed=5)
    data = tmp_path / "data"
    with full_disk(data, 64, monkeypatch):
        code = prepare(source, data, "--multiple_of", multiple_of)
        err = capsys.readouterr().err
        assert code == 74 and err.startswith("error: No space left on device: "), err
        assert str(data / "FR--Set00-train-0000") in err and err.count("\n") == 1
        left = files_in(data)
        assert len(left) < multiple_of  # whole shards at most
        assert all(path.name.endswith(f"-of-{multiple_of:05}.safetensors") for path in left)
        for path in left:
            load_file(path)
    assert prepare(source, data, "--multiple_of", multiple_of) == 0
    assert_conserved(source, data)
