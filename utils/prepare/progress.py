"""How far a long piece of work is: one line that is renewed on a terminal, a line a minute in a log."""

from __future__ import annotations

import sys
import time

LOG_SECONDS, LIVE_SECONDS = 60, 0.2


class Progress:
    """Of `size` bytes of text; what else is printed goes above the line on a terminal."""

    def __init__(self, verb: str, size: int) -> None:
        self._verb, self._size = verb, max(size, 1)
        self._done = self._tokens = 0
        self._start = self._said = time.monotonic()
        self._live = sys.stdout.isatty()

    def advance(self, size: int, tokens: int = 0) -> None:
        """Counts more bytes of text as done, and their tokens."""
        self._done += size
        self._tokens += tokens
        now = time.monotonic()
        if now - self._said < (LIVE_SECONDS if self._live else LOG_SECONDS):
            return
        self._said = now
        if self._live:
            print(f"\r\033[K{self._state(now - self._start)}", end="", flush=True)
        else:
            print(self._state(now - self._start), flush=True)

    def _state(self, seconds: float) -> str:
        share = min(1.0, max(self._done, 1) / self._size)
        rest = seconds * (1 / share - 1)
        left = f"{rest:.0f} s" if rest < 120 else f"{rest / 60:.0f} min"
        tokens = f", {self._tokens / seconds / 1e6:.2f} million tokens/s" if self._tokens else ""
        return f"{self._verb} {share:.0%}: {self._done / seconds / 1e6:.1f} MB/s{tokens}, about {left} left"

    def line(self, text: str) -> None:
        print(("\r\033[K" if self._live else "") + text, flush=True)
