"""What a preparation says while it works: a line a minute in a log, a bar on a terminal."""

from __future__ import annotations

import sys

from utils.prepare import progress
from utils.prepare.progress import ProgressLine


def test_a_log_gets_a_line_a_minute(capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    line = ProgressLine("tokenised", 400_000_000)
    for seconds in (30, 29, 2, 58, 3):
        now[0] += seconds
        line.advance(20_000_000, 6_100_000)
    line.line("a split")
    line.close()
    assert capsys.readouterr().out.splitlines() == [
        "tokenised 15%: 1.0 MB/s, 0.30 million tokens/s, about 6 min left",
        "tokenised 25%: 0.8 MB/s, 0.25 million tokens/s, about 6 min left",
        "a split",
    ]


def test_a_terminal_gets_a_bar_below_the_lines(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "LIVE_SECONDS", 0)
    line = ProgressLine("compared", 4_000_000)
    line.advance(2_000_000)
    line.line("a split")
    line.close()
    shown = capsys.readouterr().out
    assert "compared:  50%" in shown and "2.00M/4.00M" in shown
    assert "a split\n" in shown
