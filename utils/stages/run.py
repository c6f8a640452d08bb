"""Goes through the stages of a recipe, each a process of its own."""

import shlex
import subprocess
import sys
import time

from lit_gpt.errors import UserError
from lit_gpt.repository import REPOSITORY
from utils.data.table import aligned
from utils.recipe.sections import SECTIONS, Recipe


def run_stages(recipe: Recipe, first: str | None, last: str | None) -> None:
    names = list(recipe.sections)
    names = names[names.index(first) if first else 0 : names.index(last) + 1 if last else None]
    rows = []
    for name in names:
        if name == "chat":
            continue
        words = [str(REPOSITORY / SECTIONS[name].script), "--config", str(recipe.path)]
        print(f"\n$ python {shlex.join([SECTIONS[name].script, *words[1:]])}", flush=True)
        began = time.monotonic()
        done = subprocess.run([sys.executable, *words])
        if done.returncode:
            raise UserError(f"the stage {name} ended with exit code {done.returncode}, see above")
        rows.append((name, str(recipe.result(name) or "-"), f"{time.monotonic() - began:.1f} s"))
    print("", *aligned([("stage", "result", "time"), *rows], left=2), sep="\n")
