"""One optimiser step, one validation, and when to do what: the parts of the training loop in pretrain.py."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from torch.optim.adamw import adamw

from utils.cluster.collectives import rank, sum_over_processes
from utils.cluster.launch import data_place
from utils.data.batches import StepData, moved, validation_batches
from utils.data.manifest import DatasetSplit
from utils.run.csv_log import ALL
from utils.train.profiler import StepTimer


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


class MasterAdamW(Optimizer):
    """AdamW that keeps an fp32 copy of each weight and its moments in fp32, for weights in bf16.

    A bf16 weight has eight bits: an update below 0.2 % of it is rounded away, and late in a training most are. The
    copy takes what the weight cannot; the weight is the copy, rounded. Costs 12 bytes per trained parameter instead of
    the 4 of moments in bf16. Micro-batches' gradients are added up in fp32 too.
    """

    def __init__(self, params: Iterable[Any], betas: tuple[float, float], lr: float = 1e-3, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    def add_up_in_fp32(self) -> None:
        """From now on gradients of several micro-batches are added up in fp32.

        Not from the start: to read a checkpoint torch first makes gradients of the weights' own type.
        """
        for weight in (weight for group in self.param_groups for weight in group["params"]):
            if not isinstance(weight, DTensor):  # FSDP2 does it by itself
                weight.grad_dtype = torch.float32

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """`closure` is what torch.distributed.checkpoint gives every optimiser: None."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            states = [self._state_of(weight) for weight in weights]
            kept = ("master", "exp_avg", "exp_avg_sq", "step")
            masters, averages, squares, steps = ([state[name] for state in states] for name in kept)
            adamw(
                masters,
                [weight.grad.to(master.dtype) for weight, master in zip(weights, masters, strict=True)],
                averages,
                squares,
                [],
                steps,
                fused=True,
                found_inf=getattr(self, "found_inf", None),
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            for weight, master in zip(weights, masters, strict=True):
                weight.copy_(master)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would round everything to the weights' bf16."""
        super().load_state_dict(state_dict)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for weight, number in zip(weights, numbers, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                self.state[weight][name] = value.to(weight.device)

    def _state_of(self, weight: Tensor) -> dict[str, Tensor]:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["master"] = weight.detach().float().clone()
            state["exp_avg"] = torch.zeros_like(state["master"])
            state["exp_avg_sq"] = torch.zeros_like(state["master"])
        return state


def make_optimizer(
    model: nn.Module, weight_decay: float, betas: tuple[float, float], master_weights: bool = False
) -> Optimizer:
    """AdamW over what is trained, fused; matrices decay, vectors (norms, biases) do not.

    Args:
        model: its parameters that require a gradient are trained.
        weight_decay: of the matrices.
        betas: decay of the first and the second moment.
        master_weights: keep fp32 copies of the weights, see `MasterAdamW`.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return MasterAdamW(groups, betas) if master_weights else AdamW(groups, betas=betas, fused=True)


class StepResult(NamedTuple):
    """Of one optimiser step. Everything is on the device: reading it there waits for the step's end.

    loss: float64, this process's part of the step's cross-entropies, summed.
    dataset_losses: float64 [datasets], the same by dataset.
    grad_norm: over all processes, before clipping.
    """

    loss: Tensor
    dataset_losses: Tensor
    grad_norm: Tensor


def optimiser_step(
    fabric: Fabric,
    model: nn.Module,
    optimizer: Optimizer,
    data: StepData,
    grad_clip: float,
    seeds: Sequence[int],
    timer: StepTimer,
) -> StepResult:
    """One step over this process's micro-batches, which never waits for the device.

    The gradient is that of the summed loss divided by the number of targets of the whole step, over accumulation and
    processes. FSDP averages over the parts of the samples, hence that factor. `seeds` (one per micro-batch) decide
    dropout, so that a resumed step drops what the first one dropped. If the gradient is not finite the optimiser
    leaves the weights and its state as they are, on the device and so on every process alike.
    """
    assert data.targets > 0, "a step without targets"
    fused: Any = getattr(optimizer, "optimizer", optimizer)
    if isinstance(fused, MasterAdamW):
        fused.add_up_in_fp32()
    scale = data_place(fabric)[1] / data.targets
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
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        norm = clip_gradients(trained, grad_clip or math.inf)
    with timer.phase("optimiser"):
        fused.found_inf = (~norm.isfinite()).float()
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


class StepRecord(NamedTuple):
    """A step whose result was read: over all processes."""

    columns: dict[str, Any]
    """What was known of it at once."""
    loss: float
    """Mean cross-entropy per target."""
    targets: int
    grad_norm: float
    skipped: bool
    """The gradient was not finite, and the weights were left as they are."""


class Loss(NamedTuple):
    """Mean cross-entropy per target and the number of targets."""

    mean: float
    targets: int


class StepHistory:
    """Results of steps that nobody has read yet, so that the host may run ahead of the device."""

    def __init__(self, datasets: int) -> None:
        self._results: list[tuple[StepResult, StepData, dict[str, Any]]] = []
        self._dataset_sums = np.zeros((2, datasets))

    def add(self, result: StepResult, data: StepData, columns: dict[str, Any]) -> None:
        """Keeps a step's result; `columns` come back with it."""
        self._results.append((result, data, columns))

    def read(self) -> list[StepRecord]:
        """The steps since the last call, in order; waits for the device and for all processes."""
        results, self._results = self._results, []
        losses = torch.stack([result.loss for result, *_ in results])
        norms = torch.stack([result.grad_norm for result, *_ in results]).double()
        datasets = torch.stack([result.dataset_losses for result, *_ in results])
        datasets = torch.where(norms.isfinite().unsqueeze(1), datasets, 0).sum(0)  # a skipped step's would hide others
        values = torch.cat([norms, losses, datasets]).tolist()
        steps = len(results)
        norms, sums = values[:steps], sum_over_processes(values[steps:])
        made = [data.dataset_targets for norm, (_, data, _) in zip(norms, results, strict=True) if math.isfinite(norm)]
        self._dataset_sums += np.array([sums[steps:], sum(made, np.zeros_like(sums[steps:]))])
        return [
            StepRecord(columns, loss / data.targets, data.targets, norm, not math.isfinite(norm))
            for loss, norm, (_, data, columns) in zip(sums[:steps], norms, results, strict=True)
        ]

    def take_dataset_losses(self) -> list[Loss]:
        """The loss on each dataset over the steps read since the last call; NaN where it had no target."""
        (losses, targets), self._dataset_sums = self._dataset_sums, np.zeros_like(self._dataset_sums)
        return [
            Loss(loss / count if count else math.nan, int(count)) for loss, count in zip(losses, targets, strict=True)
        ]


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
    part, parts = data_place(fabric)
    sums: list[float] = []
    for entry in entries:
        loss_sum, targets = torch.zeros((), device=fabric.device, dtype=torch.float64), 0
        for batch in validation_batches(
            data_dir, entry, window, part, parts, micro_batch_size, max_rows, mask_documents
        ):
            if cut_short():
                model.train()
                return None
            targets += batch.target_count
            batch = batch.to(fabric.device)
            loss_sum += model(batch.input_ids, segments=batch.segments, targets=batch.targets).sum
        sums += [loss_sum.item(), targets * parts / fabric.world_size]  # processes that share a model count the same
    model.train()
    sums = sum_over_processes(sums)
    losses = {
        entry.dataset: Loss(loss_sum / targets, round(targets))
        for entry, loss_sum, targets in zip(entries, sums[::2], sums[1::2], strict=True)
        if targets
    }
    total = sum(loss.targets for loss in losses.values())
    return {**losses, ALL: Loss(sum(sums[::2]) / total, total)}


class Due(NamedTuple):
    """What is to be done after a step; the same on every process."""

    log: bool
    validate: bool
    save: bool
    interrupted: bool
    failed: bool


class Agenda:
    """When to log, validate and save. Process 0 decides, by its clock or by the step, and all others follow.

    `unit` says what the intervals of validation and saving count; logs are due every `log_interval` steps, and after
    `LOG_SECONDS` in any case.
    """

    LOG_SECONDS = 10.0

    def __init__(
        self, unit: Literal["time", "steps"], eval_interval: int | None, save_interval: int, log_interval: int = 1
    ) -> None:
        self._unit = unit
        self._intervals = (eval_interval, save_interval)
        self._log_interval = log_interval
        self._last = [time.monotonic()] * 3

    def due(self, step: int, interrupted: bool, failed: bool) -> Due:
        """After the step that made `step` steps complete; what one process has heard or met holds for all."""
        own = [False] * 3
        if rank() == 0:
            own = [self._is_log_due(step), *(self._is_due(index, step) for index in (0, 1))]
        flags = sum_over_processes([float(flag) for flag in (*own, interrupted, failed)])
        return Due(*(flag > 0 for flag in flags))

    def done(self, due: Due) -> None:
        """Begins the intervals of what was due anew, now that it is done: it may itself take longer than one."""
        for index, was_due in enumerate((due.validate, due.save, due.log)):
            if was_due:
                self._last[index] = time.monotonic()

    def _is_log_due(self, step: int) -> bool:
        return step % self._log_interval == 0 or time.monotonic() - self._last[2] >= self.LOG_SECONDS

    def _is_due(self, index: int, step: int) -> bool:
        interval = self._intervals[index]
        if interval is None:
            return False
        if self._unit == "steps":
            return step % interval == 0
        return time.monotonic() - self._last[index] >= interval
