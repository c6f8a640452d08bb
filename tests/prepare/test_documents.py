"""The documents of blocks, against brute force and other readers."""

from __future__ import annotations

import gzip
import itertools
import json
import re

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lit_gpt.errors import DataError
from tests.prepare.corpus_files import (
    FORMATS,
    TEXTS,
    WHOLE,
    as_read,
    assert_cover,
    blocks_of,
    read,
    texts_of,
    write,
    write_as,
)
from utils.prepare.documents import parse

# --- conversations


@pytest.mark.parametrize("size", [16, WHOLE])
@pytest.mark.parametrize(
    ("content", "documents"),
    [
        (b"", []),
        (b"\n \n\t\n", []),
        (b"one", ["one"]),
        (b"one\ntwo\n\nthree\n", ["one\ntwo", "three"]),
        (b"\n\n  one  \n   \n\n\ntwo\n\n", ["one", "two"]),
        (b"one\r\ntwo\r\n\r\nthree\r\n", ["one\ntwo", "three"]),
        (b"one\rtwo\r\rthree", ["one\ntwo", "three"]),
        (b"one\n\rtwo\r \nthree\r\t\r\nfour", ["one", "two", "three", "four"]),
        (b"\xef\xbb\xbfone\n\ntwo", ["one", "two"]),
        (b"\xef\xbb\xbf\r\none", ["one"]),
        (b"\xef\xbb\xbf", []),
        ("un\n\u00a0\u2003\ndeux".encode(), ["un", "deux"]),
        ("un\n\x1c\x1f \u3000\ndeux \u0085\ntrois".encode(), ["un", "deux \u0085\ntrois"]),
        ("\x1cun\u2028deux\x0btrois\u3000".encode(), ["un\u2028deux\x0btrois"]),
    ],
)
def test_documents_stand_between_blank_lines(tmp_path, content, documents, size):
    assert texts_of(write(tmp_path, "full.txt", content=content), size) == documents


def test_lines_of_any_white_space_are_blank(folder):
    spaces = [chr(code) for code in range(0x11000) if chr(code).isspace() and chr(code) not in "\r\n"]
    assert len(spaces) == 27
    texts = ["mot " * 25 + "fin"] * 3
    for space in spaces:
        for blank in (space, space * 3, f" {space}\t"):
            path = write(folder, "full.txt", content=f"\n{blank}\n".join(texts))
            assert texts_of(path, 60) == texts_of(path) == texts


PARTS = ["un", " deux ", "é", "🙂", "[A:] x", "\n", "\n\n", "\r\n", "\r\n\r\n", "\r", " \n\n", "\t", "\u3000", "\x1c"]
BAD_PARTS = [b"\x00", b"\xff", b"\xc3", b"\xe2\x82", b"\xed\xa0\x80"]
FILES = st.lists(st.sampled_from([part.encode() for part in PARTS] + BAD_PARTS), max_size=40).map(b"".join)


def by_force(content: bytes) -> list[tuple[int, int, str | int]]:
    """Begin and end of each document, and its text or the offset of its first bad byte: line by line, byte by byte."""
    start = 3 if content.startswith(b"\xef\xbb\xbf") else 0
    lines = [(start + line.start(), line[0]) for line in re.finditer(rb"[^\r\n]*(\r\n|\r|\n|\Z)", content[start:])]
    documents = []
    for is_blank, group in itertools.groupby(lines, lambda line: not line[1].decode("utf-8", "replace").strip()):
        if not is_blank:
            of_document = list(group)
            begin, text = of_document[0][0], b"".join(line for _, line in of_document)
            documents.append((begin, begin + len(text), text_or_bad_byte(text, begin)))
    return documents


def text_or_bad_byte(text: bytes, begin: int) -> str | int:
    for index in range(1, len(text) + 1):
        try:
            text[:index].decode()
        except UnicodeDecodeError as e:
            if e.reason != "unexpected end of data" or index == len(text):
                return begin + e.start
        if text[index - 1] == 0:
            return begin + index - 1
    return as_read(text.decode())


