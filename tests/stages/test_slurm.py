"""The resources that a recipe's sections name for their jobs."""

from __future__ import annotations

import shlex
from pathlib import Path

from utils.recipe.sections import Recipe
from utils.stages.slurm import job_lines, resource_problems


def test_resources_are_options_of_sbatch() -> None:
    slurm = {"nodes": 2, "gres": "gpu:4", "time": "20:00:00", "exclusive": True, "comment": "it's a\ttab", "mem": False}
    recipe = Recipe(Path("r.yaml"), {"pretrain": {"out_dir": "my run", "slurm": slurm}, "validate": {}})
    assert not resource_problems(recipe, "pretrain") and not resource_problems(recipe, "validate")
    first, second = map(shlex.split, job_lines(recipe, ["pretrain", "validate"]))
    options = ["--nodes=2", "--gres=gpu:4", "--time=20:00:00", "--exclusive", "--comment=it's a\ttab"]
    assert first == ["job", "pretrain", "my run", *options] and second == ["job", "validate", "my run"]
    assert "slurm" not in recipe.values("pretrain")


def test_what_sbatch_would_misread_is_named() -> None:
    slurm = {"time": 14400, "ntask": 2, "nodes": 2, "mem": [1], "comment": "two\nlines"}
    recipe = Recipe(Path("r.yaml"), {"convert": {"output_dir": "hf", "slurm": slurm}, "prepare": {"slurm": 3}})
    problems = resource_problems(recipe, "convert")
    assert len(problems) == 5 and all(problem.startswith("convert: slurm: ") for problem in problems)
    assert any("time must be a text in quotes" in problem for problem in problems)
    assert any("ntask is none of " in problem and problem.endswith("nearest: ntasks") for problem in problems)
    assert any("nodes 2, but its command is one task" in problem for problem in problems)
    shared = {"devices": 8, "num_nodes": 2, "slurm": {"nodes": 2, "ntasks-per-node": 4}}
    recipe = Recipe(Path("r.yaml"), {**recipe.sections, "pretrain": shared})
    assert resource_problems(recipe, "pretrain") == ["pretrain: devices 8, but slurm: ntasks-per-node 4"]
    assert resource_problems(recipe, "prepare") == ["prepare: slurm must be a mapping of sbatch's options"]
