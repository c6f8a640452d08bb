"""Names of checkpoint folders and steps, and which folder is taken or thrown away."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_gpt.checksums import SUMS
from utils.run.checkpoint_folders import (
    abandoned_folders,
    best_checkpoint,
    checkpoint_folder,
    list_checkpoints,
    staging_folder,
    step_of,
)
from utils.run.csv_log import METRICS, VALIDATION, VALIDATION_COLUMNS, CsvLog
from utils.train.metrics import METRIC_COLUMNS

STEPS = (2, 10, 300)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for step in reversed(STEPS):
        checkpoint_folder(tmp_path, step).mkdir(parents=True)
        (checkpoint_folder(tmp_path, step) / SUMS).write_text("0  state.json\n")
    checkpoint_folder(tmp_path, 301).mkdir()  # without its checksums
    return tmp_path


def measure(path: Path, columns: tuple[str, ...], losses: dict[int, float], **values: str) -> None:
    log = CsvLog(path, columns)
    log.write({"step": step, "dataset": "all", "loss": loss, **values} for step, loss in losses.items())
    log.close()


def test_a_name_gives_its_step_and_names_sort_by_step(run_dir: Path) -> None:
    assert checkpoint_folder(run_dir, 1000) == run_dir / "checkpoints" / "step-00001000"
    assert [step_of(path) for path in list_checkpoints(run_dir)] == list(STEPS)


def test_only_what_earlier_owners_left_is_abandoned(run_dir: Path) -> None:
    target = checkpoint_folder(run_dir, 400)
    staged = {number: staging_folder(target, number) for number in (6, 7, 8)}
    unnumbered = target.with_name(f".{target.name}.partial")  # as the first version named them
    for folder in (*staged.values(), unnumbered):
        folder.mkdir()
    assert staged[7].name == ".step-00000400.7.partial" and len(list_checkpoints(run_dir)) == len(STEPS)
    assert set(abandoned_folders(run_dir, 7)) == {staged[6], staged[7], unnumbered}


def test_the_best_checkpoint_is_by_metrics_then_by_validation_else_the_newest(run_dir: Path) -> None:
    checkpoints = list_checkpoints(run_dir)
    assert best_checkpoint(run_dir, checkpoints) == checkpoints[-1]
    measure(run_dir / VALIDATION, VALIDATION_COLUMNS, {2: 0.5, 10: 0.6}, data="earlier")
    measure(run_dir / VALIDATION, VALIDATION_COLUMNS, {2: 3.0, 10: 2.0, 300: 2.0}, data="now")
    assert step_of(best_checkpoint(run_dir, checkpoints)) == 10
    measure(run_dir / METRICS, METRIC_COLUMNS, {2: 4.0, 5: 1.0, 10: float("nan"), 300: 5.0}, split="valid")
    assert step_of(best_checkpoint(run_dir, checkpoints)) == 2
