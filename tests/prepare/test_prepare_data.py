"""prepare_data.py as its user meets it: what it writes adds up, can be stopped anywhere, and errors are plain."""

from __future__ import annotations

import ctypes
import errno
import gzip
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from safetensors.numpy import load_file

import prepare_data
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import ROOT, SAMPLE, SHARED, TOKENIZER, assert_error, command_line, run, run_command
from utils.data.manifest import DatasetSplit, Manifest
from utils.data.shards import verify_shards
from utils.files import folder_lock
from utils.files.folder_lock import FolderLock
from utils.prepare import dialogue, plan
from utils.prepare.file_formats import CorpusFile
from utils.prepare.plan import share_out
from utils.prepare.sources import Source

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
    return run_command(prepare_data.PrepareOptions, prepare_data.main, list(given))


def write(folder: Path, name: str, content: bytes | str = "[A:] un\n[B:] deux\n\n[A:] trois\n") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def random_corpus(folder: Path, datasets: int, size: int, seed: int) -> Path:
    """`datasets` files of about `size` characters: short documents, long ones, some turns longer than a window."""
    rng = random.Random(seed)
    for index in range(datasets):
        documents: list[str] = []
        while sum(map(len, documents)) < size:
            turns = rng.randint(1, 39 if rng.random() < 0.2 else 5)
            lengths = [rng.randint(1, 199 if rng.random() < 0.05 else 11) for _ in range(turns)]
            turns_text = [f"[speaker{n % 3:03}:] " + " ".join(rng.choices(WORDS, k=k)) for n, k in enumerate(lengths)]
            documents.append("\n".join(turns_text))
        write(folder, f"FR/Set{index:02}/{('train', 'test')[index % 2]}.txt", "\n\n".join(documents) + "\n")
    return folder


METADATA = """dataset,language,spontaneous,dialogue,augmentation_level
FR/Debats,fr,True,,3
EN/Talks,en,,,
EN/Talks/TEST,en,,False,
EN/Web,en,,False,
"""
OF_MIXED = ("--deduplicate", "near", "--on_bad_input", "skip", "--min_characters", 12)


def mixed_corpus(folder: Path, seed: int = 4) -> tuple[Path, Path]:
    """A corpus of several formats, with dialogue, copies, near-copies, and what is no text; its metadata file."""
    rng = random.Random(seed)

    def sentences(count: int) -> str:
        return " ".join(rng.choice(WORDS) + str(rng.randint(0, 99)) for _ in range(count))

    def conversation() -> str:
        speakers = rng.sample(["speaker001", "speaker002", "Jeanne", "M. X"], rng.randint(1, 3))
        turns = (f"[{rng.choice(speakers)}:] {sentences(rng.randint(1, 40))}." for _ in range(rng.randint(1, 12)))
        return "\n".join(turns)

    talks = [conversation() for _ in range(60)]
    plain = [sentences(rng.randint(1, 400)) for _ in range(80)]
    near = [document.replace(" ", "  ", 1) + " fin" for document in plain[:20] if len(document) > 2000]
    lines = [json.dumps({"id": n, "text": document}) for n, document in enumerate(plain + near)]
    source = folder / "source"
    write(source, "FR/Debats/train.txt", "\n\n".join(talks + talks[:3]))
    write(source, "FR/Debats/test.txt", "\n\n".join([conversation(), talks[5], conversation()]))
    write(source, "EN/Talks/train.txt", "\r\n\r\n".join(conversation() for _ in range(40)))
    write(source, "EN/Talks/test.txt", "\n\n".join(conversation() for _ in range(5)))
    write(source, "EN/Web/a.jsonl", "\n".join([*lines[:50], "{broken", '{"id": 3}', '{"text": "a\\u0000b"}', ""]))
    write(source, "EN/Web/b.jsonl.gz", gzip.compress("\n".join(lines[40:]).encode()))
    write(source, "EN/Web/valid.jsonl", "\n".join([*lines[7:9], json.dumps({"text": sentences(90)})]))
    write(source, "FR/Actes/full.txt", "\n\n".join([*plain[::9], sentences(3000)]).encode() + b"\n\n\xff\n\nfini")
    write_parquet(source / "FR/Livres/livre.parquet", [*(sentences(200) for _ in range(30)), plain[3], talks[7]])
    return source, write(folder, "metadata.csv", METADATA)


def write_parquet(path: Path, texts: list[str]) -> None:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=7)


def with_small_blocks(size: int, *given: object) -> list[str]:
    """A command line of the program, whose blocks are of that size."""
    program = "import sys; from utils import cli; import prepare_data; from utils.prepare import plan; "
    program += f"plan.BLOCK_BYTES = {size}; "
    program += "sys.exit(cli.run(prepare_data.main, cli.parse_or_exit(prepare_data.PrepareOptions)))"
    return [sys.executable, "-c", program, *map(str, given)]


class Found(NamedTuple):
    """What may be a document: its file, where it begins and ends there (bytes or rows), what stands there."""

    file: str
    begin: int
    end: int
    content: bytes

    @property
    def text(self) -> str:
        value = json.loads(self.content)["text"] if ".jsonl" in self.file else self.content.decode("utf-8-sig")
        return value.replace("\r\n", "\n").replace("\r", "\n").strip()


def documents_in(source: Path, name: str) -> list[Found]:
    """The documents of a corpus file, read as simply as can be."""
    path = source / name
    if path.suffix == ".parquet":
        from pyarrow import parquet

        values = parquet.read_table(path)["text"].to_pylist()
        return [Found(name, row, row + 1, value.encode()) for row, value in enumerate(values)]
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    between = rb"\n" if ".jsonl" in name else rb"\r\n(\s*\r\n)+|\n(\s*\n)+"
    bounds = [0, *(bound for gap in re.finditer(between, content) for bound in gap.span()), len(content)]
    spans = zip(bounds[::2], bounds[1::2], strict=True)
    return [Found(name, begin, end, content[begin:end]) for begin, end in spans if content[begin:end].strip()]


