"""Records of chats in files of every format: the same rows give the same records, and what is no record is named."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from lit_gpt.errors import DataError
from tests.conftest import ROOT
from tests.prepare.corpus_files import write
from tests.prepare.test_blocks import subprocess_peak
from utils.prepare.blocks import read_blocks
from utils.prepare.chat.conversation import Conversation, Converter, Fields
from utils.prepare.chat.converters import convert_records, fields_of, make_converter
from utils.prepare.documents import Bad
from utils.prepare.records import parse_records, require_fields
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


def write_rows(path: Path, rows: list[dict], arrow: bool = False) -> Path:
    """The rows in the format that the name says (a CSV file has JSON in its fields); with `arrow` not by `datasets`."""
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
    elif path.suffix == ".parquet" and arrow:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
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
    return convert_records(make_converter(converter), records, str(path))


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


@pytest.mark.parametrize("name", NAMES)
def test_a_field_that_no_first_record_has_is_an_error_in_every_format(tmp_path, name):
    (source,) = find_sources(write_rows(tmp_path / name, ROWS), lambda _: None)
    require_fields(source.files[0], fields_of(Converter("messages", mapping=(("tools", "id"),))))
    require_fields(source.files[0], fields_of(Converter("messages", keep=(("id", ("1",)),))))
    for converter in (Converter("conversations"), Converter("messages", mapping=(("tools", "conversations"),))):
        with pytest.raises(DataError, match=r"no (column|field) 'conversations' but id, messages; say by `mapping`"):
            require_fields(source.files[0], fields_of(converter))


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


FLIP = """
import random, sys
from pathlib import Path
from lit_gpt.errors import DataError
from utils.prepare.blocks import read_blocks
from utils.prepare.chat.conversation import Fields
from utils.prepare.file_formats import CorpusFile
from utils.prepare.records import parse_records
path, kind = Path(sys.argv[1]), sys.argv[2]
content, rng, refused = path.read_bytes(), random.Random(0), 0
for number in range(200):
    flipped = bytearray(content)
    if number:
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(flipped)
    try:
        for block in read_blocks(CorpusFile(path, "a", kind), 3000, Fields((), None)):
            parse_records(block)
    except DataError:
        assert number, "the file is whole"
        refused += 1
print(refused)
"""


@pytest.mark.parametrize("kind", ["stream", "file", "parquet"])
def test_flipped_bits_in_nested_columns_end_no_process(tmp_path, kind):
    calls = [None, [{"function": {"name": "f", "arguments": {"city": "Orléans", "none": None}}}]]
    turns = [{"role": "user", "content": "чат " * number, "tool_calls": calls[number % 2]} for number in range(4)]
    table = pyarrow.Table.from_pylist(
        [{"messages": turns[: number % 5], "tools": [str(number)]} for number in range(60)]
    )
    path = tmp_path / "a"
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=20)
    else:
        new = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
        with new(path, table.schema) as file:
            file.write_table(table, max_chunksize=20)
    command = [sys.executable, "-c", FLIP, path, "parquet" if kind == "parquet" else "arrow"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert int(done.stdout) > 10


READ = """
from utils.prepare import blocks, records
from utils.prepare.chat.conversation import Fields
from utils.prepare.file_formats import CorpusFile
found, bads = [], []
for block in blocks.read_blocks(CorpusFile(Path({path!r}), "a", {kind!r}), 2**22, Fields(("messages",))):
    records_of_block, bad = records.parse_records(block)
    found += [at for _, at in records_of_block]
    bads += bad
"""


def test_a_line_of_200_mb_is_named_in_little_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    row = json.dumps(ROWS[0]) + "\n"
    with path.open("w") as file:
        file.write(row + '{"messages": [{"role": "user", "content": "')
        for _ in range(200):
            file.write("слово " * 100_000)
        file.write('"}]}\n' + row)
    assert path.stat().st_size > 200e6
    peak = subprocess_peak(READ.format(path=str(path), kind="lines"), "(len(found), [bad.reason for bad in bads])", 200)
    assert peak == "(2, ['line_too_long'])"


def test_a_parquet_file_of_300_mb_takes_little_memory(tmp_path):
    path = tmp_path / "a.parquet"
    turns = [{"role": "user", "content": "слово " * 250}, {"role": "assistant", "content": "mot " * 800}]
    table = pyarrow.Table.from_pylist([{"messages": turns}] * 1000)
    with parquet.ParquetWriter(path, table.schema) as file:
        for _ in range(50):
            file.write_table(table)
    peak = subprocess_peak(READ.format(path=str(path), kind="parquet"), "(len(found), len(bads))", 250)
    assert peak == "(50000, 0)"
