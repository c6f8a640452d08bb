"""A training that cannot be faster than the test that sends it a signal, on however busy a machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests import warm_start
from utils.run.csv_log import METRICS
from utils.train import step

AHEAD = 2  # steps that it may make beyond those that the test waits for


def steps_made(run_dir: Path) -> int:
    path = run_dir / METRICS
    return path.read_text().count(",train,,") if path.is_file() else 0


def paused_training(after: int, run_dir: Path, signalled: Path, script: Path, *words: str) -> None:
    """Becomes `python pretrain.py WORDS`, which waits `AHEAD` steps beyond `after` for the file `signalled`."""
    optimiser_step = step.optimiser_step

    deadline = time.monotonic() + 900  # the test itself may have been killed

    def wait_and_step(*arguments: Any) -> step.StepResult:
        while steps_made(run_dir) >= after + AHEAD and not signalled.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return optimiser_step(*arguments)

    step.optimiser_step = wait_and_step
    warm_start.program(script, *words)
