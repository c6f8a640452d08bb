"""Results of steps between two looks at them, so that the host may run ahead of the device."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from utils.cluster.collectives import sum_over_processes
from utils.data.batches import StepData
from utils.train.step import StepResult


class StepRecord(NamedTuple):
    """A step whose result was read, over all processes."""

    columns: dict[str, Any]
    """What was known of it at once, see `StepHistory.add`."""
    loss: float
    """Mean cross-entropy per target."""
    targets: int
    grad_norm: float
    """Before clipping."""
    skipped: bool
    """The gradient was not finite, and the weights were left as they are."""


class Loss(NamedTuple):
    """Mean cross-entropy per target and the number of targets."""

    mean: float
    targets: int


class StepHistory:
    """Results of steps that nobody has read yet, of a mixture of so many `datasets`."""

    def __init__(self, datasets: int) -> None:
        self._results: list[tuple[StepResult, StepData, dict[str, Any]]] = []
        self._dataset_sums = np.zeros((2, datasets))  # of the losses, and of the targets

    def add(self, result: StepResult, data: StepData, columns: dict[str, Any]) -> None:
        """Keeps a step's result; `columns` come back with it."""
        self._results.append((result, data, columns))

    def read(self) -> list[StepRecord]:
        """The steps since the last call, in order; waits for the device and for all processes."""
        results, self._results = self._results, []
        steps = len(results)
        losses = torch.stack([result.loss for result, *_ in results])
        norms = torch.stack([result.grad_norm for result, *_ in results]).double()
        datasets = torch.stack([result.dataset_losses for result, *_ in results])
        datasets = torch.where(norms.isfinite().unsqueeze(1), datasets, 0).sum(0)  # a skipped step's would hide others
        # one copy from the device, then one sum over the processes
        values = torch.cat([norms, losses, datasets]).tolist()
        norms, sums = values[:steps], sum_over_processes(values[steps:])
        targets = np.zeros_like(self._dataset_sums[1])
        for norm, (_, data, _) in zip(norms, results, strict=True):
            if math.isfinite(norm):
                targets += data.dataset_targets
        self._dataset_sums += np.array([sums[steps:], targets])
        return [
            StepRecord(columns, loss / data.targets, data.targets, norm, not math.isfinite(norm))
            for loss, norm, (_, data, columns) in zip(sums[:steps], norms, results, strict=True)
        ]

    def take_dataset_losses(self) -> list[Loss]:
        """The loss on each dataset over the steps read since the last call; NaN where it had no target."""
        taken, self._dataset_sums = self._dataset_sums, np.zeros_like(self._dataset_sums)
        losses = []
        for loss_sum, targets in zip(*taken, strict=True):
            mean = loss_sum / targets if targets else math.nan
            losses.append(Loss(mean, int(targets)))
        return losses
