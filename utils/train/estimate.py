"""What a run will need, worked out on a machine that need not hold it: memory, time and disk.

1. `count_tensors` builds the real model on the meta device and adds up its tensors.
2. `trace_step` makes a real step with a model of two blocks on fake tensors.
3. `estimate` turns both into the bytes of the whole model, on as many processes as there are, at the moments at which a
   step can need most.

The accelerator's context, communication buffers and fragmentation are not counted: `RESERVE` is left for them.
Neither is what torch.compile saves, which keeps at most as much.
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from lit_gpt.model.flops import flops_per_token
from utils.train import step_trace
from utils.train.step_trace import StepTrace
from utils.train.workload import TensorCount, Workload, count_tensors

RESERVE = 0.1
"""The share of a GPU's memory that is left to the context (0.5 GiB), NCCL and what the allocator cannot use again."""

GIB = 1 << 30
_REDUCED = 4
"""Bytes of a gradient's element on its way between processes."""


@dataclass(frozen=True)
class Estimate:
    """What a run needs. Memory is of one process, in bytes."""

    workload: Workload
    parameters: int
    trained: int
    moments: dict[str, dict[str, int]]
    """When a step can need most → what is then in memory: `loss`, the end of the forward pass; `backward`, its highest
    point; `update`, by the optimiser."""
    checkpoint: int
    """Bytes on the disk, over all processes."""

    @property
    def memory(self) -> int:
        """The most that a process has in memory at once."""
        return max(sum(parts.values()) for parts in self.moments.values())

    @cached_property
    def flops_per_position(self) -> float:
        work = self.workload
        return flops_per_token(work.config, work.lora, work.context, work.window_context)

    @property
    def positions_per_step(self) -> int:
        return self.workload.samples_per_step * self.workload.block_size

    @property
    def targets_per_step(self) -> float:
        return self.workload.samples_per_step * self.workload.targets_per_row

    @property
    def steps_per_pass(self) -> float:
        return self.workload.rows / self.workload.samples_per_step

    def fits(self, gpu_memory: float) -> bool:
        """Whether a GPU of that many GiB holds a process's part."""
        return self.memory <= gpu_memory * (1 - RESERVE) * GIB

    def hours(self, peak_flops: float, mfu: float) -> float:
        """Hours of all of the run's steps, at the share `mfu` of a GPU's `peak_flops` per second."""
        flops = self.workload.steps * self.positions_per_step * self.flops_per_position
        return flops / (self.workload.processes * peak_flops * mfu * 3600)


def estimate(workload: Workload) -> Estimate:
    """What the run needs; nothing is allocated for it."""
    tensors = count_tensors(workload)
    return Estimate(
        workload=workload,
        parameters=tensors.parameters,
        trained=tensors.trained,
        moments=_moments(workload, tensors),
        checkpoint=tensors.trained_bytes + tensors.optimiser,
    )


def _moments(workload: Workload, tensors: TensorCount) -> dict[str, dict[str, int]]:
    """Bytes in memory by part, at each moment at which a step can need most."""
    # traced steps of two or more processes are alike
    step = step_trace.trace_step(dataclasses.replace(workload, processes=min(workload.processes, 2)))
    always = {
        "weights": (tensors.sharded + tensors.quantised) // workload.processes + tensors.tables,
        "optimiser": tensors.optimiser // workload.processes,
    }
    buffers = 2 * tensors.quantised_block if workload.processes > 1 else 0  # lit_gpt/model/shared_base.py
    heights = _sharded_heights(workload, tensors, step) if workload.processes > 1 else _heights(workload, tensors, step)
    moments = {}
    for moment, height in heights.items():
        activations = min(height.activations, height.total - height.gradients)
        moments[moment] = always | {
            "gathered weights": height.gathered + buffers,
            "gradients": height.gradients,
            "activations": activations,
            "temporary": height.total - height.gradients - activations,
        }
    return moments


class _Height(NamedTuple):
    """Bytes beside a process's own weights and optimiser; `total` is without what is `gathered`."""

    gathered: int
    gradients: int
    activations: int
    total: int


def _higher(*heights: _Height) -> _Height:
    return max(heights, key=lambda height: height.gathered + height.total)


def _heights(workload: Workload, tensors: TensorCount, step: StepTrace) -> dict[str, _Height]:
    """The heights on one process."""
    more = workload.config.n_layer - step_trace.TRACED_BLOCKS
    own = step.block_gradients
    kept = more * step.kept
    gradients = step.gradients + more * own
    before, traced = 0, 0
    if workload.micro_batches > 1:  # the traced step is the second, over the gradients of the first
        before, traced = gradients, step.gradients
    activations = step.before_loss - traced + kept
    loss_total = max(step.heights["forward"], step.heights["loss"]) + kept + before - traced
    loss = _Height(0, before, activations, loss_total)
    # The backward pass frees a block's activations and makes its gradients: it is highest in its first or last block.
    block = step.heights.get("block", 0)
    first = _Height(0, before, activations, block + more * step.held + before - traced)
    last = _Height(0, gradients, activations - kept, block + more * own)
    end = _Height(0, gradients, 0, step.heights.get("end", 0) + more * own)
    update = _Height(0, gradients, 0, gradients + _update_bytes(workload, tensors, step))
    return {"loss": loss, "backward": _higher(first, last, end), "update": update}


def _update_bytes(workload: Workload, tensors: TensorCount, step: StepTrace) -> int:
    """The optimiser's temporary tensors, of all of the model."""
    if workload.optimizer == "adamw":  # which updates all weights at once
        return round(step.update * tensors.trained / step.trained)
    return step.update  # one matrix after the other, of which the traced model has the largest


def _sharded_heights(workload: Workload, tensors: TensorCount, step: StepTrace) -> dict[str, _Height]:
    """The heights with FSDP2 (placement.py), which keeps what is outside of the blocks gathered."""
    more = workload.config.n_layer - step_trace.TRACED_BLOCKS
    kept = more * step.kept
    size = 4 if workload.precision == "32-true" else 2
    root = size * tensors.root // workload.tensor_parallel
    each = size * tensors.block // workload.tensor_parallel
    # Gradients that wait for the next micro-batch are whole on every process, in fp32.
    scattered = _REDUCED * tensors.trained // workload.processes
    before = scattered * workload.data_parallel if workload.micro_batches > 1 else 0
    waiting = max(before, scattered)
    activations = step.before_loss + kept
    # In the forward pass there are a block's weights, those of the next one, and the buffer that the block's came in
    # until the next one's are there; in the backward pass the first two.
    forward = _Height(root + 3 * each, before, activations, step.heights["forward"] + kept + before)
    head = size * workload.config.padded_vocab_size * workload.config.n_embd  # the loss wants all of it
    head -= head // workload.tensor_parallel
    loss = _Height(root + each + head, before, activations, step.heights["loss"] + kept + before)
    block = step.heights.get("block", 0) + _REDUCED * tensors.block_trained
    first = _Height(root + 2 * each, before, activations, block + more * step.held + before)
    last = _Height(root + 2 * each, waiting, activations - kept, block + waiting)
    # The last micro-batch's gradients are scattered through a buffer of their block's size, in fp32.
    buffer = _REDUCED * max(tensors.root_trained, tensors.block_trained)
    end = _Height(root + each, waiting, 0, step.heights.get("end", 0) - step.block_gradients + waiting + buffer)
    update = _Height(0, scattered, 0, scattered + _update_bytes(workload, tensors, step) // workload.processes)
    return {"loss": _higher(forward, loss), "backward": _higher(first, last, end), "update": update}
