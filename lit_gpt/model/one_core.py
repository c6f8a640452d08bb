"""Arithmetic on one thread of the processor."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def on_one_core() -> Iterator[None]:
    """torch's threads meet after every operation: with two of them, those on 512 KB took three times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
