"""What a run will need, worked out on a machine that need not hold it: memory, time and disk.

1. `count` builds the real model on the meta device and adds up its tensors.
2. `trace` makes a real step (forward, loss, backward, optimiser) with a model of two blocks on fake tensors, which have
   shapes and no memory, and counts the bytes of every tensor from its making to its end. So nothing here is a formula
   about an architecture: what a block keeps is what its operations keep.
3. `estimate` turns both into the bytes of the whole model, on as many processes as there are, at the moments at which a
   step can need most.

What is not in it: the accelerator's context, communication buffers and fragmentation, for which `RESERVE` is left; and
what torch.compile saves, which keeps at most as much.
"""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import torch
from litgpt.config import Config
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from lit_gpt.model.attention import whole_rows
from lit_gpt.model.building import empty_model
from lit_gpt.model.flops import flops_per_token
from lit_gpt.model.gpt import Recompute
from lit_gpt.model.lora import LoRASettings
from lit_gpt.model.qlora import QuantisedLinear, Quantization
from lit_gpt.model.tensor_parallel import sharing_problems
from utils.train.training import MasterAdamW, make_optimizer

RESERVE = 0.1
"""The share of a GPU's memory that is left to the context (0.5 GiB), NCCL and what the allocator cannot use again."""

GIB = 1 << 30
_REDUCED = 4
"""Bytes of a gradient's element on its way between processes."""
_TRACED_BLOCKS = 2
"""The first block may keep less than the others: with LoRA its input needs no gradient."""


