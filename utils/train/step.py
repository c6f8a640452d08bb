"""One optimiser step: forward and backward over the micro-batches, the clipping of the gradient, the update."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from utils.cluster.launch import data_parallel_part
from utils.data.batches import StepData, moved
from utils.train.optimizer import MasterAdamW
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
    """Makes one step over this process's micro-batches, and never waits for the device.

    The gradient is that of the summed loss divided by the number of targets of the whole step, over accumulation and
    processes. If it is not finite, the optimiser leaves the weights and its state as they are: that is decided on the
    device, and so on every process alike. `grad_clip` is the gradient's largest norm, 0 for no clipping. `seeds`, one
    per micro-batch, decide dropout: a resumed step drops what the first one dropped.
    """
    assert data.targets > 0, "a step without targets"
    fused: Any = getattr(optimizer, "optimizer", optimizer)  # Fabric's wrapper has torch's own inside
    if isinstance(fused, MasterAdamW):
        fused.add_up_in_fp32()
    parts = data_parallel_part(fabric)[1]
    scale = parts / data.targets  # FSDP averages over the parts of the samples
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
