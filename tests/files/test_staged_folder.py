"""staged_folder.py: one folder or the other has the name, whatever fails and whenever the process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from utils.files.staged_folder import carry_over, recover, staged, staged_into

ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import os, signal, sys
from pathlib import Path
from utils.files.staged_folder import staged

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

name, moment = sys.argv[1:]
rename = Path.rename
if moment == "second rename":
    Path.rename = lambda self, target: kill() if self.name.endswith(".tmp") else rename(self, target)
with staged(Path(name)) as stage:
    (stage / "second").write_text("second")
    if moment == "filling":
        kill()
    if moment == "removal":
        import shutil
        shutil.rmtree = kill
"""


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An earlier result."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "first").write_text("first")
    return tmp_path / "out"


def test_the_new_folder_takes_the_place_of_the_old_one_when_it_is_on_the_disk(folder, monkeypatch):
    synced, rename, fsync = [], Path.rename, os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: [synced.append(os.fstat(number).st_ino), fsync(number)])

    def checked(self, target):
        if self.name.endswith(".tmp"):
            assert {path.stat().st_ino for path in self.iterdir()} == {*synced}
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", checked)
    for name in ("second", "third"):
        with staged(folder) as stage:
            (stage / name).write_text(name)
            (stage / "more").write_text(name)
            assert name not in contents(folder)
        synced.clear()
    assert contents(folder.parent) == {"out/third": "third", "out/more": "third"}
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_a_link_to_a_folder_stays_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    with staged(tmp_path / "link") as stage:
        (stage / "second").write_text("second")
    assert (tmp_path / "link").is_symlink() and contents(folder) == {"second": "second"}


@pytest.mark.parametrize("error", [OSError("the disk is gone"), KeyboardInterrupt()])
def test_where_the_second_rename_fails_the_earlier_folder_is_back(folder, monkeypatch, error):
    rename = Path.rename

    def fails(self, target):
        if self.name.endswith(".tmp"):
            assert not folder.exists()
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(type(error)), staged(folder) as stage:
        (stage / "second").touch()
    assert contents(folder.parent) == {"out/first": "first"} and len(list(folder.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        ("filling", {"out/first", ".out.tmp/second"}),
        ("second rename", {".out.old/first", ".out.tmp/second"}),
        ("removal", {"out/second", ".out.old/first"}),
    ],
)
def test_after_a_kill_the_folder_is_the_old_or_the_new_one(folder, moment, left):
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), moment], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL and contents(folder.parent).keys() == left
    recover(folder)
    assert list(contents(folder)) == ["second" if moment == "removal" else "first"]
    with staged(folder) as stage:
        (stage / "third").touch()
    assert contents(folder.parent).keys() == {"out/third"} and len(list(folder.parent.iterdir())) == 1


def test_what_stays_is_linked_not_copied(folder, tmp_path):
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text("deep")
    (folder / "both").write_text("old")
    (folder / "gone").touch()
    (folder / "loose").symlink_to("nowhere")
    (folder / "sub" / "linked").symlink_to(tmp_path)
    (folder / "linked").symlink_to(folder / "sub")
    numbers = [(folder / name).stat().st_ino for name in ("first", "sub/file")]
    with staged(folder) as stage:
        (stage / "both").write_text("new")
        assert carry_over(folder, stage, {"gone", "never there"}) == ["both", "gone"]
    assert contents(folder) == {"first": "first", "sub/file": "deep", "both": "new"}
    assert [(folder / name).stat().st_ino for name in ("first", "sub/file")] == numbers
    assert all((folder / name).is_symlink() for name in ("loose", "sub/linked", "linked"))
    assert carry_over(tmp_path / "nowhere", tmp_path) == []


def test_files_go_into_a_folder_that_is_there_the_last_one_last(folder, monkeypatch):
    with staged_into(folder.parent / "new", "last") as stage:
        (stage / "last").touch()
    replace, moved = Path.replace, []
    monkeypatch.setattr(Path, "replace", lambda self, target: [moved.append(self.name), replace(self, target)])
    with staged_into(folder, "last") as stage:
        assert stage.parent == folder
        for name in ("last", "a", "z"):
            (stage / name).touch()
    assert moved[-1] == "last" and contents(folder).keys() == {"first", "a", "z", "last"}
    with pytest.raises(KeyboardInterrupt), staged_into(folder, "last") as stage:
        (stage / "never").touch()
        raise KeyboardInterrupt
    assert contents(folder.parent).keys() == {"new/last", "out/first", "out/a", "out/z", "out/last"}
