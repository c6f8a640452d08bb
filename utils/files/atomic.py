"""Files that appear under their name when they are whole, or not at all."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lit_gpt.errors import naming


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes `content` as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write beside `path`, synced to the disk and renamed at the end: the old or the new one, never a part.

    An `OSError`, for instance of a full disk, names `path`; what was written of it is removed.
    """
    try:
        with naming(path):
            with staged_path(path).open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            staged_path(path).replace(path)
    except OSError:
        staged_path(path).unlink(missing_ok=True)
        raise


def staged_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def sync(paths: Iterable[Path]) -> None:
    """Waits until files or folders are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
