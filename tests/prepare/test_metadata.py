"""What a metadata file says of the datasets, and what is said of a bad one."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from lit_gpt.errors import UserError
from tests.conftest import SHARED
from utils.prepare.metadata import DatasetFacts, facts_of, read_metadata

CLAIRE = SHARED / "reference" / "claire_metadata.csv"


def write(folder: Path, content: str | bytes, name: str = "metadata.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def problems_of(path: Path) -> list[str]:
    with pytest.raises(UserError) as error:
        read_metadata(path)
    message = str(error.value)
    assert "\n" not in message
    assert message.count(str(path)) == message.count("; " + str(path)) + 1
    return message.split("; " + str(path))


# --- good files


@pytest.mark.shared
def test_the_claire_models_metadata():
    facts = read_metadata(CLAIRE)
    with CLAIRE.open(encoding="utf-8", newline="") as file:
        rows = {row["dataset"]: row for row in csv.DictReader(file)}
    assert facts.keys() == rows.keys()
    for name, row in rows.items():
        assert facts[name] == DatasetFacts(language=row["language"], spontaneous=row["spontaneous"] == "True")
        assert facts[name].level("train") == (8 if row["spontaneous"] == "True" else 1)
        assert facts[name].level("test") == 0


FACTS = {
    "FR/X": DatasetFacts("fr", True, True, 3),
    "FR/Y": DatasetFacts("", False, False, None),
    "EN/Z": DatasetFacts("en", True, False, 0),
}


@pytest.mark.parametrize("byte_order_mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_csv(tmp_path, byte_order_mark, line_end):
    lines = [
        "dataset,words,augmentation_level, spontaneous,dialogue,language",
        'FR/X,"1,000",3,yes,,FR',
        "",
        "FR/Y,,,0,No,",
        '"EN/Z",,0,FALSE,1, en ',
        "EN/Z,2,0,no,true,en",
    ]
    path = write(tmp_path, byte_order_mark + line_end.join(lines).encode())
    assert read_metadata(path) == FACTS


@pytest.mark.parametrize("as_list", [False, True])
def test_json(tmp_path, as_list):
    content = {
        "FR/X": {"language": "FR", "spontaneous": True, "augmentation_level": 3, "words": {"a": [1]}},
        "FR/Y": {"language": None, "dialogue": "false"},
        "EN/Z": {"language": "en", "spontaneous": 0, "augmentation_level": "0"},
    }
    entries = [{**fields, "dataset": name} for name, fields in content.items()] if as_list else content
    path = write(tmp_path, json.dumps(entries), "metadata.JSON")
    assert read_metadata(path) == FACTS


def test_only_the_dataset_is_needed(tmp_path):
    assert read_metadata(write(tmp_path, "dataset\nA\nB\n")) == {"A": DatasetFacts(), "B": DatasetFacts()}
    assert read_metadata(write(tmp_path, "dataset\n")) == read_metadata(write(tmp_path, "{}", "m.json")) == {}
    assert DatasetFacts() == DatasetFacts(language="", dialogue=True, spontaneous=False, augmentation_level=None)


# --- what follows


@pytest.mark.parametrize(
    ("facts", "train"),
    [
        (DatasetFacts(spontaneous=True), 8),
        (DatasetFacts(), 1),
        (DatasetFacts(dialogue=False), 0),
        (DatasetFacts(dialogue=False, spontaneous=True), 0),
        (DatasetFacts(spontaneous=True, augmentation_level=0), 0),
        (DatasetFacts(augmentation_level=20), 20),
    ],
)
def test_augmentation_level(facts, train):
    assert facts.level("train") == train
    assert facts.level("test") == 0


def test_a_split_has_its_own_facts_or_its_datasets():
    facts = {"FR/X": DatasetFacts("fr"), "FR/X/TEST": DatasetFacts("xx"), "FR/Y/TRAIN": DatasetFacts("yy")}
    assert facts_of(facts, "FR/X", "train") == DatasetFacts("fr")
    assert facts_of(facts, "FR/X", "test") == DatasetFacts("xx")
    assert facts_of(facts, "FR/Y", "train") == DatasetFacts("yy")
    assert facts_of(facts, "FR/Y", "test") is None
    assert facts_of(facts, "FR", "train") is None


# --- bad files


def test_a_file_that_is_none(tmp_path):
    assert "no such metadata file" in problems_of(tmp_path / "none.csv")[0]
    (tmp_path / "folder.json").mkdir()
    assert "no such metadata file" in problems_of(tmp_path / "folder.json")[0]
    assert ".csv or .json" in problems_of(write(tmp_path, "dataset\n", "metadata.txt"))[0]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("m.csv", "", "no column `dataset`"),
        ("m.csv", "dataset;language\nFR/X;fr\n", "no column `dataset`"),
        ("m.csv", "dataset,language,language\nFR/X,fr,en\n", "language stands there 2 times"),
        ("m.csv", 'dataset,language\n"FR/X,fr\n', "no valid CSV"),
        ("m.csv", b"dataset,language\nFR/X,\xff\n", "not UTF-8 at byte offset 22"),
        ("m.json", '{"FR/X": {"language": "fr"}', "no valid JSON: Expecting ',' delimiter: line 1 column 28"),
        ("m.json", "", "no valid JSON"),
        ("m.json", "[" * 100_000, "no valid JSON"),
        ("m.json", '"FR/X"', "entry 1: must be an object"),
        ("m.json", '["FR/X"]', "entry 1: must be an object"),
        ("m.json", '{"FR/X": 3}', "FR/X: must be an object"),
        ("m.json", '[{"language": "fr"}]', "entry 1: no name in `dataset`"),
        ("m.json", '[{"dataset": 3}]', "entry 1: no name in `dataset`"),
        ("m.json", '{"FR/X": {}, "FR/X": {}}', "FR/X stands there 2 times"),
    ],
)
def test_a_file_of_another_form(tmp_path, name, content, problem):
    found = problems_of(write(tmp_path, content, name))
    assert len(found) == 1
    assert problem in found[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("spontaneous", "maybe"),
        ("spontaneous", "2"),
        ("dialogue", "T"),
        ("augmentation_level", "-1"),
        ("augmentation_level", "1.5"),
        ("augmentation_level", "²"),
        ("augmentation_level", "9" * 5000),
        ("language", "french"),
        ("language", "[]"),
    ],
)
def test_a_value_that_cannot_be(tmp_path, field, value):
    found = problems_of(write(tmp_path, f"dataset,{field}\nFR/X,{value}\n"))
    assert len(found) == 1
    assert f": line 2: {field} must be" in found[0] and repr(value) in found[0]
    found = problems_of(write(tmp_path, json.dumps({"FR/X": {field: value}}), "m.json"))
    assert f": FR/X: {field} must be" in found[0]


def test_all_problems_at_once(tmp_path):
    lines = [
        "dataset,language,spontaneous,augmentation_level,dialogue",
        "FR/X,fr,perhaps,-3,True",
        "FR/Y,fr,True,2",
        "FR/Z,fr,True,2,True",
        '"FR/\nA",fr,True,2,True',
        "FR/Z,fr,False,2,True",
        ",fr,True,2,True",
        "FR/B,fr,True,2,False",
        "FR/Z,FR,yes,2,1",
    ]
    found = problems_of(write(tmp_path, "\n".join(lines)))
    expected = [
        "line 2: spontaneous",
        "line 2: augmentation_level",
        "line 3: 4 fields, but line 1 names 5",
        "line 7: FR/Z has other facts",
        "line 8: no name",
        "line 9: augmentation_level must be 0 for plain text",
    ]
    assert len(found) == len(expected)
    assert all(words in problem for words, problem in zip(expected, found, strict=True))
