"""What the processes of a run agree on: sums, and what process 0 alone does or finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from lit_gpt.command import DataError, UserError

Result = TypeVar("Result")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def sum_over_processes(values: Sequence[float]) -> list[float]:
    """Element-wise sums over all processes, in float64, on the host: waits for no accelerator."""
    if not dist.is_initialized():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor.tolist()


def on_rank_zero(action: Callable[[], Result]) -> Result:
    """The result of `action`, which process 0 alone performs, on every process.

    Raises:
        OSError, UserError, DataError: on every process, when process 0 met one; none is left waiting for it.
    """
    return together(action if rank() == 0 else lambda: None)[0]


def together(action: Callable[[], Result]) -> list[Result]:
    """The results of `action`, which every process performs, by rank, on every process.

    Raises:
        OSError, UserError, DataError: on every process, when any of them met one.
    """
    result, error = None, None
    try:
        result = action()
    except (OSError, UserError, DataError) as e:
        error = e
    outcomes = [(result, error)]
    if dist.is_initialized():
        outcomes *= dist.get_world_size()
        dist.all_gather_object(outcomes, (result, error))
    for _, error in outcomes:
        if error is not None:
            error.on_every_process = True
            raise error
    return [result for result, _ in outcomes]
