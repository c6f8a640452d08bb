"""The tasks of a Slurm step: how many there are, and how they find each other."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lit_gpt.errors import Interrupted, UserError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, TCPStore

JOIN_LIMIT = timedelta(minutes=5)
"""How long the tasks of a step wait for each other at the start: hundreds that import torch from one file system."""
WORK_LIMIT = timedelta(days=365)
"""How long they wait for each other later: one task may have far more to do than another."""
GRACE = 2.0
"""Seconds from losing another task to saying so: what that one says, and its exit code, come first."""


class Tasks(NamedTuple):
    """This task's rank in its Slurm step, how many tasks there are, and the group for `collectives.together`."""

    rank: int
    count: int
    group: ProcessGroup | None


def slurm_tasks() -> int | None:
    """How many tasks the Slurm step has that this process is a task of.

    None outside of one, in an interactive shell, which is itself a step of one task, and under torchrun.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS")
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive") and tasks == "1"
    return None if tasks is None or interactive or "TORCHELASTIC_RUN_ID" in os.environ else int(tasks)


def slurm_step() -> tuple[int, int] | None:
    """Tasks per node and nodes of the Slurm step that this process is a task of, None where `slurm_tasks` is.

    Raises:
        UserError: if some nodes have more tasks than others.
    """
    if slurm_tasks() is None:
        return None
    per_node = os.environ["SLURM_STEP_TASKS_PER_NODE"]  # such as 4(x2), or 2,1
    if not (even := re.fullmatch(r"(\d+)(\(x\d+\))?", per_node)):
        raise UserError(f"Slurm started different numbers of tasks on the nodes ({per_node}); use --ntasks-per-node")
    # Fabric refuses a step of several tasks without this, which a plain `srun --ntasks` does not set.
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", even[1])
    return int(even[1]), int(os.environ["SLURM_STEP_NUM_NODES"])


def join_tasks(folder: Path) -> Tasks:
    """Connects the tasks of a Slurm step over gloo.

    `srun` alone is enough, with any number of tasks on any nodes: they meet by a file in `folder`, which all of them
    see. Outside of a step, and for a single task, there is no group, and torch is not imported.

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
    import torch.distributed as dist

    # The name is this attempt's alone, so that no task reads where those of another one met.
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    meeting = folder / ".srun-{}-{}-{}".format(*(os.environ.get(name, "0") for name in names))
    use_own_interface()
    folder.mkdir(parents=True, exist_ok=True)
    with every_task_needed():
        store = _publish_store(meeting) if rank == 0 else _find_store(meeting)
        store.set(str(rank), "")
        store.wait([str(other) for other in range(count)])
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=JOIN_LIMIT)
        group = dist.new_group(timeout=WORK_LIMIT)
    if rank == 0:
        meeting.unlink(missing_ok=True)
    return Tasks(rank, count, group)


def use_own_interface() -> None:
    """Tells gloo the network interface by which the step's first node is reached.

    Left alone it takes the address of the host's name, on Debian 127.0.1.1, which other nodes cannot reach.
    """
    if interface := _interface_of(_own_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


@contextmanager
def every_task_needed() -> Iterator[None]:
    """Inside of it, another task that is gone is an `Interrupted`, which every task says: the first may be that one."""
    from utils.cluster.collectives import is_lost_connection

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
    from torch.distributed import TCPStore

    from utils.files.atomic import write_atomically

    address = _own_address()
    store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=JOIN_LIMIT)
    write_atomically(meeting, f"{address} {store.port}")
    return store


def _find_store(meeting: Path) -> TCPStore:
    from torch.distributed import TCPStore

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


def _own_address() -> str:
    """The address under which this machine reaches the one of srun, whatever its name resolves to; nothing is sent."""
    peer = os.environ["SLURM_LAUNCH_NODE_IPADDR"]
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))
        return probe.getsockname()[0]


def _interface_of(address: str) -> str | None:
    """The network interface that has the IPv4 `address`."""
    get_address = 0x8915  # Linux's SIOCGIFADDR, which fails for an interface without one
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                found = fcntl.ioctl(probe, get_address, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return None
