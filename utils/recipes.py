"""Recipes: one YAML file from data to a model that answers. Lists and copies those that are shipped, checks one, and
runs one stage by stage, each a command that a person could type.
"""

import difflib
import shlex
import shutil
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this file's folder

from lit_gpt.errors import UserError, raise_problems
from utils import cli
from utils.recipe.sections import SECTIONS, Recipe

NAMES = {"ls": (), "show": ("NAME",), "cp": ("NAME", "FILE"), "check": ("FILE",), "run": ("FILE",), "jobs": ("FILE",)}


@dataclass(frozen=True)
class RecipesOptions:
    """Recipes: `ls` names those that are shipped, `show NAME` prints one, `cp NAME FILE` copies one to be changed,
    `check FILE` says in seconds what would fail in hours, `run FILE` makes what it says, or goes on with it."""

    action: str
    """ls, show, cp, check, run, or jobs: for slurm/recipe.slurm, the stages that `run` would run, as Slurm jobs."""
    names: tuple[str, ...] = ()
    """What the action is about: a shipped recipe's NAME as `ls` has it, a FILE."""
    from_stage: str | None = None
    """Run this stage again, and those after it."""
    until: str | None = None
    """Run no stage after this one."""
    launcher: str | None = None
    """Command that starts each stage's command, such as `srun`; its exit code is the stage's."""
    gpu_memory: float | None = None
    """GiB of a GPU that the training must fit. Default: the recipe's pretrain.gpu_memory."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        if self.action not in NAMES:
            raise UserError(f"{self.action} is none of {', '.join(NAMES)}")
        wanted = NAMES[self.action]
        problems = []
        if len(self.names) != len(wanted):
            problems.append(f"recipes.py {' '.join((self.action, *wanted))} is how {self.action} is asked")
        for option in ("from_stage", "until"):
            stage = getattr(self, option)
            if stage is not None and stage not in SECTIONS:
                nearest = difflib.get_close_matches(stage, SECTIONS, n=1)
                hint = f"; nearest: {nearest[0]}" if nearest else ""
                said = option.removesuffix("_stage")
                problems.append(f"--{said} {stage} is none of {', '.join(SECTIONS)}{hint}")
        raise_problems(problems)


if __name__ == "__main__":
    OPTIONS = cli.parse_or_exit(RecipesOptions)  # --help and mistakes are answered before the imports below

from utils.data.table import aligned
from utils.stages.check import check_paths, check_recipe, check_sections
from utils.stages.run import Signals, chosen_stages, run_stages, stages_to_run
from utils.stages.shipped import description, find_shipped, shipped_recipes
from utils.stages.slurm import job_lines


def main(options: RecipesOptions) -> None:
    if options.action == "ls":
        rows = [(name, description(path)) for name, path in shipped_recipes().items()]
        print("\n".join(line.rstrip() for line in aligned(rows, left=2)))
    elif options.action == "show":
        print(find_shipped(options.names[0]).read_text(encoding="utf-8"), end="")
    elif options.action == "cp":
        copy(find_shipped(options.names[0]), Path(options.names[1]))
    elif options.action == "check":
        check(options, Path(options.names[0]))
    else:
        run(options, Path(options.names[0]))


def copy(source: Path, target: Path) -> None:
    """Copies a recipe to a file that is not there yet."""
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise UserError(f"{target} exists already; give another FILE")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    print(f"wrote {target}")


def check(options: RecipesOptions, path: Path) -> None:
    """Prints what the recipe's data and model are, and a line for each problem; a UserError names the first."""
    recipe, names = read(options, path)
    say_problems(path, check_recipe(recipe, names, options.gpu_memory, show=True))
    print(f"{path}: nothing that would fail was found in {', '.join(recipe.sections)}")


def run(options: RecipesOptions, path: Path) -> None:
    """Runs the recipe's stages, or says which it would run, as Slurm jobs."""
    with Signals() as signals:
        # jobs are lines that slurm/recipe.slurm evaluates; what else is said, with names of files in it, is none
        with redirect_stdout(sys.stderr if options.action == "jobs" else sys.stdout):
            recipe, names = read(options, path)
            to_do = stages_to_run(recipe, names, options.from_stage)
            if to_do:
                say_problems(path, check_recipe(recipe, to_do, options.gpu_memory, show=False))
        if options.action == "jobs":
            print("\n".join(job_lines(recipe, to_do)))
            return
        run_stages(recipe, names, options.from_stage, signals, shlex.split(options.launcher or ""))


def read(options: RecipesOptions, path: Path) -> tuple[Recipe, list[str]]:
    """The recipe and the stages that are asked for, whose options are sound and whose paths are there."""
    if not path.exists():
        known = f": it is shipped, and `recipes.py cp {path} FILE` copies it" if str(path) in shipped_recipes() else ""
        raise UserError(f"FILE {path} is not there{known}")
    recipe, problems = check_sections(path)
    say_problems(path, problems)
    names = chosen_stages(recipe, options.from_stage, options.until)
    first = options.from_stage or names[0]
    say_problems(path, check_paths(recipe, names[names.index(first) :]))
    return recipe, names


def say_problems(path: Path, problems: list[str]) -> None:
    """Prints a line for each problem; a UserError says how many there are, and the first."""
    for problem in problems:
        print(" ".join(problem.split()))
    if problems:
        count = f"{len(problems)} problems, the first: " if len(problems) > 1 else ""
        raise UserError(f"{path}: {count}{problems[0]}")


if __name__ == "__main__":
    sys.exit(cli.run(main, OPTIONS))
