"""What the processes of a run agree on: sums, and what process 0 alone does or finds."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from lit_gpt.errors import DataError, UserError

Result = TypeVar("Result")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(values: Sequence[float]) -> list[float]:
    """Element-wise sums over all processes, in float64, on the host: waits for no accelerator."""
    if not dist.is_initialized():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor.tolist()


def any_process(flag: bool) -> bool:
    return sum_over_processes([float(flag)])[0] > 0


def is_lost_connection(error: BaseException) -> bool:
    """Whether `error` says that another process cannot be reached (any more)."""
    if isinstance(error, dist.DistError):
        return True
    if isinstance(error, RuntimeError) and "/gloo/" in str(error):  # gloo has no class of its own
        return True
    return error.__cause__ is not None and is_lost_connection(error.__cause__)


def on_rank_zero(action: Callable[[], Result], group: dist.ProcessGroup | None = None) -> Result:
    """The result of `action`, which process 0 alone performs, on every process. It raises what `together` raises."""
    return together(action if rank() == 0 else lambda: None, group)[0]


def together(action: Callable[[], Result], group: dist.ProcessGroup | None = None) -> list[Result]:
    """The results of `action`, which every process of `group` (None: all) performs, by rank, on every process.

    Raises:
        OSError, UserError, DataError: on every process, when any of them met one; none is left waiting for it.
    """
    result, error = None, None
    try:
        result = action()
    except (OSError, UserError, DataError) as e:
        error = e
    outcomes = [(result, error)]
    if dist.is_initialized():
        outcomes *= dist.get_world_size()
        dist.all_gather_object(outcomes, (result, error), group=group)
    for _, error in outcomes:
        if error is not None:
            error.on_every_process = True
            raise error
    return [result for result, _ in outcomes]
