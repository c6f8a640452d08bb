"""A recipe's stages as Slurm jobs: the resources that each section names under `slurm`, as options of sbatch."""

import difflib
import shlex
from collections.abc import Sequence
from typing import Any

from utils.recipe.sections import RESOURCES, Recipe

SBATCH = ("account", "comment", "constraint", "cpus-per-gpu", "cpus-per-task", "exclude", "exclusive", "gpu-bind")
SBATCH += ("gpus", "gpus-per-node", "gpus-per-task", "gres", "hint", "licenses", "mail-type", "mail-user", "mem")
SBATCH += ("mem-per-cpu", "mem-per-gpu", "nodelist", "nodes", "ntasks", "ntasks-per-node", "partition", "qos")
SBATCH += ("reservation", "signal", "time", "tmp")
"""The options of sbatch that a section may name: what a job gets, not how it is started."""
_TASKS = ("nodes", "ntasks", "ntasks-per-node")
_COUNTED = {"nodes": "num_nodes", "ntasks-per-node": "devices"}
"""What pretrain and validate call them."""
SHARED = ("prepare", "pretrain", "validate")
"""Stages whose command works as several tasks."""


def resource_problems(recipe: Recipe, name: str) -> list[str]:
    """What is wrong with the resources that a section names."""
    resources = recipe.sections[name].get(RESOURCES)
    if resources is not None and not isinstance(resources, dict):
        return [f"{name}: {RESOURCES} must be a mapping of sbatch's options"]
    problems = []
    for option, value in (resources or {}).items():
        if option not in SBATCH:
            nearest = difflib.get_close_matches(str(option), SBATCH, n=1)
            hint = f"; nearest: {nearest[0]}" if nearest else ""
            problems.append(f"{name}: {RESOURCES}: {option} is none of {', '.join(SBATCH)}{hint}")
        elif option == "time" and not isinstance(value, str):  # YAML 1.1 reads 4:00:00 as 14400, Slurm that as minutes
            problems.append(f'{name}: {RESOURCES}: time must be a text in quotes, such as "4:00:00"')
        elif option in _TASKS and name not in SHARED and value != 1:
            problems.append(f"{name}: {RESOURCES}: {option} {value}, but its command is one task")
        elif not isinstance(value, (str, int)) or "\n" in str(value):
            problems.append(f"{name}: {RESOURCES}: {option} must be a text or a number")
        elif str(value) != str(recipe.values(name).get(_COUNTED.get(option), value)):
            counted = _COUNTED[option]
            problems.append(f"{name}: {counted} {recipe.values(name)[counted]}, but {RESOURCES}: {option} {value}")
    return problems


def job_lines(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """A line of shell words for the job of each stage: `job`, its name, its result ('-' for none), sbatch's options."""
    lines = []
    for name in names:
        result = recipe.result(name)
        options = [_option(option, value) for option, value in recipe.resources(name).items() if value is not False]
        lines.append(shlex.join(["job", name, str(result or "-"), *options]))
    return lines


def _option(name: str, value: Any) -> str:
    return f"--{name}" if value is True else f"--{name}={value}"
