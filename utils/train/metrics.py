"""What is written of a training into metrics.csv, and passed on to the curves of --logger.

A new column of a step is added in `write_steps`, or in meter.py where it is measured; its name in utils/run/csv_log.py.
"""

from __future__ import annotations

from typing import Any

from utils.run.progress import TrainingProgress
from utils.train.history import Loss, StepRecord
from utils.train.set_up import Training


def progress_columns(progress: TrainingProgress) -> dict[str, Any]:
    """The columns of metrics.csv that say how far the run was."""
    return {
        "step": progress.step,
        "samples": progress.samples,
        "tokens": progress.tokens,
        "seconds": f"{progress.seconds:.3f}",
        "device_seconds": f"{progress.device_seconds:.3f}",
    }


def write_steps(training: Training, records: list[StepRecord], columns: dict[str, Any]) -> None:
    """Writes a line per step, the last one with what was measured since the last look."""
    if training.metrics is None:
        return
    rows = []
    for record in records:
        found = {"loss": record.loss, "targets": record.targets, "grad_norm": record.grad_norm}
        rows.append(record.columns | {"split": "train"} | found)
    rows[-1] |= columns
    training.metrics.write(rows)
    if training.curves:
        names = ("loss", "learning_rate", "grad_norm", *columns)
        training.curves.log(rows[-1]["step"], {f"train/{name}": float(rows[-1][name]) for name in names})


def write_losses(training: Training, progress: TrainingProgress, split: str, losses: dict[str, Loss]) -> None:
    """Writes the loss of each dataset into metrics.csv, and passes it on to the curves; on process 0."""
    if training.metrics is None:
        return
    training.metrics.write(
        progress_columns(progress) | {"split": split, "dataset": name, "loss": loss.mean, "targets": loss.targets}
        for name, loss in losses.items()
    )
    if training.curves:
        scalars = {f"{split}/{name}": loss.mean for name, loss in losses.items()}
        training.curves.log(progress.step, scalars, always=True)
