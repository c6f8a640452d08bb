"""What a step keeps in memory, traced with a model of two blocks on fake tensors, which have shapes and no memory.

It is a real step: forward, loss, backward, optimiser. The bytes of every tensor are counted from its making to its end,
so nothing here is a formula about an architecture: what a block keeps is what its operations keep.
"""

import copy
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from litgpt.config import Config
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from lit_gpt.model.attention import whole_rows
from lit_gpt.model.building import empty_model
from lit_gpt.model.qlora import QLoRALinear
from utils.train.adamw_8bit import AdamW8bit
from utils.train.masters import MasterOptimizer
from utils.train.optimizer import make_optimizer, trained_of
from utils.train.workload import Workload, bytes_of, elements, frozen_linears

TRACED_BLOCKS = 2
"""The first block may keep less than the others: with LoRA its input needs no gradient."""


@dataclass(frozen=True)
class StepTrace:
    """Bytes alive beside weights and optimiser in a step of a model of two blocks."""

    kept: int
    """What a block leaves alive in the forward pass: activations, and with autocast bf16 copies of its weights."""
    held: int
    """The part of `kept` that lives until the block's backward pass. Where activations are to be computed again,
    autocast's copies go when the forward pass is over."""
    before_loss: int
    """When all blocks are through."""
    gradients: int
    block_gradients: int
    trained: int
    """Trained elements."""
    update: int
    """The most of the optimiser's temporary tensors."""
    heights: dict[str, int]
    """The most of each phase: `forward`, `loss` (forward and backward pass), `block` (the last one's backward pass) and
    `end` (the first one's and the embedding's)."""


class _LiveBytes(TorchDispatchMode):
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
def trace_step(workload: Workload) -> StepTrace:
    """Traces one step of a process with a model of two blocks.

    On one process with several micro-batches it is the second of them, over the gradients of the first. What FSDP2
    gathers and takes away on several processes is not in it.
    """
    model = empty_model(_traced_config(workload), workload.lora, *_traced_dtypes(workload))
    with FakeTensorMode():
        _fill(model, workload)
        optimizer = make_optimizer(model, 0.1, (0.9, 0.95), workload.has_masters, workload.optimizer)
        if isinstance(optimizer, MasterOptimizer) and workload.processes == 1:
            optimizer.add_up_in_fp32()
        if isinstance(optimizer, AdamW8bit):
            optimizer.update = lambda *_: None  # bitsandbytes' kernels make no tensors, and it need not be there
        ids = torch.zeros(workload.micro_batch_size, workload.block_size, dtype=torch.int64)
        bounds = whole_rows(*ids.shape)
        with _LiveBytes([*model.parameters(), *model.buffers(), ids, bounds]) as live:
            marks = _mark_phases(model, live)
            for _ in range(2 if workload.processes == 1 and workload.micro_batches > 1 else 1):
                live.begin("forward")
                # what Fabric's precision puts around the forward pass
                with torch.autocast("cpu", torch.bfloat16, enabled=workload.precision == "bf16-mixed"):
                    loss = model(ids, segments=bounds, targets=ids).sum
                    dropped = live.now
                dropped -= live.now
                loss.backward()
                del loss
            trained = trained_of(model.parameters())
            gradients = bytes_of(parameter.grad for parameter in trained)
            block_gradients = bytes_of(parameter.grad for parameter in trained_of(model.transformer.h[-1].parameters()))
            if isinstance(optimizer, MasterOptimizer):
                for weight in trained:
                    optimizer.state_of(weight)
            live.begin("update")
            optimizer.step()
            update = live.heights.pop("update") - live.now
    kept = marks["loss"] - marks["block"]
    held = kept - dropped // TRACED_BLOCKS
    return StepTrace(kept, held, marks["loss"], gradients, block_gradients, elements(trained), update, live.heights)


def _traced_config(workload: Workload) -> Config:
    """A config of two blocks; under tensor parallelism they are as narrow as a process's part of them."""
    config = copy.copy(workload.config)
    share = workload.tensor_parallel
    config.n_layer = TRACED_BLOCKS
    config.n_head //= share
    config.n_query_groups = max(1, config.n_query_groups // share)
    config.intermediate_size //= share
    return config


def _traced_dtypes(workload: Workload) -> tuple[torch.dtype, torch.dtype]:
    """The types in which the blocks see their weights: of what is trained, and of LoRA's frozen base."""
    if workload.precision == "bf16-true" or (workload.processes > 1 and workload.precision == "bf16-mixed"):
        return torch.bfloat16, torch.bfloat16
    return workload.dtypes


def _fill(model: nn.Module, workload: Workload) -> None:
    """Gives a model of the meta device fake tensors of the CPU, for which autocast works, and the blocks' options."""
    if workload.base_format:
        linears = [found for block in model.transformer.h for found in frozen_linears(block)]
        for owner, name, linear in linears:
            # int8 in place of every format: what a product needs beside the weights is the same
            layer = QLoRALinear(linear, "bnb.int8")
            setattr(owner, name, layer)
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
    """Leaves the first positions only between the matrices; copies replace those that other processes would send."""

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
    model.sharing = (0, processes)


def _mark_phases(model: nn.Module, live: _LiveBytes) -> dict[str, int]:
    """Makes the model tell `live` when a phase begins; returns a dictionary that gets the bytes alive at that time."""
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
