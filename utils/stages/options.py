"""The options of each of a recipe's sections, and the files that they name."""

from collections.abc import Iterator
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

from lit_gpt.formats.options import ConvertHFOptions, DownloadOptions
from utils import cli
from utils.books.options import AcquireOptions, ChunkOptions, CleanOptions
from utils.export.options import ConvertOptions, MergeOptions, QuantizeOptions
from utils.prepare.options import PrepareOptions
from utils.recipe.sections import SECTIONS, Recipe
from utils.report.options import PlotOptions
from utils.run.chat_options import ChatOptions
from utils.train.options import PretrainOptions, ValidateOptions

OPTIONS: dict[str, type] = {
    "acquire": AcquireOptions,
    "clean": CleanOptions,
    "chunk": ChunkOptions,
    "download": DownloadOptions,
    "convert_hf": ConvertHFOptions,
    "prepare": PrepareOptions,
    "pretrain": PretrainOptions,
    "validate": ValidateOptions,
    "plot": PlotOptions,
    "merge": MergeOptions,
    "convert": ConvertOptions,
    "quantize": QuantizeOptions,
    "chat": ChatOptions,
}
TEXTS_OF_FILES = ("contamination", "compare")
"""Options that name files, though they are texts."""
NOT_READ = ("html", "llama_cpp_dir")
"""Options that name what is written, or a program."""


@cache
def section_options(recipe: Recipe, name: str) -> tuple[Any, list[str]]:
    """A section's options; None, and what is wrong with them, where there are none. Parsing them takes 0.1 s."""
    values, kind = recipe.values(name), OPTIONS[name]
    missing = [_without_source(field.name, name) for field in fields(kind) if _is_missing(field, values)]
    options, problems = cli.parse_values(kind, values)
    problems = [problem.removeprefix("--") for problem in problems if not problem.endswith(" is required")]
    return options, [f"{name}: {problem}" for problem in (*missing, *problems)]


def _is_missing(field: Any, values: dict[str, Any]) -> bool:
    return field.name not in values and field.default is MISSING and field.default_factory is MISSING


def _without_source(option: str, name: str) -> str:
    """Says that a section lacks an option, and which sections it could have been taken from."""
    makers = [source.split(".")[0] for source in SECTIONS[name].takes.get(option, ())]
    others = [maker for maker in dict.fromkeys(makers) if maker != name]
    return f"{option} is missing" + (f", and so is the section {' or '.join(others)} to take it from" if others else "")


def named_paths(options: Any, name: str) -> Iterator[tuple[str, Path]]:
    """The files and folders that a section reads, each with the option that names it."""
    for field in fields(options):
        value = getattr(options, field.name)
        values = value if isinstance(value, (list, tuple)) else [value]
        is_made = field.name == SECTIONS[name].result and field.name not in SECTIONS[name].takes
        if field.name in NOT_READ or (is_made and name != "convert_hf"):
            continue
        for one in values:
            if isinstance(one, Path) or (field.name in TEXTS_OF_FILES and one):
                yield field.name, Path(one)
    entries = getattr(options, "datasets", None)
    for entry in entries if isinstance(entries, list) else []:
        if entry.get("path"):
            yield f"datasets, {entry.get('name')}", Path(str(entry["path"]))
    template = getattr(options, "template", None)
    if isinstance(template, str) and template.endswith(".jinja"):
        yield "template", Path(template)
