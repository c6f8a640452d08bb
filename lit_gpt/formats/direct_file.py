"""A large file, written past the system's cache of pages.

To copy gigabytes into fresh pages of the cache can cost a core more than to compute them: on a virtual machine, 2.3 GB
took 2 to 10 s of it, and 0.4 s without.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1 << 23  # two blocks are held: one is filled while the other is written, and its checksum computed
SECTOR_BYTES = max(4096, mmap.PAGESIZE)  # a multiple of every disk's sectors, and whole pages, as Lustre asks for
_DIRECT = getattr(os, "O_DIRECT", 0)


class DirectFile:
    """A new file, on the disk when its `with` block ends; any method raises OSErrors, also of earlier calls' data."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            self._set_direct(True)
        except OSError as e:
            if e.errno != errno.EINVAL:  # a file system without direct writing, such as tmpfs before Linux 6.6
                raise
        # pages of their own: direct writing asks for memory that begins where a page does
        self._blocks = [memoryview(mmap.mmap(-1, BLOCK_BYTES)) for _ in range(2)]
        self._filled = 0
        self._size = 0
        self._ended = False
        self._threads = ThreadPoolExecutor(max_workers=2)
        self._working: list[Future[None]] = []
        self._digest = hashlib.sha256()

    def __enter__(self) -> DirectFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended = True
        try:
            if kind is None:
                self._finish()
        finally:
            self._threads.shutdown()
            os.close(self._file)

    def write(self, data: Any) -> int:
        """Takes all of `data`, any buffer of contiguous bytes; ignores it after the end of the `with` block."""
        data = memoryview(data).cast("B")
        if self._ended:  # torch's writer of archives, deleted before it has finished, still writes an archive's end
            return len(data)
        begin = 0
        while begin < len(data):
            count = min(len(data) - begin, BLOCK_BYTES - self._filled)
            self._blocks[0][self._filled : self._filled + count] = data[begin : begin + count]
            begin += count
            self._filled += count
            if self._filled == BLOCK_BYTES:
                self._write_block()
        self._size += len(data)
        return len(data)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the whole file, once its `with` block has ended: to read it again would cost its time."""
        return self._digest.hexdigest()

    def _write_block(self) -> None:
        self._wait()
        block, sectors = self._blocks[0], math.ceil(self._filled / SECTOR_BYTES)
        self._working = [
            self._threads.submit(self._write_all, block[: sectors * SECTOR_BYTES]),
            self._threads.submit(self._digest.update, block[: self._filled]),
        ]
        self._blocks.reverse()
        self._filled = 0

    def _wait(self) -> None:
        for work in self._working:
            work.result()

    def _write_all(self, block: memoryview) -> None:
        while block:
            try:
                block = block[os.write(self._file, block) :]
            except OSError as e:
                if e.errno != errno.EINVAL or not fcntl.fcntl(self._file, fcntl.F_GETFL) & _DIRECT:
                    raise OSError(e.errno, e.strerror, str(self._path)) from None
                self._set_direct(False)  # this file system has larger units, or it took a part of one

    def _set_direct(self, direct: bool) -> None:
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        fcntl.fcntl(self._file, fcntl.F_SETFL, flags | _DIRECT if direct else flags & ~_DIRECT)

    def _finish(self) -> None:
        self._write_block()
        self._wait()
        os.ftruncate(self._file, self._size)  # the last sector was written whole
        os.fsync(self._file)