def report_of(folder: Path, entry: DatasetSplit) -> list[dict[str, Any]]:
    """What the report says was left out; the manifest counts the same."""
    path = folder / "reports" / f"{entry.dataset.replace('/', '--')}-{entry.split}.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    assert Counter(line["reason"] for line in lines) == entry.skipped
    return lines


def kept_documents(source: Path, folder: Path, entry: DatasetSplit) -> list[Found]:
    """The documents of a split but those that its report names."""
    found = [document for file in entry.sources for document in documents_in(source, file["path"])]
    places = [(line["file"], line.get("byte", line.get("row"))) for line in report_of(folder, entry)]
    gone = [
        [document for document in found if document.file == file and document.begin <= at < document.end]
        for file, at in places
    ]
    assert all(len(named) == 1 for named in gone) and len({named[0][:2] for named in gone}) == len(gone)
    return [document for document in found if [document] not in gone]


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
    return np.unique(np.concatenate([np.zeros(0, np.int64), *pairs]), return_counts=True)


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


def assert_conserved(
    source: Path, folder: Path, tokenizer_dir: Path = TOKENIZER, forms: dict[str, list[str]] | None = None
) -> Manifest:
    """The manifest adds up, and every token of each document but its first is a target exactly once.

    Derived from the shards and the text alone: the targets with the token before each are those of the documents, and
    every piece lies in a document as it is. `forms`: of a dataset's training split the documents that were made of it.
    """
    manifest, tokenizer = Manifest.load(folder), Tokenizer(tokenizer_dir)
    verify_shards(folder, manifest.splits)
    before = [tokenizer.bos_id] if manifest.bos else []
    after = [tokenizer.eos_id] if manifest.eos else []
    for entry in manifest.splits:
        texts = (forms or {}).get(f"{entry.dataset} {entry.split}") or [
            document.text for document in kept_documents(source, folder, entry)
        ]
        documents = [np.array(before + ids + after) for ids in tokenizer.encode_batch(texts)]
        assert entry.documents == len(documents)
        assert entry.words == sum(len(value.split()) for value in texts)
        assert entry.tokens == sum(map(len, documents)) and entry.targets == entry.tokens - entry.documents
        assert entry.rows * manifest.window == entry.tokens + entry.overlap + entry.padding
        rows = [shard.rows for shard in entry.shards] or [0]
        assert len(entry.shards) % manifest.made_by["multiple_of"] == 0 and max(rows) - min(rows) <= 1
        pieces, leading, padding = pieces_of(folder, entry, manifest.window)
        assert padding == entry.padding and min(leading, default=1) >= 1
        assert sum(map(len, pieces)) == entry.tokens + entry.overlap
        for found, expected in zip(bigrams(pieces, leading), bigrams(documents, [1] * len(documents)), strict=True):
            assert np.array_equal(found, expected)
        whole = b"".join(document.astype(">i8").tobytes() + b"\xff" * 8 for document in documents)
        some = pieces[:: 1 + len(pieces) // 200]
        assert all(piece.astype(">i8").tobytes() in whole for piece in some)
        if manifest.made_by["padding"]:
            assert_not_cut(documents, pieces, leading, manifest.window)
    return manifest


def assert_not_cut(documents: list[np.ndarray], pieces: list[np.ndarray], leading: list[int], window: int) -> None:
    """Each document that fits a window is a piece of a row as a whole."""
    fitting = Counter(document.tobytes() for document in documents if len(document) <= window)
    begun = Counter(piece.tobytes() for piece, first in zip(pieces, leading, strict=True) if first == 1)
    assert not fitting - begun


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


@pytest.mark.parametrize("padding", ["true", "false"])
@pytest.mark.parametrize("seed", range(3))
def test_documents_longer_than_a_block_add_up(tmp_path, monkeypatch, seed, padding):
    monkeypatch.setattr(plan, "BLOCK_BYTES", 1500)
    source = random_corpus(tmp_path / "source", 2, 30_000, seed=seed)
    rng = random.Random(seed)
    long = [" ".join(rng.choices(WORDS, k=rng.randint(300, 9000))) for _ in range(3)]
    lines = "\r\n".join(" ".join(rng.choices(WORDS, k=30)) for _ in range(200))
    write(source, "FR/Long/train.txt", "\n\n".join(["[A:] oui", *long, "[B:] non", "[A:] " + "\n[B:] ".join(long)]))
    write(source, "FR/Long/test.txt", "un\r\n\r\n" + lines + "\r\n\r\ndeux\r\n")
    write(source, "EN/Web/x.jsonl", "\n".join(json.dumps({"text": value}) for value in long))
    assert prepare(source, tmp_path / "data", "--max_length", 40, "--padding", padding) == 0
    assert_conserved(source, tmp_path / "data")


def test_plain_documents_add_up(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "BLOCK_BYTES", 3000)
    rng, source = random.Random(5), tmp_path / "source"
    for number, length in enumerate((1, 40, 5000, 900, 7)):
        write(source, f"FR/Livres/{number}.txt", "\n\n".join(" ".join(rng.choices(WORDS, k=length)) for _ in range(3)))
    assert prepare(source, tmp_path / "data") == 0
    (entry,) = Manifest.load(tmp_path / "data").splits
    texts = [(source / file["path"]).read_text(encoding="utf-8") for file in entry.sources]
    assert entry.documents == 5
    assert_conserved(source, tmp_path / "data", forms={"FR/Livres train": texts})


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


@pytest.mark.parametrize(("space", "words"), [(" ", 1_600_000), ("", 400_000)])
def test_a_gigantic_line_is_cut_at_the_window(tmp_path, space, words):
    write(tmp_path / "source", "train.txt", space.join(random.Random(0).choices(WORDS, k=words)))
    assert prepare(tmp_path / "source", tmp_path / "data", "--max_length", 512) == 0
    (entry,) = assert_conserved(tmp_path / "source", tmp_path / "data").splits
    assert entry.documents == 1 and entry.sources[0]["bytes"] > 2e6 and entry.padding == 0
    assert entry.overlap <= 0.01 * entry.tokens


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
    """A corpus of 11 MB in 24 datasets, enough for three processes, and its shards."""
    folder = tmp_path_factory.mktemp("large")
    source = random_corpus(folder / "source", 24, 450_000, seed=9)
    run("prepare_data.py", *arguments(source, folder / "data"))
    return source, folder / "data"


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_processes_makes_no_difference(large, tmp_path, workers):
    source, data = large
    run("prepare_data.py", *arguments(source, tmp_path / "data", "--num_workers", workers))
    assert content_of(tmp_path / "data") == content_of(data)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> tuple[Path, Path, Path]:
    """A corpus of several formats, its metadata, and what one process makes of it in blocks of 10 KB."""
    folder = tmp_path_factory.mktemp("mixed")
    source, metadata = mixed_corpus(folder)
    given = arguments(source, folder / "data", "--metadata", metadata, *OF_MIXED)
    subprocess.run(with_small_blocks(10_000, *given), cwd=ROOT, check=True, timeout=600, capture_output=True)
    return source, metadata, folder / "data"


def test_what_a_mixed_corpus_holds(mixed):
    manifest = Manifest.load(mixed[2])
    names = [f"{entry.dataset} {entry.split}" for entry in manifest.splits]
    web, livres = "EN/Web train", "FR/Livres train"
    assert names == [
        "EN/Talks train", "EN/Talks test", web, "EN/Web test", "FR/Actes train", "FR/Debats train", "FR/Debats test",
        livres,
    ]  # fmt: skip
    skipped = {name: entry.skipped for name, entry in zip(names, manifest.splits, strict=True)}
    assert {reason: skipped[web][reason] for reason in ("broken_json", "no_field", "nul")} == {
        "broken_json": 1, "no_field": 1, "nul": 1
    }  # fmt: skip
    assert skipped["FR/Actes train"]["not_utf8"] == 1 and skipped["FR/Actes train"]["too_short"] >= 1
    assert skipped["FR/Debats train"]["duplicate"] >= 4 and skipped[livres] == {"duplicate": 2}
    assert [name for name, entry in zip(names, manifest.splits, strict=True) if entry.variants] == [
        "EN/Talks train", "FR/Debats train"
    ]  # fmt: skip


def forms_of(source: Path, data: Path, levels: dict[str, tuple[str, int]], seed: int = 1337) -> dict[str, list[str]]:
    """Of each split of dialogue its conversations and variants; `levels`: split → its language and level."""
    forms: dict[str, list[str]] = {}
    for entry in Manifest.load(data).splits:
        if (name := f"{entry.dataset} {entry.split}") in levels:
            language, level = levels[name]
            forms[name] = []
            for document in kept_documents(source, data, entry):
                normalised = dialogue.normalise(document.text, language)
                place = f"{document.file} {document.begin}"
                forms[name] += [normalised, *dialogue.variants(normalised, language, level, seed, place)]
    return forms


def test_a_mixed_corpus_adds_up(mixed):
    source, _, data = mixed
    levels = {"EN/Talks train": ("en", 1), "FR/Debats train": ("fr", 3), "FR/Debats test": ("fr", 0)}
    forms = forms_of(source, data, levels)
    assert len(forms) == 3
    manifest = assert_conserved(source, data, forms=forms)
    for entry in manifest.splits:
        kept = len(kept_documents(source, data, entry))
        assert entry.documents - entry.variants == kept, entry.dataset
        assert entry.variants <= kept * levels.get(f"{entry.dataset} {entry.split}", ("", 0))[1]


@pytest.mark.parametrize("workers", [2, 3])
def test_a_mixed_corpus_comes_out_the_same_from_any_number_of_processes(mixed, tmp_path, workers):
    source, metadata, data = mixed
    given = arguments(source, tmp_path, "--metadata", metadata, *OF_MIXED, "--num_workers", workers)
    subprocess.run(with_small_blocks(10_000, *given), cwd=ROOT, check=True, timeout=600, capture_output=True)
    assert content_of(tmp_path) == content_of(data)


def children_of(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.002)


def test_killed_half_way(large, tmp_path):
    source, data = large
    given, parts = arguments(source, tmp_path / "data", "--num_workers", 2), tmp_path / "data" / "parts"
    killed = False
    while not killed:
        shutil.rmtree(tmp_path / "data", ignore_errors=True)  # it was faster
        with subprocess.Popen(command_line("prepare_data.py", *given), stdout=subprocess.DEVNULL) as process:
            wait_until(lambda: len(list(parts.glob("*.json"))) >= 3 or process.poll() is not None)
            children = children_of(process.pid) if process.poll() is None else []
            process.send_signal(signal.SIGKILL)
        killed = not (tmp_path / "data" / "manifest.json").exists()
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


def times_of_complete(folder: Path) -> dict[str, int]:
    """When the shards of splits whose part is written were written, and the signatures that are complete."""
    parts = [path.stem for path in (folder / "parts").glob("[!.]*.json")]
    files = [path for part in parts for path in folder.glob(f"{part}-*.safetensors")]
    if not (folder / "manifest.json").exists():  # then they are removed
        files += (folder / "parts").glob("*.signatures/done.json")
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


def test_killed_at_random(mixed, tmp_path):
    source, metadata, data = mixed
    rng, kills, made = random.Random(6), 0, tmp_path / "data"
    given = arguments(source, made, "--metadata", metadata, *OF_MIXED, "--num_workers", 2)
    complete: dict[str, int] = {}
    while kills < 8:
        with subprocess.Popen(with_small_blocks(10_000, *given), cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            if rng.random() < 0.6:
                wait_until(lambda: (made / "parts").is_dir() or process.poll() is not None)
            time.sleep(1.2 * rng.random())
            process.send_signal(signal.SIGKILL)
        before, complete = complete, times_of_complete(made)
        kept = {name for name in before if name in complete or ".signatures" not in name}
        assert all(before[name] == complete.get(name) for name in kept), "what was complete was made again"
        assert process.returncode or (made / "manifest.json").exists()
        kills += process.returncode != 0
        if (made / "manifest.json").exists():  # it was faster
            assert content_of(data).items() <= content_of(made).items()
            shutil.rmtree(made)
            complete = {}
    subprocess.run(with_small_blocks(10_000, *given), cwd=ROOT, check=True, timeout=600, capture_output=True)
    assert content_of(made) == content_of(data)


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
    names = ("notes.txt", "parts/mine.txt", "wiki-train.jsonl", "wiki-test.json", "corpus/wiki-train.jsonl")
    own = [write(data, name, "mine") for name in names]
    assert prepare(source, data) == 0
    assert written_since(before, data) == {"FR--A-train", "FR--C-train"}
    assert not list(data.rglob("FR--B*")) and all(path.read_text() == "mine" for path in own)
    assert "deleted FR--B-train-00000-of-00008.safetensors" in capsys.readouterr().out
    for path in own:
        path.unlink()
    (data / "corpus").rmdir()
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
    write(source, "FR/B/train.txt", b"\xff\n" + good)
    assert prepare(source, data) == 65
    assert content_of(data) == before  # found before anything was written
    write(source, "FR/B/train.txt", good * 1000 + b"\xff\n")
    assert prepare(source, data) == 65
    assert set(before) - set(content_of(data)) == {"manifest.json"}
    assert set(content_of(data)) <= set(before)
    write(source, "FR/B/train.txt", good)
    assert prepare(source, data) == 0
    assert content_of(data) == before


# --- memory


def memory_of(process: int) -> float:
    """MB of a process and all it started; what they share counts once."""
    size = 0.0
    for child in [process, *children_of(process)]:
        with suppress(OSError):
            rollup = Path(f"/proc/{child}/smaps_rollup").read_text()
            size += int(re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[1]) / 1000
    return size


@pytest.mark.shared
def test_memory_stays_within_what_is_given(tmp_path):
    """60 MB of plays whose words are in ever another order, and of one document without an end."""
    words = np.array([word for path in CLAIRE.rglob("train.txt") for word in path.read_text("utf-8").split()])
    rng = np.random.default_rng(0)
    for name, gap in (("FR/A/train.txt", "\n\n"), ("FR/B/train.txt", "\n")):
        with (write(tmp_path / "source", name)).open("w", encoding="utf-8") as file:
            for _ in range(6):
                lines = (" ".join(line) for line in np.array_split(rng.permutation(words), 2000))
                file.write(gap.join(lines) + gap)
    size = sum(path.stat().st_size for path in files_in(tmp_path / "source"))
    more = ("--num_workers", 2, "--max_memory", 1.0, "--max_length", 2048, "--deduplicate", "near")
    given = arguments(tmp_path / "source", tmp_path / "data", *more, tokenizer=MISTRAL)
    peak, children = 0.0, 0
    with subprocess.Popen(command_line("prepare_data.py", *given), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with suppress(OSError):
                children = max(children, len(children_of(process.pid)))
                peak = max(peak, memory_of(process.pid))
            time.sleep(0.02)
    assert process.returncode == 0 and size > 55e6 and children >= 2
    assert 100 < peak < 1000
    first, second = Manifest.load(tmp_path / "data").splits
    assert (first.documents, second.documents) == (12_000, 1)


# --- shared among tasks


def sources_of(sizes: list[int]) -> list[Source]:
    names = [f"Set{index:04}" for index in range(len(sizes))]
    return [
        Source(name, "train", (CorpusFile(Path(name, "train.txt"), f"{name}/train.txt", "conversations"),))
        for name in names
    ]


@hypothesis.given(st.lists(st.integers(0, 1000), min_size=1, max_size=60), st.integers(1, 80))
def test_every_source_is_one_task_s_and_no_task_has_far_too_much(sizes, tasks):
    sources = sources_of(sizes)
    shares = share_out(sources, sizes, tasks)
    assert len(shares) == tasks
    assert sorted(source.name for share in shares for source in share) == [source.name for source in sources]
    size_of = dict(zip(sources, sizes, strict=True))
    loads = [sum(size_of[source] for source in share) for share in shares]
    # the busiest task had at most the mean of all others' bytes when it got its last source
    assert max(loads) <= sum(sizes) / tasks + (1 - 1 / tasks) * max(sizes) + 1e-9


@hypothesis.given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 9), st.randoms())
def test_the_order_of_equal_sources_does_not_matter(sizes, tasks, rng):
    sources = sources_of(sizes)
    shares = share_out(sources, sizes, tasks)
    pairs = list(zip(sources, sizes, strict=True))
    rng.shuffle(pairs)
    again = share_out([source for source, _ in pairs], [size for _, size in pairs], tasks)
    assert list(map(set, again)) == list(map(set, shares))


def test_the_largest_come_first():
    sizes = [1, 1, 1, 1, 2, 6]
    sources = sources_of(sizes)
    assert share_out(sources, sizes, 1) == [sources]
    assert share_out(sources, sizes, 2) == [sources[5:], sources[:5]]
    assert share_out(sources, sizes, 8)[6:] == [[], []]


def test_a_single_process_imports_neither_torch_nor_what_needs_it(tmp_path):
    given = ["prepare_data.py", *arguments(SAMPLE / "french", tmp_path)]
    program = f"""
import os, runpy, sys
os.environ.update(SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0", SLURM_STEP_ID="0", SLURM_JOB_ID="1")
sys.argv = {list(map(str, given))}
try:
    runpy.run_path("prepare_data.py", run_name="__main__")
except SystemExit as e:
    heavy = {{"torch", "lightning", "litgpt", "transformers", "pandas"}} & sys.modules.keys()
    sys.exit(e.code or " ".join(heavy) or 0)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
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
        ({}, 2, ("source is neither a directory nor a file",)),
        ({"FR/A/notes.md": b"x"}, 65, ("no conversation",)),
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
        (("--max_memory", 0.3), ("--max_memory must be at least 0.6 GB, not 0.3",)),
        (("--similarity", 0, "--augmentation_level", -1), ("--similarity must be above 0", "--augmentation_level")),
        (("--multiple_of", 1000, "--max_characters", 2**21), ("--multiple_of must be at most", "--max_characters")),
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
        ("model_config.yaml", "block_size: 40\nsliding_window_size: 16\n", 41),
        ("config.json", '{"max_position_embeddings": 32, "sliding_window": null}', 33),
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
        return run_command(prepare_data.PrepareOptions, prepare_data.main, list(map(str, given)))

    assert_refused(capsys, call(), 2, data, "--max_length", str(folder))
    write(folder, name, content)
    if window is None:
        assert_refused(capsys, call(), 65, data, "--max_length", name)
    else:
        assert call() == 0 and Manifest.load(data).window == window


def test_a_destination_that_is_a_file(tmp_path, capsys):
    write(tmp_path / "source", "FR/A/train.txt")
    code = prepare(tmp_path / "source", write(tmp_path, "data"))
    assert_refused(capsys, code, 2, tmp_path / "nowhere", "is not a directory")


GOOD = [" ".join(random.Random(n).choices(WORDS, k=60)) for n in range(300)]
IN_LINES = [json.dumps({"text": value}).encode() for value in GOOD]


def in_conversations(bad: bytes) -> tuple[dict[str, bytes], int]:
    """A bad document behind what is read before anything is written, and where it begins."""
    before = "\n\n".join(3 * GOOD).encode() + b"\n\n"
    return {"FR/A/train.txt": before + bad + b"\n\nfin\n"}, len(before)


def in_lines(bad: bytes) -> tuple[dict[str, bytes], int]:
    before = b"\n".join(3 * IN_LINES) + b"\n"
    return {"FR/A/x.jsonl": before + bad + b"\n" + IN_LINES[0] + b"\n"}, len(before)


BAD = {
    "not_utf8": (in_conversations, b"d\xffx", 1, "no valid UTF-8"),
    "half of a character": (in_conversations, b"d\xc3", 1, "no valid UTF-8"),
    "nul": (in_conversations, b"de\x00ux", 2, "a NUL character"),
    "broken_json": (in_lines, b'{"text": "x"', 0, "no JSON"),
    "not_utf8 in JSON": (in_lines, b'{"text": "\xff"}', 0, "no JSON"),
    "no_field": (in_lines, b'{"texte": "x"}', 0, "no field 'text' (--text_field)"),
    "no object": (in_lines, b'["text"]', 0, "no field 'text'"),
    "no text": (in_lines, b'{"text": null}', 0, "the field 'text' is NoneType, no text,"),
    "surrogate": (in_lines, b'{"text": "\\ud800"}', 0, "half of a surrogate pair"),
    "nul in JSON": (in_lines, b'{"text": "a\\u0000b"}', 0, "a NUL character"),
}


def test_a_text_in_another_encoding_says_what_reads_it(tmp_path, capsys):
    write(tmp_path / "source", "été.txt", "L'été".encode("cp1252"))
    assert prepare(tmp_path / "source", tmp_path / "data") == 65
    words = "no valid UTF-8 at byte offset 2; data/clean_gutenberg.py makes UTF-8 of other encodings"
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("kind", BAD)
def test_bad_documents_are_an_error_or_skipped_and_named(tmp_path, capsys, kind):
    make, content, offset, words = BAD[kind]
    files, begin = make(content)
    for name, of_file in files.items():
        write(tmp_path / "source", name, of_file)
    (name,) = files
    code = prepare(tmp_path / "source", tmp_path / "data")
    place = f"at byte offset {begin + offset}"
    assert_refused(capsys, code, 65, tmp_path / "data", str(tmp_path / "source" / name), words, place)
    assert prepare(tmp_path / "source", tmp_path / "data", "--on_bad_input", "skip") == 0
    assert place in capsys.readouterr().out
    (entry,) = Manifest.load(tmp_path / "data").splits
    (line,) = report_of(tmp_path / "data", entry)
    assert (line["file"], line["byte"], entry.documents) == (name, begin + offset, 901)
    assert_conserved(tmp_path / "source", tmp_path / "data")
    before = content_of(tmp_path / "data")
    code = prepare(tmp_path / "source", tmp_path / "data")  # what was made with skipping is not kept
    assert code == 65 and content_of(tmp_path / "data").items() < before.items()


def test_of_many_bad_documents_some_are_said_and_all_are_reported(tmp_path, capsys):
    write(tmp_path / "source", "FR/A/train.txt", b"\xff\n\nun\n\n" * 40)
    assert prepare(tmp_path / "source", tmp_path / "data", "--on_bad_input", "skip") == 0
    out = capsys.readouterr().out
    assert out.count("skipped a document") == 10 and "the report names them" in out and "40 skipped (not_utf8)" in out
    (entry,) = Manifest.load(tmp_path / "data").splits
    assert [line["byte"] for line in report_of(tmp_path / "data", entry)] == [7 - 1 + 7 * n - 6 for n in range(40)]


def test_bad_rows_of_a_parquet_file(tmp_path, capsys):
    source, data = tmp_path / "source", tmp_path / "data"
    write_parquet(source / "FR/A/x.parquet", [*GOOD, None, "a\0b", "fin"])
    assert_refused(capsys, prepare(source, data), 65, data, "x.parquet: the field 'text' is NoneType", "in row 300")
    assert prepare(source, data, "--on_bad_input", "skip") == 0
    (entry,) = Manifest.load(data).splits
    assert [(line["reason"], line["row"]) for line in report_of(data, entry)] == [("no_field", 300), ("nul", 301)]
    assert entry.documents == 301
    capsys.readouterr()
    shutil.rmtree(data)
    assert_refused(capsys, prepare(source, data, "--text_field", "body"), 65, data, "no column 'body'", "--text_field")


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl.gz", "x.jsonl.zst"])
def test_files_that_are_not_what_their_names_say(tmp_path, capsys, name):
    write(tmp_path / "source", f"FR/A/{name}", b"something else " * 9)
    assert_refused(capsys, prepare(tmp_path / "source", tmp_path / "data"), 65, tmp_path / "data", f"FR/A/{name} is")


def test_another_text_field(tmp_path):
    write(tmp_path / "source", "x.jsonl", '{"body": "un deux", "text": 3}\n{"body": "trois"}')
    assert prepare(tmp_path / "source", tmp_path / "data", "--text_field", "body") == 0
    assert_conserved(tmp_path / "source", tmp_path / "data", forms={"source train": ["un deux", "trois"]})


def test_a_line_of_300_megabytes(tmp_path):
    path = write(tmp_path / "source", "FR/A/x.jsonl", IN_LINES[0] + b"\n")
    with path.open("ab") as file:
        file.write(b'{"text": "')
        for _ in range(300):
            file.write(b"mot " * 2**18)
        file.write(b'"}\n' + IN_LINES[1] + b"\n")
    begin = len(IN_LINES[0]) + 1
    given = arguments(tmp_path / "source", tmp_path / "data")
    assert_error(run("prepare_data.py", *given, check=False), 65, "x.jsonl: a line of 314,57", f"byte offset {begin}")
    assert not files_in(tmp_path / "data")
    run("prepare_data.py", *given, "--on_bad_input", "skip")
    (entry,) = Manifest.load(tmp_path / "data").splits
    assert entry.documents == 2 and entry.skipped == {"line_too_long": 1}
    assert report_of(tmp_path / "data", entry)[0]["byte"] == begin
    path.unlink()


def test_empty_files_are_counted(tmp_path, capsys):
    for name, content in {"FR/A/a.jsonl": b"", "FR/A/b.jsonl": IN_LINES[0], "FR/B/full.txt": b""}.items():
        write(tmp_path / "source", name, content)
    assert prepare(tmp_path / "source", tmp_path / "data") == 0
    first, second = Manifest.load(tmp_path / "data").splits
    assert (first.documents, first.skipped) == (1, {"empty_file": 1})
    assert (second.documents, second.skipped, second.shards) == (0, {"empty_file": 1}, [])
    assert report_of(tmp_path / "data", first)[0]["file"] == "FR/A/a.jsonl"
    assert "warning: FR/B train: no documents" in capsys.readouterr().out


def test_a_dataset_with_only_a_test_split(tmp_path):
    write(tmp_path / "source", "FR/A/test.txt")
    assert prepare(tmp_path / "source", tmp_path / "data") == 0
    (entry,) = assert_conserved(tmp_path / "source", tmp_path / "data").splits
    assert (entry.split, entry.documents) == ("test", 2)


def test_two_datasets_of_one_name(tmp_path, capsys):
    write(tmp_path / "source", "FR/A/train.txt")
    write(tmp_path / "source", "FR--A/train.txt")
    code = prepare(tmp_path / "source", tmp_path / "data")
    assert_refused(capsys, code, 65, tmp_path / "data", "FR/A/train.txt", "FR--A/train.txt", "the same shard names")


def let_permissions_hold() -> None:
    """Takes from a process of root's the capabilities by which it reads what it has no permission for."""
    if os.geteuid() == 0:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        drop_from_bounding_set, override, read_search = 24, 1, 2
        assert not prctl(drop_from_bounding_set, override, 0, 0, 0)
        assert not prctl(drop_from_bounding_set, read_search, 0, 0, 0)


def test_a_directory_without_permission(tmp_path):
    write(tmp_path / "source", "FR/A/train.txt")
    locked = write(tmp_path / "source", "FR/B/train.txt").parent
    given = command_line("prepare_data.py", *arguments(tmp_path / "source", tmp_path / "data"))
    locked.chmod(0)
    done = subprocess.run(given, capture_output=True, text=True, timeout=600, cwd=ROOT, preexec_fn=let_permissions_hold)
    locked.chmod(0o755)
    assert_error(done, 74, "Permission denied", str(locked))
    assert not files_in(tmp_path / "data")


def make_tokenizer(folder: Path) -> Path:
    """A tokenizer without begin- and end-of-text tokens."""
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import models, pre_tokenizers, trainers

    made = HFTokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(GOOD, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    return folder


def test_a_tokenizer_without_a_begin_of_text_token(tmp_path, capsys):
    source, tokenizer = random_corpus(tmp_path / "source", 2, 5000, seed=8), make_tokenizer(tmp_path / "tokenizer")
    for option in ("--add_bos", "--add_eos"):
        code = prepare(source, tmp_path / "data", option, "true", tokenizer=tokenizer)
        assert_refused(capsys, code, 2, tmp_path / "data", f"{option}: the tokenizer has no such token")
    assert prepare(source, tmp_path / "data", tokenizer=tokenizer) == 0
    manifest = assert_conserved(source, tmp_path / "data", tokenizer)
    assert (manifest.bos, manifest.eos) == (False, False)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("dataset,language\nFR/A,de\n", ("language 'de'",)),
        (
            "dataset,language,spontaneous\nFR/A,fr,perhaps\n",
            ("metadata.csv: line 2: spontaneous must be True or False",),
        ),
        ("language\nfr\n", ("no column `dataset`",)),
        ("dataset,language\nFR/A,fr,x\n", ("line 2: 3 fields",)),
        ('dataset,language\n"FR/A', ("no valid CSV",)),
        (None, ("no such metadata file",)),
    ],
)
def test_wrong_metadata(tmp_path, capsys, content, words):
    write(tmp_path / "source", "FR/A/train.txt")
    metadata = write(tmp_path, "metadata.csv", content) if content else tmp_path / "metadata.csv"
    code = prepare(tmp_path / "source", tmp_path / "data", "--metadata", metadata)
    assert_refused(capsys, code, 2, tmp_path / "data", *words)


