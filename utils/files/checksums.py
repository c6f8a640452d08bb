"""SHA-256 checksums of files, and the one comparison of a folder's files with a list of them."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import NamedTuple

from lit_gpt.errors import DataError
from utils.files.atomic import naming, write_atomically

SUMS = "SHA256SUMS"
"""A folder's list of checksums, in the format that `sha256sum -c` reads."""


class ListedFile(NamedTuple):
    """What a list says about one of its files."""

    name: str
    sha256: str
    """64 hexadecimal digits."""
    size: int | None = None
    """Bytes; None where the list does not say."""


def file_sha256(path: Path, stop: Event | None = None) -> str:
    """The checksum of a file, or of its beginning where `stop` was set on the way."""
    digest = hashlib.sha256()
    # 256 KB stay in the processor's cache; a new buffer of 1 MB for each read cost half as much again
    chunk = memoryview(bytearray(1 << 18))
    with path.open("rb", buffering=0) as file:
        while (count := file.readinto(chunk)) and not (stop and stop.is_set()):
            digest.update(chunk[:count])
    return digest.hexdigest()


def find_difference(
    folder: Path, files: Sequence[ListedFile], source: str | None = None, part: int = 0, parts: int = 1
) -> str | None:
    """Compares a folder's files with their list; says what is wrong with the first that differs, None if none does.

    Processes that share the work take every `parts`-th file from number `part` on. `source` is the list's name in
    messages; a SHA256SUMS beside the files needs none. An `OSError` names a file that is there and cannot be read.
    """

    def difference(file: ListedFile) -> str | None:
        path = folder / file.name
        if not path.is_file():
            return f"{path} is missing"
        if file.size is not None and path.stat().st_size != file.size:
            return f"{path} has {path.stat().st_size} bytes, {source} says {file.size}"
        with naming(path):
            is_equal = file_sha256(path) == file.sha256
        if is_equal:
            return None
        if source is None:
            return f"{path} does not have its SHA-256"
        return f"{path} does not have the SHA-256 of {source}: its content changed"

    with ThreadPoolExecutor(max_workers=8) as pool:  # hashing releases the GIL; 8 saturate a parallel file system
        return next(filter(None, pool.map(difference, files[part::parts])), None)


def read_sums(folder: Path) -> list[ListedFile]:
    """Reads a folder's SHA256SUMS; a `DataError` if it is missing or damaged."""
    path = folder / SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read ({e})") from None
    parts = [line.split("  ", 1) for line in lines]
    if not parts or any(len(part) != 2 for part in parts):
        raise DataError(f"{path} is damaged")
    return [ListedFile(name, sha256) for sha256, name in parts]


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Writes a folder's SHA256SUMS: file name → SHA-256, by name."""
    write_atomically(folder / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))
