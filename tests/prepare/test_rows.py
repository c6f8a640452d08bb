"""Files that are tables: JSON arrays, CSV, Arrow, and what in them is no document."""

from __future__ import annotations

import bz2
import csv
import io
import json
import lzma
import re
import struct
import subprocess
import sys
from pathlib import Path

import pandas
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gpt.errors import DataError
from tests.conftest import ROOT
from tests.prepare.corpus_files import TEXTS, as_read, write
from tests.prepare.test_blocks import subprocess_peak
from utils.prepare import rows, unpacking
from utils.prepare.blocks import read_blocks
from utils.prepare.documents import Bad, parse
from utils.prepare.file_formats import LINES, RECORDS
from utils.prepare.sources import find_sources


def read(path: Path, size: int = 2**20) -> tuple[list[str], list[Bad]]:
    """The documents of one file, and what in it is none."""
    (source,) = find_sources(path, lambda _: None)
    texts, bads = [], []
    for block in read_blocks(source.files[0], size, "text"):
        documents, bad = parse(block, "text")
        texts += [document.text.decode() for document in documents]
        bads += bad
    return texts, bads


# --- JSON

RECORDS_OF_TEXT = st.lists(
    st.fixed_dictionaries({"text": TEXTS}, optional={"n": st.integers(), "deep": st.lists(st.text(max_size=3))}),
    max_size=20,
)


@settings(max_examples=100, deadline=None)
@given(
    records=RECORDS_OF_TEXT,
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    read_at_once=st.integers(1, 80),
)
def test_arrays_of_records_by_the_standard_library(folder, records, indent, ascii_only, read_at_once):
    path = folder / "a.json"
    path.write_text(" \n" + json.dumps(records, indent=indent, ensure_ascii=ascii_only) + "\n")
    before, rows.READ = rows.READ, read_at_once
    try:
        texts, bads = read(path, 50)
    finally:
        rows.READ = before
    assert not bads and texts == [as_read(record["text"]) for record in records]


@pytest.mark.parametrize(
    ("content", "file_format", "texts"),
    [
        ('{"text": "un"}\n{"text": "deux"}\n', LINES, ["un", "deux"]),
        ('\ufeff\n{"text": "un"}\r\n{"text": "deux"}', LINES, ["un", "deux"]),
        ('{"text": "un"}', LINES, ["un"]),
        ('{\n  "text": "un"\n}\n', RECORDS, ["un"]),
        ('{\n "text": "un"\n}\n{\n "text": "deux"\n}\n', RECORDS, ["un", "deux"]),
        ('\ufeff[{"text": "un"},\n{"text": "deux"}]', RECORDS, ["un", "deux"]),
        ("[]", RECORDS, []),
        ("", LINES, []),
    ],
)
def test_json_is_an_array_lines_or_records_one_after_the_other(tmp_path, content, file_format, texts):
    path = write(tmp_path, "a.json", content=content)
    assert find_sources(path)[0].files[0].format == file_format
    assert read(path) == (texts, [])


def test_what_is_no_document_in_an_array(tmp_path):
    content = b'[{"text": "un"}, {"id": 1, "body": "x"}, 3, {"text": null}, {"text": "a\xff"}, {"text": "\\ud800"}, {}]'
    texts, bads = read(write(tmp_path, "a.json", content=content))
    assert texts == ["un"]
    assert [(bad.reason, bad.at) for bad in bads] == [
        ("no_field", 1), ("no_field", 2), ("no_field", 3), ("not_utf8", 4), ("not_utf8", 5), ("no_field", 6)
    ]  # fmt: skip
    assert bads[0].problem == "no field 'text' (--text_field) among id, body,"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"text": "un"}, {"text": "de', "truncated or no JSON after record 1"),
        ('[{"text": "un"}', "truncated or no JSON after record 1"),
        ('[{"text": "un"} {"text": "deux"}]', "truncated or no JSON after record 1"),
        ('[{"text": "un"}] []', "truncated or no JSON after record 1"),
        ('[{"text": "un"}, nope]', "truncated or no JSON after record 1"),
        ("[" * 100_000, "truncated or no JSON after record 0"),
    ],
)
def test_broken_arrays(tmp_path, content, words):
    with pytest.raises(DataError, match=words) as error:
        read(write(tmp_path, "a.json", content=content))
    assert "a.json" in str(error.value)