DIALOGUE = "dataset,language,spontaneous\nFR/Debats,fr,True\nFR/Debats/TEST,fr,True\nEN/Talks,en,False\nFR/Actes,fr,\n"
PLAYS = [
    "[speaker001:] Bonjour Marie, [rire] il est 12:30 !\n[speaker002:] Ça va ?\n[speaker002:] Oui, et toi ?",
    "[Jean DUPONT:] Je pars.\n[Marie:] Déjà ?\n[Paul:] Mais NON…",
    "[speaker001:] Un monologue, sans autre voix.",
    "[speaker001:] [bruit]\n[speaker002:] seulement ceci",
    "[rire]",
    "Sans tour, Une ligne.",
]


@pytest.mark.parametrize(
    ("more", "levels"),
    [
        ((), {"FR/Debats train": 8, "EN/Talks train": 1, "FR/Actes train": 1}),
        (("--augmentation_level", 3, "--seed", 7), {"FR/Debats train": 3, "EN/Talks train": 3, "FR/Actes train": 3}),
        (("--augmentation_level", 0), {}),
    ],
)
def test_variants_of_conversations(tmp_path, more, levels):
    """Each form is one segment of a row, whose text is what `utils/prepare/dialogue.py` makes of the conversation."""
    source, data, languages = tmp_path / "source", tmp_path / "data", {"FR": "fr", "EN": "en"}
    for name in ("FR/Debats/train.txt", "FR/Debats/test.txt", "EN/Talks/full.txt", "FR/Plain/train.txt"):
        write(source, name, "\n\n".join(PLAYS))
    write(source, "FR/Actes/x.jsonl", "\n".join(json.dumps({"text": play}) for play in PLAYS))
    metadata = write(tmp_path, "metadata.csv", DIALOGUE)
    assert prepare(source, data, "--metadata", metadata, "--max_length", 200, "--multiple_of", 1, *more) == 0
    tokenizer, seed = Tokenizer(TOKENIZER), 7 if more[2:] else 1337
    for entry in Manifest.load(data).splits:
        name = f"{entry.dataset} {entry.split}"
        level, language = levels.get(name, 0), languages[entry.dataset[:2]]
        expected: list[str] = []
        for document in documents_in(source, entry.sources[0]["path"]):
            normalised = dialogue.normalise(document.text, language)
            place = f"{document.file} {document.begin}"
            others = dialogue.variants(normalised, language, level, seed, place) if normalised else []
            expected += [normalised, *others] if entry.dataset != "FR/Plain" else [document.text]
        pieces, leading, _ = pieces_of(data, entry, 201)
        assert set(leading) == {1}
        found = Counter(tokenizer.decode(piece.tolist()) for piece in pieces)
        assert found == Counter(filter(None, expected)), name
        assert entry.documents == found.total()
        assert entry.variants == (len(expected) - len(PLAYS) if level else 0)
        assert entry.skipped == ({} if entry.dataset == "FR/Plain" else {"no_tokens": 1})
        if name == "FR/Debats train" and level == 8:
            assert entry.variants > 3 * len(PLAYS)


