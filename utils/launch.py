"""How many processes a run has, and the Fabric that starts or joins them."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
import struct
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from lit_gpt.command import Interrupted, UserError

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import ClusterEnvironment
    from torch import nn
    from torch.distributed import TCPStore
    from torch.distributed.device_mesh import DeviceMesh

JOIN_LIMIT = timedelta(minutes=5)
"""How long the tasks of a step wait for each other at the start: hundreds that import torch from one file system."""
GRACE = 2.0
"""Seconds from losing another task to saying so: what that one says, and its exit code, come first."""


def resolve_processes(devices: int | None, num_nodes: int | None) -> tuple[int, int]:
    """Processes per node and nodes: as given, else as Slurm's step has them, else all GPUs, else one process.

    Raises:
        UserError: if Slurm's step has other numbers than those given, or a node has fewer GPUs than processes.
    """
    import torch

    gpus = torch.cuda.device_count()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    elif step := slurm_step():
        for option, given, has in (("--devices", devices, step[0]), ("--num_nodes", num_nodes, step[1])):
            if given not in (None, has):
                raise UserError(
                    f"{option} {given}, but Slurm started {step[0]} task(s) on each of {step[1]} node(s); leave it out,"
                    " or change sbatch's --ntasks-per-node and --nodes"
                )
        devices, nodes = step
    else:
        devices, nodes = devices or max(1, gpus), num_nodes or 1
    if 0 < gpus < devices:
        raise UserError(f"--devices {devices}, but this machine has {gpus} GPUs")
    return devices, nodes


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


def launch(devices: int, num_nodes: int, precision: str) -> Fabric:
    """Starts (or under Slurm joins) `devices` × `num_nodes` processes; FSDP2 from two processes on.

    Small decisions travel between hosts over gloo, so that they never wait for an accelerator's queue.
    """
    import torch
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import ModelParallelStrategy

    for name in ("lightning.fabric", "lightning.pytorch"):  # the run's own log says how many processes there are
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "The `srun` command is available")  # having Slurm installed is no mistake
    on_gpu = torch.cuda.is_available()
    strategy = "auto"
    if devices * num_nodes > 1:
        strategy = ModelParallelStrategy(
            parallelize_fn=shard_model,
            data_parallel_size=devices * num_nodes,
            tensor_parallel_size=1,
            process_group_backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            timeout=timedelta(minutes=30),
        )
    fabric = Fabric(
        accelerator="cuda" if on_gpu else "cpu",
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision,
        plugins=[environment()],
    )
    fabric.launch()
    return fabric


def environment() -> ClusterEnvironment:
    """Who starts the processes: torchrun, Slurm's step, or Fabric, which left alone takes any Slurm job for a step."""
    from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    if "TORCHELASTIC_RUN_ID" in os.environ:
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if slurm_step() else LightningEnvironment()


def shard_model(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """FSDP2: each block is gathered when its turn comes; the embedding and the head stay gathered in between."""
    from torch.distributed.fsdp import fully_shard

    for block in model.transformer.h:
        fully_shard(block, mesh=mesh["data_parallel"])
    return fully_shard(model, mesh=mesh["data_parallel"], reshard_after_forward=False)


def join_tasks(folder: Path) -> tuple[int, int]:
    """This task's rank in its Slurm step and how many tasks there are, connected over gloo for `utils.processes`.

    `srun` alone is enough, with any number of tasks on any nodes: they meet by a file in `folder`, which all of them
    see. Outside of a step, and for a single task, it is (0, 1), and torch is not imported.

    Raises:
        UserError: if nothing is heard of task 0.
        Interrupted: if another task does not come, or ends.
    """
    count = slurm_tasks() or 1
    rank = int(os.environ["SLURM_PROCID"]) if count > 1 else 0
    if rank == 0:
        for left_by_killed in folder.glob("*.srun-*"):
            left_by_killed.unlink(missing_ok=True)
    if count == 1:
        return 0, 1
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _set_pg_timeout

    # The name is this attempt's alone, so that no task reads where those of another one met.
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    meeting = folder / ".srun-{}-{}-{}".format(*(os.environ.get(name, "0") for name in names))
    address = _own_address(os.environ["SLURM_LAUNCH_NODE_IPADDR"])
    # left alone, gloo takes the address of the host's name, on Debian 127.0.1.1, which other nodes cannot reach
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := _interface_of(address)):
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    folder.mkdir(parents=True, exist_ok=True)
    with every_task_needed():
        store = _publish_store(address, meeting) if rank == 0 else _find_store(meeting)
        store.set(str(rank), "")
        store.wait([str(other) for other in range(count)])
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=JOIN_LIMIT)
    if rank == 0:
        meeting.unlink(missing_ok=True)
    _set_pg_timeout(timedelta(days=365), dist.group.WORLD)  # one task may have far more to do than another
    return rank, count


@contextmanager
def every_task_needed() -> Iterator[None]:
    """Inside of it, another task that is gone is an `Interrupted`, which every task says: the first may be that one."""
    from utils.processes import is_lost_connection

    try:
        yield
    except RuntimeError as e:
        if not is_lost_connection(e):
            raise
        time.sleep(GRACE)
        error = Interrupted("another task ended early; run the same command again, what is done is kept")
        error.on_every_process = False
        raise error from e


def _publish_store(address: str, meeting: Path) -> TCPStore:
    """Opens the store by which the tasks find each other, on a free port, and writes where into `meeting`."""
    from torch.distributed import TCPStore

    from utils.shards import write_atomically

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
    raise UserError(
        f"task 0 did not leave its address in {meeting.parent} within {JOIN_LIMIT.total_seconds():.0f} s: it ended, or "
        "the folder is not one that all nodes share"
    )


def _own_address(peer: str) -> str:
    """The address under which this machine reaches `peer`, whatever its name resolves to; nothing is sent."""
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
