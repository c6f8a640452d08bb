"""A folder that gets its name when it is whole: nobody sees a part of it, and what it replaces is not lost.

1. `staged` makes a hidden folder beside the name, which the caller fills; `carry_over` links into it what stays of the
   folder it will replace. Whatever goes wrong, the hidden folder is removed.
2. When all is on the disk the earlier folder is renamed away and the new one to its name. Where the second rename
   fails, or the process is killed between the two, `recover` gives the earlier folder its name back.
"""

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_gpt.errors import UserError
from utils.files.atomic import sync


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A hidden folder to fill, which replaces `folder` if the block ends without an error."""
    folder = folder.resolve()
    recover(folder)
    with _hidden(_beside(folder, "tmp")) as stage:
        yield stage
        _sync_files(stage)
        try:
            if folder.is_dir():
                folder.rename(_beside(folder, "old"))
            stage.rename(folder)
        finally:
            recover(folder)


@contextmanager
def staged_into(folder: Path, last: str) -> Iterator[Path]:
    """A hidden folder whose files go into `folder` if the block ends without an error, that of the name `last` last."""
    folder = folder.resolve()
    recover(folder)
    beside = _beside(folder, "tmp")
    # Inside of a folder that is there: what is beside it may be another file system.
    with _hidden(folder / beside.name if folder.is_dir() else beside) as stage:
        yield stage
        _sync_files(stage)
        if not folder.is_dir():
            stage.rename(folder)
            return
        for path in sorted(stage.iterdir(), key=lambda path: path.name == last):
            path.replace(folder / path.name)


def check_replaceable(folder: Path) -> None:
    """Raises a UserError if `--output_dir` names what `staged` cannot take the place of."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file")
    if os.path.ismount(folder):
        raise UserError(f"--output_dir {folder} is a mount point, which cannot be replaced as one; give a folder in it")


def recover(folder: Path) -> None:
    """Gives `folder` back its name if a process was killed before it had replaced it; removes it if it had."""
    folder = folder.resolve()
    old = _beside(folder, "old")
    if old.is_dir() and not folder.exists():
        old.rename(folder)
    elif old.is_dir():
        shutil.rmtree(old)


def carry_over(folder: Path, stage: Path, gone: Collection[str] = ()) -> list[str]:
    """Hard-links the content of `folder` into `stage`, but for the names that `stage` has itself or are in `gone`.

    Returns the sorted names of what was not carried over.
    """
    dropped = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name in gone or (stage / path.name).exists():
            dropped.append(path.name)
        elif path.is_dir() and not path.is_symlink():
            shutil.copytree(path, stage / path.name, symlinks=True, copy_function=os.link)
        else:
            os.link(path, stage / path.name, follow_symlinks=False)
    return sorted(dropped)


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")


@contextmanager
def _hidden(stage: Path) -> Iterator[Path]:
    shutil.rmtree(stage, ignore_errors=True)  # what a killed process left
    stage.mkdir(parents=True)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _sync_files(stage: Path) -> None:
    sync(path for path in stage.iterdir() if path.is_file())
