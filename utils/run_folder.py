"""A run's folder: what was run, with what, how it went, and which of its checkpoints a path stands for.

`run.yaml` is all that is needed to repeat the run; `metrics.csv` grows by a line per step and per validated dataset
and is whole at any moment but for its last line; `training_log.out` is for a person.
"""

from __future__ import annotations

import csv
import io
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.command import DataError, UserError
from utils.shards import write_atomically

RUN, METRICS, LOG, VALIDATION = "run.yaml", "metrics.csv", "training_log.out", "validation.csv"
ALL = "all"
"""The dataset name of a validation over all datasets, weighted by their targets."""

PLACE_COLUMNS = ("step", "samples", "tokens", "seconds", "device_seconds")
LOSS_COLUMNS = ("dataset", "loss", "targets")
METER_COLUMNS = ("tokens_per_second", "mfu", "memory_gib", "data_seconds", "forward_seconds", "backward_seconds")
METER_COLUMNS += ("communication_seconds", "optimiser_seconds")
"""What utils/metrics.py measures; seconds are those of one step."""
METRIC_COLUMNS = (*PLACE_COLUMNS, "split", *LOSS_COLUMNS, "learning_rate", "grad_norm", *METER_COLUMNS)
"""Of training a line per step, without a dataset, and at each look at the losses one per dataset since the last."""
VALIDATION_COLUMNS = ("checkpoint", *PLACE_COLUMNS, *LOSS_COLUMNS, "max_samples", "precision", "data")

PACKAGES = ("torch", "lightning", "litgpt", "numpy", "safetensors", "sentencepiece", "tokenizers")


@dataclass(frozen=True)
class RunRecord:
    """run.yaml. `identity` is what a resumed run must share with its beginning; the rest may change between starts."""

    identity: dict[str, Any]
    """Model, adapter, data, mixture, seed and samples per step, as plain values."""
    options: dict[str, Any]
    """The resolved options of the newest start."""
    schedule: dict[str, Any]
    """Steps, samples and tokens the run plans."""
    versions: dict[str, str]
    commit: str | None
    history: list[dict[str, Any]]
    """One entry per start: when, where, on how many processes, from which step."""
    normalised: dict[str, str] = field(default_factory=dict)
    """Datasets whose conversations have the one form that utils/text.py gives them, and in which language."""

    def save(self, run_dir: Path) -> None:
        text = yaml.safe_dump(vars(self), sort_keys=False, allow_unicode=True, width=120)
        write_atomically(run_dir / RUN, text)

    @classmethod
    def load(cls, folder: Path) -> RunRecord:
        """Reads the run.yaml of a run folder or of a checkpoint.

        Raises:
            UserError: if there is none.
            DataError: if it is not one.
        """
        path = folder / RUN
        if not path.is_file():
            raise UserError(f"{path} is missing: not a run's folder or checkpoint")
        try:
            return cls(**yaml.safe_load(path.read_text(encoding="utf-8")))
        except (yaml.YAMLError, TypeError, UnicodeDecodeError) as e:
            raise DataError(f"{path} is no run.yaml of this program ({e})") from None

    def check_same_run(self, identity: dict[str, Any], out_dir: Path) -> None:
        """Raises unless `identity` is this run's: a DataError for another model, a UserError for other data or seed."""
        differing = [key for key in identity if identity[key] != self.identity.get(key)]
        if "model" in differing or "lora" in differing:
            raise DataError(f"{out_dir} holds the run of another model; give another --out_dir")
        if differing:
            changes = "; ".join(
                f"{key} was {_short(self.identity.get(key))}, now {_short(identity[key])}" for key in differing
            )
            raise UserError(
                f"{out_dir} holds another run ({changes}); give another --out_dir, or the options it began with"
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def software_versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def source_commit() -> str | None:
    """The commit of this program's checkout, with `+` when files differ from it; None outside of git."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return commit and commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


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


class RunLog:
    """Lines for a person, on stdout and in training_log.out; progress in place on a terminal, plain lines elsewhere.

    Where TRAINING_LOG names the file, whoever started this program (slurm/env.sh) writes all it prints there.
    """

    # In a batch log one progress line in 30 s is readable over days; a terminal is redrawn twice a second.
    _BATCH_SECONDS, _TERMINAL_SECONDS = 30.0, 0.5

    def __init__(self, path: Path | None) -> None:
        """Without a `path` (every process but one) nothing is written."""
        printed_there = path is not None and os.environ.get("TRAINING_LOG") == str(path.resolve())
        self._silent = path is None
        self._file = path.open("a", encoding="utf-8") if path and not printed_there else None
        self._terminal = sys.stdout.isatty()
        self._shown = self._filed = -1e9

    def line(self, text: str) -> None:
        if self._silent:
            return
        stamped = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
        if self._file is None:
            print(stamped, flush=True)
        else:
            print(("\r\033[K" if self._terminal else "") + text, flush=True)
            print(stamped, file=self._file, flush=True)

    def progress(self, text: str) -> None:
        """A line that the next one replaces."""
        now = time.monotonic()
        if self._silent:
            return
        if now - self._filed >= self._BATCH_SECONDS:
            self._filed = now
            if not self._terminal or self._file is None:
                self.line(text)
                return
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=self._file, flush=True)
        if self._terminal and now - self._shown >= self._TERMINAL_SECONDS:
            self._shown = now
            print(f"\r\033[K{text}", end="", flush=True)
