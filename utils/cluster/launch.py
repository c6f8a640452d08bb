"""How many processes a run has, and the Fabric that starts or joins them."""

import logging
import os
import warnings
from datetime import timedelta

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.fabric.strategies import ModelParallelStrategy

from lit_gpt.errors import UserError
from utils.cluster.meeting import every_task_needed, use_own_interface
from utils.cluster.slurm import slurm_step


def resolve_processes(devices: int | None, num_nodes: int | None) -> tuple[int, int]:
    """How many processes per node, and how many nodes.

    As given, else as torchrun or Slurm's step has them, else one process per GPU on one node, else one process. A
    `UserError` if torchrun or Slurm's step has other numbers than those given, or a node fewer GPUs than processes.
    """
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
    """
    for name in ("lightning.fabric", "lightning.pytorch"):  # the run's own log says how many processes there are
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "The `srun` command is available")  # having Slurm installed is no mistake
    on_gpu = torch.cuda.is_available()
    strategy = "auto"
    if devices * num_nodes > 1:
        strategy = ModelParallelStrategy(
            parallelize_fn=lambda model, _mesh: model,  # utils/train/placement.py has done it
            data_parallel_size=devices * num_nodes // tensor_parallel,
            tensor_parallel_size=tensor_parallel,
            # small decisions travel over gloo: they never wait for an accelerator's queue
            process_group_backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            timeout=timedelta(minutes=30),
        )
    fabric = Fabric(
        accelerator="cuda" if on_gpu else "cpu",
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision,
        plugins=[_environment()],
    )
    if slurm_step():
        use_own_interface()
    with every_task_needed():
        fabric.launch()
    return fabric


def _environment() -> ClusterEnvironment:
    # Who starts the processes? Fabric, left alone, takes any Slurm job for a step.
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return TorchElasticEnvironment()
    if slurm_step():
        return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()


def data_parallel_part(fabric: Fabric) -> tuple[int, int]:
    """The number of this process's part of the samples, and how many parts there are.

    Processes that share the model's matrices work on the same samples.
    """
    if fabric.world_size == 1:
        return 0, 1
    mesh = fabric.strategy.device_mesh["data_parallel"]
    return mesh.get_local_rank(), mesh.size()
