"""Where a step's time goes: a split into phases that is always on, and a full trace of a few steps when asked for."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile, record_function

from lit_gpt.errors import UserError
from utils.files.atomic import write_atomically

PHASES = ("data", "forward", "backward", "communication", "optimiser")


def parse_profile_steps(text: str) -> tuple[int, int]:
    """`A-B` → (A, B), the first and the last step to record, counted from 1 as in metrics.csv; `A` alone is `A-A`."""
    match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text)
    first, last = 0, 0
    if match:
        first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last:
        raise UserError(f"--profile_steps {text}: give the first and the last step, such as 10-12; steps count from 1")
    return first, last


class StepProfiler:
    """Records some steps with torch's profiler into OUT_DIR/profile, as a trace and as a table.

    `steps-A-B-rank0.json.gz` opens in https://ui.perfetto.dev or chrome://tracing; `steps-A-B-rank0.txt` names the most
    expensive operations. If the run ends early, B is the last step it began. A folder's older profiles stay.
    """

    def __init__(self, steps: tuple[int, int] | None, out_dir: Path) -> None:
        """Does nothing without `steps` (first and last)."""
        self._steps = steps
        self._folder = out_dir / "profile"
        self._profile: profile | None = None
        self._begun = self._current = 0

    def step(self, number: int) -> None:
        """To be called before each step, with the number (from 1) that it will have."""
        if self._steps is None:
            return
        first, last = self._steps
        if number > last:
            self.close()
        elif self._profile is not None:
            self._current = number
            self._profile.step()
        elif number >= first - 1:
            self._start(number, first)

    def close(self) -> None:
        """Writes what was recorded, if anything was; nothing is recorded any more."""
        recorder, steps = self._profile, self._steps
        self._profile = self._steps = None
        if recorder is None or steps is None:
            return
        recorder.stop()
        if self._current >= steps[0]:
            self._write(recorder, max(steps[0], self._begun), self._current)

    def _start(self, number: int, first: int) -> None:
        """Begins at step `number`. The one before `first` is for warming up, which would be in the trace."""

        def action(step: int) -> ProfilerAction:
            return ProfilerAction.WARMUP if number < first and step < first else ProfilerAction.RECORD

        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, schedule=action)
        self._profile.step_num = number  # the trace names each step by it: ProfilerStep#12
        self._profile.start()
        self._begun = self._current = number

    def _write(self, recorder: profile, first: int, last: int) -> None:
        self._folder.mkdir(exist_ok=True)
        name = f"steps-{first}-{last}-rank0"
        staged = self._folder / f".{name}.json.gz"  # torch compresses by the name's end
        try:
            recorder.export_chrome_trace(str(staged))
            staged.replace(self._folder / f"{name}.json.gz")
        finally:
            staged.unlink(missing_ok=True)
        by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        write_atomically(self._folder / f"{name}.txt", recorder.key_averages().table(by, row_limit=50) + "\n")


class StepTimer:
    """How long the phases of training steps take, without ever making the device wait.

    On a GPU the times are the device's own, between events put into its queue at a phase's beginning and end. Elsewhere
    they are the host's. Phases must not overlap.

    "communication" is the reduction of the gradient norm and the processes' agreement on what to do next, each with the
    wait for the slowest process. FSDP's gathering and scattering overlaps with computing and is part of "forward" and
    "backward"; only the profiler tells them apart.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._free: list[torch.cuda.Event] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts what is done inside to one of `PHASES`, as often as it comes; the profiler's trace shows it too."""
        assert name in PHASES
        begin = self._now()
        try:
            with record_function(name):
                yield
        finally:
            end = self._now()
            if self._on_gpu:
                self._pending.append((name, begin, end))
            else:
                self._seconds[name] += end - begin

    def totals(self) -> dict[str, float]:
        """Seconds of each phase since the last call; on a GPU it waits for the end of the last one."""
        if self._pending:
            self._pending[-1][2].synchronize()  # they end in order
        for name, begin, end in self._pending:
            self._seconds[name] += begin.elapsed_time(end) / 1000
            self._free += (begin, end)
        self._pending.clear()
        totals, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return totals

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record()
        return event
