"""Counts what a function does, where a clock would measure the machine as well: the same on a busy machine and a slow
one.

What C code does inside one line of Python is seen by the memory that it takes (a copy, a slice, an array of numpy).
What it reads without taking memory is not: searches in a list are counted by the elements (`ComparedText`), and regular
expressions that never end by `hang_limit`.
"""

from __future__ import annotations

import signal
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple, NoReturn

PIECE = 512  # bytes; counting itself takes up to some 450 a line


class Work(NamedTuple):
    lines: int
    """Lines of Python executed, in all modules."""
    allocated: int
    """Bytes that lines took, each at its peak, whether given back or not; without lines that took less than `PIECE`."""
    peak: int
    """Bytes at the most, beyond those at the start."""


def work_of(action: Callable[[], object]) -> Work:
    """Runs `action` in this thread and counts; 3 to 6 µs a line."""
    lines = allocated = 0
    tracemalloc.start()
    first, _ = tracemalloc.get_traced_memory()
    last = top = first

    def look(frame: FrameType, event: str, _argument: Any) -> Callable[..., Any]:
        nonlocal lines, allocated, last, top
        if event == "line":
            lines += 1
        current, highest = tracemalloc.get_traced_memory()
        if highest - last >= PIECE:
            allocated += highest - last
        if highest > top:
            top = highest
        last = current
        tracemalloc.reset_peak()
        return look

    tracer = sys.gettrace()
    sys.settrace(look)
    try:
        action()
    finally:
        sys.settrace(tracer)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return Work(lines, allocated + highest - last, max(top, highest) - first)


def assert_linear(action: Callable[[int], object], size: int, most: float = 2.2) -> None:
    """What `action` does from twice to four times `size` is at most `most` times what it does from once to twice.

    The factor is 2 if the work is linear in the size, 4 if it is quadratic, and above 2.2 as soon as a quadratic part
    makes up a thirtieth of the work at `size`. Steps by which lists and tables grow, some kilobytes, do not count.
    `action` is called once before, so that caches are filled.
    """
    action(size)
    one, two, four = (work_of(lambda size=size: action(size)) for size in (size, 2 * size, 4 * size))
    for name, slack in (("lines", 0), ("allocated", 20_000)):
        counts = [getattr(work, name) for work in (one, two, four)]
        limit = most * max(0, counts[1] - counts[0]) + slack
        assert counts[2] - counts[1] <= limit, f"{name} by {size}, twice, four times: {counts}"


class ComparedText(str):
    """A text that counts how often any of them was compared with another one."""

    comparisons = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        ComparedText.comparisons += 1
        return str.__eq__(self, other)


@contextmanager
def hang_limit(seconds: int = 600) -> Iterator[None]:
    """Fails what has taken `seconds` of processor time: far above what it needs, far below what a hang would take."""

    def fail(*_: object) -> NoReturn:
        raise AssertionError(f"not done after {seconds} s of processor time: it hangs, or its time is not linear")

    before = signal.signal(signal.SIGVTALRM, fail)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
