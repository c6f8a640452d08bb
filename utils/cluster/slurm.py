"""The Slurm step that this process is a task of, as the environment describes it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lit_gpt.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # torch, which a single task does without


class Tasks(NamedTuple):
    """The tasks of a Slurm step that work together."""

    rank: int
    """This task's number among them, from 0."""
    count: int
    """How many there are."""
    group: ProcessGroup | None
    """Their group for `collectives.together`; None for a single task."""


def slurm_tasks() -> int | None:
    """How many tasks this process's Slurm step has; None outside of one, in an interactive shell and under torchrun."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS")
    if tasks is None or "TORCHELASTIC_RUN_ID" in os.environ:
        return None
    # an interactive shell is itself a step of one task
    is_interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive") and tasks == "1"
    return None if is_interactive else int(tasks)


def slurm_step() -> tuple[int, int] | None:
    """Tasks per node and nodes of the Slurm step; None where `slurm_tasks` is. A `UserError` if nodes differ."""
    if slurm_tasks() is None:
        return None
    per_node = os.environ["SLURM_STEP_TASKS_PER_NODE"]  # such as 4(x2), or 2,1
    even = re.fullmatch(r"(\d+)(\(x\d+\))?", per_node)
    if even is None:
        raise UserError(f"Slurm started different numbers of tasks on the nodes ({per_node}); use --ntasks-per-node")
    # Fabric refuses a step of several tasks without this, which a plain `srun --ntasks` does not set.
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", even[1])
    return int(even[1]), int(os.environ["SLURM_STEP_NUM_NODES"])


def join_tasks(folder: Path) -> Tasks:
    """Connects the tasks of a Slurm step, any number on any nodes, by a file in `folder`, which all of them see.

    Raises:
        Interrupted: if another task does not come, or ends.
    """
    count = slurm_tasks() or 1
    rank = int(os.environ["SLURM_PROCID"]) if count > 1 else 0
    if rank == 0:
        for left_by_killed in folder.glob("*.srun-*"):
            left_by_killed.unlink(missing_ok=True)
    if count == 1:
        return Tasks(0, 1, None)
    from utils.cluster.meeting import meet  # imports torch, which a single task does without

    # The name is this attempt's alone, so that no task reads where those of another one met.
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    attempt = "-".join(os.environ.get(name, "0") for name in names)
    folder.mkdir(parents=True, exist_ok=True)
    return Tasks(rank, count, meet(folder / f".srun-{attempt}", rank, count))
