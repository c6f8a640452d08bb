"""The run's log for a person, on stdout and in training_log.out."""

import os
import sys
import time
from pathlib import Path

LOG = "training_log.out"

# In a batch log one progress line in 30 s is readable over days; a terminal is redrawn twice a second.
_BATCH_SECONDS, _TERMINAL_SECONDS = 30.0, 0.5
_CLEAR_LINE = "\r\033[K"


class RunLog:
    """Writes lines to stdout and the file `path`; on a terminal, progress is one line that changes.

    `path` is None on every process but one: they write nothing.
    """

    def __init__(self, path: Path | None) -> None:
        # slurm/env.sh names the file in TRAINING_LOG where it writes all that this program prints into it.
        printed_there = path is not None and os.environ.get("TRAINING_LOG") == str(path.resolve())
        self._silent = path is None
        self._file = path.open("a", encoding="utf-8") if path and not printed_there else None
        self._terminal = sys.stdout.isatty()
        # When the last line of progress was shown on the terminal, and when one was written to the file.
        self._shown = self._filed = -1e9

    def line(self, text: str) -> None:
        """Prints a line and writes it to the file, with the time."""
        if self._silent:
            return
        if self._file is None:
            print(_stamped(text), flush=True)
            return
        print((_CLEAR_LINE if self._terminal else "") + text, flush=True)
        print(_stamped(text), file=self._file, flush=True)

    def progress(self, text: str) -> None:
        """Shows a line that the next one replaces."""
        if self._silent:
            return
        now = time.monotonic()
        if now - self._filed >= _BATCH_SECONDS:
            self._filed = now
            if not self._terminal or self._file is None:
                self.line(text)
                return
            print(_stamped(text), file=self._file, flush=True)
        if self._terminal and now - self._shown >= _TERMINAL_SECONDS:
            self._shown = now
            print(f"{_CLEAR_LINE}{text}", end="", flush=True)


def _stamped(text: str) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
