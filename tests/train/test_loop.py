"""What ends a training, and that a signal is heard from the first line on."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_gpt.errors import UserError
from pretrain import Ending, finish, finished
from tests.conftest import ROOT
from utils.run.progress import TrainingProgress
from utils.train.options import PretrainOptions

PATHS = {"data_dir": Path("data"), "checkpoint_dir": Path("model"), "out_dir": Path("run")}
OPTIONS = PretrainOptions(**PATHS, max_checkpoints=3, early_stopping=2, max_nonfinite_steps=4, learning_rate=0.5)


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (TrainingProgress(), None),
        (TrainingProgress(step=99, checkpoints=2, validations_without_improvement=1, skipped_in_a_row=3), None),
        (TrainingProgress(step=100), "all 100 steps are made"),
        (TrainingProgress(step=7, checkpoints=3), "3 checkpoints are written"),
        (TrainingProgress(step=7, validations_without_improvement=2), "2 validations without improvement"),
        (TrainingProgress(step=7, skipped_in_a_row=4), "gradient was not finite in 4 steps in a row, up to step 7"),
        (TrainingProgress(step=100, checkpoints=3, skipped_in_a_row=4), "not finite in 4 steps in a row"),
        (
            TrainingProgress(step=7, skipped_in_a_row=4, losses_in_a_row=4),
            "the loss was not finite in 4 steps in a row",
        ),
        (
            TrainingProgress(step=7, skipped_in_a_row=4, losses_in_a_row=1),
            "not finite in 4 steps in a row (the loss in 1",
        ),
        (
            TrainingProgress(step=100, skipped_in_a_row=1),
            "all 100 steps are made; the gradient was not finite in 1 step",
        ),
        (
            TrainingProgress(step=7, checkpoints=3, skipped_in_a_row=1),
            "written (--max_checkpoints); the gradient was not finite",
        ),
        (TrainingProgress(step=100, skipped_in_a_row=1, validation_pending=True), None),
    ],
)
def test_the_end_is_a_function_of_counters_and_options(progress: TrainingProgress, words: str | None) -> None:
    ending = finished(progress, OPTIONS, max_steps=100)
    if words is None:
        assert ending is None
    else:
        assert words in ending.reason and ending.is_failure == ("finite" in words)


def test_without_limits_only_the_steps_end_a_training() -> None:
    progress = TrainingProgress(step=99, checkpoints=1000, validations_without_improvement=1000)
    assert finished(progress, PretrainOptions(**PATHS), max_steps=100) is None


class Writer:
    """Stands for a `CheckpointWriter` with a checkpoint under way."""

    def __init__(self) -> None:
        self.waited = False

    def wait(self) -> None:
        self.waited = True

    def require_foundation(self) -> None: ...


def test_a_training_that_failed_waits_for_its_checkpoint_before_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.note_failure", lambda *_: "go back")
    writer = Writer()
    training = SimpleNamespace(writer=writer, watchdog=SimpleNamespace(mark=lambda _text: None), options=OPTIONS)
    with pytest.raises(UserError, match="not finite") as caught:
        finish(training, TrainingProgress(), None, Ending("the loss was not finite", is_failure=True))
    assert writer.waited and caught.value.on_every_process


TORCH = """
import importlib, pathlib, sys, time

folder = pathlib.Path(__file__).parents[1]
(folder / "importing").touch()
while not (folder / "signalled").exists():
    try:
        time.sleep(0.01)
    except BaseException:  # as packages do
        pass
sys.path.remove(str(folder))
del sys.modules["torch"]
importlib.import_module("torch")
"""
"""A package that stands before torch: waits for the signal and catches everything, then imports the real one."""


def signalled_during_imports(folder: Path, number: signal.Signals) -> tuple[int, str]:
    """The exit code and stderr of a pretrain.py that gets a signal while torch is being imported."""
    arguments = ["--data_dir", folder, "--checkpoint_dir", folder, "--out_dir", folder / "run"]
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(TORCH)
    words = [sys.executable, ROOT / "pretrain.py", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    started = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 600
    while not (folder / "importing").exists():
        assert started.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(started.pid, number)
    (folder / "signalled").touch()
    _, stderr = started.communicate(timeout=600)
    return started.returncode, stderr


def test_a_signal_during_the_imports_does_not_kill(tmp_path: Path) -> None:
    """Slurm's SIGUSR1 may come while torch is being imported; the process then ends by itself."""
    code, stderr = signalled_during_imports(tmp_path, signal.SIGUSR1)
    assert code == 2 and "manifest.json is missing" in stderr


def test_ctrl_c_during_the_imports_is_one_line(tmp_path: Path) -> None:
    code, stderr = signalled_during_imports(tmp_path, signal.SIGINT)
    assert (code, stderr) == (75, "error: interrupted from the keyboard\n")


def test_a_run_that_skips_its_last_step_ends_well_only_if_a_validation_finds_its_weights_sound() -> None:
    skipped = TrainingProgress(step=100, skipped=1, skipped_in_a_row=1, finite_validation=90)
    assert finished(skipped, OPTIONS, max_steps=100).is_failure
    ending = finished(dataclasses.replace(skipped, finite_validation=100), OPTIONS, max_steps=100)
    assert not ending.is_failure and "not finite in 1 step in a row, up to step 100" in ending.reason


def test_a_run_that_skipped_every_step_is_a_failure_whatever_its_validation_says() -> None:
    every = TrainingProgress(step=3, skipped=3, skipped_in_a_row=3, finite_validation=3)
    assert finished(every, OPTIONS, max_steps=3).is_failure