def test_another_seed_or_level_makes_only_dialogue_anew(tmp_path):
    source, data = tmp_path / "source", tmp_path / "data"
    for name in ("FR/Debats/train.txt", "FR/Debats/test.txt", "EN/Talks/full.txt", "FR/Plain/train.txt"):
        write(source, name, "\n\n".join(PLAYS))
    given = ("--metadata", write(tmp_path, "metadata.csv", DIALOGUE))
    assert prepare(source, data, *given) == 0
    before = times_of(data)
    assert prepare(source, data, *given, "--augmentation_level", 1) == 0
    assert written_since(before, data) == {"FR--Debats-train"}  # the others' level is the same


def test_the_language_of_dialogue_is_also_that_of_the_dataset_s_name(tmp_path, capsys):
    write(tmp_path / "source", "FR/A/train.txt", "[speaker001:] Oui.\n\n[speaker002:] Non.")
    write(tmp_path / "source", "Other/train.txt")
    metadata = write(tmp_path, "metadata.json", '{"FR/A": {"augmentation_level": 0}}')
    assert prepare(tmp_path / "source", tmp_path / "data", "--metadata", metadata) == 0
    forms = {"FR/A train": ["[Intervenant 1:] Oui.", "[Intervenant 2:] Non."]}
    assert_conserved(tmp_path / "source", tmp_path / "data", forms=forms)
    capsys.readouterr()
    metadata.write_text('{"Other": {}}')
    code = prepare(tmp_path / "source", tmp_path / "other", "--metadata", metadata)
    assert_refused(capsys, code, 2, tmp_path / "other", "language ''")


