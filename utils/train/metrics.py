"""What is measured of a training: how fast it runs and what it takes, as lines of metrics.csv and curves of --logger.

A new column is named in `METER_COLUMNS` and measured in `Meter.read`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_gpt.model.flops import peak_flops
from utils.data.batches import StepData
from utils.run.csv_log import ALL, ENDING_COLUMNS, LOSS_COLUMNS, PROGRESS_COLUMNS, CsvLog, read_csv
from utils.run.progress import TrainingProgress
from utils.run.samples_file import SamplesFile
from utils.train.loggers import ScalarLogger
from utils.train.profiler import PHASES, StepTimer
from utils.train.step import Loss, StepRecord
from utils.train.validation import Validation

# phases in seconds per step
METER_COLUMNS = ("tokens_per_second", "mfu", "memory_gib", *(f"{phase}_seconds" for phase in PHASES))

METRIC_COLUMNS = (
    *(*PROGRESS_COLUMNS, "split", *LOSS_COLUMNS, "learning_rate", "grad_norm"),
    *(*METER_COLUMNS, *ENDING_COLUMNS),
)
"""The columns of metrics.csv.

It has a line per step, without a dataset; now and then a line per dataset that was trained on since the last ones;
and a line per dataset of each validation."""


class Meter:
    """Target tokens per second over all processes, the MFU, memory, and the seconds of a step's phases.

    The MFU is tokens per second × operations per token / (devices × peak): the part of what the devices can do at most
    that the model itself needs, see lit_gpt/model/flops.py. It needs the questions of chats, which are no targets, too.
    A device makes at most `peak` operations per second; None where that is unknown: there is then no MFU.
    `flops_per_token` tells the training operations per token by the lengths of the documents.
    """

    def __init__(
        self, device: torch.device, devices: int, peak: float | None, flops_per_token: Callable[[np.ndarray], float]
    ) -> None:
        self.timer = StepTimer(device)
        self._device, self._devices, self._peak = device, devices, peak
        self._flops_per_token = flops_per_token
        self._flops: float | None = None
        self._steps = self._targets = self._tokens = 0
        self._seconds = 0.0

    def add(self, data: StepData, seconds: float) -> None:
        """Counts a step that took the host `seconds`."""
        if self._flops is None and self._peak:
            self._flops = self._flops_per_token(_lengths(data))  # of one step: documents vary little between them
        self._steps += 1
        self._targets += data.targets
        self._tokens += data.tokens
        self._seconds += seconds

    def read(self, waited: float) -> dict[str, Any]:
        """The `METER_COLUMNS` of the steps since the last call, for whose end the host `waited` seconds more."""
        seconds = self._seconds + waited
        speed = self._targets / seconds
        columns: dict[str, Any] = {"tokens_per_second": f"{speed:.0f}", "memory_gib": f"{self._memory() / 2**30:.3f}"}
        if self._flops is not None and self._peak:
            columns["mfu"] = f"{self._tokens / seconds * self._flops / (self._devices * self._peak):.4f}"
        for phase, seconds in self.timer.totals().items():
            columns[f"{phase}_seconds"] = f"{seconds / self._steps:.4f}"
        self._steps = self._targets = self._tokens = 0
        self._seconds = 0.0
        return columns

    def _memory(self) -> int:
        """The most bytes so far: allocated on a GPU, resident elsewhere."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        # not getrusage's, which a process inherits from the one that started it
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        return 1024 * int(found[1]) if found else 0


def device_peak(peak_tflops: float | None, precision: str) -> float | None:
    """Operations per second of one device: --peak_tflops, else by the GPU's data sheet; None if neither says."""
    if peak_tflops:
        return peak_tflops * 1e12
    if torch.cuda.is_available():
        return peak_flops(torch.cuda.get_device_name(), precision)
    return None


def _lengths(data: StepData) -> np.ndarray:
    """Positions of each of a step's documents."""
    lengths = []
    for batch in data.batches:
        if batch.segments is None:
            rows, positions = batch.input_ids.shape
            lengths.append(np.full(rows, positions))
        else:
            lengths.append(np.diff(batch.segments))
    return np.concatenate(lengths)


def progress_columns(progress: TrainingProgress) -> dict[str, Any]:
    return {
        "step": progress.step,
        "samples": progress.samples,
        "tokens": progress.tokens,
        "seconds": f"{progress.seconds:.3f}",
        "device_seconds": f"{progress.device_seconds:.3f}",
    }


@dataclass(frozen=True)
class Metrics:
    """Writes what is measured to `file` (metrics.csv) and to the `curves` of --logger; for one process only."""

    file: CsvLog
    curves: ScalarLogger | None
    samples: SamplesFile | None = None
    """samples.jsonl, where there are --sample_prompts."""

    def show_earlier(self, path: Path) -> None:
        """Passes on what metrics.csv (`path`) holds of earlier starts, to curves that do not know it."""
        if self.curves is None or not self.curves.begins_anew:
            return
        for row in read_csv(path):
            names = {"loss": row["dataset"]}
            if row["dataset"] == ALL:
                names |= {name: name for name in ENDING_COLUMNS}
            if not row["dataset"]:
                names = {name: name for name in ("loss", "learning_rate", "grad_norm", *METER_COLUMNS)}
            scalars = {
                f"{row['split']}/{name}": float(row[column])
                for column, name in names.items()
                if row[column] and (column != "loss" or int(row["targets"]))
            }
            self.curves.log(int(row["step"]), scalars, always=True)

    def write_steps(self, records: Sequence[StepRecord], columns: Mapping[str, Any]) -> None:
        """Writes a line per step, the last one with the `columns` that were measured since the last look."""
        rows = []
        for record in records:
            found = {"loss": record.loss, "targets": record.targets, "grad_norm": record.grad_norm}
            rows.append(record.columns | {"split": "train"} | found)
        rows[-1] |= columns
        self.file.write(rows)
        if self.curves:
            measured = ("loss",) if records[-1].targets else ()
            names = (*measured, "learning_rate", "grad_norm", *columns)
            self.curves.log(rows[-1]["step"], {f"train/{name}": float(rows[-1][name]) for name in names})

    def write_losses(
        self,
        progress: TrainingProgress,
        split: str,
        losses: Mapping[str, Loss | Validation],
        of_all: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes a line with what was measured on each dataset, with the columns `of_all` in that of all datasets."""
        where = progress_columns(progress) | {"split": split}
        rows = {name: loss.columns for name, loss in losses.items()}
        if ALL in rows:
            rows[ALL] |= of_all or {}
        self.file.write(where | {"dataset": name} | row for name, row in rows.items())
        if self.curves:
            scalars = {f"{split}/{name}": loss.mean for name, loss in losses.items() if loss.targets}
            further = {name: rows.get(ALL, {}).get(name) for name in ENDING_COLUMNS}
            scalars |= {f"{split}/{name}": value for name, value in further.items() if value is not None}
            self.curves.log(progress.step, scalars, always=True)

    def sync(self) -> None:
        """Waits until what is in the run folder is on the disk."""
        self.file.sync()
        if self.samples:
            self.samples.sync()

    def close(self) -> None:
        """Waits until the curves are written."""
        if self.samples:
            self.samples.close()
        if self.curves:
            self.curves.close()
