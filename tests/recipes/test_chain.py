"""Shipped recipes with a tiny model and rows of their shape: their check, and the way to an answer that ends."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.conftest import run, run_command
from tests.recipes.rows import ANSWER
from tests.recipes.shipped import RECIPES
from tests.recipes.twins import kind_of, served_by, write_twin
from utils.recipe.sections import SECTIONS, read_recipe
from utils.recipes import RecipesOptions, main

KINDS: dict[str, list[str]] = {}
for recipe in RECIPES:
    KINDS.setdefault(kind_of(RECIPES[recipe]), []).append(recipe)
# A GGUF file is made of a Hugging Face folder, which does not say how the model in it was trained.
QUANTIZED = {served_by(RECIPES[names[0]]): names for names in KINDS.values()}.values()


@pytest.mark.llama_cpp
@pytest.mark.parametrize("names", KINDS.values(), ids=" ".join)
def test_a_recipe_goes_from_data_to_an_answer_that_ends(names: list[str], tmp_path: Path) -> None:
    twin = write_twin(RECIPES[names[0]], tmp_path)
    assert run_command(RecipesOptions, main, ["check", str(twin)]) == 0
    sections = [name for name in read_recipe(twin).sections if name != "quantize" or names in QUANTIZED]
    for section in sections:
        run(SECTIONS[section].script, "--config", twin)
    with (tmp_path / "run" / "metrics.csv").open(encoding="utf-8") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["split"] == "valid"]
    assert losses[-1] < losses[0]
    assert (tmp_path / "hf" / "model.safetensors").is_file()
    assert names not in QUANTIZED or list((tmp_path / "gguf").glob("*-f32.gguf"))
    (said,) = map(json.loads, (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines())
    assert said["ended_by_itself"]
    answer = said["messages"][-1]
    if "tools" in said:
        assert [call["function"]["name"] for call in answer["tool_calls"]] == ["weather"], said
    else:
        assert answer["content"].strip() == ANSWER, said