@settings(max_examples=500, deadline=None)
@given(content=FILES, mark=st.booleans(), size=st.integers(16, 200))
def test_documents_and_offsets_by_brute_force(folder, content, mark, size):
    content = b"\xef\xbb\xbf" * mark + content
    path = write(folder, "full.txt", content=content)
    expected = by_force(content)
    # no document, with the white space around it, is longer than two blocks
    begins = [begin for begin, _, _ in expected] + [len(content)]
    ends = [0] + [end for _, end, _ in expected]
    size = max([size, *(-(-(begins[number + 1] - ends[number]) // 2) for number in range(len(expected)))])
    good = [(at, text) for at, _, text in expected if isinstance(text, str)]
    for of_size in (size, WHOLE):
        documents, bads = read(path, of_size)
        assert [(document.at, document.text.decode()) for document in documents] == good
        assert [bad.at for bad in bads] == [at for *_, at in expected if isinstance(at, int)]
        assert all(bad.reason == ("nul" if content[bad.at] == 0 else "not_utf8") for bad in bads)
        assert all(document.ends and not document.context for document in documents)
        assert_cover(blocks_of(path, of_size), 3 * mark, len(content))


# --- JSON lines and Parquet


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(TEXTS, max_size=30), size=st.integers(16, 200), name=st.sampled_from(FORMATS))
def test_every_format_gives_the_same_documents(folder, texts, size, name):
    path = write_as(folder / name, texts)
    for of_size in (size, WHOLE):
        assert texts_of(path, of_size) == [as_read(text) for text in texts]
    blocks = blocks_of(path, size)
    unpacked = sum(len(json.dumps({"text": text})) + 1 for text in texts)
    assert_cover(blocks, 0, len(texts) if name == "a.parquet" else unpacked)
    for block in blocks:
        assert block.end - block.begin <= size or len(parse(block, "text")[0]) == 1 or name == "a.parquet"
    sizes = sum(len(text.encode()) for text in texts) if name == "a.parquet" else unpacked
    assert sum(block.size for block in blocks) == sizes


@settings(max_examples=300, deadline=None)
@given(
    lines=st.lists(
        st.one_of(
            st.tuples(TEXTS, st.booleans()).map(lambda x: json.dumps({"n": 1, "text": x[0]}, ensure_ascii=x[1])),
            st.sampled_from(["", "  ", "{", '"text"', "[]", "3", '{"text": null}', '{"text": 3}', '{"other": "x"}']),
            st.sampled_from(
                [r'{"text": "\ud800"}', r'{"text": "a\u0000b"}', '{"text": ["x"]}', "[" * 99999, "9" * 5000]
            ),
        ),
        max_size=20,
    ),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
    mark=st.booleans(),
    size=st.integers(16, 200),
    name=st.sampled_from(FORMATS[:3]),
)
def test_json_lines_one_by_one(folder, lines, end, last, mark, size, name):
    content = b"\xef\xbb\xbf" * mark + (end.join(lines) + (end if last and lines else "")).encode()
    path = folder / name
    if name.endswith(".zst"):
        with pyarrow.output_stream(str(path), compression="zstd") as stream:
            stream.write(content)
    else:
        path.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    good, bad = [], []
    at = 3 * mark
    for line in lines:
        if line.strip():
            try:
                text = json.loads(line)["text"]
                good.append((at, as_read(text).encode()))
                assert b"\0" not in good[-1][1]
            except (ValueError, TypeError, KeyError, AttributeError, AssertionError, RecursionError):
                del good[len(good) - (bool(good) and good[-1][0] == at) :]
                bad.append(at)
        at += len((line + end).encode())
    for of_size in (size, WHOLE):
        documents, bads = read(path, of_size)
        assert [(document.at, document.text) for document in documents] == good
        assert [one.at for one in bads] == bad
        assert_cover(blocks_of(path, of_size), 3 * mark, len(content))


@pytest.mark.parametrize(
    ("line", "reason", "words"),
    [
        ("{", "broken_json", "no JSON"),
        ("x", "broken_json", "no JSON"),
        ("3", "no_field", "no field 'text'"),
        ('{"body": "x"}', "no_field", "--text_field"),
        ('{"text": null}', "no_field", "NoneType"),
        ('{"text": 3.5}', "no_field", "float"),
        ('{"text": {"a": "b"}}', "no_field", "dict"),
        (r'{"text": "\udc80"}', "not_utf8", "surrogate"),
        (r'{"text": "\u0000"}', "nul", "NUL"),
        (b'{"text": "\xff"}', "broken_json", "no JSON"),
    ],
)
def test_lines_that_are_no_document_are_named(folder, line, reason, words):
    line = line if isinstance(line, bytes) else line.encode()
    path = write(folder, "a.jsonl", content=b'{"text": "un"}\n' + line + b'\n{"text": "deux"}')
    documents, bads = read(path)
    assert [document.text for document in documents] == [b"un", b"deux"]
    assert [(bad.reason, bad.at, words in bad.problem) for bad in bads] == [(reason, 15, True)]


def test_pairs_of_surrogates_are_characters(folder):
    assert texts_of(write(folder, "a.jsonl", content=r'{"text": "\ud83d\ude42"}')) == ["🙂"]


def test_empty_texts_are_documents_that_say_nothing(folder):
    texts = ["", " \n", "un", "\u3000"]
    for name in FORMATS:
        assert texts_of(write_as(folder / name, texts)) == ["", "", "un", ""]


def test_another_field(folder):
    path = write(folder, "a.jsonl", content=b'{"text": "un", "body": "deux"}')
    assert [document.text for document in read(path, text_field="body")[0]] == [b"deux"]
    parquet.write_table(pyarrow.table({"text": ["un"], "a.b": ["deux"]}), folder / "a.parquet")
    assert [document.text for document in read(folder / "a.parquet", text_field="a.b")[0]] == [b"deux"]


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "dictionary"])
def test_columns_of_text(folder, kind):
    values = ["un", None, "été\r\n", "un", ""]
    column = pyarrow.array(values).dictionary_encode() if kind == "dictionary" else pyarrow.array(values).cast(kind)
    parquet.write_table(pyarrow.table({"text": column, "n": [1, 2, 3, 4, 5]}), folder / "a.parquet")
    for size in (1, WHOLE):
        documents, bads = read(folder / "a.parquet", size)
        assert [(document.at, document.text.decode()) for document in documents] == [
            (0, "un"), (2, "été"), (3, "un"), (4, "")
        ]  # fmt: skip
        assert [(bad.reason, bad.at) for bad in bads] == [("no_field", 1)] and "NoneType" in bads[0].problem


def test_rows_of_parquet_that_are_no_document(folder):
    values = pyarrow.array([b"un", b"a\xffb", b"a\0b", b"\xed\xa0\x80", b"deux"], pyarrow.binary())
    column = pyarrow.StringArray.from_buffers(len(values), values.buffers()[1], values.buffers()[2])  # unchecked
    parquet.write_table(pyarrow.table({"text": column, "n": [1.5] * 5}), folder / "a.parquet")
    documents, bads = read(folder / "a.parquet")
    assert [(document.at, document.text) for document in documents] == [(0, b"un"), (4, b"deux")]
    assert [(bad.reason, bad.at) for bad in bads] == [("not_utf8", 1), ("nul", 2), ("not_utf8", 3)]
    documents, bads = read(folder / "a.parquet", text_field="n")
    assert not documents and [bad.at for bad in bads] == [0, 1, 2, 3, 4] and "float" in bads[0].problem


def test_parquet_without_the_column(folder):
    parquet.write_table(pyarrow.table({"body": ["un"], "n": [1]}), folder / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has no column 'text' but body, n; give --text_field"):
        blocks_of(folder / "a.parquet")


def test_large_rows_of_parquet_are_blocks_of_their_own(folder):
    texts = [str(number) * 10_000 for number in range(10)] * 30
    parquet.write_table(pyarrow.table({"text": texts}), folder / "a.parquet")
    blocks = blocks_of(folder / "a.parquet", 30_000)
    assert [len(block.payload) for block in blocks] == [3] * 100
    assert [document.text.decode() for block in blocks for document in parse(block, "text")[0]] == texts
