"""What decides how much memory, time and disk a run needs: its settings, and the tensors of the whole model.

The model is built on the meta device, where it takes no memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from litgpt.config import Config
from torch import Tensor, nn

from lit_gpt.model.building import empty_model
from lit_gpt.model.gpt import Recompute
from lit_gpt.model.lora import LoRASettings
from lit_gpt.model.qlora import FrozenFormat, stored_bytes
from utils.train.masters import MasterOptimizer
from utils.train.optimizer import OptimizerName, make_optimizer, trained_of


@dataclass(frozen=True)
class Workload:
    """The settings of a run that decide its needs."""

    config: Config = field(hash=False)
    lora: LoRASettings | None
    precision: Literal["32-true", "bf16-mixed", "bf16-true"]
    master_weights: bool
    """With bf16-true: the optimiser keeps its moments and a copy of what is trained in fp32."""
    optimizer: OptimizerName
    base_format: FrozenFormat | None
    """QLoRA: the format that LoRA's frozen matrices are kept in; None for that of `dtypes`."""
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

    @property
    def data_parallel(self) -> int:
        """Groups of processes that read different rows."""
        return self.processes // self.tensor_parallel

    @property
    def micro_batches(self) -> int:
        """Forward passes of a process per optimiser step."""
        return max(1, self.samples_per_step // (self.data_parallel * self.micro_batch_size))

    @property
    def dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        """The types that weights are stored in: of what is trained, and of LoRA's frozen base."""
        if self.precision == "32-true":
            return torch.float32, torch.float32
        if self.precision == "bf16-true":
            return torch.bfloat16, torch.bfloat16
        return torch.float32, torch.bfloat16

    @property
    def has_masters(self) -> bool:
        return self.master_weights and self.precision == "bf16-true"


@dataclass(frozen=True)
class TensorCount:
    """Elements of a model's tensors, or bytes where a field says so."""

    parameters: int
    trained: int
    sharded: int
    """Bytes of the weights as they are stored, of which each process has its part."""
    trained_bytes: int
    optimiser: int
    """Bytes of the optimiser's state of what is trained, the fp32 copies included."""
    quantised: int
    """Bytes of the weights in QLoRA's base format, of which each process has its part too."""
    quantised_block: int
    """Those of the largest block."""
    tables: int
    """Bytes of the rotary tables, which every process has whole."""
    block: int
    """The largest block, which is gathered for its computation."""
    block_trained: int
    root: int
    """Outside of the blocks: embedding, last norm, head."""
    root_trained: int


def count_tensors(workload: Workload) -> TensorCount:
    model = empty_model(workload.config, workload.lora, *workload.dtypes)
    everything = list(model.parameters())
    parameters, trained = elements(everything), elements(trained_of(everything))
    quantised = [0]
    if workload.base_format:
        quantised = [_leave_out_quantised(block, workload.base_format) for block in model.transformer.h]
    everything = list(model.parameters())
    blocks = [list(block.parameters()) for block in model.transformer.h]
    block = max(blocks, key=elements)
    root = list({*everything}.difference(*blocks))
    return TensorCount(
        parameters=parameters,
        trained=trained,
        sharded=bytes_of(everything),
        trained_bytes=bytes_of(trained_of(everything)),
        optimiser=_optimiser_bytes(model, workload),
        quantised=sum(quantised),
        quantised_block=max(quantised),
        tables=bytes_of(model.buffers()),
        block=elements(block),
        block_trained=elements(trained_of(block)),
        root=elements(root),
        root_trained=elements(trained_of(root)),
    )


def _optimiser_bytes(model: nn.Module, workload: Workload) -> int:
    """Bytes of the state that the optimiser makes for a model on the meta device."""
    optimizer = make_optimizer(model, 0.0, (0.9, 0.95), workload.has_masters, workload.optimizer)
    trained = trained_of(model.parameters())
    if not isinstance(optimizer, MasterOptimizer):
        return 2 * bytes_of(trained)
    size = 0
    for weight in trained:
        state = optimizer.state_of(weight)
        size += bytes_of(tensor for name, tensor in state.items() if name != "step")
    return size


def frozen_linears(block: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """A block's matrices that QLoRA keeps in its base format, with the module that has each and its name there."""
    for owner in block.modules():
        for name, child in owner.named_children():
            if isinstance(child, nn.Linear):
                yield owner, name, child


def _leave_out_quantised(block: nn.Module, kind: FrozenFormat) -> int:
    """Takes the matrices of the base format out of a block; their bytes, with the scales."""
    total = 0
    for owner, name, linear in list(frozen_linears(block)):
        total += sum(stored_bytes(kind, tuple(linear.weight.shape)))
        setattr(owner, name, nn.Identity())
    return total


def elements(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
