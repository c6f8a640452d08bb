"""The blocks of a file: where they are cut, files that are not what they should be, files that are large."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gpt.errors import DataError
from tests.conftest import ROOT
from tests.prepare.corpus_files import (
    FORMATS,
    as_read,
    assert_cover,
    blocks_of,
    format_of,
    read,
    texts_of,
    write,
    write_as,
)
from utils.prepare import blocks, documents
from utils.prepare.documents import Document, parse
from utils.prepare.word_cuts import cut_between_words


@pytest.mark.parametrize("name", ["full.txt", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_that_is_gone_is_an_error_of_the_machine(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        blocks_of(tmp_path / name)


# --- documents in parts

SHORT = ["un", "deux,", "été", "🙂🙂", "[A:]", "oui!", "Привет,", "мир", "中文。", "12", "mot" * 5]
GAPS = [" ", " ", "\n", "\r\n", "\r", "  ", "\u00a0", "\t", " \n", "\r\n "]
WORDS = st.lists(st.tuples(st.sampled_from(SHORT), st.sampled_from(GAPS)), min_size=1, max_size=60)


def joined_parts(documents: list[Document]) -> list[str]:
    """The documents' texts, of parts joined; each part's context must be how the text before it ends."""
    texts: list[bytes] = []
    is_open = False
    for document in documents:
        if is_open:
            assert texts[-1].endswith(document.text[: document.context])
            texts[-1] += document.text[document.context :]
        else:
            assert not document.context
            texts.append(document.text)
        is_open = not document.ends
    assert not is_open
    return [text.decode() for text in texts]


@settings(max_examples=500, deadline=None)
@given(
    documents=st.lists(WORDS.map(lambda pairs: "".join(map("".join, pairs)).strip()), max_size=5),
    size=st.integers(40, 200),
    name=st.sampled_from(["full.txt", "book.txt"]),
)
def test_the_parts_of_long_documents_are_the_documents(folder, documents, size, name):
    content = ("\n\n" if name == "full.txt" else "").join(documents).encode()
    path = write(folder, name, content=content)
    found, bads = read(path, size)
    assert not bads
    whole = texts_of(path)
    expected = documents if name == "full.txt" else ["".join(documents)]
    assert whole == [text for text in map(as_read, expected) if text]
    assert joined_parts(found) == whole
    blocks = blocks_of(path, size)
    assert_cover(blocks, 0, len(content))
    assert all(block.end - block.begin <= 2 * size for block in blocks)


def test_a_long_document_is_cut_between_words_and_repeats_two(folder):
    text = " ".join(f"mot{number}" for number in range(2000))
    for name in ("full.txt", "book.txt"):
        found, _ = read(write(folder, name, content=text), 1000)
        assert len(found) > 10 and joined_parts(found) == [text]
        assert all(len(part.text[: part.context].split()) == 2 for part in found[1:])
        assert all(part.text[part.context :].startswith(b" mot") for part in found[1:])


def test_only_documents_longer_than_two_blocks_are_cut(folder):
    for length, parts in ((190, 1), (200, 1), (210, 2)):
        text = ("mot " * 100)[: length - 1] + "."
        assert len(read(write(folder, "book.txt", content=text), 100)[0]) == parts
        assert len(read(write(folder, "full.txt", content=text), 100)[0]) == parts
    for length, parts in ((190, 1), (210, 2)):  # with the blank line after it
        text = ("mot " * 100)[: length - 1] + "."
        assert len(read(write(folder, "full.txt", content=text + "\n\nfin"), 100)[0]) == parts + 1


@pytest.mark.parametrize(
    ("text", "start", "target", "cut"),
    [
        ("aa bb cc dd ee", 0, 13, ("aa bb cc dd", "cc dd")),
        ("aa bb cc dd ee", 0, 12, ("aa bb cc", "bb cc")),  # what follows the space must be seen
        ("aa bb\ncc dd ee ff", 0, 16, ("aa bb\ncc dd ee", "dd ee")),  # two words before the line's end are missing
        ("aa bb cc\ndd ee ff", 0, 16, ("aa bb cc", "bb cc")),
        ("。。 。\n。。\n。。\n。。", 0, 99, ("。。 。\n。。\n。。", "。。\n。。")),
        ("aa bb cc.\ndd ee ff", 0, 13, ("aa bb cc.", "bb cc.")),
        ("aa bb cc dd.\nee ff", 0, 16, ("aa bb cc", "bb cc")),
        ("aa bb cc.\ndd ee ff", 0, 17, ("aa bb cc.\ndd ee", "dd ee")),
        ("aa bb cc\r\ndd ee ff", 0, 17, ("aa bb cc", "bb cc")),
        ("aa bb cc\ndd ee ff", 8, 16, ("aa bb cc\ndd ee", "dd ee")),
        ("aa  bb  cc dd  ee ff gg  hh", 0, 26, ("aa  bb  cc dd  ee ff", "dd  ee ff")),
        ("été où ça là né", 0, 99, ("été où ça là", "ça là")),
        ("a  b  cc  d  ", 0, 11, ("a  b  c", "")),
        ("é" * 9, 0, 9, ("é" * 3, "")),
        ("é  " * 9, 0, 9, ("é  é  ", "")),
        ("中文中文", 0, 10, ("中文", "")),
    ],
)
def test_where_a_text_is_cut(text, start, target, cut):
    content = text.encode()
    end, words = cut_between_words(content, start, min(target, len(content) - 1))
    assert (content[:end].decode(), content[end - words : end].decode()) == cut


def test_what_is_no_text_is_cut_as_well(folder):
    for content in (
        b"\x80" * 5000,
        b"a" + b"\x80" * 5000,
        b"\xff\xfe" * 3000,
        b" " * 5000 + b"x",
        b"x" + b"\r\n \t" * 999,
    ):
        for name in ("full.txt", "book.txt"):
            blocks = blocks_of(write(folder, name, content=content), 64)
            assert_cover(blocks, 0, len(content))
    documents, bads = read(write(folder, "book.txt", content=b"\x80" * 5000), 64)
    assert not documents and {bad.reason for bad in bads} == {"not_utf8"}


@pytest.mark.parametrize("bad", [b"\x00", b"\xff"])
def test_a_bad_part_is_left_out_alone(folder, bad):
    words = [b"mot%d" % number for number in range(1000)]
    words[500] += bad
    content = b" ".join(words)
    path = write(folder, "book.txt", content=content)
    documents, bads = read(path, 500)
    assert [one.at for one in bads] == [content.index(bad)]
    kept = b"".join(document.text[document.context :] for document in documents)
    assert len(content) - 1000 < len(kept) < len(content) - 400


def test_one_document_is_not_taken_for_cut_by_a_bad_one_after_it(folder):
    content = b"un\n\n" + b"\xff" * 300
    documents, bads = read(write(folder, "full.txt", content=content), 64)
    assert [(document.text, document.ends) for document in documents] == [(b"un", True)] and bads


def test_blank_lines_of_any_length_take_no_memory_to_find(folder):
    path = write(folder, "full.txt", content=b"un\n" + b" " * 2_000_000 + b"\n" + "\u3000".encode() * 2000 + b"\ndeux")
    assert "deux" in subprocess_peak(f"texts = [d.text for d in {read_code(path, 2**21)}]", "texts[-1].decode()")


# --- files that are not what they should be


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.1])
def test_truncated_files(folder, name, kept):
    rng = np.random.default_rng(0)
    path = write_as(folder / name, [" ".join(map(str, rng.integers(0, 10**9, 20))) for _ in range(500)])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match=f"{re.escape(str(path))} is truncated or no"):
        blocks_of(path, 1000)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("content", [b'{"text": "un"}\n', b"PAR1", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"])
def test_files_that_are_not_what_their_name_says(folder, name, content):
    with pytest.raises(DataError, match=f"{re.escape(name)} is truncated or no"):
        blocks_of(write(folder, name, content=content))


def test_a_flipped_bit(folder):
    path = write_as(folder / "a.jsonl.gz", [str(number) for number in range(1000)])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(DataError, match="is truncated or no"):
        blocks_of(path)


@pytest.mark.parametrize("name", ["full.txt", "book.txt", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_empty_files(folder, name):
    assert blocks_of(write(folder, name, content=b"")) == []


def test_several_gzip_members_are_one_file(folder):
    path = folder / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "un"}\n{"te') + gzip.compress(b'xt": "deux"}\n'))
    assert texts_of(path) == ["un", "deux"]


# --- large ones


def read_code(path: Path, size: int) -> str:
    """Python that makes an iterator over the documents of a file, one block in memory at a time."""
    file = f"file_formats.CorpusFile(Path({str(path)!r}), 'a', {format_of(path)!r})"
    return (
        f"(d for b in blocks.read_blocks({file}, {size}, 'text') for part in documents.parse(b, 'text') for d in part)"
    )


def subprocess_peak(code: str, result: str, megabytes: int = 200) -> str:
    """What `result` is after `code` in a process of its own, which may not have taken more memory."""
    program = (
        "from pathlib import Path; import re; from utils.prepare import blocks, documents, file_formats\n"
        f"{code}\n"
        f"print({result})\n"
        "print(re.search(r'VmHWM:\\s*([0-9]+)', Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    *lines, peak = done.stdout.splitlines()
    assert int(peak) < megabytes * 1024, f"{int(peak) // 1024} MB"
    return "\n".join(lines)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_line_of_300_mb_is_named_and_costs_no_memory(tmp_path, name):
    path = tmp_path / name
    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    with pyarrow.output_stream(str(path), compression=compression) as file:
        for part in (b'{"text": "un"}\n{"text": "', *([b"x" * 1_000_000] * 300), b'"}\n{"text": "deux"}\n'):
            file.write(part)
    values = "(d.text, d.at) if isinstance(d, documents.Document) else tuple(d)"
    code = f"found = [{values} for d in {read_code(path, 2**20)}]"
    said = subprocess_peak(code, "found", 130)
    length = 300_000_000 + len('{"text": ""}\n')
    problem = f"a line of {length:,} bytes, above the {blocks.MAX_LINE:,} that are read"
    assert said == str([(b"un", 0), ("line_too_long", 15, problem), (b"deux", 15 + length)])


def test_a_text_line_of_300_mb_is_read_in_parts(tmp_path):
    path = tmp_path / "full.txt"
    line = b"".join(b"mot%d " % number for number in range(100_000))
    with path.open("wb") as file:
        for _ in range(300_000_000 // len(line)):
            file.write(line)
        file.write(b"fin\n\nun")
    code = f"parts = [(len(d.text) - d.context, d.ends, d.text[-3:]) for d in {read_code(path, 4 * 2**20)}]"
    *parts, before_last, last = eval(subprocess_peak(code, "parts", 130))
    assert last == (2, True, b"un") and before_last[1:] == (True, b"fin")
    assert len(parts) > 60 and not any(ends for _, ends, _ in parts)
    assert sum(length for length, *_ in [*parts, before_last]) == path.stat().st_size - len("\n\nun")


@pytest.mark.parametrize("length", [blocks.READ - 40, blocks.READ + 40, 3 * blocks.READ])
@pytest.mark.parametrize("name", FORMATS[:3])
def test_lines_longer_than_what_is_read_at_once(folder, monkeypatch, length, name):
    texts = ["un", "x" * length, "deux", "y" * length, "trois"] + ["z" * 1000] * 3000
    assert texts_of(write_as(folder / name, texts), 100_000) == texts
    for block in blocks_of(folder / name, 100_000):
        assert block.end - block.begin <= 100_000 or len(parse(block, "text")[0]) == 1
    for module in (blocks, documents):
        monkeypatch.setattr(module, "MAX_LINE", length + len('{"text": ""}\n'))  # that of a line with its end
    assert texts_of(folder / name, 100_000) == texts
    for module in (blocks, documents):
        monkeypatch.setattr(module, "MAX_LINE", length + len('{"text": ""}'))
    found, bads = read(folder / name, 100_000)
    assert [bad.reason for bad in bads] == ["line_too_long"] * 2 and len(found) == len(texts) - 2
