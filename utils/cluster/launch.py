"""How many processes a run has, and the Fabric that starts or joins them."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from lit_gpt.errors import UserError
from utils.cluster.slurm import every_task_needed, slurm_step, use_own_interface

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import ClusterEnvironment
    from torch import Tensor, nn
    from torch.distributed.device_mesh import DeviceMesh


def resolve_processes(devices: int | None, num_nodes: int | None) -> tuple[int, int]:
    """Processes per node and nodes: as given, else as torchrun or Slurm's step has them, else all GPUs, else
    one process.

    Raises:
        UserError: if torchrun or Slurm's step has other numbers than those given, or a node has fewer GPUs than
            processes.
    """
    import torch

    gpus = torch.cuda.device_count()
    started, starter = slurm_step(), ("Slurm", "sbatch's --ntasks-per-node and --nodes")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        started = (local, int(os.environ["WORLD_SIZE"]) // local)
        starter = ("torchrun", "its --nproc_per_node and --nnodes")
    if started:
        for option, given, has in (("--devices", devices, started[0]), ("--num_nodes", num_nodes, started[1])):
            if given not in (None, has):
                raise UserError(
                    f"{option} {given}, but {starter[0]} started {started[0]} task(s) on each of {started[1]} node(s); "
                    f"leave it out, or change {starter[1]}"
                )
        devices, nodes = started
    else:
        devices, nodes = devices or max(1, gpus), num_nodes or 1
    if 0 < gpus < devices:
        raise UserError(f"--devices {devices}, but this machine has {gpus} GPUs")
    return devices, nodes


def launch(devices: int, num_nodes: int, precision: str, tensor_parallel: int = 1) -> Fabric:
    """Starts (or under Slurm joins) `devices` × `num_nodes` processes; FSDP2 from two processes on.

    Every `tensor_parallel` neighbours share the model's matrices (tensor_parallel.py); FSDP2 shards them again.
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
            parallelize_fn=lambda model, _mesh: model,  # `place_model` has done it
            data_parallel_size=devices * num_nodes // tensor_parallel,
            tensor_parallel_size=tensor_parallel,
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
    if slurm_step():
        use_own_interface()
    with every_task_needed():
        fabric.launch()
    return fabric


def environment() -> ClusterEnvironment:
    """Who starts the processes: torchrun, Slurm's step, or Fabric, which left alone takes any Slurm job for a step."""
    from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    if "TORCHELASTIC_RUN_ID" in os.environ:
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if slurm_step() else LightningEnvironment()


def data_place(fabric: Fabric) -> tuple[int, int]:
    """The number of this process's part of the samples, and how many parts there are.

    Processes that share the model's matrices work on the same samples.
    """
    if fabric.world_size == 1:
        return 0, 1
    mesh = fabric.strategy.device_mesh["data_parallel"]
    return mesh.get_local_rank(), mesh.size()


def place_model(
    fabric: Fabric, model: nn.Module, weights: Mapping[str, Tensor] | None, seed: int, precision: str
) -> nn.Module:
    """A model of `empty_model` on the run's devices, sharded where there are several, and set up for training.

    Args:
        fabric: launched.
        model: on the meta device.
        weights, seed: see `lit_gpt.model.building.materialise`.
        precision: that of `launch`.
    """
    from lit_gpt.model.building import materialise, refresh_rotary_tables

    if fabric.world_size > 1:
        shard_model(model, fabric.strategy.device_mesh, precision)
    materialise(model, weights, seed, fabric.device)
    placed = fabric.setup(model)
    refresh_rotary_tables(placed.module, fabric.device)  # bf16-true has made them bf16
    return placed


def shard_model(model: nn.Module, mesh: DeviceMesh, precision: str) -> None:
    """Tensor parallelism, then FSDP2 of what each process has, over the two dimensions of Fabric's `mesh`.

    FSDP2 gathers each block while its neighbour computes; the embedding and the head stay gathered in between.
    Between parts of the samples gradients are summed in fp32. With bf16-mixed the weights are kept in fp32 and gathered
    in bf16.
    """
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    from lit_gpt.model.tensor_parallel import share_model

    if mesh["tensor_parallel"].size() > 1:
        share_model(model, mesh["tensor_parallel"])
        mesh._flatten()  # the gradient's norm is then one sum, the same to the last bit on every process
    mesh = mesh["data_parallel"]
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if precision != "32-true":
        # on the CPU LayerNorm wants its weights in the type of its input, which autocast leaves in fp32
        gathered = torch.bfloat16 if precision == "bf16-mixed" and mesh.device_type != "cpu" else None
        policy = MixedPrecisionPolicy(gathered, torch.float32, cast_forward_inputs=False)
    blocks = list(model.transformer.h)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for block, following in pairwise(blocks):
        block.set_modules_to_forward_prefetch([following])
        following.set_modules_to_backward_prefetch([block])
