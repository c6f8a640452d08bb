"""Every recipe parses, and every model it names can be built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from lit_gpt.formats.litgpt_directory import read_config
from lit_gpt.model.building import build_model
from tests.conftest import ROOT
from utils import cli
from utils.train.options import PretrainOptions

MODELS = sorted((ROOT / "configs").glob("*_model.yaml"))
RECIPES = sorted(set((ROOT / "configs").glob("*.yaml")) - set(MODELS))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_parses(recipe: Path) -> None:
    needed = ["--data_dir", "data", "--out_dir", "out", "--checkpoint_dir", "model"]
    options = cli.parse(PretrainOptions, [*needed, "--config", str(recipe)])
    for name, value in yaml.safe_load(recipe.read_text()).items():
        parsed = getattr(options, name)
        assert parsed == type(parsed)(value)
    assert options.batch_size % options.micro_batch_size == 0
    assert options.model_config is None or (ROOT / options.model_config).is_file()


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_a_model_is_built(model: Path) -> None:
    config = read_config(model, vocab_size=100)
    ids = torch.zeros((1, config.block_size), dtype=torch.long)
    assert build_model(config, None, None, 0, torch.float32)(ids).shape == (1, config.block_size, 100)
