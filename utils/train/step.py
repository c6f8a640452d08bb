"""One optimiser step, and the results of steps until somebody looks at them: the host may run ahead of the device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from utils.cluster.collectives import any_process, sum_over_processes
from utils.cluster.launch import data_parallel_part
from utils.data.batches import StepData, moved
from utils.train.masters import MasterOptimizer
from utils.train.optimizer import trained_of
from utils.train.profiler import StepTimer


class StepResult(NamedTuple):
    """What an optimiser step gave, on the device: reading it waits for the step's end."""

    loss: Tensor
    """float64 scalar: the sum of this process's cross-entropies."""
    dataset_losses: Tensor
    """float64 [datasets]: the same by dataset."""
    grad_norm: Tensor
    """fp32 scalar: over all processes, before clipping."""


def optimiser_step(
    fabric: Fabric,
    model: nn.Module,
    optimizer: Optimizer,
    data: StepData,
    grad_clip: float,
    seeds: Sequence[int],
    timer: StepTimer,
) -> StepResult:
    """Makes one step over this process's micro-batches; with AdamW it never waits for the device.

    The gradient is that of the summed loss divided by the number of targets of the whole step, over accumulation and
    processes. If it is not finite, or the step has no target, the optimiser leaves the weights and its state as they
    are: that is decided on the device, and so on every process alike. `grad_clip` is the gradient's largest norm, 0 for
    no clipping. `seeds`, one per micro-batch, decide dropout: a resumed step drops what the first one dropped.
    """
    fused: Any = getattr(optimizer, "optimizer", optimizer)  # Fabric's wrapper has torch's own inside
    if isinstance(fused, MasterOptimizer):
        fused.add_up_in_fp32()
    parts = data_parallel_part(fabric)[1]
    scale = parts / max(1, data.targets)  # FSDP averages over the parts of the samples
    loss_sum = torch.zeros((), dtype=torch.float64, device=fabric.device)
    dataset_losses = torch.zeros(len(data.dataset_targets), dtype=torch.float64, device=fabric.device)
    for index, (batch, datasets) in enumerate(zip(data.batches, data.datasets, strict=True)):
        torch.manual_seed(seeds[index])
        batch = batch.to(fabric.device)
        with fabric.no_backward_sync(model, enabled=index + 1 < len(data.batches)):
            with timer.phase("forward"):
                losses = model(batch.input_ids, segments=batch.segments, targets=batch.targets)
            with timer.phase("backward"):
                fabric.backward(losses.sum * scale)
        loss_sum += losses.sum.detach()
        dataset_losses.index_add_(0, moved(datasets, fabric.device), losses.rows.double())
    with timer.phase("communication"):
        norm = clip_gradients(trained_of(model.parameters()), grad_clip or math.inf)
    with timer.phase("optimiser"):
        fused.found_inf = torch.ones_like(norm) if data.targets == 0 else (~norm.isfinite()).float()
        optimizer.step()
        optimizer.zero_grad()
    return StepResult(loss_sum, dataset_losses, norm)


def clip_gradients(parameters: Sequence[Tensor], largest: float) -> Tensor:
    """Scales the gradients down to a joint norm of `largest`; returns what it was, over all processes, in fp32.

    torch's `clip_grad_norm_` rounds the norm of bf16 gradients to bf16, and all of them with it.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@torch.no_grad()
def all_finite(parameters: Iterable[Tensor]) -> bool:
    """Whether no parameter holds a NaN or an infinity, on any process: all agree. Waits for the device."""
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in parameters]
    # a largest value takes no memory and cannot overflow; a process's part of a tensor may be empty
    largest = [torch.linalg.vector_norm(tensor, math.inf).float() for tensor in local if tensor.numel()]
    is_finite = not largest or bool(torch.stack(largest).isfinite().all())
    return not any_process(not is_finite)


class StepRecord(NamedTuple):
    """A step whose result was read, over all processes."""

    columns: dict[str, Any]
    """What was known of it at once, see `StepHistory.add`."""
    loss: float
    """Mean cross-entropy per target; NaN where there is none."""
    targets: int
    grad_norm: float
    """Before clipping."""
    skipped: bool
    """The gradient was not finite, and the weights were left as they are."""


class Loss(NamedTuple):
    """Mean cross-entropy per target, NaN where there is none, and the number of targets."""

    mean: float
    targets: int

    @classmethod
    def of(cls, loss_sum: float, targets: float) -> Loss:
        return cls(loss_sum / targets if targets else math.nan, round(targets))

    @property
    def columns(self) -> dict[str, Any]:
        """Those of `LOSS_COLUMNS` but for the dataset's."""
        return {"loss": self.mean, "targets": self.targets}


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
            StepRecord(columns, *Loss.of(loss, data.targets), norm, not math.isfinite(norm))
            for loss, norm, (_, data, columns) in zip(sums[:steps], norms, results, strict=True)
        ]

    def take_dataset_losses(self) -> list[Loss]:
        """The loss on each dataset over the steps read since the last call; NaN where it had no target."""
        taken, self._dataset_sums = self._dataset_sums, np.zeros_like(self._dataset_sums)
        losses = []
        for loss_sum, targets in zip(*taken, strict=True):
            losses.append(Loss.of(loss_sum, targets))
        return losses
