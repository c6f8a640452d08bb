"""prepare_data.py on corpora as other people have them: files of all kinds, what is not read, saved datasets."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest

from lit_gpt.errors import DataError
from tests.conftest import ROOT
from tests.prepare.corpus_files import write
from tests.prepare.test_layouts_of_datasets import our_documents
from tests.prepare.test_prepare_data import arguments, content_of, prepare, with_small_blocks
from utils.data.manifest import Manifest
from utils.prepare.sources import find_sources


def records(name: str, count: int = 40) -> list[dict[str, str]]:
    return [{"id": name, "text": f"Le {number}e de {name}: « été », dit-elle."} for number in range(count)]


def lines(name: str) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records(name)).encode()


def table(name: str, separator: str = ",") -> bytes:
    rows = [f'{record["id"]}{separator}"{record["text"]}"\n' for record in records(name)]
    return f"id{separator}text\n{''.join(rows)}".encode()


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


READ = {
    "array.json": json.dumps(records("array.json")),
    "lines.json": lines("lines.json"),
    "array.json.gz": gzip.compress(json.dumps(records("array.json.gz"), indent=1).encode()),
    "a.jsonl.xz": lzma.compress(lines("a.jsonl.xz")),
    "a.jsonl.bz2": bz2.compress(lines("a.jsonl.bz2")),
    "A.JSONL": lines("A.JSONL"),
    "a.ndjson": lines("a.ndjson"),
    "a.csv": table("a.csv"),
    "a.CSV.zst": zstd(table("a.CSV.zst")),
    "a.tsv.bz2": bz2.compress(table("a.tsv.bz2", "\t")),
    "a.txt.gz": gzip.compress(b"un texte"),
    "A.TXT": b"un autre",
}
UNREAD = ("a.docx", "b.docx", "a.pdf", "a.zip", "a.tar.gz", "a.gz", "LICENSE", "config.json", ".hidden")


@pytest.fixture
def corpus(tmp_path) -> Path:
    for name, content in READ.items():
        write(tmp_path / "corpus", f"web/{name}", content=content)
    write(tmp_path / "corpus", *(f"web/{name}" for name in UNREAD))
    return tmp_path / "corpus"


def test_every_file_is_read_or_named(corpus, tmp_path, capsys):
    assert prepare(corpus, tmp_path / "data") == 0
    (entry,) = Manifest.load(tmp_path / "data").splits
    assert {Path(source["path"]).name for source in entry.sources} == set(READ)
    assert (entry.dataset, entry.split, entry.language) == ("web", "train", "")
    assert entry.documents == 40 * 10 + 2 and not entry.skipped
    out = capsys.readouterr().out
    assert "not read: 2 .docx (web/a.docx, web/b.docx): make them .txt, say with pandoc" in out
    assert "not read: 1 .zip, 1 .tar.gz (web/a.tar.gz, web/a.zip): archives; unpack them" in out.replace(
        "1 .tar.gz, 1 .zip", "1 .zip, 1 .tar.gz"
    )
    assert "1 .gz (web/a.gz): name them by what is in them, such as a.txt.gz" in out
    report = (tmp_path / "data" / "reports" / "not_read.jsonl").read_text().splitlines()
    assert {json.loads(line)["name"] for line in report} == {f"web/{name}" for name in UNREAD}
    assert all(json.loads(line)["reason"] for line in report)
    before = content_of(tmp_path / "data")
    assert prepare(corpus, tmp_path / "data") == 0
    assert "web train: kept" in capsys.readouterr().out and content_of(tmp_path / "data") == before
    for name in UNREAD:
        (corpus / "web" / name).unlink()
    assert prepare(corpus, tmp_path / "data") == 0
    assert not (tmp_path / "data" / "reports" / "not_read.jsonl").exists()


def test_the_number_of_processes_makes_no_difference_to_any_format(corpus, tmp_path):
    for workers in (1, 3):
        given = arguments(corpus, tmp_path / str(workers), "--num_workers", workers, "--deduplicate", "exact")
        subprocess.run(with_small_blocks(500, *given), cwd=ROOT, check=True, timeout=600, capture_output=True)
    assert content_of(tmp_path / "1") == content_of(tmp_path / "3")


def test_held_out_data_never_trains(tmp_path, capsys):
    names = ("test/a.jsonl", "validation/chunk1/a.csv", "default/test/a.json", "wiki_test.jsonl", "valid.jsonl.xz")
    for name in names:
        content = table(name) if name.endswith("csv") else lines(name)
        write(tmp_path / "web", name, content=lzma.compress(content) if name.endswith("xz") else content)
    write(tmp_path / "web", "train/a.jsonl", "default/train/a.jsonl", content=lines("train"))
    assert prepare(tmp_path / "web", tmp_path / "data") == 0
    entries = {(entry.dataset, entry.split): entry for entry in Manifest.load(tmp_path / "data").splits}
    assert {key: [source["path"] for source in entry.sources] for key, entry in entries.items()} == {
        ("chunk1", "test"): ["validation/chunk1/a.csv"],
        ("default", "train"): ["default/train/a.jsonl"],
        ("default", "test"): ["default/test/a.json"],
        ("web", "train"): ["train/a.jsonl"],
        ("web", "test"): ["valid.jsonl.xz", "wiki_test.jsonl", "test/a.jsonl"],
    }
    out = capsys.readouterr().out
    assert "web: 3 files held out for validation by valid.jsonl.xz, wiki_test.jsonl, test/ (1); 1 for training" in out
    assert "default: 1 file held out for validation by test/ (1); 1 for training" in out


def test_conversations_beside_those_for_training(tmp_path):
    write(
        tmp_path, "A/train.txt", "A/valid.txt", "A/test.txt.gz", "A/notes of test.txt", "A/info.json", "test/B/full.txt"
    )
    assert [(source.dataset, source.split, len(source.files)) for source in find_sources(tmp_path)] == [
        ("A", "train", 1), ("A", "test", 2), ("B", "test", 1)
    ]  # fmt: skip


def test_lists_hold_out_too(tmp_path):
    write(tmp_path, "web/test/a.jsonl", "web/train/a.jsonl", "web/b_dev.jsonl")
    write(tmp_path, "lists/all.list", content="../web/test/a.jsonl\n../web/train/a.jsonl\n../web/b_dev.jsonl\n")
    write(tmp_path, "here.list", content="web/test/a.jsonl\nweb/train/a.jsonl\nweb/b_dev.jsonl\n")
    for path in (tmp_path / "lists/all.list", tmp_path / "here.list"):
        sources = [(s.dataset, s.split, sorted(file.name for file in s.files)) for s in find_sources(path)]
        held_out = ["web/b_dev.jsonl", "web/test/a.jsonl"]
        assert sources == [("web", "train", ["web/train/a.jsonl"]), ("web", "test", held_out)]


def test_files_of_options_are_no_corpus(tmp_path, capsys):
    write(tmp_path / "corpus", "FR/a.jsonl", content=lines("a"))
    metadata = write(tmp_path / "corpus", "metadata.csv", content="dataset,dialogue\nFR,False\n")
    groups = write(tmp_path / "corpus", "groups.json", content='{"FR": "group"}')
    given = ("--metadata", metadata, "--group_datasets_by_genre", groups)
    assert prepare(tmp_path / "corpus", tmp_path / "data", *given) == 0
    assert len(Manifest.load(tmp_path / "data").splits) == 1
    assert "files of other options" in capsys.readouterr().out
    assert prepare(tmp_path / "corpus", tmp_path / "other") == 65
    assert "groups.json: no field 'text' (--text_field) among FR" in capsys.readouterr().err


# --- what save_to_disk writes

SAVE = """
import json, sys
import datasets
datasets.disable_progress_bars()
folder = sys.argv[1]
def of(name, **more):
    return datasets.Dataset.from_dict({"id": range(30), "text": [f"{n} de {name}" for n in range(30)]}, **more)
