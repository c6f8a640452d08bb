"""SHA-256 checksums of files: the list of them in a folder, and every comparison of files with one.

What this program writes or fetches has a list beside it: a flipped bit in weights loads without an error. Small files
are compared when they are read (`as_listed`). Weights are compared by a thread while they are used (`Check`), and what
was made of them becomes final only when it has found them equal.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import NamedTuple

from lit_gpt.errors import DataError, naming

SUMS = "SHA256SUMS"
"""A folder's list of checksums, in the format that `sha256sum -c` reads."""

# `sha256sum --binary` has a * before a name, and the names that `find` gives begin with ./
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)*(.+)")


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


# -------------------------------------------------------------------------------------------------- a folder's own list


def read_sums(folder: Path) -> list[ListedFile]:
    """Reads a folder's SHA256SUMS; a `DataError` if it is missing or damaged."""
    path = folder / SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read ({e})") from None
    matches = [_LINE.fullmatch(line) for line in lines]
    if not matches or None in matches:
        raise DataError(f"{path} is damaged, or no list as sha256sum writes it")
    return [ListedFile(match[2], match[1].lower()) for match in matches if match]


def listed_sums(folder: Path) -> dict[str, str]:
    """File name → SHA-256 of a folder's list; nothing if it has none."""
    if not (folder / SUMS).is_file():
        return {}
    return {file.name: file.sha256 for file in read_sums(folder)}


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Writes a folder's SHA256SUMS: file name → SHA-256, by name."""
    staged = folder / f".{SUMS}.tmp"
    try:
        with naming(folder / SUMS), staged.open("w", encoding="utf-8") as file:
            file.write("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))
            file.flush()
            os.fsync(file.fileno())
        staged.replace(folder / SUMS)
    finally:
        staged.unlink(missing_ok=True)


def add_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Adds to a folder's list, where a line of the same name is replaced and those of files that are gone are left out.

    A new file's line is best written before the file gets its name: it is then never without one.
    """
    there = {name: sha256 for name, sha256 in listed_sums(folder).items() if (folder / name).is_file()}
    write_sums(folder, {**there, **sums})


def as_listed(path: Path) -> Path:
    """Returns the path of a small file; a DataError if the list beside it, if there is one, says that it changed."""
    sha256 = listed_sums(path.parent).get(path.name)
    if sha256 is not None:
        require_equal(Expected(path, sha256))
    return path


# ----------------------------------------------------------------------------------------------------------- beside use


class Expected(NamedTuple):
    """A file that is used, and the checksum it should have."""

    path: Path
    sha256: str | None
    """None where nobody has written it down."""
    source: str = SUMS
    """Who says so."""
    record: Path | None = None
    """The file that only says this, where it is not the folder's list."""


def expected(folder: Path, is_used: Callable[[str], bool]) -> list[Expected]:
    """The files of `folder`, there or in its list, whose names are used, with the checksums of the list.

    What the list says of folders in it is not asked for: a model has no files there.
    """
    listed = listed_sums(folder)
    names = {path.name for path in folder.iterdir()} | {name for name in listed if "/" not in name}
    return [Expected(folder / name, listed.get(name)) for name in sorted(names) if is_used(name)]


def require_equal(file: Expected, stop: Event | None = None) -> str:
    """The SHA-256 of a file; a DataError if it is not the expected one."""
    if not file.path.is_file():
        raise DataError(
            f"{file.path} is missing, and {file.source} lists it; fetch or make it again, or take its line out"
        )
    with naming(file.path):
        found = file_sha256(file.path, stop)
    if file.sha256 not in (None, found):
        way_out = f"remove {file.record}" if file.record else f"take its line out of {file.path.parent / SUMS}"
        raise DataError(
            f"{file.path} does not have the SHA-256 of {file.source}: its content changed; fetch or make it again;"
            f" if it was changed on purpose, {way_out}"
        )
    if file.sha256 is None and file.path.suffix in (".pth", ".bin") and zipfile.is_zipfile(file.path):
        _compare_crcs(file.path)
    return found


def _compare_crcs(path: Path) -> None:
    """Compares what `torch.save` wrote with the CRC-32 of each tensor that is in the file itself."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as e:
        raise DataError(f"{path} is damaged ({e}); fetch or make it again") from None
    if damaged:
        raise DataError(f"{path} is damaged: {damaged} does not have its CRC-32; fetch or make it again")


class Check:
    """Compares files with their checksums in a thread, while they are read for something else too.

    As a context it waits for the result at the block's end: what the block does last is not done with damaged files,
    and an error that came from the damage gives way to the one that names the file.
    """

    def __init__(self, files: Iterable[Expected] = ()) -> None:
        self._files = list(files)
        self._stop = Event()
        self._result: Future[dict[Path, str]] = Future()
        if not self._files:
            self._result.set_result({})
            return
        # A daemon: who ends for another reason does not wait for gigabytes to be read.
        Thread(target=self._run, name="checksums", daemon=True).start()

    def _run(self) -> None:
        try:
            self._result.set_result({file.path: require_equal(file, self._stop) for file in self._files})
        except Exception as e:  # whatever it is, `finish` raises it where somebody waits
            self._result.set_exception(e)

    def has_failed(self) -> bool:
        """Whether a difference is known already."""
        return self._result.done() and self._result.exception() is not None

    def finish(self) -> dict[Path, str]:
        """Waits; each file's SHA-256. A DataError names a file that differs, an OSError one that cannot be read."""
        return self._result.result()

    def __enter__(self) -> Check:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None or issubclass(kind, DataError):
            self.finish()
        self._stop.set()
