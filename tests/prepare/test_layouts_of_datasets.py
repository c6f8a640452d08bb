"""The splits of folders as the library `datasets` has them: the same documents in the same split."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path, PurePosixPath

import pyarrow
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from utils.prepare.blocks import read_blocks
from utils.prepare.documents import parse
from utils.prepare.file_formats import PLAIN, format_of
from utils.prepare.sources import find_sources
from utils.prepare.split_names import held_out_by

LAYOUTS = {
    "folders": ["train/a.jsonl", "train/b.jsonl", "test/a.jsonl"],
    "folders below": ["train/chunk1/a.jsonl", "train/chunk2/a.jsonl", "validation/chunk1/a.jsonl"],
    "as the Hub converts": [
        "default/train/0000.parquet",
        "default/test/0000.parquet",
        "default/validation/0000.parquet",
    ],
    "words in names": ["wiki_train.jsonl", "wiki_test.jsonl"],
    "csv": ["train.csv", "valid.csv"],
    "tsv": ["train.tsv", "dev.tsv"],
    "gzip": ["train.jsonl.gz", "dev.jsonl.gz"],
    "xz and bz2": ["train-1.jsonl.xz", "train-2.jsonl.bz2", "val-1.jsonl.xz"],
    "arrays": ["training/a.json", "eval/b.json"],
    "shards": [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/test-00000-of-00001.parquet",
    ],
    "named shards": ["data/train_sft-00000-of-00001.parquet", "data/test_sft-00000-of-00001.parquet"],
    "shards named after others": ["data/train-00000-of-00001-test.parquet", "data/validation-00000-of-00001.parquet"],
    "conversations": ["train.txt", "test.txt"],
    "texts in folders": ["train/a.txt", "train/b.txt", "validation/c.txt", "test/d.txt"],
    "titles": ["The Test of Time.txt", "Training days.txt", "a contest.txt"],
    "titles with words": ["training_manual.txt", "driving test.2.txt"],
    "numbers": ["train1.ndjson", "train 2.ndjson", "x.evaluation3.ndjson", "testing4.ndjson"],
    "arrow": ["train.arrow", "test.arrow"],
    "folders with words": ["my corpus/train 1/a.jsonl", "my corpus/the-testing-2/b.jsonl"],
    "as C4": ["en/c4-train.00000-of-01024.json.gz", "en/c4-validation.00000-of-00008.json.gz"],
    "no words": ["testament.jsonl", "contest.jsonl", "evaluated.jsonl", "devices/latest.jsonl"],
    "a card": ["README.md", "more/a.jsonl", "more/b.jsonl", "deep/er/c.jsonl", "d.jsonl"],
    "folders before names": ["train/my-eval notes.jsonl", "test/a.jsonl"],
}
"""Folders, by the names of their files. Each file has three documents; `x.json` is an array, `x.json.gz` lines."""

CARD = """---
license: mit
configs:
- config_name: default
  data_files:
  - {split: train, path: more/a.jsonl}
  - {split: validation, path: [deep/**, "d*"]}
  - {split: test, path: "more/[b-c].jsonl"}
---
# A dataset
"""
LOAD = """
import json, sys
import datasets
datasets.disable_progress_bars()
for name, folder, more in json.load(open(sys.argv[1])):
    loaded = datasets.load_dataset(folder, **more)
    print(json.dumps([name, {split: [t.strip() for t in rows["text"]] for split, rows in loaded.items()}]), flush=True)
"""


def texts_for(name: str) -> list[str]:
    return [f"Le {number}e de {name}, « été »,\ndit-elle." for number in range(3)]


def write_table(path: Path, table: pyarrow.Table) -> None:
    with pyarrow.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)


def write_file(path: Path, texts: list[str]) -> None:
    """The texts in the format that the file's name says, each with a number before it; a .txt has them as blocks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [{"id": number, "text": text} for number, text in enumerate(texts)]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    suffix = "".join(path.suffixes[-2:])
    if path.name == "README.md":
        path.write_text(CARD)
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix == ".arrow":
        write_table(path, pyarrow.Table.from_pylist(records))
    elif path.suffix in (".csv", ".tsv"):
        rows = io.StringIO(newline="")
        writer = csv.writer(rows, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([["id", "text"], *([record["id"], record["text"]] for record in records)])
        path.write_text(rows.getvalue(), newline="")
    elif path.suffix == ".txt":
        path.write_text("\n\n".join(texts))
    elif suffix.endswith(".json"):
        path.write_text(json.dumps(records, indent=1))
    else:
        pack = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)
        path.write_bytes(pack(lines.encode()))


def our_documents(folder: Path) -> dict[str, list[str]]:
    """The texts of each split of a folder, of all datasets together."""
    found = defaultdict(list)
    for source in find_sources(folder):
        for file in source.files:
            for block in read_blocks(file, 1000, "text"):
                documents, bads = parse(block, "text")
                assert not bads
                found[source.split] += [document.text.decode() for document in documents]
    return {split: sorted(texts) for split, texts in found.items()}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> tuple[Path, dict[str, dict[str, list[str]]]]:
    """The layouts as folders, and what `datasets` loads of each in a process of its own, by split."""
    corpus = tmp_path_factory.mktemp("layouts")
    jobs = []
    for name, files in LAYOUTS.items():
        for file in files:
            write_file(corpus / name / file, texts_for(file))
        more = {}
        if files[0].endswith(".txt"):
            more = {"sample_by": "paragraph" if name == "conversations" else "document"}
        jobs.append([name, str(corpus / name), more])
    (corpus / "jobs.json").write_text(json.dumps(jobs))
    home = tmp_path_factory.mktemp("home")
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD, corpus / "jobs.json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, cwd=home)
    assert done.returncode == 0, done.stderr[-3000:]
    return corpus, dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_documents_in_the_same_split(loaded, name):
    corpus, of_datasets = loaded
    expected = defaultdict(list)
    for split, texts in of_datasets[name].items():
        expected["train" if split in ("train", "train_sft") else "test"] += texts
    assert our_documents(corpus / name) == {split: sorted(texts) for split, texts in expected.items()}


# --- any names, against the library's own resolver

WORDS = ["train", "training", "validation", "valid", "dev", "val", "test", "testing", "eval", "evaluation"]
OTHERS = ["data", "a", "contest", "testament", "x-00000-of-00001", "default", "wiki", "devices", "", "Test", "DEV"]
NAMES = st.lists(st.sampled_from(WORDS + OTHERS), min_size=1, max_size=3).flatmap(
    lambda words: st.lists(st.sampled_from(["-", ".", "_", " ", "0", "7", "", "é"]), min_size=3, max_size=3).map(
        lambda between: "".join(word + gap for word, gap in zip(words, between, strict=False))
    )
)
SHARDS = st.tuples(st.sampled_from([*WORDS, "test_sft", "extra"]), st.sampled_from(["", "-test", ".dev"])).map(
    lambda parts: f"data/{parts[0]}-00000-of-00001{parts[1]}.jsonl"
)
SEEN_NAMES = NAMES.filter(lambda name: name and not name.startswith("."))
PATHS = st.lists(SEEN_NAMES, min_size=1, max_size=3).map(lambda parts: f"{'/'.join(parts)}.jsonl") | SHARDS


def of_datasets(folder: Path) -> dict[str, set[str]]:
    """The splits of each file below `folder` that `datasets` takes."""
    from datasets.data_files import get_data_patterns, resolve_pattern  # 3 s, which the other tests need not take

    splits = defaultdict(set)
    for split, patterns in get_data_patterns(str(folder)).items():
        for pattern in patterns:
            try:
                files = resolve_pattern(pattern, str(folder))
            except FileNotFoundError:
                continue
            for file in files:
                splits[Path(file).relative_to(folder).as_posix()].add(split)
    return splits


def is_more_than_theirs(file: PurePosixPath) -> bool:
    """Whether a file is held out that `datasets` trains on: by the beginning of its name, or by capital letters."""
    begins = file.name.lower().startswith(tuple(f"{word}{mark}" for word in WORDS[2:] for mark in "-_."))
    return begins or any(part != part.lower() and part.lower() in WORDS[2:] for part in file.parts[:-1])


@settings(max_examples=100, deadline=None)
@given(names=st.lists(PATHS, min_size=1, max_size=5, unique=True))
@example(names=["train/test/a.jsonl"])
@example(names=["train-test/a.jsonl", "b.jsonl"])
@example(names=["train/test.jsonl", "test/a.jsonl"])
@example(names=["TEST/a.jsonl", "Test.jsonl"])
def test_what_is_held_out_is_what_datasets_holds_out(folder, names):
    corpus = folder / "names"
    shutil.rmtree(corpus, ignore_errors=True)
    for name in names:
        path = corpus / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
        except OSError:  # a folder of this name is there, or a file where a folder should be
            continue
    files = [path.relative_to(corpus).as_posix() for path in corpus.rglob("*") if path.is_file()]
    splits = of_datasets(corpus)
    for name in files:
        file = PurePosixPath(name)
        if name not in splits:
            continue  # not loaded at all, beside files that have a split
        for_training = splits[name] <= {"train", "training", "extra"}
        assert format_of(name) != PLAIN
        if not for_training:
            assert held_out_by(file, False), name
        elif held_out_by(file, False):
            assert is_more_than_theirs(file), name


@pytest.mark.parametrize("name", ["The Test of Time.txt", "Test-driven development.txt", "train/test of time.txt"])
def test_titles_of_texts_are_no_splits(name):
    assert not held_out_by(PurePosixPath(name), True)