splits = {name: of(name) for name in ("train", "validation", "test", "extra")}
datasets.DatasetDict(splits).save_to_disk(f"{folder}/dict", num_shards={name: 3 for name in splits})
halves = of("halves", split=datasets.Split("test")).train_test_split(0.5, seed=0)
halves.save_to_disk(f"{folder}/halves")
of("alone", split=datasets.Split("validation")).save_to_disk(f"{folder}/alone")
of("some").shuffle(seed=1).select(range(10)).save_to_disk(f"{folder}/some")
datasets.load_from_disk(f"{folder}/some").map(lambda row: {"text": row["text"] + "!"})
found = {}
for name in ("dict", "halves", "alone", "some"):
    loaded = datasets.load_from_disk(f"{folder}/{name}")
    splits = loaded if isinstance(loaded, dict) else {str(loaded.split): loaded}
    found[name] = {split: list(rows["text"]) for split, rows in splits.items()}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, dict[str, dict[str, list[str]]]]:
    """Folders that `datasets` wrote, and what it reads of them, by split."""
    folder = tmp_path_factory.mktemp("saved")
    env = {**os.environ, "HF_HOME": str(tmp_path_factory.mktemp("home")), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SAVE, folder], env=env, capture_output=True, text=True, timeout=600, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("name", ["dict", "halves", "alone", "some"])
