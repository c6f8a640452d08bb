"""The profiler's trace as a viewer reads it, and the timer's phases against a clock."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest
import torch

from lit_gpt.errors import UserError
from utils.train import profiler
from utils.train.profiler import PHASES, StepProfiler, StepTimer, parse_profile_steps

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def test_steps_are_given_as_a_range() -> None:
    assert parse_profile_steps("10-12") == (10, 12)
    assert parse_profile_steps(" 1 - 1 ") == (1, 1)
    assert parse_profile_steps("7") == (7, 7)


@pytest.mark.parametrize("text", ["", "a-b", "0-3", "5-4", "3-", "-3", "1-2-3", "1.5-2"])
def test_other_ranges_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--profile_steps"):
        parse_profile_steps(text)


def train(steps: tuple[int, int] | None, out_dir: Path, first: int, last: int) -> None:
    """Steps `first` to `last` of a run, each with a product of matrices as large as its number."""
    recorder = StepProfiler(steps, out_dir)
    for number in range(first, last + 1):
        recorder.step(number)
        matrix = torch.ones(number, number)
        torch.mm(matrix, matrix)
    recorder.close()


def steps_in(trace: Path) -> list[int]:
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    marks = {event["name"] for event in events if event.get("name", "").startswith("ProfilerStep#")}
    assert len([event for event in events if event.get("name") == "aten::mm"]) == len(marks)
    return sorted(int(mark.removeprefix("ProfilerStep#")) for mark in marks)


@pytest.mark.parametrize(
    ("steps", "run", "recorded"),
    [
        ((3, 5), (1, 8), [3, 4, 5]),
        ((1, 2), (1, 4), [1, 2]),  # no step before to warm up in
        ((3, 9), (1, 4), [3, 4]),  # ends early
        ((3, 6), (5, 8), [5, 6]),  # goes on from step 4
        ((4, 4), (1, 4), [4]),
    ],
)
def test_the_trace_holds_the_steps_that_were_asked_for(
    tmp_path: Path, steps: tuple[int, int], run: tuple[int, int], recorded: list[int]
) -> None:
    train(steps, tmp_path, *run)
    name = f"steps-{recorded[0]}-{recorded[-1]}-rank0"
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == [f"{name}.json.gz", f"{name}.txt"]
    assert steps_in(tmp_path / "profile" / f"{name}.json.gz") == recorded
    assert "aten::mm" in (tmp_path / "profile" / f"{name}.txt").read_text()


@pytest.mark.parametrize(("steps", "run"), [(None, (1, 3)), ((5, 6), (1, 4)), ((5, 6), (1, 3)), ((1, 2), (3, 5))])
def test_nothing_is_written_of_steps_that_do_not_come(
    tmp_path: Path, steps: tuple[int, int] | None, run: tuple[int, int]
) -> None:
    train(steps, tmp_path, *run)
    assert list(tmp_path.iterdir()) == []


def test_without_steps_torchs_profiler_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(profiler, "profile")
    train(None, tmp_path, 1, 3)


def test_a_profile_that_cannot_be_written_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        train((1, 1), tmp_path, 1, 2)
    assert list((tmp_path / "profile").iterdir()) == []


def test_phases_are_in_the_trace(tmp_path: Path) -> None:
    recorder, timer = StepProfiler((1, 1), tmp_path), StepTimer(torch.device("cpu"))
    recorder.step(1)
    with timer.phase("forward"):
        torch.ones(3).sum()
    recorder.close()
    trace = gzip.decompress((tmp_path / "profile" / "steps-1-1-rank0.json.gz").read_bytes())
    assert '"forward"' in trace.decode()


@pytest.mark.parametrize("device", DEVICES)
def test_phases_add_up_over_micro_batches_and_start_anew(device: str) -> None:
    timer = StepTimer(torch.device(device))
    assert timer.totals() == dict.fromkeys(PHASES, 0.0)
    began = time.perf_counter()
    for _ in range(3):
        with timer.phase("forward"):
            time.sleep(0.02)
        with timer.phase("backward"):
            time.sleep(0.01)
    took = time.perf_counter() - began
    totals = timer.totals()
    assert tuple(totals) == PHASES
    slack = 2e-3  # of the clocks
    assert totals["forward"] >= 0.06 - slack and totals["backward"] >= 0.03 - slack
    assert sum(totals.values()) <= took + slack
    assert totals["data"] == totals["communication"] == totals["optimiser"] == 0
    assert timer.totals() == dict.fromkeys(PHASES, 0.0)


def test_a_phase_that_fails_is_counted() -> None:
    timer = StepTimer(torch.device("cpu"))
    with pytest.raises(KeyError), timer.phase("data"):
        time.sleep(0.01)
        raise KeyError
    assert timer.totals()["data"] >= 0.01


def test_only_named_phases_are_timed() -> None:
    with pytest.raises(AssertionError), StepTimer(torch.device("cpu")).phase("lunch"):
        pass


class FakeEvent:
    """A GPU's event, on a clock that the test moves; knows when the host waited for it."""

    clock = 0.0
    made = 0
    waits = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        FakeEvent.made += 1

    def record(self) -> None:
        self.time = FakeEvent.clock

    def synchronize(self) -> None:
        FakeEvent.waits += 1

    def elapsed_time(self, end: FakeEvent) -> float:
        assert FakeEvent.waits, "an event is read before it is reached"
        return end.time - self.time


def test_on_a_gpu_the_host_waits_at_totals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("the whole device is waited for"))
    timer = StepTimer(torch.device("cuda"))
    for round_ in (1, 2):
        for _ in range(4):
            for name in ("forward", "backward"):
                with timer.phase(name):
                    FakeEvent.clock += 500 if name == "forward" else 1000  # milliseconds
        assert FakeEvent.waits == round_ - 1
        assert timer.totals() == dict.fromkeys(PHASES, 0.0) | {"forward": 2.0, "backward": 4.0}
        assert FakeEvent.waits == round_
    assert FakeEvent.made == 16, "events are used again"
