"""How fast a training goes and what it takes, between two looks at it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_gpt.model.flops import peak_flops
from utils.data.batches import StepData
from utils.train.profiler import StepTimer


class Meter:
    """Target tokens per second over all processes, the MFU, memory, and the seconds of a step's phases.

    The MFU is target tokens per second × operations per token / (devices × peak): the part of what the devices can do
    at most that the model itself needs, see lit_gpt/model/flops.py.

    Args:
        device: of this process.
        devices: of all.
        peak: operations per second of one device at most; None where unknown, and there is no MFU.
        flops_per_token: training operations per token, by the lengths of the documents.
    """

    def __init__(
        self, device: torch.device, devices: int, peak: float | None, flops_per_token: Callable[[np.ndarray], float]
    ) -> None:
        self.timer = StepTimer(device)
        self._device, self._devices, self._peak = device, devices, peak
        self._flops_per_token = flops_per_token
        self._flops: float | None = None
        self._steps = self._targets = 0
        self._seconds = 0.0

    def add(self, data: StepData, seconds: float) -> None:
        """Counts a step that took the host `seconds`."""
        if self._flops is None and self._peak:
            self._flops = self._flops_per_token(_lengths(data))  # of one step: documents vary little between them
        self._steps += 1
        self._targets += data.targets
        self._seconds += seconds

    def read(self, waited: float) -> dict[str, Any]:
        """The `METER_COLUMNS` (metrics.py) of the steps since the last call.

        Args:
            waited: seconds that the host then waited for the device to end the last of them.
        """
        speed = self._targets / (self._seconds + waited)
        columns: dict[str, Any] = {"tokens_per_second": f"{speed:.0f}", "memory_gib": f"{self._memory() / 2**30:.3f}"}
        if self._flops is not None and self._peak:
            columns["mfu"] = f"{speed * self._flops / (self._devices * self._peak):.4f}"
        for phase, seconds in self.timer.totals().items():
            columns[f"{phase}_seconds"] = f"{seconds / self._steps:.4f}"
        self._steps = self._targets = 0
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
    """Operations per second of one device at most; None where it is neither given nor known.

    Args:
        peak_tflops: as --peak_tflops gives it, in 10^12 operations per second; None for the GPU's data sheet.
        precision: of weights and arithmetic.
    """
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
