"""How the tasks of a Slurm step find each other, and what they do when one of them is gone."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch.distributed import ProcessGroup, TCPStore

from lit_gpt.errors import Interrupted
from utils.cluster.collectives import is_lost_connection
from utils.cluster.network import own_address, use_own_interface
from utils.files.atomic import write_atomically

JOIN_LIMIT = timedelta(minutes=5)
"""How long the tasks of a step wait for each other at the start: hundreds that import torch from one file system."""
WORK_LIMIT = timedelta(days=365)
"""How long they wait for each other later: one task may have far more to do than another."""
GRACE = 2.0
"""Seconds from losing another task to saying so: what that one says, and its exit code, come first."""


def meet(meeting: Path, rank: int, count: int) -> ProcessGroup:
    """Connects this task, number `rank` of `count`, with the others, by a file that all of them see.

    Raises:
        Interrupted: if another task does not come, or ends.
    """
    use_own_interface()
    with every_task_needed():
        store = _publish_store(meeting) if rank == 0 else _find_store(meeting)
        store.set(str(rank), "")
        store.wait([str(other) for other in range(count)])
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=JOIN_LIMIT)
        group = dist.new_group(timeout=WORK_LIMIT)
    if rank == 0:
        meeting.unlink(missing_ok=True)
    return group


@contextmanager
def every_task_needed() -> Iterator[None]:
    """Raises `Interrupted` where another task is gone. Every task reports it: the first may be the one that is gone."""
    try:
        yield
    except RuntimeError as e:
        if not is_lost_connection(e):
            raise
        time.sleep(GRACE)
        error = Interrupted("another task ended early; run the same command again, what is done is kept")
        error.on_every_process = False
        raise error from e


def _publish_store(meeting: Path) -> TCPStore:
    """Opens the store by which the tasks find each other, on a free port, and writes where into `meeting`."""
    address = own_address()
    store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=JOIN_LIMIT)
    write_atomically(meeting, f"{address} {store.port}")
    return store


def _find_store(meeting: Path) -> TCPStore:
    """Connects to the store whose address task 0 wrote into `meeting`."""
    deadline = time.monotonic() + JOIN_LIMIT.total_seconds()
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            address, port = meeting.read_text(encoding="ascii").split()
            return TCPStore(address, int(port), is_master=False, timeout=JOIN_LIMIT)
        time.sleep(0.1)
    error = Interrupted(
        f"task 0 did not leave its address in {meeting.parent} within {JOIN_LIMIT.total_seconds():.0f} s: it ended, or "
        "the folder is not one that all nodes share"
    )
    error.on_every_process = False
    raise error
