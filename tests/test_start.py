"""What a training imports is little more than torch, and what it leaves out works when somebody asks for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

TRAINING = """
import importlib, json, pkgutil, sys
import torch
torch_alone = len(sys.modules)
import pretrain
for room in ("lit_gpt.model", "utils.cluster", "utils.data", "utils.run", "utils.train"):
    for module in pkgutil.iter_modules(importlib.import_module(room).__path__, f"{room}."):
        importlib.import_module(module.name)
imported = sorted(sys.modules)
"""
"""Imports what `pretrain.py` imports, before the first step."""

WITHOUT = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Without())
"""
"""Makes a package one that is not installed."""


def _run(code: str) -> dict[str, object]:
    """Runs code in an interpreter of its own; the JSON object that it prints last."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_training_imports_no_trainer_no_metrics_no_transformers_and_no_compiler():
    found = _run(TRAINING + 'print(json.dumps({"imported": imported, "torch": torch_alone}))')
    for package in ("transformers", "torchmetrics", "lightning.pytorch", "torch._dynamo", "pandas", "matplotlib"):
        assert not [name for name in found["imported"] if name == package or name.startswith(f"{package}.")]
    assert "lightning.fabric.strategies" in found["imported"] and "litgpt.lora" in found["imported"]
    assert len(found["imported"]) <= 2 * found["torch"]


def test_what_was_left_out_comes_when_it_is_asked_for():
    found = _run(
        TRAINING
        + """
import lightning, litgpt
from lightning import LightningModule, Trainer
from litgpt import LLM
from litgpt.utils import WandbLogger, instantiate_torch_optimizer
from lightning.fabric.wrappers import OptimizedModule, _unwrap_compiled

layer = torch.nn.Linear(1, 1)
optimizer = instantiate_torch_optimizer({"class_path": "torch.optim.SGD", "init_args": {"lr": 1}}, layer.parameters())
compiled = torch.compile(layer)
missing = [not hasattr(package, "nothing") for package in (lightning, litgpt)]
import torchmetrics
print(json.dumps({
    "classes": [Trainer.__module__, LightningModule.__module__, LLM.__module__, type(optimizer).__module__],
    "types": [type(package).__name__ for package in (lightning, litgpt)],
    "versions": [lightning.__version__, lightning.fabric.__version__],
    "loaders": [type(package.__loader__).__name__ for package in (lightning, litgpt)],
    "exported": all(hasattr(package, name) for package in (lightning, litgpt) for name in package.__all__),
    "compiled": isinstance(compiled, OptimizedModule) and _unwrap_compiled(compiled)[0] is layer,
    "not_compiled": isinstance(layer, OptimizedModule) or isinstance(layer, WandbLogger),
    "missing": missing,
    "metric": torchmetrics.Metric.__module__,
}))
"""
    )
    assert found["classes"] == [
        "lightning.pytorch.trainer.trainer",
        "lightning.pytorch.core.module",
        "litgpt.api",
        "torch.optim.sgd",
    ]
    assert found["types"] == ["module", "module"]
    assert found["versions"][0] == found["versions"][1]
    assert found["loaders"] == ["SourceFileLoader", "SourceFileLoader"]
    assert found["exported"] and found["compiled"] and not found["not_compiled"]
    assert found["missing"] == [True, True]
    assert found["metric"] == "torchmetrics.metric"


@pytest.mark.parametrize("package", ["transformers", "torchmetrics"])
def test_a_training_needs_neither_transformers_nor_torchmetrics(package: str):
    found = _run(
        WITHOUT.format(package=package)
        + TRAINING
        + """
from lightning.fabric import Fabric
fabric = Fabric(accelerator="cpu", devices=1)
fabric.launch()
layer = torch.nn.Linear(1, 1)
model, optimizer = fabric.setup(layer, torch.optim.SGD(layer.parameters()))
print(json.dumps({"output": list(model(torch.zeros(1, 1)).shape)}))
"""
    )
    assert found["output"] == [1, 1]


def test_a_package_imported_before_is_left_alone():
    found = _run(
        """
import json, sys
import litgpt
opened = litgpt.LLM
import lit_gpt
import litgpt.lora
print(json.dumps({"same": litgpt.LLM is opened, "type": type(litgpt).__name__}))
"""
    )
    assert found == {"same": True, "type": "module"}


def test_threads_that_ask_at_once_get_the_same_package():
    found = _run(
        """
import json
from concurrent.futures import ThreadPoolExecutor
import lit_gpt, litgpt
with ThreadPoolExecutor(4) as pool:
    found = list(pool.map(lambda _: litgpt.LLM.__name__, range(4)))
print(json.dumps({"found": found}))
"""
    )
    assert found == {"found": ["LLM"] * 4}
