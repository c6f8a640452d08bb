"""Arrays in files. Apart from `atomic.py`, which starts without numpy: its import takes 0.1 s."""

from typing import IO

import numpy as np


def write_array(file: IO[bytes], values: np.ndarray) -> None:
    """Writes all of `values`, which an unbuffered file may take in several turns."""
    rest = memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
    while len(rest):
        rest = rest[file.write(rest) :]
