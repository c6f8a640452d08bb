"""Datasets of the Hub: the Hub's own client in real processes, against a Hub on this machine (hub_server.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.conftest import ROOT, TOKENIZER, assert_error
from tests.formats.hub_server import Hub
from tests.prepare.test_datasets_option import CHAT

FIND = """
import json, sys
from lit_gpt.errors import DataError, Interrupted, UserError
from utils.prepare.dataset_entries import read_entries
from utils.prepare.entry_sources import find_entry_sources
for case in json.load(sys.stdin):
    said = []
    try:
        entries, problems = read_entries([case])
        assert not problems, problems
        sources = find_entry_sources(entries, said.append)
        found = {source.split: [file.name for file in source.files] for source in sources}
        spans = [file.span for source in sources for file in source.files if file.span]
        print(json.dumps({"files": found, "commit": sources[0].entry.commit, "said": said, "spans": spans}))
    except (DataError, Interrupted, UserError, OSError) as e:
        print(json.dumps({"error": str(e), "kind": type(e).__name__, "said": said}))
"""
ROWS = (json.dumps(CHAT) + "\n").encode()
CARD = b"""---
license: mit
configs:
- config_name: chat
  data_files:
  - split: train
    path: chat/part-*.jsonl
  - split: test_sft
    path: chat/held/*
- config_name: raw
  data_dir: raw
---
# A dataset
"""


def find(hub: Hub, home: Path, *cases: dict, **environment: str) -> list[dict]:
    env = {**hub.environment(home, None), "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-c", FIND],
        input=json.dumps([{"name": "x", "hub": "org/chats", **case} for case in cases]),
        capture_output=True,
        text=True,
        env=env,
        timeout=600,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def hub():
    server = Hub()
    server.old = server.add("datasets/org/chats", {"README.md": b"# A dataset", "one.jsonl": ROWS})
    files = {f"chat/part-{number}.jsonl": ROWS * 3 for number in range(2)}
    others = {"chat/held/last.jsonl": ROWS, "raw/train.jsonl": ROWS, "raw/dev.jsonl": ROWS, "build.py": b"exit(1)"}
    server.new = server.add("datasets/org/chats", {"README.md": CARD, **files, **others})
    server.add("datasets/org/numbered", {f"data/ru-0000{number}-of-00002.jsonl": ROWS for number in range(2)})
    server.add("datasets/org/script", {"script.py": b"exit(1)", "README.md": b"# Rows by a script"})
    converted = [f"{subset}/{split}/000{part}.parquet" for subset in "ab" for split in ("ru", "en") for part in (0, 1)]
    server.add("datasets/org/converted", dict.fromkeys(converted, b"rows"))
    server.add("datasets/org/images", {"a.zip": b"x"})
    server.add("datasets/org/private", {"a.jsonl": ROWS}, private=True)
    yield server
    server.close()


def test_files_are_found_by_subset_split_and_commit(hub: Hub, tmp_path: Path):
    chat, raw, dev, part, old = find(
        hub,
        tmp_path,
        {"subset": "chat"},
        {"subset": "raw"},
        {"subset": "raw", "split": "validation"},
        {"subset": "chat", "split": "train[1:4]", "revision": hub.new},
        {"revision": hub.old},
    )
    parts = ["x/chat/part-0.jsonl", "x/chat/part-1.jsonl"]
    assert chat["files"] == {"train": parts, "test": ["x/chat/held/last.jsonl"]}
    assert chat["commit"] == hub.new
    assert chat["said"][0].startswith("not read: 1 .py (x/build.py)")
    assert chat["said"][1] == f"x: main of org/chats is the commit {hub.new} (revision: {hub.new} keeps to it)"
    assert raw["files"] == {"train": ["x/raw/train.jsonl"], "test": ["x/raw/dev.jsonl"]}
    assert dev["files"] == {"test": ["x/raw/dev.jsonl"]}
    size = len(ROWS)
    assert (part["files"], part["spans"]) == ({"train": parts}, [[size, 3 * size], [0, size]])
    assert not any("is the commit" in line for line in part["said"])
    assert (old["files"], old["commit"]) == ({"train": ["x/one.jsonl"]}, hub.old)
    downloaded = [path for method, path in hub.requests if method == "GET" and "/resolve/" in path]
    assert len(downloaded) == len(set(downloaded))
    assert not any(path.endswith(".py") for path in downloaded)


def test_the_parquet_files_that_the_hub_made_have_subsets_and_splits(hub: Hub, tmp_path: Path):
    one, all_splits, several = find(
        hub,
        tmp_path,
        {"hub": "org/converted", "subset": "b", "split": "ru"},
        {"hub": "org/converted", "subset": "a"},
        {"hub": "org/converted"},
    )
    assert one["files"] == {"train": ["x/b/ru/0000.parquet", "x/b/ru/0001.parquet"]}
    assert len(all_splits["files"]["train"]) == 4
    assert "x: it has several subsets; name one as subset: a, b" in several["error"]


def test_only_the_files_of_the_split_are_downloaded(hub: Hub, tmp_path: Path):
    find(hub, tmp_path, {"subset": "chat", "split": "test_sft"})
    names = {path.rpartition(f"{hub.new}/")[2] for _, path in hub.requests if "/resolve/" in path}
    assert names == {"README.md", "chat/held/last.jsonl"}


def test_the_cache_does_without_the_hub(hub: Hub, tmp_path: Path):
    online = find(hub, tmp_path, {"subset": "chat"}, {"hub": "org/numbered", "split": "ru"})
    hub.close()
    chat, numbered, pinned, unknown, missing = find(
        hub,
        tmp_path,
        {"subset": "chat"},
        {"hub": "org/numbered", "split": "ru"},
        {"subset": "chat", "revision": hub.new},
        {"subset": "chat", "revision": hub.old},
        {"hub": "org/other"},
        HF_HUB_OFFLINE="1",
    )
    assert [chat["files"], numbered["files"]] == [found["files"] for found in online]
    assert chat["commit"] == pinned["commit"] == hub.new
    assert "without the Hub" in chat["said"][0]
    assert f"has no {hub.old} of datasets/org/chats" in unknown["error"]
    assert unknown["kind"] == missing["kind"] == "OSError"
    assert "cannot be reached" in missing["error"]
    (unreachable,) = find(hub, tmp_path, {"subset": "chat"})
    assert (unreachable["files"], unreachable["commit"]) == (chat["files"], hub.new)
    (shard,) = tmp_path.rglob("ru-00001-of-00002.jsonl")
    shard.unlink()
    (incomplete,) = find(hub, tmp_path, {"hub": "org/numbered", "split": "ru"}, HF_HUB_OFFLINE="1")
    assert "the cache has 1 of the 2 files data/ru--of-00002.jsonl" in incomplete["error"].replace("*", "")


def test_what_cannot_be_is_one_line(hub: Hub, tmp_path: Path):
    problems = {
        "x: datasets/org/chats has no such revision: v9": {"revision": "v9"},
        "x: it has several subsets; name one as subset: chat, raw": {},
        "x: it has no subset 'chats' but chat, raw": {"subset": "chats"},
        "x: it has no split 'ru' but train, test_sft": {"subset": "chat", "split": "ru"},
        "x: datasets/org/nobody was not found": {"hub": "org/nobody"},
        "x: datasets/org/private was not found on the Hugging Face Hub; check the name; if it is private": {
            "hub": "org/private"
        },
        "x: org/script is made by a script, script.py, which is not run": {"hub": "org/script"},
        "x: org/images has no files that are read": {"hub": "org/images"},
        "x: it has no subsets: no dataset card": {"subset": "chat", "revision": hub.old},
    }
    for problem, found in zip(problems, find(hub, tmp_path, *problems.values()), strict=True):
        assert found["error"].startswith(f"--datasets, {problem}"), found


def test_a_dataset_that_was_saved_by_datasets(hub: Hub, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([CHAT] * 4)
    datasets.DatasetDict({"train_sft": rows, "test": rows}).save_to_disk(
        tmp_path / "saved", num_shards={"train_sft": 2, "test": 1}
    )
    paths = [path for path in (tmp_path / "saved").rglob("*") if path.is_file()]
    saved = {str(path.relative_to(tmp_path / "saved")): path.read_bytes() for path in paths}
    hub.add("datasets/org/saved", {**saved, "notes.pdf": b"x"})
    part, whole = find(hub, tmp_path, {"hub": "org/saved", "split": "train_sft"}, {"hub": "org/saved"})
    train = [f"x/train_sft/data-0000{number}-of-00002.arrow" for number in range(2)]
    assert part["files"] == {"train": train}
    assert whole["files"] == {"train": train, "test": ["x/test/data-00000-of-00001.arrow"]}
    assert "not read: 1 .pdf (x/notes.pdf): make them .txt, say with pdftotext" in part["said"]


def test_the_manifest_says_which_commit(hub: Hub, tmp_path: Path):
    table = pa.table({"body": ["Some text of a book."] * 50})
    parquet.write_table(table, tmp_path / "a.parquet")
    hub.add("datasets/org/books", {"a.parquet": (tmp_path / "a.parquet").read_bytes()})
    (commit,) = (name for name, _ in hub.repositories["datasets/org/books"]["commits"])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("datasets: [{name: books, hub: org/books, language: en}]\n")
    words = ["--config", recipe, "--checkpoint_dir", TOKENIZER, "--destination_path", tmp_path / "data"]
    words += ["--max_length", "64", "--text_field", "body", "--num_workers", "1"]

    def prepare() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "prepare_data.py", *words],
            env={**os.environ, **hub.environment(tmp_path, None)},
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=600,
        )

    done = prepare()
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    (split,) = manifest["splits"]
    assert (split["dataset"], split["language"], split["documents"]) == ("books", "en", 50)
    assert manifest["made_by"]["datasets"] == [
        {"name": "books", "hub": "org/books", "language": "en", "converter": {"name": "text"}, "commit": commit}
    ]
    (downloaded,) = (tmp_path / "hub").rglob("a.parquet")
    table = pa.table({"body": ["Another text of a book."] * 50})
    parquet.write_table(table, downloaded.resolve())
    done = prepare()
    assert_error(done, 65, "a.parquet is not the file that the Hub lists; delete")
