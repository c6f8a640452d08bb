"""What decides how much memory, time and disk a run needs."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from litgpt.config import Config

from lit_gpt.model.gpt import Recompute
from lit_gpt.model.lora import LoRASettings
from lit_gpt.model.qlora import FrozenFormat


@dataclass(frozen=True)
class Workload:
    """What decides a run's needs."""

    config: Config = field(hash=False)
    lora: LoRASettings | None
    precision: Literal["32-true", "bf16-mixed", "bf16-true"]
    master_weights: bool
    """With bf16-true: the optimiser keeps its moments and a copy of what is trained in fp32."""
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
    """Optimiser steps of the run."""

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
        """Whether the optimiser keeps fp32 copies of what is trained."""
        return self.master_weights and self.precision == "bf16-true"
