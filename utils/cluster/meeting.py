"""How the tasks of a Slurm step find each other, and what they do when one of them is gone."""

import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch.distributed import ProcessGroup, TCPStore

from lit_gpt.errors import Interrupted
from utils.cluster.collectives import is_lost_connection
from utils.files.atomic import write_atomically

JOIN_LIMIT = timedelta(minutes=5)
"""How long the tasks of a step wait for each other at the start: hundreds that import torch from one file system."""


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
        group = dist.new_group(timeout=timedelta(days=365))  # one task may have far more to do than another
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
        time.sleep(2.0)  # what the other task says, and its exit code, come first
        error = Interrupted("another task ended early; run the same command again, what is done is kept")
        error.on_every_process = False
        raise error from e


def _publish_store(meeting: Path) -> TCPStore:
    """Opens a store on a free port and writes its address into `meeting`."""
    address = _own_address()
    store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=JOIN_LIMIT)
    write_atomically(meeting, f"{address} {store.port}")
    return store


def _find_store(meeting: Path) -> TCPStore:
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


def use_own_interface() -> None:
    """Tells gloo the network interface by which the step's first node is reached."""
    # Left alone it takes the address of the host's name, on Debian 127.0.1.1, which other nodes cannot reach.
    interface = _interface_of(_own_address())
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _own_address() -> str:
    """The address from which this machine reaches srun's, whatever its own name resolves to; nothing is sent."""
    peer = os.environ["SLURM_LAUNCH_NODE_IPADDR"]
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))
        return probe.getsockname()[0]


def _interface_of(address: str) -> str | None:
    """The name of the network interface that has the IPv4 `address`."""
    get_address = 0x8915  # Linux's SIOCGIFADDR, which fails for an interface without one
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                found = fcntl.ioctl(probe, get_address, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return None
