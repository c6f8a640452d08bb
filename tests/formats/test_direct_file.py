"""Files written past the cache: every byte, of any size, and a full disk."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lit_gpt.formats.direct_file import BLOCK_BYTES, SECTOR_BYTES, DirectFile
from lit_gpt.formats.tensor_files import write_lit_model

SIZES = (0, 1, SECTOR_BYTES - 1, SECTOR_BYTES, SECTOR_BYTES + 1, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 4099)


@pytest.mark.parametrize("folder", ["", "/dev/shm"])
@pytest.mark.parametrize("size", SIZES)
def test_a_file_holds_what_was_written(size: int, folder: str, tmp_path: Path) -> None:
    """On a disk and in memory; over an earlier, longer file; in pieces that end anywhere."""
    content = os.urandom(size)
    path = (Path(folder) if folder else tmp_path) / f"direct-{os.getpid()}"
    path.write_bytes(bytes(BLOCK_BYTES))
    try:
        with DirectFile(path) as file:
            for begin in range(0, size, 3_000_017):
                piece = content[begin : begin + 3_000_017]
                assert file.write(piece) == len(piece)
        assert path.read_bytes() == content
    finally:
        path.unlink()


@pytest.mark.parametrize("size", [1, BLOCK_BYTES, 3 * BLOCK_BYTES])
def test_a_full_disk_is_an_error_that_names_the_file(size: int) -> None:
    with (
        pytest.raises(OSError, match="No space left on device: '/dev/full'") as raised,
        DirectFile(Path("/dev/full")) as f,
    ):
        f.write(bytes(size))
    assert raised.value.errno == errno.ENOSPC


def test_what_cannot_be_written_directly_goes_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No direct writing at all; and a disk that takes a part of a block that is no whole number of its units."""
    real = fcntl.fcntl

    def refusing(file: int, command: int, value: int = 0) -> int:
        if value & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(file, command, value)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", refusing)
        with DirectFile(tmp_path / "a") as file:
            file.write(b"abc")
    assert (tmp_path / "a").read_bytes() == b"abc"
    content, written, write = os.urandom(2 * BLOCK_BYTES + 5), [], os.write

    def in_part(file: int, block: memoryview) -> int:
        written.append(write(file, block[:60_000] if len(written) == 2 else block))
        return written[-1]

    with DirectFile(tmp_path / "b") as file, monkeypatch.context() as patch:
        patch.setattr(os, "write", in_part)
        file.write(content[:BLOCK_BYTES])
        file.write(content[BLOCK_BYTES:])
    assert (tmp_path / "b").read_bytes() == content


def test_an_archive_given_up_half_way_leaves_no_thread_and_no_open_file(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        for index in range(3):
            yield f"{index}", torch.zeros(BLOCK_BYTES)
        raise ValueError("broken")

    def held() -> tuple[int, int]:
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    gc.collect()  # what earlier tests left is not counted
    before = held()
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"):
            write_lit_model(tmp_path / "a.pth", broken())
        gc.collect()
    assert held() == before
