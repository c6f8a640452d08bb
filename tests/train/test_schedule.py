"""Learning rates by step: of each schedule, and of a run that is prolonged."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from lit_gpt.errors import UserError
from tests.conftest import assert_error, run
from utils.train.options import PretrainOptions
from utils.train.schedule import Schedule


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_schedules_warm_up_and_come_down(kind: str) -> None:
    schedule = Schedule(kind, peak=2.0, minimum=0.5, warmup_steps=10, max_steps=110)
    rates = [schedule.learning_rate(step) for step in range(111)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    expected = {"cosine": 0.5 + 1.5 * (1 + math.cos(math.pi * 0.25)) / 2, "linear": 1.625, "constant": 2.0}
    assert rates[35] == pytest.approx(expected[kind])
    assert rates[110] == pytest.approx(2.0 if kind == "constant" else 0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_warm_up_longer_than_the_training_only_rises() -> None:
    rates = [Schedule("cosine", 1.0, 0.0, 100, 10).learning_rate(step) for step in range(10)]
    assert rates == sorted(rates) and rates[-1] == pytest.approx(0.1)


def test_wsd_is_stable_until_its_decay() -> None:
    """The rates of 12 steps, by hand: two of warm-up, six at the peak, then four on a line from 2 to 1."""
    schedule = Schedule("wsd", peak=2.0, minimum=1.0, warmup_steps=2, max_steps=12, decay_steps=4)
    rates = [schedule.learning_rate(step) for step in range(13)]
    assert rates == [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0]


def test_wsd_may_consist_of_warm_up_and_decay_alone() -> None:
    schedule = Schedule("wsd", peak=1.0, minimum=0.0, warmup_steps=2, max_steps=4, decay_steps=2)
    assert [schedule.learning_rate(step) for step in range(5)] == [0.5, 1.0, 1.0, 0.5, 0.0]


def test_more_steps_leave_the_stable_phase_of_wsd_as_it_is() -> None:
    short = Schedule("wsd", 3e-4, 0.0, warmup_steps=100, max_steps=1000, decay_steps=200)
    prolonged = Schedule("wsd", 3e-4, 0.0, warmup_steps=100, max_steps=5000, decay_steps=1000)
    assert [short.learning_rate(step) for step in range(801)] == [prolonged.learning_rate(step) for step in range(801)]


def learning_rates(run_dir: Path) -> list[float]:
    """The learning rate of each step, as metrics.csv has it."""
    with (run_dir / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train" and not row["dataset"]]
    return [float(row["learning_rate"]) for row in rows]


def test_a_run_is_prolonged_in_its_stable_phase(pretrain_arguments: list[object], tmp_path: Path) -> None:
    """Ended by --max_checkpoints at step 6 of 10, it goes on to step 12 as if that had been its end from the start."""
    arguments = [*pretrain_arguments, "--batch_size", 4, "--micro_batch_size", 4, "--out_dir", tmp_path / "run"]
    arguments += ["--lr_schedule", "wsd", "--decay_steps", 4, "--learning_rate", 0.01, "--min_learning_rate", 0.002]
    run("pretrain.py", *arguments, "--max_steps", 10, "--max_checkpoints", 2)
    assert learning_rates(tmp_path / "run") == [0.005, *[0.01] * 5]
    run("pretrain.py", *arguments, "--max_steps", 12)
    expected = [0.005, *[0.01] * 8, 0.008, 0.006, 0.004]
    assert learning_rates(tmp_path / "run") == pytest.approx(expected)


def test_decay_that_cannot_be(pretrain_arguments: list[object], tmp_path: Path) -> None:
    paths = {"data_dir": tmp_path, "checkpoint_dir": tmp_path, "out_dir": tmp_path}
    with pytest.raises(UserError, match="--decay_steps needs --lr_schedule wsd"):
        PretrainOptions(**paths, decay_steps=5)
    with pytest.raises(UserError, match="--decay_steps must be above 0"):
        PretrainOptions(**paths, decay_steps=0, lr_schedule="wsd")
    arguments = [*pretrain_arguments, "--batch_size", 4, "--micro_batch_size", 4, "--out_dir", tmp_path / "run"]
    done = run("pretrain.py", *arguments, "--lr_schedule", "wsd", "--decay_steps", 11, check=False)
    assert_error(done, 2, "--warmup_steps 2 and --decay_steps 11", "12 steps")
    assert not (tmp_path / "run").exists()


def test_the_decay_is_a_fifth_of_the_steps_unless_given(pretrain_arguments: list[object], tmp_path: Path) -> None:
    arguments = [*pretrain_arguments, "--batch_size", 4, "--micro_batch_size", 4, "--out_dir", tmp_path / "run"]
    arguments += ["--enable_validation", "false", "--save_interval", 100]
    run("pretrain.py", *arguments, "--lr_schedule", "wsd", "--max_steps", 10, "--learning_rate", 0.01)
    assert learning_rates(tmp_path / "run") == pytest.approx([0.005, *[0.01] * 8, 0.005])
