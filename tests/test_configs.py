"""Every recipe parses, and every model it names can be built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from lit_gpt.formats.litgpt_directory import read_config
from lit_gpt.model.building import build_model
from prepare_data import main
from tests.conftest import ROOT
from utils import cli
from utils.data.inspection import inspect
from utils.prepare.options import PrepareOptions
from utils.recipe.sections import read_recipe
from utils.stages.options import section_options
from utils.stages.shipped import shipped_recipes

MODELS = sorted((ROOT / "configs").rglob("model*.yaml"))
CHATS = [ROOT / "configs" / "quickstart" / "chats.yaml"]
RECIPES = shipped_recipes()


@pytest.mark.parametrize("path", RECIPES.values(), ids=RECIPES)
def test_a_recipe_parses(path: Path) -> None:
    recipe = read_recipe(path)
    for name in recipe.sections:
        options, problems = section_options(recipe, name)
        assert problems == []
        if name == "pretrain":
            assert options.batch_size % options.micro_batch_size == 0
            assert options.model_config is None or (ROOT / options.model_config).is_file()


@pytest.mark.parametrize("model", MODELS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_model_is_built(model: Path) -> None:
    config = read_config(model, vocab_size=100)
    ids = torch.zeros((1, config.block_size), dtype=torch.long)
    assert build_model(config, None, None, 0, torch.float32)(ids).shape == (1, config.block_size, 100)


@pytest.mark.parametrize("recipe", CHATS, ids=lambda path: path.stem)
def test_a_recipe_of_chats_is_checked_and_prepared(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(ROOT)
    argv = ["--config", str(recipe), "--destination_path", str(tmp_path / "data"), "--num_workers", "1"]
    main(cli.parse(PrepareOptions, [*argv, "--check", "true"]))
    assert not (tmp_path / "data").exists()
    checked = capsys.readouterr().out
    main(cli.parse(PrepareOptions, argv))
    splits = json.loads((tmp_path / "data" / "manifest.json").read_text())["splits"]
    for split in splits:
        (line,) = (line for line in checked.splitlines() if line.startswith(f"{split['dataset']} {split['split']}  "))
        assert f"{split['tokens']:,}" in line.split()
        assert f"{split['targets']:,}" in line.split()
        assert int(line.split()[-1]) == sum(split["skipped"].values())
    assert len(splits) == len(yaml.safe_load(recipe.read_text())["prepare"]["datasets"])
    inspect(tmp_path / "data", 1, 0)
