"""metrics.csv and validation.csv: they grow line by line and are whole at any moment but for the last line."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from utils.files.atomic import write_atomically

METRICS, VALIDATION = "metrics.csv", "validation.csv"


ALL = "all"
"""The dataset name of a validation over all datasets, weighted by their targets."""


PLACE_COLUMNS = ("step", "samples", "tokens", "seconds", "device_seconds")


LOSS_COLUMNS = ("dataset", "loss", "targets")


METER_COLUMNS = ("tokens_per_second", "mfu", "memory_gib", "data_seconds", "forward_seconds", "backward_seconds")


METER_COLUMNS += ("communication_seconds", "optimiser_seconds")
"""What utils/train/meter.py measures; seconds are those of one step."""


METRIC_COLUMNS = (*PLACE_COLUMNS, "split", *LOSS_COLUMNS, "learning_rate", "grad_norm", *METER_COLUMNS)
"""Of training a line per step, without a dataset, and at each look at the losses one per dataset since the last."""


VALIDATION_COLUMNS = ("checkpoint", *PLACE_COLUMNS, *LOSS_COLUMNS, "max_samples", "precision", "data")


class CsvLog:
    """An append-only CSV file whose lines are on their way to the disk as soon as they are written."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        content = path.read_bytes() if path.is_file() else b""
        if content and not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)  # what a killed process began
        is_new = b"\n" not in content
        self._file = path.open("a", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")
        if is_new:
            self._writer.writeheader()
            self._file.flush()

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Appends rows (column → value; what is not given stays empty) and hands them to the operating system."""
        for row in rows:
            self._writer.writerow(row)
        self._file.flush()

    def sync(self) -> None:
        """Waits until everything is on the disk, where it survives the node."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_csv(path: Path) -> list[dict[str, str]]:
    """The complete lines of a CSV file; what a killed process or node left of others is not among them."""
    content = path.read_bytes() if path.is_file() else b""
    lines = content[: content.rfind(b"\n") + 1].replace(b"\0", b"").decode("utf-8", errors="replace")
    return [row for row in csv.DictReader(io.StringIO(lines)) if None not in row.values() and None not in row]


def drop_metrics_after(run_dir: Path, step: int, keep_validation: bool = True) -> None:
    """Removes the lines of steps after `step` from metrics.csv: a resumed run takes them again.

    Without `keep_validation` those of the validation at `step` go too. The file is always another one afterwards: what
    a process that was cut off from the run still writes into the old one is not seen.
    """
    path = run_dir / METRICS
    if not path.is_file():
        return
    last = {"train": step, "valid": step if keep_validation else step - 1}
    kept = [row for row in read_csv(path) if int(row["step"]) <= last[row["split"]]]
    text = io.StringIO()
    writer = csv.DictWriter(text, METRIC_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept)
    write_atomically(path, text.getvalue())