@dataclass(frozen=True)
class Workload:
    """What decides a run's needs."""

    config: Config = field(hash=False)
    lora: LoRASettings | None
    precision: Literal["32-true", "bf16-mixed", "bf16-true"]
    master_weights: bool
    """With bf16-true: the optimiser keeps its moments and a copy of what is trained in fp32."""
    quantize: Quantization | None
    """How LoRA's frozen matrices are kept."""
    activation_checkpointing: Recompute
    micro_batch_size: int
    """Rows per forward pass."""
    block_size: int
    """Positions per row."""
    processes: int
    processes_per_node: int
    tensor_parallel: int
    """Processes that share each matrix; divides `processes`."""
    samples_per_step: int
    """Rows per optimiser step, over all processes."""
    rows: int
    """Rows of one pass over the data."""
    targets_per_row: float
    """Mean number of positions of a row that predict something."""
    context: float
    """Keys that a query sees on average (lit_gpt/model/flops.py)."""
    window_context: float
    """The same in layers with a sliding window."""
    steps: int
    """Optimiser steps of the run."""

    @property
    def data_parallel(self) -> int:
        """Groups of processes that read different rows."""
        return self.processes // self.tensor_parallel

    @property
    def micro_batches(self) -> int:
        """Forward passes of a process per optimiser step."""
        return max(1, self.samples_per_step // (self.data_parallel * self.micro_batch_size))


@dataclass(frozen=True)
class Count:
    """The model's tensors: `parameters` and those `trained` are numbers of elements, all others bytes."""

    parameters: int
    trained: int
    sharded: int
    """Weights as they are stored, of which each process has its part, and the part of them that is trained."""
    trained_bytes: int
    quantised: int
    """Weights that every process has whole, as it does the rotary tables."""
    tables: int
    block: int
    """Elements of a block that are gathered for its computation; those outside of the blocks (embedding, last norm,
    head) are `root`."""
    block_trained: int
    root: int
    root_trained: int


@dataclass(frozen=True)
class Trace:
    """Bytes alive beside weights and optimiser in a step of a model of two blocks."""

    kept: int
    """What a block leaves alive in the forward pass: activations, and with autocast bf16 copies of its weights."""
    held: int
    """What of that lives until the block's backward pass: where activations are to be computed again, autocast's copies
    go when the forward pass is over."""
    before_loss: int
    """When all blocks are through."""
    gradients: int
    block_gradients: int
    update: float
    """The most of the optimiser's temporary tensors, per trained element: the one that has any makes copies of all."""
    heights: dict[str, int]
    """The most of each phase: `forward`, `loss` (forward and backward pass), `block` (the last one's backward pass) and
    `end` (the first one's and the embedding's)."""


def _dtypes(workload: Workload) -> tuple[torch.dtype, torch.dtype]:
    """As stored: of what is trained, and of LoRA's frozen base."""
    if workload.precision == "32-true":
        return torch.float32, torch.float32
    return torch.bfloat16 if workload.precision == "bf16-true" else torch.float32, torch.bfloat16


def _has_masters(workload: Workload) -> bool:
    return workload.master_weights and _dtypes(workload)[0] == torch.bfloat16


def count(workload: Workload) -> Count:
    """The tensors of the whole model."""
    model = empty_model(workload.config, workload.lora, *_dtypes(workload))
    everything = list(model.parameters())
    parameters, trained = _numel(everything), _numel(_trained(everything))
    quantised = 0
    for owner, name, linear in list(_frozen_linears(model)) if workload.quantize else []:
        quantised += _quantised_bytes(linear, workload.quantize)
        setattr(owner, name, nn.Identity())
    everything = list(model.parameters())
    blocks = [list(block.parameters()) for block in model.transformer.h]
    block = max(blocks, key=_numel)
    root = list({*everything}.difference(*blocks))
    return Count(
        parameters=parameters,
        trained=trained,
        sharded=_bytes(everything),
        trained_bytes=_bytes(_trained(everything)),
        quantised=quantised,
        tables=_bytes(model.buffers()),
        block=_numel(block),
        block_trained=_numel(_trained(block)),
        root=_numel(root),
        root_trained=_numel(_trained(root)),
    )


def _frozen_linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """The matrices that --quantize changes, with the module that has each and its name there."""
    for block in model.transformer.h:
        for owner in block.modules():
            for name, child in owner.named_children():
                if isinstance(child, nn.Linear):
                    yield owner, name, child


def _quantised_bytes(linear: nn.Linear, kind: str) -> int:
    """In lit_gpt/model/qlora.py's formats, with their scales."""
    if kind == "bnb.nf4":
        return linear.weight.numel() // 2 + -(-linear.weight.numel() // 64) * 4
    return linear.weight.numel() + linear.out_features * 4


def _trained(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def _numel(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


class _Live(TorchDispatchMode):
    """Counts the bytes of what operations make, until it is freed; `known` tensors are not counted."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = 0
        self.heights: dict[str, int] = {}
        self._phase = ""
        self._seen = WeakIdKeyDictionary()
        for tensor in known:
            self._seen[tensor.untyped_storage()] = None

    def begin(self, phase: str) -> None:
        self._phase = phase
        self.heights[phase] = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen[storage] = None
        size = storage.nbytes()
        weakref.finalize(storage, self._free, size)
        self.now += size
        self.heights[self._phase] = max(self.heights[self._phase], self.now)

    def _free(self, size: int) -> None:
        self.now -= size


@cache
def trace(workload: Workload) -> Trace:
    """One step of this process with a model of two blocks: on one process with what accumulated gradients add.

    On several, FSDP2 brings weights in their arithmetic's type and takes gradients away: `estimate` adds that.
    """
    model = empty_model(_traced_config(workload), workload.lora, *_traced_dtypes(workload))
    with FakeTensorMode():
        _fill(model, workload)
        optimizer = make_optimizer(model, 0.1, (0.9, 0.95), _has_masters(workload))
        if isinstance(optimizer, MasterAdamW) and workload.processes == 1:
            optimizer.add_up_in_fp32()
        ids = torch.zeros(workload.micro_batch_size, workload.block_size, dtype=torch.int64)
        bounds = whole_rows(*ids.shape)
        with _Live([*model.parameters(), *model.buffers(), ids, bounds]) as live:
            marks = _mark_phases(model, live)
            for _ in range(2 if workload.processes == 1 and workload.micro_batches > 1 else 1):
                live.begin("forward")
                with _arithmetic(workload):
                    loss = model(ids, segments=bounds, targets=ids).sum
                    dropped = live.now
                dropped -= live.now
                loss.backward()
                del loss
            trained = _trained(model.parameters())
            gradients = _bytes(parameter.grad for parameter in trained)
            block_gradients = _bytes(parameter.grad for parameter in _trained(model.transformer.h[-1].parameters()))
            live.begin("update")
            optimizer.step()
            update = (live.heights.pop("update") - live.now) / _numel(trained)
    kept = marks["loss"] - marks["block"]
    held = kept - dropped // _TRACED_BLOCKS
    return Trace(kept, held, marks["loss"], gradients, block_gradients, update, live.heights)


def _traced_config(workload: Workload) -> Config:
    """Two blocks; under tensor parallelism as narrow as a process's part of them."""
    config, share = copy.copy(workload.config), workload.tensor_parallel
    config.n_layer = _TRACED_BLOCKS
    config.n_head //= share
    config.n_query_groups = max(1, config.n_query_groups // share)
    config.intermediate_size //= share
    return config


def _traced_dtypes(workload: Workload) -> tuple[torch.dtype, torch.dtype]:
    """As the blocks see their weights."""
    if workload.precision == "bf16-true" or (workload.processes > 1 and workload.precision == "bf16-mixed"):
        return torch.bfloat16, torch.bfloat16
    return _dtypes(workload)


def _arithmetic(workload: Workload) -> AbstractContextManager[None]:
    """What Fabric's precision puts around the forward pass."""
    return torch.autocast("cpu", torch.bfloat16, enabled=workload.precision == "bf16-mixed")


def _fill(model: nn.Module, workload: Workload) -> None:
    """Gives a model of the meta device fake tensors of the CPU, for which autocast works, and the blocks' options."""
    if workload.quantize:
        for owner, name, linear in list(_frozen_linears(model)):
            # int8 stands for every format: what a product needs beside the weights is the same
            setattr(owner, name, layer := QuantisedLinear(linear, "bnb.int8"))
            layer.weight = torch.empty(linear.weight.shape, dtype=torch.int8)
            layer.scale_bits = torch.empty(linear.out_features, dtype=torch.int32)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(fake, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    for module in model.modules():
        getattr(module, "lora_ind", None)  # litgpt makes the indices when they are first asked for
    for block in model.transformer.h:
        block.recompute = workload.activation_checkpointing
    if workload.tensor_parallel > 1:
        _share_positions(model, workload.tensor_parallel)


def _share_positions(model: nn.Module, processes: int) -> None:
    """Between its matrices a process has the first positions only; copies stand for those that others would send."""

    def gather(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return arguments[0].repeat(1, processes, 1), *arguments[1:]

    def scatter(_module: nn.Module, _arguments: tuple[Any, ...], sums: Tensor) -> Tensor:
        return sums[:, : sums.size(1) // processes].clone()

    model.transformer.wte.register_forward_hook(scatter)
    for block in model.transformer.h:
        for module in (block.attn.qkv, block.mlp):
            module.register_forward_pre_hook(gather)
        for module in (block.attn.proj, block.mlp.proj):
            module.register_forward_hook(scatter)
    model.place = (0, processes)


def _mark_phases(model: nn.Module, live: _Live) -> dict[str, int]:
    """Makes the model tell `live` when a phase begins; the bytes then alive will stand in the dictionary returned."""
    alive: dict[str, int] = {}

    def reached(module: nn.Module, arguments: tuple[Any, ...], phase: str, phase_back: str) -> None:
        alive[phase] = live.now
        if phase == "loss":
            live.begin(phase)
        if arguments[0].requires_grad:
            arguments[0].register_hook(lambda _gradient: live.begin(phase_back))

    model.transformer.h[-1].register_forward_pre_hook(partial(reached, phase="block", phase_back="end"))
    model.transformer.ln_f.register_forward_pre_hook(partial(reached, phase="loss", phase_back="block"))
    return alive


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
    flops_per_position: float

    @property
    def memory(self) -> int:
        """The most that a process has in memory at once."""
        return _highest(self.moments)

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
        """Whether a GPU of that many GiB does."""
        return self.memory <= _usable(gpu_memory)

    def hours(self, peak_flops: float, mfu: float) -> float:
        """Of the whole run's steps, at the share `mfu` of a GPU's `peak_flops` per second."""
        flops = self.workload.steps * self.positions_per_step * self.flops_per_position
        return flops / (self.workload.processes * peak_flops * mfu * 3600)


def _highest(moments: dict[str, dict[str, int]]) -> int:
    return max(sum(parts.values()) for parts in moments.values())


def _usable(gpu_memory: float) -> float:
    """Bytes for tensors, of a GPU of that many GiB."""
    return gpu_memory * (1 - RESERVE) * GIB


def estimate(workload: Workload) -> Estimate:
    """What the run needs; nothing is allocated for it."""
    tensors = count(workload)
    return Estimate(
        workload=workload,
        parameters=tensors.parameters,
        trained=tensors.trained,
        moments=_moments(workload, tensors),
        checkpoint=tensors.trained_bytes + _optimiser_bytes(workload, tensors),
        flops_per_position=flops_per_token(workload.config, workload.lora, workload.context, workload.window_context),
    )


def _optimiser_bytes(workload: Workload, tensors: Count) -> int:
    """AdamW's two moments of what is trained, and with `master_weights` its fp32 copy."""
    if _has_masters(workload):
        return 3 * 4 * tensors.trained
    return 2 * tensors.trained_bytes


def _moments(workload: Workload, tensors: Count) -> dict[str, dict[str, int]]:
    """Bytes in memory by part, at each moment at which a step can need most."""
    step = trace(dataclasses.replace(workload, processes=min(workload.processes, 2)))  # all numbers above 1 are alike
    always = {
        "weights": tensors.sharded // workload.processes + tensors.quantised + tensors.tables,
        "optimiser": _optimiser_bytes(workload, tensors) // workload.processes,
    }
    heights = _sharded_heights(workload, tensors, step) if workload.processes > 1 else _heights(workload, tensors, step)
    moments = {}
    for moment, height in heights.items():
        activations = min(height.activations, height.total - height.gradients)
        moments[moment] = always | {
            "gathered weights": height.gathered,
            "gradients": height.gradients,
            "activations": activations,
            "temporary": height.total - height.gradients - activations,
        }
    return moments


class _Height(NamedTuple):
    """Bytes beside a process's own weights and optimiser: `total` leaves out what is `gathered`."""

    gathered: int
    gradients: int
    activations: int
    total: int


def _heights(workload: Workload, tensors: Count, step: Trace) -> dict[str, _Height]:
    """On one process. With several micro-batches the traced step is the second, over the gradients of the first."""
    more, own = workload.config.n_layer - _TRACED_BLOCKS, step.block_gradients
    gradients = step.gradients + more * own
    before, traced = (gradients, step.gradients) if workload.micro_batches > 1 else (0, 0)
    rise, activations = more * step.kept + before - traced, step.before_loss - traced + more * step.kept
    loss = _Height(0, before, activations, max(step.heights["forward"], step.heights["loss"]) + rise)
    # The backward pass frees a block's activations and makes its gradients: it is highest in its first or last block.
    block = step.heights.get("block", 0)
    first = _Height(0, before, activations, block + more * step.held + before - traced)
    last = _Height(0, gradients, activations - more * step.kept, block + more * own)
    end = _Height(0, gradients, 0, step.heights.get("end", 0) + more * own)
    backward = max(first, last, end, key=lambda height: height.total)
    update = _Height(0, gradients, 0, gradients + round(step.update * tensors.trained))
    return {"loss": loss, "backward": backward, "update": update}


def _sharded_heights(workload: Workload, tensors: Count, step: Trace) -> dict[str, _Height]:
    """With FSDP2 (utils/cluster/launch.py), which keeps what is outside of the blocks gathered.

    In the forward pass there are besides a block's weights, those of the next one, and the buffer that the block's came
    in until the next one's are there; in the backward pass the first two. Gradients that wait for the next micro-batch
    are whole on every process; the last one's are scattered through a buffer of their block's size; both are fp32.
    """
    more, own = workload.config.n_layer - _TRACED_BLOCKS, step.block_gradients
    size = 4 if workload.precision == "32-true" else 2
    root, each = (size * elements // workload.tensor_parallel for elements in (tensors.root, tensors.block))
    scattered = _REDUCED * tensors.trained // workload.processes
    before = scattered * workload.data_parallel if workload.micro_batches > 1 else 0
    activations = step.before_loss + more * step.kept
    rise = more * step.kept + before
    forward = _Height(root + 3 * each, before, activations, step.heights["forward"] + rise)
    head = size * workload.config.padded_vocab_size * workload.config.n_embd  # the loss wants all of it
    head -= head // workload.tensor_parallel
    loss = _Height(root + each + head, before, activations, step.heights["loss"] + rise)
    loss = max(forward, loss, key=lambda height: height.gathered + height.total)
    block, waiting = step.heights.get("block", 0) + _REDUCED * tensors.block_trained, max(before, scattered)
    first = _Height(root + 2 * each, before, activations, block + more * step.held + before)
    last = _Height(root + 2 * each, waiting, activations - more * step.kept, block + waiting)
    buffer = _REDUCED * max(tensors.root_trained, tensors.block_trained)
    end = _Height(root + each, waiting, 0, step.heights.get("end", 0) - own + waiting + buffer)
    backward = max(first, last, end, key=lambda height: height.gathered + height.total)
    update = _Height(0, scattered, 0, scattered + round(step.update * tensors.trained / workload.processes))
    return {"loss": loss, "backward": backward, "update": update}


def describe(estimate: Estimate, gpu_memory: float | None, peak_flops: float, mfu: float, checkpoints: int) -> str:
    """What the run needs, for a person.

    Args:
        estimate: of the run.
        gpu_memory: GiB of a GPU, None where it is not known.
        peak_flops: of a GPU, per second.
        mfu: the share of them that is reached.
        checkpoints: how many the run will keep.
    """
    work = estimate.workload
    kind = f"LoRA trains {estimate.trained:,}" if work.lora else "all are trained"
    hours = estimate.hours(peak_flops, mfu)
    lines = [
        f"model       {estimate.parameters:,} parameters, {kind}; {work.precision}, base {work.quantize or 'as it is'}",
        f"processes   {work.processes} on {work.processes // work.processes_per_node} node(s); each "
        f"{work.micro_batches} × {work.micro_batch_size} rows of {work.block_size:,} positions per step",
        f"step        {work.samples_per_step:,} rows, {estimate.positions_per_step:,} positions, "
        f"{estimate.targets_per_step:,.0f} targets",
        f"run         {work.steps:,} steps, {work.steps / estimate.steps_per_pass:.2f} passes of "
        f"{estimate.steps_per_pass:,.0f} steps",
        f"time        {hours:,.1f} h at {mfu:.0%} of {peak_flops / 1e12:,.0f} TFLOP/s per GPU "
        f"({estimate.flops_per_position:.3g} FLOPs per position)",
        f"disk        {estimate.checkpoint / 1e9:,.2f} GB per checkpoint, {checkpoints} of them "
        f"{checkpoints * estimate.checkpoint / 1e9:,.1f} GB",
        "",
        *_memory_table(estimate, gpu_memory),
    ]
    return "\n".join(lines)


def _memory_table(estimate: Estimate, gpu_memory: float | None) -> list[str]:
    """The parts at each moment, and whether the highest sum fits."""
    moments = estimate.moments
    lines = [f"{'GiB per process, at the':24}" + "".join(f"{moment:>10}" for moment in moments)]
    for part in next(iter(moments.values())):
        lines.append(f"  {part:22}" + "".join(f"{parts[part] / GIB:10.2f}" for parts in moments.values()))
    lines.append(f"{'together':24}" + "".join(f"{sum(parts.values()) / GIB:10.2f}" for parts in moments.values()))
    needed = estimate.memory / GIB
    if gpu_memory is None:
        return [
            *lines,
            f"a GPU needs {needed / (1 - RESERVE):.1f} GiB: these {needed:.1f} and {RESERVE:.0%} for the rest",
        ]
    verdict = "fits" if estimate.fits(gpu_memory) else "does NOT fit"
    return [
        *lines,
        f"{needed:.1f} GiB {verdict} a GPU of {gpu_memory:g} GiB, of which {RESERVE:.0%} are left for the rest",
    ]


def advice(estimate_: Estimate, gpu_memory: float) -> list[str]:
    """Changes of the command that make the run fit GPUs of `gpu_memory` GiB, each with what it then needs.

    Single changes first; if none is enough, the same on top of the smallest micro-batch and full recomputation.
    """
    base = estimate_.workload
    if found := _fitting(_changes(base), gpu_memory):
        return found
    saving = dataclasses.replace(base, micro_batch_size=1, activation_checkpointing="full")
    prefix = "--micro_batch_size 1 --activation_checkpointing full"
    groups = [[(f"{prefix} {options}", changed) for options, changed in group] for group in _changes(saving)]
    return _fitting([[(prefix, saving)], *groups], gpu_memory)


def _fitting(groups: Iterable[list[tuple[str, Workload]]], gpu_memory: float) -> list[str]:
    """Of each group the first change that fits, with what it needs."""
    found = []
    for group in groups:
        for options, workload in group:
            memory = _highest(_moments(workload, count(workload)))
            if memory <= _usable(gpu_memory):
                found.append(f"{options}: {memory / GIB:.1f} GiB")
                break
    return found


def _changes(base: Workload) -> list[list[tuple[str, Workload]]]:
    """Groups of options that lower the memory, mildest first in each."""
    replace = partial(dataclasses.replace, base)
    micro = [size for size in range(base.micro_batch_size - 1, 0, -1) if base.micro_batch_size % size == 0]
    kinds = ("none", "selective", "full")
    recompute = kinds[kinds.index(base.activation_checkpointing) + 1 :]
    per_process = base.samples_per_step // base.data_parallel
    more = [base.processes * 2**power for power in range(1, 7) if per_process % (2**power * base.micro_batch_size) == 0]
    groups_of = [n for n in (2, 4, 8) if n > base.tensor_parallel and base.processes_per_node % n == 0]
    positions = base.micro_batch_size * base.block_size
    shared = [n for n in groups_of if not base.lora and not sharing_problems(base.config, n, positions)]
    lora = base.lora or LoRASettings(8, 16, 0.05, True, False, True, False, False, False)
    name = "" if base.lora else "--use_lora true "
    may_adapt = base.tensor_parallel == 1
    groups = [
        [(f"--micro_batch_size {size}", replace(micro_batch_size=size)) for size in micro],
        [(f"--activation_checkpointing {kind}", replace(activation_checkpointing=kind)) for kind in recompute],
        [
            (f"{n} GPUs, --batch_size {per_process * base.processes // n}", replace(processes=n, processes_per_node=1))
            for n in more
        ],
        [
            (
                f"--tensor_parallel {n} --batch_size {base.samples_per_step * n // base.processes}",
                replace(tensor_parallel=n),
            )
            for n in shared
        ],
        [("--precision bf16-true", replace(precision="bf16-true"))] if base.precision != "bf16-true" else [],
        [(name.strip(), replace(lora=lora))] if may_adapt and not base.lora else [],
        [(f"{name}--quantize bnb.nf4", replace(lora=lora, quantize="bnb.nf4"))]
        if may_adapt and not base.quantize
        else [],
    ]
    return groups
