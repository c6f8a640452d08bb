"""One optimiser step, one validation, and when to do what: the parts of the training loop in pretrain.py."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from utils.data import Batch, validation_batches
from utils.processes import rank, sum_over_processes
from utils.run_folder import ALL
from utils.shards import DatasetSplit


@dataclass(frozen=True)
class Schedule:
    """The learning rate: linear warm-up over `warmup_steps`, then `kind` down to `minimum` at `max_steps`."""

    kind: Literal["cosine", "linear", "constant"]
    peak: float
    minimum: float
    warmup_steps: int
    max_steps: int

    def learning_rate(self, step: int) -> float:
        """Of step number `step`, counting from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.peak
        done = min(1.0, (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps))
        left = (1 + math.cos(math.pi * done)) / 2 if self.kind == "cosine" else 1 - done
        return self.minimum + (self.peak - self.minimum) * left


def make_optimizer(model: nn.Module, weight_decay: float, betas: tuple[float, float]) -> Optimizer:
    """AdamW over what is trained; matrices decay, vectors (norms, biases) do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], betas=betas)


class StepResult(NamedTuple):
    """Of one optimiser step over all processes."""

    loss: float
    """Mean cross-entropy per target."""
    targets: int
    grad_norm: float
    """Before clipping."""
    skipped: bool
    """The loss or the gradient was not finite, and the weights were left as they are."""


def optimiser_step(
    fabric: Fabric,
    model: nn.Module,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    grad_clip: float,
    seeds: Sequence[int],
) -> StepResult:
    """One step over this process's micro-batches.

    The gradient is that of the summed loss divided by the number of targets of the whole step, over accumulation and
    processes. FSDP averages over processes, hence the factor `world_size`. `seeds` (one per micro-batch) decide
    dropout, so that a resumed step drops what the first one dropped.
    """
    [targets] = sum_over_processes([sum(batch.target_count for batch in batches)])
    assert targets > 0, "a step without targets"
    scale = fabric.world_size / targets
    loss_sum: Tensor = torch.zeros((), device=fabric.device)
    for index, batch in enumerate(batches):
        torch.manual_seed(seeds[index])
        batch = batch.to(fabric.device)
        with fabric.no_backward_sync(model, enabled=index + 1 < len(batches)):
            loss = model(batch.input_ids, segments=batch.segments, targets=batch.targets)
            fabric.backward(loss * scale)
        loss_sum += loss.detach()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norm = torch.nn.utils.clip_grad_norm_(trained, grad_clip or math.inf)
    grad_norm = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item()
    [total] = sum_over_processes([loss_sum.item()])
    skipped = not (math.isfinite(total) and math.isfinite(grad_norm))
    if not skipped:
        optimizer.step()
    optimizer.zero_grad()
    return StepResult(total / targets, int(targets), grad_norm, skipped)


class Loss(NamedTuple):
    """Mean cross-entropy per target and the number of targets."""

    mean: float
    targets: int


@torch.no_grad()
def validate(
    fabric: Fabric,
    model: nn.Module,
    data_dir: Path,
    entries: Iterable[DatasetSplit],
    window: int,
    micro_batch_size: int,
    max_rows: int | None,
    mask_documents: bool,
    cut_short: Callable[[], bool] = lambda: False,
) -> dict[str, Loss] | None:
    """The loss on each dataset's first `max_rows` rows (None: all), and over all datasets (`ALL`), by their targets.

    None if `cut_short`, which every process asks before each batch, says so; it must say the same on all.
    """
    entries = list(entries)
    model.eval()
    sums: list[float] = []
    for entry in entries:
        loss_sum, targets = torch.zeros((), device=fabric.device, dtype=torch.float64), 0
        for batch in validation_batches(
            data_dir, entry, window, fabric.global_rank, fabric.world_size, micro_batch_size, max_rows, mask_documents
        ):
            if cut_short():
                model.train()
                return None
            targets += batch.target_count
            batch = batch.to(fabric.device)
            loss_sum += model(batch.input_ids, segments=batch.segments, targets=batch.targets)
        sums += [loss_sum.item(), targets]
    model.train()
    sums = sum_over_processes(sums)
    losses = {
        entry.dataset: Loss(loss_sum / targets, int(targets))
        for entry, loss_sum, targets in zip(entries, sums[::2], sums[1::2], strict=True)
        if targets
    }
    total = sum(sums[1::2])
    return {**losses, ALL: Loss(sum(sums[::2]) / total, int(total))}


class Due(NamedTuple):
    """What is to be done after a step; the same on every process."""

    validate: bool
    save: bool
    interrupted: bool
    failed: bool


class Agenda:
    """When to validate and save. Process 0 decides, by its clock or by the step, and all others follow.

    `unit` says what the intervals count.
    """

    def __init__(self, unit: Literal["time", "steps"], eval_interval: int | None, save_interval: int) -> None:
        self._unit = unit
        self._intervals = (eval_interval, save_interval)
        self._last = [time.monotonic()] * 2

    def due(self, step: int, interrupted: bool, failed: bool) -> Due:
        """After the step that made `step` steps complete; what one process has heard or met holds for all."""
        own = [self._is_due(index, step) if rank() == 0 else False for index in (0, 1)]
        flags = sum_over_processes([float(flag) for flag in (*own, interrupted, failed)])
        return Due(*(flag > 0 for flag in flags))

    def done(self, due: Due) -> None:
        """Begins the intervals of what was due anew, now that it is done: it may itself take longer than one."""
        for index, was_due in enumerate((due.validate, due.save)):
            if was_due:
                self._last[index] = time.monotonic()

    def _is_due(self, index: int, step: int) -> bool:
        interval = self._intervals[index]
        if interval is None:
            return False
        if self._unit == "steps":
            return step % interval == 0
        return time.monotonic() - self._last[index] >= interval
