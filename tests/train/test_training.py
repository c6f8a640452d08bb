"""Trainings as a user starts them: losses, intervals of time, and the ways a training ends."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from tests.conftest import assert_error, run


def rows_of(run_dir: Path, split: str) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open() as file:
        return [
            row for row in csv.DictReader(file) if row["split"] == split and (split == "valid" or not row["dataset"])
        ]


def test_the_loss_falls_and_every_dataset_is_validated(trained_run: Path) -> None:
    valid = rows_of(trained_run, "valid")
    datasets = {row["dataset"] for row in valid}
    assert len(datasets) >= 4 and "all" in datasets
    assert {int(row["step"]) for row in valid} == {0, 4, 8, 12}
    for step in (0, 12):
        at = {row["dataset"]: row for row in valid if int(row["step"]) == step}
        whole = sum(float(row["loss"]) * int(row["targets"]) for name, row in at.items() if name != "all")
        assert float(at["all"]["loss"]) == pytest.approx(whole / int(at["all"]["targets"]))
    losses = [float(row["loss"]) for row in valid if row["dataset"] == "all"]
    assert losses[-1] < losses[0] - 1


def test_processes_agree_on_intervals_of_time(pretrain_arguments: list[object], tmp_path: Path) -> None:
    timed = ["--interval_unit", "time", "--save_interval", 1, "--eval_interval", 2, "--max_steps", 40]
    run("pretrain.py", *pretrain_arguments, *timed, "--batch_size", 4, "--out_dir", tmp_path, processes=2)
    steps = [int(row["step"]) for row in rows_of(tmp_path, "train")]
    assert steps == list(range(1, 41))
    assert max(int(row["step"]) for row in rows_of(tmp_path, "valid")) == 40
    assert (tmp_path / "checkpoints" / "step-00000040").is_dir()


def test_training_ends_by_checkpoints_or_by_early_stopping(pretrain_arguments: list[object], tmp_path: Path) -> None:
    arguments = [*pretrain_arguments, "--batch_size", 4, "--micro_batch_size", 4]
    for devices in (1, 2):  # one of several processes ends at once, with whatever it has not yet written
        folder = tmp_path / f"{devices}"  # here Lightning starts the second one
        run("pretrain.py", *arguments, "--devices", devices, "--out_dir", folder, "--max_checkpoints", 2)
        assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000003", "step-00000006"]
        assert len(rows_of(folder, "train")) == 6
    # a learning rate of almost nothing cannot improve the validation loss by more than rounding
    still = [*arguments, "--learning_rate", 1e-30, "--eval_interval", 2, "--out_dir", tmp_path / "b"]
    run("pretrain.py", *still, "--early_stopping", 2)
    assert len(rows_of(tmp_path / "b", "train")) == 4
    again = run("pretrain.py", *still, "--early_stopping", 2)
    assert "validations without improvement" in again.stdout
    assert len(rows_of(tmp_path / "b", "train")) == 4


def test_a_loss_that_is_not_finite_is_skipped_logged_and_stops(
    pretrain_arguments: list[object], foundation: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in foundation.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = torch.load(broken / "lit_model.pth", weights_only=True)
    weights["transformer.ln_f.weight"][0] = float("nan")
    torch.save(weights, broken / "lit_model.pth")
    (broken / "SHA256SUMS").unlink(missing_ok=True)
    arguments = dict(zip(pretrain_arguments[::2], pretrain_arguments[1::2], strict=True))
    del arguments["--model_config"]
    arguments |= {
        "--checkpoint_dir": broken,
        "--enable_validation": "false",
        "--max_nonfinite_steps": 3,
        "--save_interval": 99,
    }
    flat = [word for pair in arguments.items() for word in pair]
    done = run("pretrain.py", *flat, "--out_dir", tmp_path / "run", check=False)
    assert_error(done, 2, "not finite in 3 steps", "--learning_rate")
    log = (tmp_path / "run" / "training_log.out").read_text()
    assert "step 1 skipped: loss nan" in log and "samples 0 to 15" in log and "samples 32 to 47" in log
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


def test_try_small_is_a_quick_check(pretrain_arguments: list[object], tmp_path: Path) -> None:
    run("pretrain.py", *pretrain_arguments, "--out_dir", tmp_path / "run", "--try_small", "true", "--batch_size", 2)
    assert len(rows_of(tmp_path / "run-small", "train")) == 10
    assert not (tmp_path / "run").exists()
