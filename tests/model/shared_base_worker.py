"""Started by test_shared_base.py: short QLoRA trainings on N processes, their losses and bytes saved by process 0."""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml
from lightning.fabric import Fabric
from litgpt.config import Config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_gpt.model.building import build_model, empty_model
from tests.conftest import TINY_MODEL, random_rows
from tests.model.gradient_worker import LORA
from utils.cluster.launch import data_parallel_part, launch
from utils.cluster.ranks import end_process
from utils.data.batches import StepData, collate
from utils.train.optimizer import make_optimizer
from utils.train.placement import place_model
from utils.train.profiler import StepTimer
from utils.train.step import StepHistory, optimiser_step

WINDOW, VOCABULARY, SAMPLES, STEPS = 33, 98, 12, 3
LLAMA = Config(**yaml.safe_load(TINY_MODEL) | {"n_layer": 4}, vocab_size=VOCABULARY, padded_vocab_size=VOCABULARY)
GPT2 = {"norm_class_name": "LayerNorm", "mlp_class_name": "GptNeoxMLP", "bias": True, "rotary_percentage": 0.0}
CONFIGS = {
    "llama": LLAMA,
    "gpt2": dataclasses.replace(LLAMA, **GPT2, n_query_groups=4),
    # no matrix, no row and no block of 64 numbers ends where a process's part does
    "odd": dataclasses.replace(LLAMA, n_embd=36, n_head=2, n_query_groups=1, head_size=22, intermediate_size=53),
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors of whole numbers that are alive, whoever holds them: quantised ones are such."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.highest = 0, 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.dtype in (torch.uint8, torch.int8, torch.int32):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address = storage.data_ptr()
        if address in self._seen or not storage.nbytes():
            return
        self._seen.add(address)
        weakref.finalize(storage, self._free, address, storage.nbytes())
        self.now += storage.nbytes()
        self.highest = max(self.highest, self.now)

    def _free(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.now -= size


def weights_of(config: Config) -> dict[str, torch.Tensor]:
    """Random ones, large enough for the loss to depend on every matrix."""
    state = build_model(config, None, None, 9, torch.float32).state_dict()
    return {name: tensor * 4 if tensor.dim() > 1 else tensor for name, tensor in state.items()}


def main(options: dict[str, Any], cases: list[tuple[str, str, str]], output: Path) -> None:
    """Saves the losses and the bytes of each case: a format, one of `CONFIGS`, and how the blocks compute."""
    fabric = launch(**options)
    results = {case: train(fabric, *case, options["precision"]) for case in cases}
    if fabric.is_global_zero:
        torch.save(results, output)
    end_process(0)


def train(fabric: Fabric, kind: str, shape: str, variant: str, precision: str) -> dict[str, Any]:
    """The loss of each of some steps, of a validation after the second, and every process's bytes."""
    config = CONFIGS[shape]
    live = LiveBytes()
    with live:
        empty = empty_model(config, LORA, torch.float32, torch.float32, kind)
        for block in empty.transformer.h:
            block.recompute = variant if variant in ("selective", "full") else "none"
            if variant == "compile":  # as pretrain.py does, without C++, and nothing is left out of the graph
                block.forward = torch.compile(block.forward, backend="aot_eager", fullgraph=True)
        model = place_model(fabric, empty, weights_of(config), 5, precision)
    held = live.now
    optimizer = fabric.setup_optimizers(make_optimizer(model, 0.1, (0.9, 0.95)))
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    part, parts = data_parallel_part(fabric)
    share = SAMPLES // parts
    every_row = random_rows(SAMPLES, WINDOW, VOCABULARY)
    rows = every_row[part * share :][:share]
    batches = [collate(rows[start : start + 3], WINDOW) for start in range(0, share, 3)]
    targets = collate(every_row, WINDOW).target_count
    datasets = [torch.zeros(len(batch.input_ids), dtype=torch.int64) for batch in batches]
    data = StepData(batches, datasets, targets, np.array([targets]), targets)
    history, timer = StepHistory(1), StepTimer(fabric.device)
    validation = torch.zeros((), dtype=torch.float64)
    live.highest = live.now
    for step in range(STEPS):
        if variant == "compile":  # which would trace the mode too
            result = optimiser_step(fabric, model, optimizer, data, 1.0, [0] * len(batches), timer)
        else:
            with live:
                result = optimiser_step(fabric, model, optimizer, data, 1.0, [0] * len(batches), timer)
        history.add(result, data, {})
        if step == 1:
            with torch.no_grad():
                for batch in batches:
                    validation += model(batch.input_ids, segments=batch.segments, targets=batch.targets).sum
    losses = [record.loss for record in history.read()]
    found = {"held": held, "highest": live.highest}
    everyone = [found] * fabric.world_size
    if fabric.world_size > 1:
        dist.all_reduce(validation)
        dist.all_gather_object(everyone, found)
    return {"losses": [*losses, validation.item() / targets], "bytes": everyone}
