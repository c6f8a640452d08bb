"""Corpus files of every format for tests, and what their blocks hold."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
from hypothesis import strategies as st
from pyarrow import parquet

from utils.prepare.blocks import TextBlock, read_blocks
from utils.prepare.documents import Bad, Document, parse
from utils.prepare.file_formats import CONVERSATIONS, LINES, PARQUET, PLAIN, CorpusFile

SEED_TEXT = "[speaker001:] Bonjour, ça va ?\n[speaker002:] Très bien, merci."
WHOLE = 2**30
"""A block that any file of these tests fits into."""

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)
FORMATS = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"]


def write(folder: Path, *names: str, content: bytes | str = SEED_TEXT) -> Path:
    """Makes the files `names` below `folder`; returns the last one."""
    path = folder
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def format_of(path: Path) -> str:
    if path.suffix == ".parquet":
        return PARQUET
    if ".jsonl" in path.name:
        return LINES
    return CONVERSATIONS if path.name in ("full.txt", "train.txt", "test.txt") else PLAIN


def blocks_of(path: Path, size: int = WHOLE, text_field: str = "text") -> list[TextBlock]:
    return list(read_blocks(CorpusFile(path, path.name, format_of(path)), size, text_field))


def read(path: Path, size: int = WHOLE, text_field: str = "text") -> tuple[list[Document], list[Bad]]:
    """What all blocks of a file hold."""
    documents, bads = [], []
    for block in blocks_of(path, size, text_field):
        found, bad = parse(block, text_field)
        documents += found
        bads += bad
    return documents, bads


def texts_of(path: Path, size: int = WHOLE) -> list[str]:
    """The texts of a file that has no bad and no long ones."""
    documents, bads = read(path, size)
    assert not bads and all(document.ends and not document.context for document in documents)
    return [document.text.decode() for document in documents]


def as_read(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def write_as(path: Path, texts: list[str]) -> Path:
    """The texts in the format that the file's name says."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.table({"text": pyarrow.array(texts, pyarrow.string())}), path, row_group_size=7)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines, 1))
    elif path.suffix == ".zst":
        with pyarrow.output_stream(str(path), compression="zstd") as stream:
            stream.write(lines)
    else:
        path.write_bytes(lines)
    return path


def assert_cover(blocks: list[TextBlock], begin: int, end: int) -> None:
    """The blocks lie side by side from `begin` to `end`."""
    assert [block.begin for block in blocks] == [begin, *(block.end for block in blocks)][: len(blocks)]
    assert not blocks or blocks[-1].end == end
    assert all(block.context <= block.begin < block.end for block in blocks)
