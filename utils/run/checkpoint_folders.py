"""Which checkpoint of a run is the best one."""

from __future__ import annotations

import math
from pathlib import Path

from utils.run.csv_log import ALL, METRICS, VALIDATION, read_csv


def best_checkpoint(run_dir: Path, checkpoints: list[Path]) -> Path:
    """Of a run's `checkpoints` (oldest first) the one of the lowest validation loss, else the newest.

    Losses are those of metrics.csv measured at a checkpoint's step; where there are none, those of validation.csv,
    which may be over other data and so are never mixed with them.
    """
    steps = {int(path.name.removeprefix("step-")): path for path in checkpoints}
    for rows in (read_csv(run_dir / METRICS), read_csv(run_dir / VALIDATION)):
        losses = {
            int(row["step"]): float(row["loss"])
            for row in rows
            if row.get("data") == rows[-1].get("data")
            and row["dataset"] == ALL
            and int(row["step"]) in steps
            and math.isfinite(float(row["loss"]))
        }
        if losses:
            return steps[min(losses, key=lambda step: (losses[step], step))]
    return checkpoints[-1]
