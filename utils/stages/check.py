"""What would go wrong with a recipe: found in seconds, before any of its stages is begun."""

from pathlib import Path

from utils.recipe.sections import RESOURCES, Recipe, read_all_sections
from utils.stages.options import named_paths, section_options


def check_sections(path: Path) -> tuple[Recipe, list[str]]:
    """The recipe in a file and what is wrong with its sections' options and the paths they name."""
    recipe, problems = read_all_sections(path)
    made: list[Path] = []
    for name in recipe.sections:
        options, wrong = section_options(recipe, name)
        problems += wrong
        if not isinstance(recipe.sections[name].get(RESOURCES, {}), dict):
            problems.append(f"{name}: {RESOURCES} must be a mapping of sbatch's options")
        if options is not None:
            problems += [
                f"{name}: {option} {wanted} is not there, and no earlier stage makes it"
                for option, wanted in named_paths(options, name)
                if not is_there(wanted) and not any(is_within(wanted, result) for result in made)
            ]
        if (result := recipe.result(name)) is not None:
            made.append(result)
    return recipe, problems


def is_there(path: Path) -> bool:
    """Whether a path, or one that fits it as a pattern, exists."""
    if not any(sign in str(path) for sign in "*?["):
        return path.exists()
    anchor = Path(path.anchor)
    return any(anchor.glob(str(path.relative_to(anchor))))


def is_within(path: Path, folder: Path) -> bool:
    return path.absolute().is_relative_to(folder.absolute())
