"""Records of chats in files of every format: the same rows give the same records, and what is no record is named."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from lit_gpt.errors import DataError
from tests.prepare.corpus_files import write
from utils.prepare.blocks import read_blocks
from utils.prepare.chat.conversation import Conversation, Converter, Fields
from utils.prepare.chat.converters import convert_records, fields_of, make_converter
from utils.prepare.documents import Bad
from utils.prepare.records import parse_records
from utils.prepare.sources import find_sources

EVERY = Fields((), None)
ROWS = [
    {
        "id": number,
        "messages": [{"role": "user", "content": f"Вопрос {number}?"}, {"role": "assistant", "content": "Да."}],
    }
    for number in range(300)
]
NAMES = ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.parquet", "saved", "a.csv", "a.tsv", "feather.arrow"]


def write_rows(path: Path, rows: list[dict]) -> Path:
    """The rows in the format that the name says; a CSV file has JSON in its fields."""
    packed = gzip.compress if path.suffix == ".gz" else bytes
    if ".jsonl" in path.name:
        path.write_bytes(packed("".join(json.dumps(row) + "\n" for row in rows).encode()))
    elif ".json" in path.name:
        path.write_bytes(packed(json.dumps(rows, indent=1, ensure_ascii=False).encode()))
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerow(rows[0])
            for row in rows:
                values = [value if isinstance(value, str) else json.dumps(value) for value in row.values()]
                writer.writerow(values)
    elif path.name == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(path), batch_size=70)
    else:
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    return path


def read(path: Path, fields: Fields = EVERY, size: int = 2**20) -> tuple[list[tuple[object, int]], list[Bad]]:
    (source,) = find_sources(path, lambda _: None)
    records, bads = [], []
    for file in source.files:
        for block in read_blocks(file, size, fields):
            found, bad = parse_records(block)
            records += found
            bads += bad
    return records, bads


def conversations(path: Path, converter: Converter, size: int = 2**20) -> tuple[list[Conversation], list]:
    records, bads = read(path, fields_of(converter), size)
    assert not bads
    return convert_records(make_converter(converter), records)


@pytest.mark.parametrize("size", [3000, 2**20])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_rows_in_every_format_give_the_same_conversations(tmp_path, name, size):
    path = write_rows(tmp_path / name, ROWS)
    found, left_out = conversations(path, Converter("messages"), size)
    assert not left_out
    assert [conversation.messages for conversation in found] == [row["messages"] for row in ROWS]
    if ".jsonl" not in name:
        assert [conversation.at for conversation in found] == list(range(len(ROWS)))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet", "saved", "feather.arrow"])
def test_a_table_without_the_column_names_those_it_has(tmp_path, name):
    path = write_rows(tmp_path / name, ROWS)
    converter = Converter("messages", mapping=(("messages", "dialog"),))
    with pytest.raises(DataError, match="has no column 'dialog' but id, messages; say by `mapping`"):
        conversations(path, converter)


def test_a_record_of_json_without_the_field_names_those_it_has(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    found, left_out = conversations(path, Converter("messages", mapping=(("messages", "dialog"),)))
    assert not found and {item.reason for item in left_out} == {"no_field"}
    assert left_out[0].detail == "no field 'dialog' among id, messages" and left_out[0].text == "Вопрос 0?"


def test_what_is_no_record_in_lines(tmp_path):
    deep = "[" * 100_000 + "]" * 100_000
    lines = [
        '{"a": 1}',
        "nope",
        f'{{"a": {deep}}}',
        '{"a": 1, "a": 2}',
        '"\udcff"',
        "",
        '{"a": ' + "9" * 5000 + "}",
        "[]",
    ]
    path = write(tmp_path, "a.jsonl", content="\n".join(lines).encode("utf-8", "surrogateescape"))
    records, bads = read(path)
    assert [record for record, _ in records] == [{"a": 1}, []]
    assert [bad.reason for bad in bads] == ["broken_json", "broken_json", "broken_json", "not_utf8", "broken_json"]
    assert "the key 'a' more than once" in bads[2].problem


def test_arrow_text_that_is_no_utf8_costs_its_row_alone(tmp_path):
    kind = pyarrow.list_(pyarrow.struct([("role", pyarrow.binary()), ("content", pyarrow.binary())]))
    texts = [b"a", b"\xff", b"c"]
    rows = [[{"role": b"user", "content": text}] for text in texts]
    text_kind = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))
    table = pyarrow.table({"messages": pyarrow.array(rows, kind).view(text_kind)})
    path = tmp_path / "a.arrow"
    with pyarrow.ipc.new_file(path, table.schema) as file:
        file.write_table(table)
    records, bads = read(path)
    assert [at for _, at in records] == [0, 2] and [(bad.reason, bad.at) for bad in bads] == [("not_utf8", 1)]
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == (records, bads)
