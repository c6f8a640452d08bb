"""The datasets of a tree or a list, and the files of their splits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lit_gpt.errors import DataError, UserError
from tests.prepare.corpus_files import (
    format_of,
    write,
)
from utils.prepare import sources
from utils.prepare.file_formats import CONVERSATIONS, LINES, PARQUET, PLAIN, RECORDS, CorpusFile
from utils.prepare.sources import find_sources


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
    assert said[0].startswith("ignored 2 other .txt files")
    assert said[1] == "not read: 2 hidden (.git, EN/.full.txt): rename what is to be read"
    assert said[2:] == ["not read: 1 .md (notes.md): make them .txt, say with pandoc -t plain"]


def test_without_conversations_every_text_file_is_a_document(tmp_path):
    write(tmp_path, "books/b.txt", "books/a.txt", "books/old/c.txt", "books/cover.png", "README.md")
    assert found(tmp_path) == [
        ("books", "train", ["books/a.txt", "books/b.txt"]),
        ("books/old", "train", ["books/old/c.txt"]),
    ]
    said: list[str] = []
    assert {file.format for source in find_sources(tmp_path, said.append) for file in source.files} == {PLAIN}
    assert [line.partition(":")[0] for line in said] == ["not read"] * 2
    assert "README.md" in said[0] and "1 .png (books/cover.png)" in said[1]


def test_formats_may_be_mixed(tmp_path):
    names = ("b.jsonl", "c.jsonl.gz", "d.jsonl.zst", "a.parquet", "notes.txt", "test.jsonl", "x.json", "x.gz", ".jsonl")
    write(tmp_path / "web", *names)
    files = ["web/a.parquet", "web/b.jsonl", "web/c.jsonl.gz", "web/d.jsonl.zst"]
    expected = [*files, "web/notes.txt", "web/x.json"]
    assert found(tmp_path) == [("web", "train", expected), ("web", "test", ["web/test.jsonl"])]
    formats = [file.format for file in find_sources(tmp_path)[0].files]
    assert formats == [PARQUET, LINES, LINES, LINES, PLAIN, RECORDS]
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
        ("my-test.jsonl", "test"),
        ("contest.jsonl", "train"),
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
    write(tmp_path, "A/a.jsonl", "A/a.doc", "B/A/a.jsonl")
    path = write(tmp_path, "some.list", content="A/a.jsonl\n\nA/b.jsonl\n")
    with pytest.raises(UserError, match=r"line 3: .*b\.jsonl does not exist"):
        find_sources(path)
    path.write_text("A/a.doc\n")
    with pytest.raises(UserError, match=r"line 1: A/a\.doc is none of"):
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
    with pytest.raises(UserError, match=r"a\.doc is none of"):
        find_sources(tmp_path / "A/a.doc")
    path.write_text(f"{tmp_path}/A/a.jsonl\n{tmp_path}/B/A/a.jsonl\n")
    with pytest.raises(DataError, match="same shard names"):
        find_sources(path)


def test_the_root_directory_has_a_name():
    assert sources._own_name(Path("/")) == "corpus"


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


def test_language_is_the_first_part_of_the_name(tmp_path):
    write(
        tmp_path,
        *(
            f"{name}/full.txt"
            for name in ("FR/Theatre", "en/Talk", "FR", "Plays/FR", "CLAIRE/FR", "fra/A", "web/A", "no")
        ),
    )
    languages = {source.dataset: source.language for source in find_sources(tmp_path)}
    assert languages == {
        "FR/Theatre": "fr", "en/Talk": "en", "FR": "fr", "Plays/FR": "", "CLAIRE/FR": "", "fra/A": "fra",
        "web/A": "", "no": "no",
    }  # fmt: skip
