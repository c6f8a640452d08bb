"""The shipped recipes that begin with a model of the Hub, or train one from scratch for the size that it has."""

from __future__ import annotations

from pathlib import Path

from litgpt.config import Config

from lit_gpt.formats.hf_config import config_from_hf
from lit_gpt.formats.litgpt_directory import read_config
from tests.conftest import ROOT
from tests.recipes.shapes import SHAPES, VOCABULARIES
from utils import cli
from utils.recipe.sections import Recipe, read_recipe
from utils.train.dry_run import workload_without_data
from utils.train.estimate import Estimate, estimate
from utils.train.options import PretrainOptions

CONFIGS = ROOT / "configs"
SAMPLES = ("quickstart", "plays")
"""Folders of the recipes that need no model of the Hub: others tests run these."""


def read(path: Path) -> Recipe | None:
    found = read_recipe(path)
    return found if found and "download" in found.sections else None


RECIPES = {
    path.relative_to(CONFIGS).with_suffix("").as_posix(): path
    for path in sorted(CONFIGS.glob("*/*.yaml"))
    if path.parent.name not in SAMPLES and read(path)
}


def options_of(path: Path) -> PretrainOptions:
    return cli.parse(PretrainOptions, ["--config", str(path)])


def model_of(path: Path) -> Config:
    """The configuration of the model that a recipe trains, in its real size."""
    recipe = read(path)
    repo_id = recipe.sections["download"]["repo_id"]
    scratch = recipe.sections["pretrain"].get("model_config")
    if scratch:
        return read_config(ROOT / scratch, VOCABULARIES[repo_id])
    return config_from_hf(SHAPES[repo_id])


def needs_of(path: Path) -> Estimate:
    """What `--dry_run` foresees of a recipe's training."""
    config = model_of(path)
    length = read(path).sections["prepare"].get("max_length") or config.block_size
    return estimate(workload_without_data(options_of(path), config, length))