def test_a_document_in_parts_is_too_long(tmp_path, monkeypatch):
    """Of characters of four bytes a part that fills a block has no more than are permitted."""
    monkeypatch.setattr(plan, "BLOCK_BYTES", 2000)
    write(tmp_path / "source", "FR/A/train.txt", "oui\n\n" + "🙂" * 5000)
    write(tmp_path / "source", "FR/B/train.txt", "oui\n\n" + "ab 🙂🙂🙂🙂🙂🙂🙂🙂🙂🙂🙂🙂 cd ef " * 900 + "\n\nnon")
    assert prepare(tmp_path / "source", tmp_path / "data", "--max_characters", 900) == 0
    first, second = Manifest.load(tmp_path / "data").splits
    assert first.documents == 1 and first.skipped["too_long"] >= 1
    assert second.documents == 2 and second.skipped == {"too_long": 1}


def test_documents_of_the_wrong_length_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "BLOCK_BYTES", 2000)
    source, rng = tmp_path / "source", random.Random(3)
    texts = [" ".join(rng.choices(WORDS, k=rng.choice((1, 9, 60, 400, 4000)))) for _ in range(60)]
    write(source, "FR/A/train.txt", "\n\n".join(texts))
    write(source, "EN/B/x.jsonl", "\n".join(json.dumps({"text": value}) for value in ["", *texts]))
    given = ("--min_characters", 20, "--max_characters", 900)
    assert prepare(source, tmp_path / "data", *given) == 0
    kept = [value for value in texts if 20 <= len(value) <= 900]
    lines, conversations = assert_conserved(
        source, tmp_path / "data", forms={"EN/B train": kept, "FR/A train": kept}
    ).splits
    counts = Counter("too_long" if len(value) > 900 else "too_short" for value in texts if value not in kept)
    assert conversations.skipped == counts and lines.skipped == counts + Counter(too_short=1)
    first = next(value for value in texts if value not in kept)
    assert report_of(tmp_path / "data", conversations)[0]["text"] == first[:80]


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
        patched.setattr("utils.files.atomic.os.fsync", fsync)
        yield


