"""Started by test_training.py: the gradient of one optimiser step on N processes, saved by process 0."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric import Fabric
from litgpt.config import Config
from torch.optim import SGD

from lit_gpt.command import end_process
from lit_gpt.foundation import build_model
from lit_gpt.lora import LoRASettings, is_adapter
from tests.conftest import TINY_MODEL, random_rows
from utils.data import collate
from utils.launch import launch
from utils.training import optimiser_step

WINDOW, VOCABULARY, SAMPLES = 33, 97, 12
CONFIG = Config(**yaml.safe_load(TINY_MODEL), vocab_size=VOCABULARY, padded_vocab_size=VOCABULARY)
LORA = LoRASettings(4, 8, 0.0, query=True, key=False, value=True, projection=True, mlp=True, head=True)


def make_model(lora: bool) -> torch.nn.Module:
    model = build_model(CONFIG, None, LORA if lora else None, seed=1, dtype=torch.float32)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def main(devices: int, micro_batch_sizes: list[int], lora: bool, output: Path) -> None:
    """Saves one step's loss, gradient norm and gradient for each size of micro-batch."""
    fabric = launch(devices, 1, "32-true")
    results = [one_step(fabric, size, lora) for size in micro_batch_sizes]
    if fabric.is_global_zero:
        torch.save(results, output)
    end_process(0)


def one_step(fabric: Fabric, micro_batch_size: int, lora: bool) -> dict[str, Any]:
    """The gradient is what one step of plain SGD at learning rate 1 subtracts."""
    model = fabric.setup(make_model(lora))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = fabric.setup_optimizers(SGD(trained, lr=1.0))
    share = SAMPLES // fabric.world_size
    rows = random_rows(SAMPLES, WINDOW, VOCABULARY)[fabric.global_rank * share :][:share]
    batches = [collate(rows[i : i + micro_batch_size], WINDOW) for i in range(0, share, micro_batch_size)]
    before = gather(model.module)
    result = optimiser_step(fabric, model, optimizer, batches, 0.0, [0] * len(batches))
    after = gather(model.module)
    gradient = {name: before[name].double() - after[name].double() for name in before}
    return {"loss": result.loss, "norm": result.grad_norm, "gradient": gradient}


def gather(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(size) for size in sys.argv[2].split(",")], sys.argv[3] == "lora", Path(sys.argv[4]))
