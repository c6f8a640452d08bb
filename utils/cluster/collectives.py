"""What the processes of a run agree on: sums, and what process 0 alone does or finds."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from lit_gpt.errors import DataError, UserError

Result = TypeVar("Result")


def rank() -> int:
    """This process's number among all of the run; 0 for one alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(values: Sequence[float]) -> list[float]:
    """Element-wise sums over all processes, in float64, on the host: waits for no accelerator."""
    if not dist.is_initialized():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor.tolist()


def any_process(flag: bool) -> bool:
    """Whether `flag` holds on any process; the same answer on all."""
    return sum_over_processes([float(flag)])[0] > 0


def is_lost_connection(error: BaseException) -> bool:
    """Whether `error` says that another process cannot be reached (any more). gloo's errors are bare RuntimeErrors."""
    cause = error.__cause__
    return (
        isinstance(error, dist.DistError)
        or (isinstance(error, RuntimeError) and "/gloo/" in str(error))
        or (cause is not None and is_lost_connection(cause))
    )


def on_rank_zero(action: Callable[[], Result], group: dist.ProcessGroup | None = None) -> Result:
    """The result of `action`, which process 0 alone performs, on every process of `group` (None: all).

    Raises:
        OSError, UserError, DataError: on every process, when process 0 met one; none is left waiting for it.
    """
    return together(action if rank() == 0 else lambda: None, group)[0]


def together(action: Callable[[], Result], group: dist.ProcessGroup | None = None) -> list[Result]:
    """The results of `action`, which every process of `group` (None: all) performs, by rank, on every process.

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
        dist.all_gather_object(outcomes, (result, error), group=group)
    for _, error in outcomes:
        if error is not None:
            error.on_every_process = True
            raise error
    return [result for result, _ in outcomes]