def test_an_array_of_300_mb_takes_little_memory(tmp_path):
    path = tmp_path / "a.json"
    record = json.dumps({"text": "mot " * 2500, "id": 3})
    with path.open("w") as file:
        file.write("[" + ",\n".join([record] * 1000))
        for _ in range(29):
            file.write("," + ",".join([record] * 1000))
        file.write("]")
    assert path.stat().st_size > 290e6
    blocks = f"blocks.read_blocks(file_formats.CorpusFile(Path({str(path)!r}), 'a', 'records'), 2**22, 'text')"
    assert subprocess_peak(f"n = sum(len(block.payload) for block in {blocks})", "n", 150) == "30000"


def test_a_record_that_is_too_long_is_an_error_with_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_RECORD", 3 * rows.READ)
    path = write(tmp_path, "a.json", content=json.dumps([{"text": "un"}, {"text": "x" * 9 * rows.READ}]))
    with pytest.raises(DataError, match=r"a\.json: no JSON record of at most .* after record 1; .*jq -c") as error:
        read(path)
    assert "\n" not in str(error.value)


# --- CSV


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(TEXTS.filter(lambda text: text.strip()), max_size=10),
    name=st.sampled_from(["a.csv", "a.tsv", "a.CSV.xz"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
)
def test_tables_by_pandas(folder, texts, name, quoting, end, mark):
    content = io.StringIO(newline="")
    if quoting == csv.QUOTE_MINIMAL:
        texts = [text.replace("\r", "") or "x" for text in texts]  # Python up to 3.12 writes it without quotes
    separator = "\t" if ".tsv" in name else ","
    writer = csv.writer(content, delimiter=separator, quoting=quoting, lineterminator=end)
    writer.writerows([["id", "text"], *enumerate(texts)])
    raw = ("\ufeff" * mark + content.getvalue()).encode()
    path = write(folder, name, content=lzma.compress(raw) if name.endswith("xz") else raw)
    by_pandas = pandas.read_csv(io.BytesIO(raw), sep=separator, keep_default_na=False, dtype=str, lineterminator=None)
    found, bads = read(path, 50)
    assert not bads and found == [as_read(text) for text in by_pandas["text"]]


def test_text_is_text_where_others_see_nothing(tmp_path):
    path = write(tmp_path, "a.csv", content="text,id\nnull,1\nNA,2\nNone,3\n12,4\n\n,5\n")
    assert read(path) == (["null", "NA", "None", "12", ""], [])


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.arrow", "a.parquet"])
def test_a_table_without_the_column_names_those_it_has(tmp_path, name):
    path = write(tmp_path, name, content="id;body\n1;x\n" if name == "a.csv" else "id\tbody\n1\tx\n")
    table = pyarrow.table({"id": [1], "body": ["x"]})
    if name == "a.arrow":
        with pyarrow.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    if name == "a.parquet":
        from pyarrow import parquet

        parquet.write_table(table, path)
    fields = "id;body" if name == "a.csv" else "id, body"
    with pytest.raises(DataError, match=f"{name} has no column 'text' but {fields}; give --text_field"):
        read(path)


def test_rows_that_are_none(tmp_path):
    content = b'id,text\n1,un\n2\n3,a,b\n4,a\xffb\n5,"a"b\n6,a\0b\n7,"deux\nlignes"\n8,"not closed\n9,trois\n'
    texts, bads = read(write(tmp_path, "a.csv", content=content))
    assert texts == ["un", "deux\nlignes"]
    assert [(bad.reason, bad.at) for bad in bads] == [
        ("bad_row", 1), ("bad_row", 2), ("not_utf8", 3), ("bad_row", 4), ("nul", 5), ("bad_row", 7)
    ]  # fmt: skip
    assert bads[0].problem == "1 fields, where the first line names 2, up to line 3,"
    assert "is a quote not closed?" in bads[-1].problem


def test_an_empty_table(tmp_path):
    assert read(write(tmp_path, "a.csv", content="")) == ([], [])
    assert read(write(tmp_path, "a.csv", content="text\n")) == ([], [])


# --- Arrow


@pytest.mark.parametrize("kind", ["stream", "file"])
@pytest.mark.parametrize("text_type", [pyarrow.string(), pyarrow.large_string()])
def test_arrow_files_of_both_kinds(tmp_path, kind, text_type):
    texts = [f"mot {number} é" for number in range(1000)] + [None]
    table = pyarrow.table({"text": pyarrow.array(texts, text_type), "id": range(1001)})
    new = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
    with new(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=300)
    found, bads = read(tmp_path / "a.arrow", 1000)
    assert found == texts[:-1] and [(bad.reason, bad.at) for bad in bads] == [("no_field", 1000)]
    content = (tmp_path / "a.arrow").read_bytes()
    for kept in (0.9, 0.5, 0.001):
        (tmp_path / "a.arrow").write_bytes(content[: int(len(content) * kept)])
        with pytest.raises(DataError, match=r"a\.arrow is truncated or no Arrow file"):
            read(tmp_path / "a.arrow")


FLIP = """
import random, sys
from pathlib import Path
from lit_gpt.errors import DataError
from utils.prepare.blocks import read_blocks
from utils.prepare.documents import parse
from utils.prepare.file_formats import CorpusFile
path, kind = Path(sys.argv[1]), sys.argv[2]
content, rng, refused = path.read_bytes(), random.Random(0), 0
for _ in range(400):
    flipped = bytearray(content)
    flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(flipped)
    try:
        for block in read_blocks(CorpusFile(path, "a", kind), 1000, "text"):
            parse(block, "text")
    except DataError:
        refused += 1
print(refused)
"""


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_flipped_bits_end_no_process(tmp_path, kind):
    table = pyarrow.table({"text": [f"mot {number} é" for number in range(100)], "id": range(100)})
    new = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
    with new(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    command = [sys.executable, "-c", FLIP, tmp_path / "a.arrow", "arrow"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert int(done.stdout) > 20


# --- packed files


@pytest.mark.parametrize("suffix", [".xz", ".bz2"])
def test_packed_streams_are_read_to_the_end_or_an_error(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(unpacking, "READ", 50)
    pack = lzma.compress if suffix == ".xz" else bz2.compress
    first, second = (pack(b'{"text": "%s"}\n' % b" ".join(b"%d" % n for n in part)) for part in (range(99), range(50)))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(first + bytes(8) + second)
    texts, bads = read(path)
    assert [len(text.split()) for text in texts] == [99, 50] and not bads
    broken = {
        "cut": first + second[:-3],
        "cut at its head": first + second[:3],
        "other head": first + b"x" + second[1:],
        "more behind": first + b"and so on",
        "flipped": first[:60] + bytes([first[60] ^ 4]) + first[61:],
        "no stream": b'{"text": "un"}\n',
    }
    for content in broken.values():
        path.write_bytes(content)
        with pytest.raises(DataError, match=re.escape(f"{path} is truncated or no {suffix} file")):
            read(path)
    path.write_bytes(b"")
    assert read(path) == ([], [])


def test_a_long_window_names_the_way_to_unpack_it(tmp_path):
    line = b'{"text": "un"}\n'
    window = bytes([0, (31 - 10) << 3])  # no checksum, no size; a window of 2^31 bytes
    frame = b"\x28\xb5\x2f\xfd" + window + struct.pack("<I", len(line) << 3 | 1)[:3] + line
    path = write(tmp_path, "a.jsonl.zst", content=frame)
    with pytest.raises(DataError, match=r"a\.jsonl\.zst was packed with a window above 128 MB.*zstd -d --long=31"):
        read(path)
    done = subprocess.run(["zstd", "-dc", "--long=31", path], capture_output=True)
    assert done.stdout == line
