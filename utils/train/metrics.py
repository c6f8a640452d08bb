"""What is measured of a training, as lines of metrics.csv and as curves of --logger.

A new column is named here. meter.py measures what is read at each look at the losses; a `StepRecord` is what each step
gives.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from utils.run.csv_log import LOSS_COLUMNS, PROGRESS_COLUMNS, CsvLog
from utils.run.progress import TrainingProgress
from utils.train.history import Loss, StepRecord
from utils.train.loggers import ScalarLogger

METER_COLUMNS = (
    "tokens_per_second",
    "mfu",
    "memory_gib",
    "data_seconds",
    "forward_seconds",
    "backward_seconds",
    "communication_seconds",
    "optimiser_seconds",
)
"""What meter.py measures; seconds are those of one step."""

METRIC_COLUMNS = (*PROGRESS_COLUMNS, "split", *LOSS_COLUMNS, "learning_rate", "grad_norm", *METER_COLUMNS)
"""The columns of metrics.csv.

It has a line per step, without a dataset; now and then a line per dataset that was trained on since the last ones;
and a line per dataset of each validation."""


def progress_columns(progress: TrainingProgress) -> dict[str, Any]:
    """The columns of a line that say how far the run was."""
    return {
        "step": progress.step,
        "samples": progress.samples,
        "tokens": progress.tokens,
        "seconds": f"{progress.seconds:.3f}",
        "device_seconds": f"{progress.device_seconds:.3f}",
    }


class Metrics:
    """Writes what is measured; for one process only.

    Args:
        file: metrics.csv.
        curves: where --logger sends curves.
    """

    def __init__(self, file: CsvLog, curves: ScalarLogger | None) -> None:
        self._file = file
        self._curves = curves

    def write_steps(self, records: Sequence[StepRecord], columns: Mapping[str, Any]) -> None:
        """Writes a line per step, the last one with the `columns` that were measured since the last look."""
        rows = []
        for record in records:
            found = {"loss": record.loss, "targets": record.targets, "grad_norm": record.grad_norm}
            rows.append(record.columns | {"split": "train"} | found)
        rows[-1] |= columns
        self._file.write(rows)
        if self._curves:
            names = ("loss", "learning_rate", "grad_norm", *columns)
            self._curves.log(rows[-1]["step"], {f"train/{name}": float(rows[-1][name]) for name in names})

    def write_losses(self, progress: TrainingProgress, split: str, losses: Mapping[str, Loss]) -> None:
        """Writes a line with the loss of each dataset."""
        where = progress_columns(progress) | {"split": split}
        self._file.write(
            where | {"dataset": name, "loss": loss.mean, "targets": loss.targets} for name, loss in losses.items()
        )
        if self._curves:
            scalars = {f"{split}/{name}": loss.mean for name, loss in losses.items()}
            self._curves.log(progress.step, scalars, always=True)

    def sync(self) -> None:
        """Waits until metrics.csv is on the disk."""
        self._file.sync()

    def close(self) -> None:
        """Waits until the curves are written."""
        if self._curves:
            self._curves.close()
