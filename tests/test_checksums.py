"""A folder's files are compared with a list of them: SHA256SUMS, or one that knows sizes too."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lit_gpt import checksums
from lit_gpt.checksums import (
    SUMS,
    ListedFile,
    expected,
    file_sha256,
    find_difference,
    listed_sums,
    read_sums,
    write_sums,
)
from lit_gpt.errors import DataError

NAMES = ("a", "b  c", "d")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).write_text(f"content of {name}")
    write_sums(tmp_path, {name: file_sha256(tmp_path / name) for name in reversed(NAMES)})
    return tmp_path


def test_a_list_is_read_as_it_was_written_and_sha256sum_reads_it(folder: Path) -> None:
    files = read_sums(folder)
    assert [file.name for file in files] == sorted(NAMES) and find_difference(folder, files) is None
    done = subprocess.run(["sha256sum", "-c", SUMS], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(": OK") == 3


def test_lists_of_other_people_are_read_and_what_is_in_folders_is_theirs(folder: Path) -> None:
    digest = file_sha256(folder / "a")
    (folder / SUMS).write_text(f"{digest.upper()} *a\n{digest}  ./d\n{digest}  ./original/a\n")
    assert listed_sums(folder) == dict.fromkeys(("a", "d", "original/a"), digest)
    assert [file.path.name for file in expected(folder, lambda name: name in ("a", "original/a", "e"))] == ["a"]


def test_the_first_file_that_differs_is_named(folder: Path) -> None:
    files = read_sums(folder)
    (folder / "d").unlink()
    assert find_difference(folder, files) == f"{folder / 'd'} is missing"
    (folder / "a").write_text("changed")
    assert find_difference(folder, files) == f"{folder / 'a'} does not have its SHA-256"
    assert find_difference(folder, files, "the manifest") == (
        f"{folder / 'a'} does not have the SHA-256 of the manifest: its content changed"
    )
    sized = [ListedFile("a", file_sha256(folder / "a"), 8)]
    assert find_difference(folder, sized, "the manifest") == f"{folder / 'a'} has 7 bytes, the manifest says 8"


def test_processes_share_the_files(folder: Path) -> None:
    files = read_sums(folder)
    (folder / "b  c").unlink()
    found = [find_difference(folder, files, part=part, parts=2) for part in range(2)]
    assert found == [None, f"{folder / 'b  c'} is missing"]


def test_a_file_that_cannot_be_read_is_an_os_error_that_names_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checksums, "file_sha256", fail)
    with pytest.raises(OSError, match="Input/output error") as raised:
        find_difference(folder, read_sums(folder))
    assert raised.value.filename == str(folder / "a")


def test_a_damaged_or_missing_list_is_refused(folder: Path) -> None:
    for content, words in ((b"", "is damaged"), (b"0123 a\n", "is damaged"), (b"\xff  a\n", "cannot be read")):
        (folder / SUMS).write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_sums(folder)
    (folder / SUMS).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_sums(folder)