def test_saved_datasets_are_read_as_datasets_reads_them(saved, name):
    folder, by_datasets = saved
    expected: dict[str, list[str]] = {}
    for split, texts in by_datasets[name].items():
        expected.setdefault("test" if split in ("test", "validation") else "train", []).extend(texts)
    assert our_documents(folder / name) == {split: sorted(texts) for split, texts in expected.items()}


def test_what_is_beside_a_saved_dataset_is_named(saved):
    said: list[str] = []
    find_sources(saved[0], said.append)
    assert any("1 .arrow (some/cache-" in line and "`map` of datasets" in line for line in said)
    assert any("alone: 1 file held out for validation by the split in alone/state.json" in line for line in said)


def test_a_saved_split_alone_is_what_its_folder_says(saved):
    assert set(our_documents(saved[0] / "halves" / "train")) == {"train"}
    assert set(our_documents(saved[0] / "halves" / "test")) == {"test"}
    assert set(our_documents(saved[0] / "dict" / "validation")) == {"test"}


def test_other_files_beside_a_saved_dataset_are_named(tmp_path):
    write(tmp_path, "A/a.arrow", "A/b.arrow", "A/dataset_info.json")
    write(tmp_path, "A/state.json", content='{"_data_files": [{"filename": "a.arrow"}]}')
    said: list[str] = []
    (source,) = find_sources(tmp_path, said.append)
    assert [file.name for file in source.files] == ["A/a.arrow"]
    assert "A/b.arrow" in said[0] and "state.json does not name them" in said[0]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"_data_files": [{"filename": "data-1.arrow"}]}, "lacks data-1.arrow"),
        (
            {"_data_files": [{"filename": "a.arrow"}], "_indices_data_files": [{"filename": "i.arrow"}]},
            "flatten_indices",
        ),
        ({}, "does not name the files"),
        ([], "no JSON object"),
        (None, "no valid JSON"),
    ],
)
def test_saved_datasets_that_are_incomplete(tmp_path, state, words):
    write(tmp_path, "A/a.arrow", "A/dataset_info.json")
    write(tmp_path, "A/state.json", content="nope" if state is None else json.dumps(state))
    with pytest.raises(DataError, match=words):
        find_sources(tmp_path)


def test_a_split_that_is_gone(tmp_path):
    write(tmp_path, "A/dataset_dict.json", content='{"splits": ["train", "test"]}')
    write(tmp_path, "A/train/a.jsonl")
    with pytest.raises(DataError, match="lacks the split train, which its dataset_dict"):
        find_sources(tmp_path)


# --- names


def test_names_that_are_no_unicode(tmp_path, capsys):
    write(tmp_path, "corpus/FR/a.jsonl", content=lines("a"))
    folder = bytes(tmp_path / "corpus" / "FR")
    Path(os.fsdecode(folder + b"/\xff.pdf")).touch()
    assert prepare(tmp_path / "corpus", tmp_path / "data") == 0
    assert "1 .pdf (FR/\\udcff.pdf)" in capsys.readouterr().out
    Path(os.fsdecode(folder + b"/\xff.jsonl")).write_bytes(lines("b"))
    assert prepare(tmp_path / "corpus", tmp_path / "data") == 65
    assert "FR/\\udcff.jsonl' is no UTF-8; rename it" in capsys.readouterr().err
