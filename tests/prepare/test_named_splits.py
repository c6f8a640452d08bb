"""Splits by name and parts of them are those that the library `datasets` gives for the same files."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from pathlib import Path

import pytest

from lit_gpt.errors import DataError, UserError
from tests.prepare.test_datasets_option import options_of
from utils.prepare.blocks import read_blocks
from utils.prepare.chat.conversation import Fields
from utils.prepare.entry_sources import find_entry_sources
from utils.prepare.named_splits import files_by_split, parse_split
from utils.prepare.records import parse_records

datasets = pytest.importorskip("datasets")
arrow_reader = pytest.importorskip("datasets.arrow_reader")
data_files = pytest.importorskip("datasets.data_files")

SPECS = (
    *("train", "train[3:9]", "train[-4:]", "train[10%:20%]", "train[90%:]", "train[200:]", "train[:1_0]"),
    *("train[:50%](pct1_dropremainder)", "test[:2]+train[:3]+train[-3:]"),
)


def rows_of(entry: dict) -> list[int]:
    """The `number` of every record that an entry's sources give, train before test."""
    numbers = []
    for source in find_entry_sources(options_of(entry).entries, lambda _: None):
        blocks = (read_blocks(file, 300, Fields(("number",))) for file in source.files)
        for block in itertools.chain.from_iterable(blocks):
            records, bad = parse_records(block)
            assert not bad
            numbers += [int(record["number"]) for record, _ in records]
    return numbers


def write(folder: Path, kind: str, files: dict[str, range]) -> None:
    """Files of rows with a number each."""
    for name, numbers in files.items():
        rows = [{"number": number, "text": "é" * (number % 13)} for number in numbers]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path = folder / f"{name}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "jsonl":
            path.write_text("\n" + lines.replace("\n", "\n\n", 3).rstrip("\n"))
        elif kind == "jsonl.gz":
            path.write_bytes(gzip.compress(("\ufeff" + lines).encode()))
        elif kind == "json":
            path.write_text(json.dumps(rows))
        elif kind == "csv":
            path.write_text("number,text\n" + "".join(f'{row["number"]},"{row["text"]}\n"\n' for row in rows))
        else:
            datasets.Dataset.from_list(rows).to_parquet(path, batch_size=7)


def expected_rows(folder: Path, kind: str, split: str) -> list[int]:
    builder = {"jsonl": "json", "jsonl.gz": "json", "json": "json", "csv": "csv", "parquet": "parquet"}[kind]
    patterns = {name: f"{name}*.{kind}" for name in ("train", "test")}
    cache = str(folder.parent / "cache")
    try:
        found = datasets.load_dataset(builder, data_dir=str(folder), data_files=patterns, split=split, cache_dir=cache)
    except ValueError as e:
        assert "corresponds to no data" in str(e)
        return []
    return list(found["number"])


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "parquet"])
def test_parts_of_splits_are_those_of_datasets(tmp_path: Path, kind: str):
    datasets.disable_progress_bars()
    files = {"train-0": range(37), "train-1": range(37, 40), "train-2": range(40, 103), "test-0": range(1000, 1012)}
    write(tmp_path / "files", kind, files)
    for spec in SPECS:
        expected = expected_rows(tmp_path / "files", kind, spec)
        entry = {"name": "x", "path": str(tmp_path / "files"), "split": spec}
        if not expected:
            with pytest.raises(DataError, match="has no rows"):
                rows_of(entry)
            continue
        if "test" in spec:  # which we hold out, and so give last
            expected.sort()
        assert rows_of(entry) == expected, spec


def test_parts_of_a_saved_dataset(tmp_path: Path):
    datasets.disable_progress_bars()
    rows = [{"number": number} for number in range(2500)]
    saved = datasets.DatasetDict(
        {"train_sft": datasets.Dataset.from_list(rows[:2000]), "test_sft": datasets.Dataset.from_list(rows[2000:])}
    )
    saved.save_to_disk(tmp_path / "saved", num_shards={"train_sft": 2, "test_sft": 1})
    entry = {"name": "x", "path": str(tmp_path / "saved")}
    assert rows_of({**entry, "split": "train_sft[990:1203]+test_sft[-2:]"}) == [*range(990, 1203), 2498, 2499]
    sources = find_entry_sources(options_of({**entry, "split": "train_sft+test_sft"}).entries, lambda _: None)
    assert [source.split for source in sources] == ["train", "test"]
    with pytest.raises(UserError, match="x: it has no split 'train' but test_sft, train_sft"):
        rows_of({**entry, "split": "train"})


def test_any_slice_is_that_of_datasets():
    rng = random.Random(1)
    bounds = ["", *(str(rng.randint(-120, 120)) for _ in range(40))]
    for _ in range(3000):
        unit = rng.choice(["", "%"])
        ends = [
            bound + unit if bound and (not unit or abs(int(bound)) <= 100) else "" for bound in rng.sample(bounds, 2)
        ]
        rounding = rng.choice(["", "(pct1_dropremainder)"]) if unit and any(ends) else ""
        spec, count = f"train[{ends[0]}:{ends[1]}]{rounding}", rng.randint(100 if rounding else 0, 350)
        theirs = arrow_reader.ReadInstruction.from_spec(spec).to_absolute({"train": count})[0]
        begin, end = parse_split(spec)[0].rows(count)
        assert (begin, end) == (theirs.from_, max(theirs.from_, theirs.to)), (spec, count)


WORDS = ("train", "test", "dev", "data", "training_set", "my-val", "eval2", "contest", "a", "validation.x", "TEST")


@pytest.mark.parametrize("seed", range(60))
def test_the_files_of_splits_are_those_of_datasets(tmp_path: Path, seed: int):
    rng = random.Random(seed)
    names = set()
    for number in range(rng.randint(1, 6)):
        folders = rng.choices(WORDS, k=rng.choice([0, 1, 1, 2]))
        names.add("/".join([*folders, f"{rng.choice(WORDS)}{rng.choice(['-0', '', '_x'])}.jsonl"]))
        if seed % 5 == 0:
            names.add(f"data/{rng.choice(['ru', 'train_sft', 'test'])}-0000{number}-of-00006.jsonl")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    patterns = data_files.get_data_patterns(str(tmp_path))
    theirs = {
        str(split): {str(Path(file).relative_to(tmp_path)) for file in files}
        for split, files in data_files.DataFilesDict.from_patterns(patterns, str(tmp_path)).items()
    }
    assert {split: set(files) for split, files in files_by_split(names).items()} == theirs


def test_text_has_no_rows_to_slice(tmp_path: Path):
    (tmp_path / "a.txt").write_text("A text.")
    with pytest.raises(UserError, match=r"a\.txt is text, which has no rows"):
        rows_of({"name": "x", "path": str(tmp_path), "split": "train[:5]"})
