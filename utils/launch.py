"""How many processes a run has, and the Fabric that starts or joins them."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import TYPE_CHECKING

from lit_gpt.command import UserError

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh


def resolve_processes(devices: int | None, num_nodes: int | None) -> tuple[int, int]:
    """Processes per node and nodes: as given, else as Slurm's step has them, else all GPUs, else one process.

    Raises:
        UserError: if more processes per node are asked for than there are GPUs.
    """
    import torch

    nodes = num_nodes or int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
    gpus = torch.cuda.device_count()
    if devices is None:
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS")
        devices = int(tasks) // nodes if tasks else max(1, gpus)
    if 0 < gpus < devices:
        raise UserError(f"--devices {devices}, but this machine has {gpus} GPUs")
    return devices, nodes


def launch(devices: int, num_nodes: int, precision: str) -> Fabric:
    """Starts (or under Slurm joins) `devices` × `num_nodes` processes; FSDP2 from two processes on.

    Small decisions travel between hosts over gloo, so that they never wait for an accelerator's queue.
    """
    import torch
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import ModelParallelStrategy

    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # which rank is which is in the run's own log
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
    )
    fabric.launch()
    return fabric


def shard_model(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """FSDP2: each block is gathered when its turn comes; the embedding and the head stay gathered in between."""
    from torch.distributed.fsdp import fully_shard

    for block in model.transformer.h:
        fully_shard(block, mesh=mesh["data_parallel"])
    return fully_shard(model, mesh=mesh["data_parallel"], reshard_after_forward=False)