@pytest.mark.parametrize(
    ("multiple_of", "deduplicate", "kilobytes"),
    [
        *((multiple_of, "no", kilobytes) for multiple_of in (1, 8) for kilobytes in (4, 12, 36, 100, 170, 280)),
        *((8, "near", kilobytes) for kilobytes in (200, 900)),
    ],
)
def test_a_full_disk(tmp_path, capsys, monkeypatch, multiple_of, deduplicate, kilobytes):
    """Full while files are opened, or written, or while the report, or later splits, or signatures are."""
    source, data = random_corpus(tmp_path / "source", 2, 150_000, seed=5), tmp_path / "data"
    with (source / "FR/Set00/train.txt").open("ab") as file:
        file.write(b"\n\n" + b"\xff\n\noui\n\n" * 400)
    given = ("--multiple_of", multiple_of, "--deduplicate", deduplicate, "--on_bad_input", "skip")
    with full_disk(data, kilobytes, monkeypatch):
        code = prepare(source, data, *given)
        err = capsys.readouterr().err
        assert code == 74 and err.startswith("error: No space left on device: "), err
        assert str(data) in err and err.count("\n") == 1
        left = [path for path in files_in(data) if ".signatures" not in path.as_posix()]
        assert not [path for path in left if path.name.startswith(".") or path.name == "manifest.json"]
        for path in left:
            if path.suffix == ".safetensors":
                load_file(path)
            else:
                assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    assert prepare(source, data, *given) == 0
    assert prepare(source, tmp_path / "fresh", *given) == 0
    assert content_of(data) == content_of(tmp_path / "fresh")


