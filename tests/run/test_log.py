"""Lines of a run for a person: on a terminal, in a file, and where the file is the program's output."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from utils.run import log
from utils.run.log import LOG, RunLog


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the log's clock shows."""
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(log.time, "strftime", lambda _: "TIME")
    return now


def show_progress(run_log: RunLog, clock: list[float], seconds: int) -> None:
    for second in range(seconds):
        clock[0] += 1
        run_log.progress(f"step {second + 1}")


def test_in_a_batch_log_a_line_of_progress_comes_every_30_s(
    tmp_path: Path, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    run_log = RunLog(tmp_path / LOG)
    run_log.line("begins")
    show_progress(run_log, clock, 62)
    assert capsys.readouterr().out == "begins\nstep 1\nstep 31\nstep 61\n"
    assert (tmp_path / LOG).read_text() == "TIME begins\nTIME step 1\nTIME step 31\nTIME step 61\n"


def test_on_a_terminal_progress_is_shown_in_place(
    tmp_path: Path, clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    run_log = RunLog(tmp_path / LOG)
    show_progress(run_log, clock, 2)
    run_log.progress("too soon")
    run_log.line("ends")
    assert capsys.readouterr().out == "\r\033[Kstep 1\r\033[Kstep 2\r\033[Kends\n"
    assert (tmp_path / LOG).read_text() == "TIME step 1\nTIME ends\n"


def test_what_is_printed_into_the_file_is_not_written_twice(
    tmp_path: Path, clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINING_LOG", str(tmp_path / LOG))
    run_log = RunLog(tmp_path / LOG)
    run_log.line("begins")
    show_progress(run_log, clock, 31)
    assert capsys.readouterr().out == "TIME begins\nTIME step 1\nTIME step 31\n" and not list(tmp_path.iterdir())


def test_other_processes_write_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    run_log = RunLog(None)
    run_log.line("begins")
    show_progress(run_log, clock, 2)
    assert capsys.readouterr().out == ""
