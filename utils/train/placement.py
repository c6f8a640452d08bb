"""A model on the run's devices: sharded over the processes, filled with weights, set up for training."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from lit_gpt.model.building import materialise, refresh_rotary_tables
from lit_gpt.model.qlora import qlora_layers
from lit_gpt.model.shared_base import share_base
from lit_gpt.model.tensor_parallel import share_model


def place_model(
    fabric: Fabric, model: nn.Module, weights: Mapping[str, Tensor] | None, seed: int, precision: str
) -> nn.Module:
    """Puts a model of `empty_model` on the run's devices, sharded where there are several, and sets it up.

    `weights` and `seed` are those of `lit_gpt.model.building.materialise`, `precision` that of `launch`.
    """
    if fabric.world_size > 1:
        shard_model(model, fabric.strategy.device_mesh, precision)
    materialise(model, weights, seed, fabric.device)
    placed = fabric.setup(model)
    refresh_rotary_tables(placed.module, fabric.device)  # bf16-true has made them bf16
    return placed


def shard_model(model: nn.Module, mesh: DeviceMesh, precision: str) -> None:
    """Applies tensor parallelism, then FSDP2 to what each process has, over the two dimensions of Fabric's `mesh`.

    FSDP2 gathers each block while its neighbour computes; the embedding and the head stay gathered in between.
    Between parts of the samples gradients are summed in fp32. With bf16-mixed the weights are kept in fp32 and gathered
    in bf16. A quantised base is shared by all processes too, whatever node they are on.
    """
    if next(qlora_layers(model), None):
        share_base(model, mesh["data_parallel"].get_group())
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
