"""SHA-256 checksums of files, and the one comparison of a folder's files with a list of them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from threading import Event


def file_sha256(path: Path, stop: Event | None = None) -> str:
    """The checksum of a file, or of its beginning where `stop` was set on the way."""
    digest = hashlib.sha256()
    # it stays in the cache, where a new one of 1 MB for each read cost half as much again
    chunk = memoryview(bytearray(1 << 18))
    with path.open("rb", buffering=0) as file:
        while (count := file.readinto(chunk)) and not (stop and stop.is_set()):
            digest.update(chunk[:count])
    return digest.hexdigest()
