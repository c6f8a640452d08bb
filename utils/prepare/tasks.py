"""The tasks of a Slurm step that prepare one data folder together; a call without Slurm is a single task."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from utils.cluster.slurm import Tasks
from utils.files.folder_lock import FolderLock

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


@contextmanager
def locked(data_dir: Path, tasks: Tasks) -> Iterator[FolderLock | None]:
    """Takes the data folder for this call; the lock is task 0's. Raises a UserError if another call has it."""
    taken: list[FolderLock] = []

    def take() -> None:
        if tasks.rank == 0:
            data_dir.mkdir(parents=True, exist_ok=True)
            taken.append(FolderLock.acquire(data_dir))

    gather(take, tasks)
    try:
        yield taken[0] if taken else None
    finally:
        for lock in taken:
            lock.release(leave=False)
