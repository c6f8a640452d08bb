"""Started by tests/train/test_step.py: the gradient of one optimiser step on N processes, saved by process 0."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.fabric import Fabric
from litgpt.config import Config
from torch.optim import Optimizer

from lit_gpt.model import loss
from lit_gpt.model.building import build_model, refresh_rotary_tables
from lit_gpt.model.lora import LoRASettings, is_adapter
from tests.conftest import TINY_MODEL, random_rows
from utils.cluster.launch import data_parallel_part, launch
from utils.cluster.ranks import end_process
from utils.data.batches import StepData, collate
from utils.train.placement import shard_model
from utils.train.profiler import StepTimer
from utils.train.step import StepHistory, optimiser_step

WINDOW, VOCABULARY, SAMPLES = 33, 98, 12
CONFIG = Config(**yaml.safe_load(TINY_MODEL), vocab_size=VOCABULARY, padded_vocab_size=VOCABULARY)
LOGITS_PER_CHUNK = loss._LOGITS_PER_CHUNK
LORA = LoRASettings(4, 8, 0.0, query=True, key=False, value=True, projection=True, mlp=True, head=True)


NEOX = dataclasses.replace(
    CONFIG, norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP", parallel_residual=True, bias=True
)


GEMMA = dataclasses.replace(
    CONFIG,
    name="Gemma",
    mlp_class_name="GemmaMLP",
    scale_embeddings=True,
    norm_qk=True,
    post_attention_norm=True,
    post_mlp_norm=True,
    attention_logit_softcapping=0.5,
    final_logit_softcapping=2.0,
    sliding_window_size=5,
    sliding_window_indices=[1, 0],
    rope_local_base_freq=100.0,
    rope_indices=[1, 0],
)
CONFIGS = {
    "neox": NEOX,
    "gpt2": dataclasses.replace(NEOX, parallel_residual=False, rotary_percentage=0.0),
    "gemma": GEMMA,
}


def make_model(kind: str) -> torch.nn.Module:
    lora = LORA if kind == "lora" else None
    model = build_model(CONFIGS.get(kind, CONFIG), None, lora, seed=1, dtype=torch.float32)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


class GradientReader(Optimizer):
    """Keeps the gradients and leaves the weights as they are."""

    def __init__(self, params: list[torch.nn.Parameter]) -> None:
        super().__init__(params, {"lr": 1.0})
        self.gradients: dict[torch.nn.Parameter, torch.Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        self.gradients = {p: p.grad.detach().double() for p in self.param_groups[0]["params"]}


def main(options: dict[str, Any], ways: list[tuple[str, list[int], str]], output: Path) -> None:
    """Saves one step's loss, gradient norm and gradient for each way and size of micro-batch.

    A way's kind is `full`, `lora` or one of `CONFIGS`; its variant `plain`, `compile`, a kind of recomputation, or
    `chunks` for a loss in chunks of three positions. `options` are `launch`'s.
    """
    fabric = launch(**options)
    results = [
        one_step(fabric, kind, size, variant, options["precision"]) | {"kind": kind, "way": f"{kind} {size} {variant}"}
        for kind, sizes, variant in ways
        for size in sizes
    ]
    if fabric.is_global_zero:
        torch.save(results, output)
    end_process(0)


def one_step(fabric: Fabric, kind: str, micro_batch_size: int, variant: str, precision: str) -> dict[str, Any]:
    """One step whose gradient is read and not applied."""
    loss._LOGITS_PER_CHUNK = 3 * VOCABULARY if variant == "chunks" else LOGITS_PER_CHUNK
    module = make_model(kind).to(torch.bfloat16 if precision == "bf16-true" else torch.float32)
    for block in module.transformer.h:
        block.recompute = variant if variant in ("selective", "full") else "none"
        if variant == "compile":
            block.forward = torch.compile(block.forward)
    if fabric.world_size > 1:
        shard_model(module, fabric.strategy.device_mesh, precision)
    model = fabric.setup(module)
    refresh_rotary_tables(model.module, fabric.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = fabric.setup_optimizers(GradientReader(trained))
    part, parts = data_parallel_part(fabric)
    share = SAMPLES // parts
    every_row = random_rows(SAMPLES, WINDOW, VOCABULARY)
    rows = every_row[part * share :][:share]
    batches = [collate(rows[i : i + micro_batch_size], WINDOW) for i in range(0, share, micro_batch_size)]
    targets = collate(every_row, WINDOW).target_count
    datasets = [torch.zeros(len(batch.input_ids), dtype=torch.int64) for batch in batches]
    data = StepData(batches, datasets, targets, np.array([targets]), targets)
    history, timer = StepHistory(1), StepTimer(fabric.device)
    history.add(optimiser_step(fabric, model, optimizer, data, 0.0, [0] * len(batches), timer), data, {})
    [record], [dataset] = history.read(), history.take_dataset_losses()
    assert dataset == (pytest.approx(record.loss, rel=1e-6), record.targets)
    return {"loss": record.loss, "norm": record.grad_norm, "gradient": gather(optimizer.optimizer.gradients, model)}


def gather(gradients: dict[torch.nn.Parameter, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in model.module.named_parameters():
        if parameter.requires_grad:
            gradient = gradients[parameter]
            found[name] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return found
