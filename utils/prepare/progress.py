"""What a preparation says while it works: a bar that moves on a terminal, a line a minute in a log."""

import sys
import time

from tqdm import tqdm

LOG_SECONDS, LIVE_SECONDS = 60, 0.2


def say(text: str) -> None:
    print(_printable(text), flush=True)


def _printable(text: str) -> str:
    """The text with what is no Unicode escaped: Linux allows such names of files."""
    return text.encode("utf-8", "backslashreplace").decode()


class ProgressLine:
    """How far work on text is: `verb` says what is done, such as `tokenised`, to `size` bytes, or to files."""

    def __init__(self, verb: str, size: int, unit: str = "B") -> None:
        self._verb, self._size, self._unit = verb, max(size, 1), unit
        self._done = self._tokens = 0
        self._start = self._last_line = time.monotonic()
        self._said: set[str] = set()
        self._bar = None
        if sys.stdout.isatty():
            settings = {
                "unit": unit if unit == "B" else f" {unit}",
                "unit_scale": unit == "B",
                "mininterval": LIVE_SECONDS,
                "leave": False,
            }
            self._bar = tqdm(desc=verb, total=self._size, file=sys.stdout, dynamic_ncols=True, **settings)

    def advance(self, size: int, tokens: int = 0) -> None:
        self._done += size
        self._tokens += tokens
        now = time.monotonic()
        if self._bar is not None:
            if self._tokens:
                self._bar.set_postfix_str(self._token_rate(now - self._start), refresh=False)
            self._bar.update(size)
        elif now - self._last_line >= LOG_SECONDS:
            self._last_line = now
            say(self._state(now - self._start))

    def resize(self, size: int) -> None:
        """There is more, or less, to do than was thought."""
        self._size = max(size, 1)
        if self._bar is not None:
            self._bar.total = self._size

    def line(self, text: str) -> None:
        if self._bar is None:
            say(text)
        else:
            self._bar.write(_printable(text), file=sys.stdout)

    def line_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.line(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _state(self, seconds: float) -> str:
        share = min(1.0, max(self._done, 1) / self._size)
        rest = seconds * (1 / share - 1)
        left = f"{rest:.0f} s" if rest < 120 else f"{rest / 60:.0f} min"
        tokens = f", {self._token_rate(seconds)}" if self._tokens else ""
        if self._unit != "B":
            return f"{self._verb} {self._done} of {self._size} {self._unit}, about {left} left"
        return f"{self._verb} {share:.0%}: {self._done / seconds / 1e6:.1f} MB/s{tokens}, about {left} left"

    def _token_rate(self, seconds: float) -> str:
        return f"{self._tokens / seconds / 1e6:.2f} million tokens/s"
