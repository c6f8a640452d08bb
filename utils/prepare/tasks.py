"""The tasks of a Slurm step that prepare one data folder together; a call without Slurm is a single task."""

from collections.abc import Callable
from typing import TypeVar

from utils.cluster.slurm import Tasks

Result = TypeVar("Result")


def gather(action: Callable[[], Result], tasks: Tasks) -> list[Result]:
    """The results of `action`, which every task performs, by rank; an error of one is raised on every task."""
    if tasks.count == 1:
        return [action()]
    # these import torch, which a single task does without
    from utils.cluster.collectives import together
    from utils.cluster.meeting import every_task_needed

    with every_task_needed():
        return together(action, tasks.group)


def on_first_task(action: Callable[[], Result], tasks: Tasks) -> Result:
    """The result of `action`, which task 0 alone performs, on every task; it raises what `gather` raises."""
    return gather(action if tasks.rank == 0 else lambda: None, tasks)[0]
