"""Curves of a run and its best checkpoint. A curve is a table of pandas: a line per point in the order of training, a
column for each of `AXES`, `loss` in nats per target, and `targets`, how many tokens the loss is the mean of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from lit_gpt.errors import DataError, UserError
from utils.run.checkpoint_folders import best_checkpoint, list_checkpoints, step_of
from utils.run.csv_log import ALL, METRICS, PROGRESS_COLUMNS, VALIDATION, read_csv
from utils.run.record import RUN


class Axis(NamedTuple):
    column: str  # of metrics.csv and validation.csv
    unit: int  # how many of the column's units make one of the axis
    label: str


AXES = {
    "batches": Axis("step", 1, "optimiser steps"),
    "sequences": Axis("samples", 1, "sequences"),
    "tokens": Axis("tokens", 1, "training tokens"),
    "hours": Axis("seconds", 3600, "hours"),
    "device_hours": Axis("device_seconds", 3600, "device-hours"),
}
NUMBERS = (*PROGRESS_COLUMNS, "loss", "targets")


class Best(NamedTuple):
    checkpoint: Path
    reached: dict[str, float]  # where on each axis it was saved
    loss: float  # in the validation over all datasets

    @property
    def step(self) -> int:
        return int(self.reached["batches"])


@dataclass(frozen=True)
class RunCurves:
    label: str
    train: pd.DataFrame
    valid: dict[str, pd.DataFrame]  # validations while training, by dataset; `ALL` is that of all together
    offline: dict[str, pd.DataFrame]  # validations of validate_pretrain.py, likewise
    best: Best | None

    @property
    def datasets(self) -> list[str]:
        """The validated datasets, in name order; none where there is but one, whose curve is that of all."""
        names = sorted((self.valid.keys() | self.offline.keys()) - {ALL})
        return names if len(names) > 1 else []


def read_curves(folder: Path) -> RunCurves:
    """Reads the curves of a run folder, also while the run writes to it. Raises a UserError if it is not a run's folder
    or its metrics have no complete line yet, a DataError if its CSV files lack columns or hold no numbers."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    if not (folder / METRICS).is_file():
        raise UserError(f"{folder} has no {METRICS}: not a run's folder")
    metrics = read_losses(folder / METRICS, "split")
    if metrics.empty:
        raise UserError(f"{folder / METRICS} has no line yet: nothing to draw")
    train, valid = split_metrics(metrics)
    validations = read_losses(folder / VALIDATION, "max_samples", "data")
    # losses on other rows than those of the last validation do not belong to the same curve
    offline = make_curves(validations.merge(validations[["max_samples", "data"]].tail(1)))
    return RunCurves(make_label(folder), train, valid, offline, find_best(folder, valid, offline))


def read_losses(path: Path, *further: str) -> pd.DataFrame:
    """Reads the complete lines of a CSV file; `NUMBERS` become float64, NaN where the file has nothing.
    Raises a DataError for a missing column of `NUMBERS`, `dataset` or `further`, or text in one of `NUMBERS`."""
    rows: list[dict[str, Any]] = read_csv(path)
    columns = [*NUMBERS, "dataset", *further]
    missing = [column for column in columns if rows and column not in rows[0]]
    if missing:
        raise DataError(f"{path} is not a CSV file of this program: it lacks the columns {', '.join(missing)}")
    for line, row in enumerate(rows, start=2):
        try:
            for column in NUMBERS:
                row[column] = float(row[column] or "nan")
        except ValueError as e:
            raise DataError(f"{path}, line {line}: {e}") from None
    return pd.DataFrame(rows, columns=columns)


def split_metrics(metrics: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    train = make_curve(metrics[(metrics["split"] == "train") & (metrics["dataset"] == "")])
    return train, make_curves(metrics[metrics["split"] == "valid"])


def make_label(folder: Path) -> str:
    """The folder's name, and what the run continued if its run.yaml names it."""
    name = folder.resolve().name
    try:
        options = yaml.safe_load((folder / RUN).read_text(encoding="utf-8"))["options"]
        base = Path(options["checkpoint_dir"]).name
        if options.get("model_config"):
            return f"{name} (from scratch)"
        if options["use_lora"]:
            return f"{name} (LoRA on {base})"
        return f"{name} (from {base})"
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return name  # run.yaml only adds to the legend


def make_curves(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(dataset): make_curve(group) for dataset, group in rows.groupby("dataset", sort=False)}


def make_curve(rows: pd.DataFrame) -> pd.DataFrame:
    """The finite losses by step; where a step comes twice (a run was resumed), the later line counts."""
    rows = rows.drop_duplicates("step", keep="last").sort_values("step")
    rows = rows[np.isfinite(rows["loss"].astype(float))]
    columns = {name: rows[axis.column] / axis.unit for name, axis in AXES.items()}
    curve = pd.DataFrame({**columns, "loss": rows["loss"], "targets": rows["targets"]}, dtype=float)
    return curve.reset_index(drop=True)


def find_best(folder: Path, valid: dict[str, pd.DataFrame], offline: dict[str, pd.DataFrame]) -> Best | None:
    """The checkpoint that every command takes when given the run folder; None if none was validated."""
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return None
    checkpoint = best_checkpoint(folder, checkpoints)
    step = step_of(checkpoint)
    for curves in (valid, offline):
        if ALL not in curves:
            continue
        for point in curves[ALL][curves[ALL]["batches"] == step].to_dict("records"):
            return Best(checkpoint, {axis: point[axis] for axis in AXES}, point["loss"])
    return None


def smooth(loss: Sequence[float], targets: Sequence[float], width: int) -> np.ndarray:
    """The mean loss per target over `width` points centred on each point, fewer at the two ends; float64 [points]."""
    sums = pd.DataFrame({"loss": np.multiply(loss, targets), "targets": targets})
    # pandas' window of an even width reaches one point further back than ahead; in reverse, as here, further ahead
    sums = sums[::-1].rolling(width, center=True, min_periods=1).sum()[::-1]
    return (sums["loss"] / sums["targets"]).to_numpy()
