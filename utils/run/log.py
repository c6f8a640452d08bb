"""Lines for a person, on stdout and in training_log.out."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

LOG = "training_log.out"


class RunLog:
    """Lines for a person, on stdout and in training_log.out; progress in place on a terminal, plain lines elsewhere.

    Where TRAINING_LOG names the file, whoever started this program (slurm/env.sh) writes all it prints there.
    """

    # In a batch log one progress line in 30 s is readable over days; a terminal is redrawn twice a second.
    _BATCH_SECONDS, _TERMINAL_SECONDS = 30.0, 0.5

    def __init__(self, path: Path | None) -> None:
        """Without a `path` (every process but one) nothing is written."""
        printed_there = path is not None and os.environ.get("TRAINING_LOG") == str(path.resolve())
        self._silent = path is None
        self._file = path.open("a", encoding="utf-8") if path and not printed_there else None
        self._terminal = sys.stdout.isatty()
        self._shown = self._filed = -1e9

    def line(self, text: str) -> None:
        if self._silent:
            return
        stamped = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
        if self._file is None:
            print(stamped, flush=True)
        else:
            print(("\r\033[K" if self._terminal else "") + text, flush=True)
            print(stamped, file=self._file, flush=True)

    def progress(self, text: str) -> None:
        """A line that the next one replaces."""
        now = time.monotonic()
        if self._silent:
            return
        if now - self._filed >= self._BATCH_SECONDS:
            self._filed = now
            if not self._terminal or self._file is None:
                self.line(text)
                return
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=self._file, flush=True)
        if self._terminal and now - self._shown >= self._TERMINAL_SECONDS:
            self._shown = now
            print(f"\r\033[K{text}", end="", flush=True)
