"""Datasets of a tree or a list, blocks of a file, documents of a block, against brute force and other readers."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lit_gpt.errors import DataError, UserError
from tests.conftest import ROOT
from utils.prepare import blocks
from utils.prepare.blocks import (
    CONVERSATIONS,
    LINES,
    PARQUET,
    PLAIN,
    Bad,
    Block,
    CorpusFile,
    Document,
    cut_between_words,
    find_sources,
    parse,
    read_blocks,
)

SEED_TEXT = "[speaker001:] Bonjour, ça va ?\n[speaker002:] Très bien, merci."
WHOLE = 2**30
"""A block that any file of these tests fits into."""


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


def blocks_of(path: Path, size: int = WHOLE, text_field: str = "text") -> list[Block]:
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


# --- datasets


def found(path: Path) -> list[tuple[str, str, list[str]]]:
    return [(source.dataset, source.split, [file.name for file in source.files]) for source in find_sources(path)]


def test_datasets_are_the_folders_with_corpus_files(tmp_path):
    write(tmp_path, "FR/Theatre/test.txt", "FR/Theatre/train.txt", "FR/Debats/A/full.txt", "EN/Talk/test.txt")
    write(tmp_path, "FR/README.txt", "notes.md", "FR/Theatre/raw/page.txt", ".git/full.txt", "EN/.full.txt")
    said: list[str] = []
    sources = find_sources(tmp_path, said.append)
    assert [(source.dataset, source.split, source.name, source.files[0].name) for source in sources] == [
        ("EN/Talk", "test", "EN--Talk-test", "EN/Talk/test.txt"),
        ("FR/Debats/A", "train", "FR--Debats--A-train", "FR/Debats/A/full.txt"),
        ("FR/Theatre", "train", "FR--Theatre-train", "FR/Theatre/train.txt"),
        ("FR/Theatre", "test", "FR--Theatre-test", "FR/Theatre/test.txt"),
    ]
    assert {file.format for source in sources for file in source.files} == {CONVERSATIONS}
    assert len(said) == 1 and said[0].startswith("ignored 2 other .txt files")


def test_without_conversations_every_text_file_is_a_document(tmp_path):
    write(tmp_path, "books/b.txt", "books/a.txt", "books/old/c.txt", "books/cover.png", "README.md")
    assert found(tmp_path) == [
        ("books", "train", ["books/a.txt", "books/b.txt"]),
        ("books/old", "train", ["books/old/c.txt"]),
    ]
    said: list[str] = []
    assert {file.format for source in find_sources(tmp_path, said.append) for file in source.files} == {PLAIN}
    assert not said


def test_formats_may_be_mixed(tmp_path):
    names = ("b.jsonl", "c.jsonl.gz", "d.jsonl.zst", "a.parquet", "notes.txt", "test.jsonl", "x.json", "x.gz", ".jsonl")
    write(tmp_path / "web", *names)
    files = ["web/a.parquet", "web/b.jsonl", "web/c.jsonl.gz", "web/d.jsonl.zst"]
    assert found(tmp_path) == [("web", "train", [*files, "web/notes.txt"]), ("web", "test", ["web/test.jsonl"])]
    formats = [file.format for file in find_sources(tmp_path)[0].files]
    assert formats == [PARQUET, LINES, LINES, LINES, PLAIN]
    write(tmp_path / "talk", "full.txt")
    write(tmp_path / "web", "train.txt")
    assert found(tmp_path) == [
        ("talk", "train", ["talk/full.txt"]),
        ("web", "train", [*files, "web/train.txt"]),
        ("web", "test", ["web/test.jsonl"]),
    ]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("test.jsonl", "test"),
        ("test-00000-of-00002.parquet", "test"),
        ("valid.jsonl.gz", "test"),
        ("validation_1.jsonl.zst", "test"),
        ("validation.fr.parquet", "test"),
        ("train-00000-of-00002.parquet", "train"),
        ("testament.jsonl", "train"),
        ("validated.parquet", "train"),
        ("my-test.jsonl", "train"),
    ],
)
def test_names_of_files_for_validation(tmp_path, name, split):
    write(tmp_path, f"A/{name}")
    assert found(tmp_path) == [("A", split, [f"A/{name}"])]


def test_the_source_itself_may_be_a_dataset(tmp_path, monkeypatch):
    write(tmp_path, "Plays/full.txt", "Plays/Inner/full.txt")
    expected = [("Inner", "train", ["Inner/full.txt"]), ("Plays", "train", ["full.txt"])]
    assert found(tmp_path / "Plays") == expected
    monkeypatch.chdir(tmp_path / "Plays")
    assert found(Path()) == expected


@pytest.mark.parametrize("name", ["full.txt", "book.txt", "x.jsonl", "x.jsonl.gz", "x.parquet", "test.txt"])
def test_one_file(tmp_path, name):
    path = write(tmp_path, f"Plays/{name}", "Plays/train.txt")
    path = tmp_path / "Plays" / name
    assert found(path) == [("Plays", "test" if name == "test.txt" else "train", [name])]
    assert find_sources(path)[0].files[0] == CorpusFile(path, name, format_of(path))


def test_a_list_of_files(tmp_path, monkeypatch):
    write(tmp_path, "lists/FR/A/full.txt", "lists/FR/A/test.jsonl", "lists/FR/A/other.jsonl", "lists/top.parquet")
    write(tmp_path, "up.jsonl", "other/B/b.jsonl", "other/C/c.jsonl")
    absolute = tmp_path / "other/C/c.jsonl"
    lines = ["FR/A/test.jsonl", "", "  FR/A/full.txt ", "top.parquet", "../other/B/b.jsonl"]
    write(tmp_path, "lists/some.list", content="\ufeff" + "\r\n".join([*lines, str(absolute), "../up.jsonl"]))
    expected = [
        ("B", "train", ["B/b.jsonl"]),
        ("C", "train", ["C/c.jsonl"]),
        ("FR/A", "train", ["FR/A/full.txt"]),
        ("FR/A", "test", ["FR/A/test.jsonl"]),
        ("lists", "train", ["top.parquet"]),
        (tmp_path.name, "train", [f"{tmp_path.name}/up.jsonl"]),
    ]
    assert found(tmp_path / "lists/some.list") == sorted(expected, key=lambda entry: entry[0])
    monkeypatch.chdir(tmp_path / "lists")
    assert found(Path("some.list")) == sorted(expected, key=lambda entry: entry[0])
    assert all(file.path.is_file() for source in find_sources(Path("some.list")) for file in source.files)


def test_lists_that_cannot_be_used(tmp_path):
    write(tmp_path, "A/a.jsonl", "A/a.csv", "B/A/a.jsonl")
    path = write(tmp_path, "some.list", content="A/a.jsonl\n\nA/b.jsonl\n")
    with pytest.raises(UserError, match=r"line 3: .*b\.jsonl does not exist"):
        find_sources(path)
    path.write_text("A/a.csv\n")
    with pytest.raises(UserError, match=r"line 1: A/a\.csv is none of"):
        find_sources(path)
    for content in (b"A\n", b"\xff\xfe\x00", b"A/\x00"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="line 1"):
            find_sources(path)
    path.write_text("A/a.jsonl\n./A/a.jsonl\n")
    with pytest.raises(UserError, match=r"line 2: A/a\.jsonl is there twice"):
        find_sources(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="no conversation"):
        find_sources(path)
    with pytest.raises(UserError, match=r"a\.csv is none of"):
        find_sources(tmp_path / "A/a.csv")
    path.write_text(f"{tmp_path}/A/a.jsonl\n{tmp_path}/B/A/a.jsonl\n")
    with pytest.raises(DataError, match="same shard names"):
        find_sources(path)


def test_the_root_directory_has_a_name():
    assert blocks._name(Path("/")) == "corpus"


def test_linked_folders_are_followed_once(tmp_path):
    write(tmp_path, "elsewhere/A/full.txt")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/FR").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/A/loop").symlink_to(tmp_path / "source")
    assert found(tmp_path / "source") == [("FR/A", "train", ["FR/A/full.txt"])]


@pytest.mark.parametrize(
    "names",
    [
        ("FR--X/full.txt", "FR/X/train.txt"),
        ("train.txt", "corpus/train.txt"),
        ("A--B/C/full.txt", "A/B--C/full.txt"),
        ("FR--X/a.jsonl", "FR/X/b.parquet"),
    ],
)
def test_datasets_with_the_same_shard_names_are_refused(tmp_path, names):
    write(tmp_path / "corpus", *names)
    with pytest.raises(DataError, match="same shard names") as error:
        find_sources(tmp_path / "corpus")
    for name in names:
        assert str(tmp_path / "corpus" / name) in str(error.value)


def test_one_name_for_train_and_another_for_test_do_not_collide(tmp_path):
    write(tmp_path, "FR--X/train.txt", "FR/X/test.txt")
    assert len(find_sources(tmp_path)) == 2


def test_sources_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="neither a directory nor a file"):
        find_sources(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no conversation"):
        find_sources(tmp_path)
    write(tmp_path, "A/full.txt", "A/test.txt")
    with pytest.raises(DataError, match=r"full\.txt and test\.txt"):
        find_sources(tmp_path)


def test_a_directory_without_permission(tmp_path, monkeypatch):
    write(tmp_path, "A/full.txt", "B/full.txt")
    (tmp_path / "B").chmod(0)
    if os.access(tmp_path / "B", os.R_OK):  # root may read anything
        scandir = os.scandir

        def refuse(path):
            if Path(path).name == "B":
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
    try:
        with pytest.raises(PermissionError, match="/B'"):
            find_sources(tmp_path)
    finally:
        (tmp_path / "B").chmod(0o755)


@pytest.mark.parametrize("name", ["full.txt", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_that_is_gone_is_an_error_of_the_machine(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        blocks_of(tmp_path / name)


def test_language_is_the_first_part_of_the_name(tmp_path):
    write(tmp_path, *(f"{name}/full.txt" for name in ("FR/Theatre", "en/Talk", "FR", "Plays/FR", "CLAIRE/FR", "fra/A")))
    languages = {source.dataset: source.language for source in find_sources(tmp_path)}
    assert languages == {
        "FR/Theatre": "fr", "en/Talk": "en", "FR": "fr", "Plays/FR": "", "CLAIRE/FR": "", "fra/A": "fra"
    }  # fmt: skip


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("files")


def assert_cover(blocks: list[Block], begin: int, end: int) -> None:
    """The blocks lie side by side from `begin` to `end`."""
    assert [block.begin for block in blocks] == [begin, *(block.end for block in blocks)][: len(blocks)]
    assert not blocks or blocks[-1].end == end
    assert all(block.context <= block.begin < block.end for block in blocks)


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


# --- JSON lines and Parquet

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)
FORMATS = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"]


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
    file = f"blocks.CorpusFile(Path({str(path)!r}), 'a', {format_of(path)!r})"
    return f"(d for b in blocks.read_blocks({file}, {size}, 'text') for part in blocks.parse(b, 'text') for d in part)"


def subprocess_peak(code: str, result: str, megabytes: int = 200) -> str:
    """What `result` is after `code` in a process of its own, which may not have taken more memory."""
    program = (
        "from pathlib import Path; import re; from utils.prepare import blocks\n"
        f"{code}\n"
        f"print({result})\n"
        "print(re.search(r'VmHWM:\\s*([0-9]+)', Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
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
    code = f"found = [(d.text, d.at) if isinstance(d, blocks.Document) else tuple(d) for d in {read_code(path, 2**20)}]"
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
    monkeypatch.setattr(blocks, "MAX_LINE", length + len('{"text": ""}\n'))  # that of a line with its end
    assert texts_of(folder / name, 100_000) == texts
    monkeypatch.setattr(blocks, "MAX_LINE", length + len('{"text": ""}'))
    documents, bads = read(folder / name, 100_000)
    assert [bad.reason for bad in bads] == ["line_too_long"] * 2 and len(documents) == len(texts) - 2