# --- two calls, and folders within each other


def test_a_second_call_on_the_same_folder_is_refused(tmp_path, monkeypatch):
    write(tmp_path / "source", "FR/A/full.txt")
    command = [sys.executable, ROOT / "prepare_data.py", *arguments(tmp_path / "source", tmp_path / "data")]
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(folder_lock, "BEAT", 0.5)
    lock = FolderLock.acquire(tmp_path / "data")
    second = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 2 and f"is being written by process {os.getpid()}" in second.stderr
    assert not (tmp_path / "data/manifest.json").exists()
    lock.release(leave=False)
    monkeypatch.setattr(folder_lock, "BEAT", 3600.0)  # now it gives no sign of life
    lock = FolderLock.acquire(tmp_path / "data")
    third = subprocess.Popen([str(word) for word in command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert "waiting for a sign of life" in third.stdout.readline()
    lock.release(leave=False)
    assert third.wait(60) == 0
    third.stdout.close()
    assert (tmp_path / "data/manifest.json").exists() and not (tmp_path / "data/.lock").exists()


@pytest.mark.parametrize("inside", ["", "out", "FR/out"])
def test_a_destination_within_the_source(tmp_path, capsys, inside):
    write(tmp_path / "corpus", "FR/A/full.txt")
    assert prepare(tmp_path / "corpus", tmp_path / "corpus" / inside) == 2
    assert "lies in --source_path" in capsys.readouterr().err
    assert not (tmp_path / "corpus/manifest.json").exists() and not (tmp_path / "corpus/out").exists()


def test_a_report_that_is_gone_is_written_again(tmp_path):
    write(tmp_path / "corpus", "FR/A/full.txt", b"[A:] un\n\n\xff\n\n[A:] deux\n")
    given = (tmp_path / "corpus", tmp_path / "data", "--on_bad_input", "skip")
    assert prepare(*given) == 0
    before = content_of(tmp_path / "data")
    next((tmp_path / "data/reports").iterdir()).unlink()
    assert prepare(*given) == 0
    assert content_of(tmp_path / "data") == before


def test_metadata_of_datasets_that_are_not_there_is_said(tmp_path, capsys):
    write(tmp_path / "corpus", "FR/A/full.txt")
    metadata = write(tmp_path, "metadata.csv", "dataset,language\nFR/A/train,fr\nFR/A,fr\n")
    assert prepare(tmp_path / "corpus", tmp_path / "data", "--metadata", metadata) == 0
    assert "warning: --metadata names datasets that are not here: FR/A/train\n" in capsys.readouterr().out


def test_the_fast_tokenizer_may_be_refused(tmp_path, capsys):
    source = write(tmp_path / "corpus", "FR/A/full.txt").parents[2]
    assert prepare(source, tmp_path / "fast") == 0
    assert "tokenised by gigatoken" in capsys.readouterr().out
    assert prepare(source, tmp_path / "slow", "--fast_tokenizer", "false") == 0
    assert "tokenised by sentencepiece" in capsys.readouterr().out
    shards = [
        {name: sha for name, sha in content_of(tmp_path / x).items() if "safetensors" in name} for x in ("fast", "slow")
    ]
    assert shards[0] == shards[1]
