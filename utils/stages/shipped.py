"""The recipes that come with the program: configs/FOLDER/NAME.yaml."""

import difflib
from pathlib import Path

import yaml

from lit_gpt.errors import UserError
from lit_gpt.repository import REPOSITORY
from utils.recipe.sections import SECTIONS

CONFIGS = REPOSITORY / "configs"


def shipped_recipes() -> dict[str, Path]:
    """Name → file of every recipe, by name. Other files in the folders, such as models' shapes, are none."""
    found = {}
    for path in sorted(CONFIGS.rglob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and SECTIONS.keys() & content.keys():
            found[path.relative_to(CONFIGS).with_suffix("").as_posix()] = path
    return found


def description(path: Path) -> str:
    """A recipe's first line, if it is a comment."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def find_shipped(name: str) -> Path:
    """The file of a recipe that is named as `ls` does; a UserError with the nearest names if there is none."""
    recipes = shipped_recipes()
    if name.removesuffix(".yaml") in recipes:
        return recipes[name.removesuffix(".yaml")]
    nearest = difflib.get_close_matches(name, recipes, n=3, cutoff=0.4)
    hint = f"the nearest are {', '.join(nearest)}" if nearest else "recipes.py ls names them"
    raise UserError(f"no recipe is named {name}; {hint}")
