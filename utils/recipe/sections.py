"""The sections of a recipe, in their order: whose options they hold, and what a section takes from another.

1. `read_recipe` reads a YAML file; one without any section has the options of a single command.
2. `Recipe.values` gives a section's options. What the section leaves out, such as the run folder to validate, is what
   another section made.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lit_gpt.errors import UserError, raise_problems

RESOURCES = "slurm"
"""A key that any section may have: options of sbatch for the job of this stage, such as `{time: "4:00:00"}`."""

SERVED = ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens")
"""How answers are sampled in `chat`: what is published says the same (utils/export/options.py)."""


class _KeysOnce(yaml.SafeLoader):
    """Refuses a key that a mapping has twice: YAML would take the last and say nothing of the first."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return node


class Section(NamedTuple):
    script: str
    """The command, relative to the repository."""
    result: str
    """The option that names what the command makes."""
    takes: dict[str, tuple[str, ...]]
    """An option → `section.option`s; the first that is there is the value where the section leaves the option out."""


BOOK_STAGES = ("acquire", "clean", "chunk")
_ANSWERS = {name: (f"chat.{name}",) for name in SERVED}
SECTIONS = {
    "acquire": Section("data/acquire_gutenberg.py", "output_dir", {}),
    "clean": Section("data/clean_gutenberg.py", "output_dir", {"input_dir": ("acquire.output_dir",)}),
    "chunk": Section("data/chunk_books.py", "output_dir", {"input_dir": ("clean.output_dir",)}),
    "download": Section("lit_gpt/scripts/download.py", "checkpoint_dir", {}),
    "convert_hf": Section("lit_gpt/scripts/convert_hf_checkpoint.py", "checkpoint_dir", {}),
    "prepare": Section(
        "prepare_data.py",
        "destination_path",
        {
            "checkpoint_dir": ("convert_hf.checkpoint_dir", "download.result"),
            "source_path": ("clean.output_dir",),
        },
    ),
    "pretrain": Section(
        "pretrain.py",
        "out_dir",
        {"data_dir": ("prepare.destination_path",), "checkpoint_dir": ("prepare.checkpoint_dir",)},
    ),
    "validate": Section("validate_pretrain.py", "out_dir", {"out_dir": ("pretrain.out_dir",)}),
    "plot": Section("plot_convergence_curves.py", "output", {"folders": ("pretrain.out_dir",)}),
    "merge": Section("utils/merge_lora.py", "save_path", {"lora_path": ("pretrain.out_dir",)}),
    "convert": Section(
        "convert_litgpt_to_transformers.py", "output_dir", {"input_path": ("pretrain.out_dir",), **_ANSWERS}
    ),
    "quantize": Section(
        "utils/quantize_gguf.py",
        "output_dir",
        {
            "model_dir": ("convert.output_dir",),
            "system": ("chat.system",),
            "stop": ("chat.stop",),
            "repetition_window": ("chat.repetition_window",),
            **_ANSWERS,
        },
    ),
    "chat": Section("lit_gpt/chat/base.py", "answers", {"model": ("pretrain.out_dir", "convert_hf.checkpoint_dir")}),
}
"""A recipe's sections, in the order in which they are run. A recipe has those it needs."""


@dataclass(frozen=True, eq=False)
class Recipe:
    path: Path
    sections: dict[str, dict[str, Any]]
    """The options of each section that the file has, in the order of `SECTIONS`, as the file gives them."""

    def values(self, name: str) -> dict[str, Any]:
        """A section's options, with what it takes from other sections; those alone where the file has none of it."""
        values = {key: value for key, value in self.sections.get(name, {}).items() if key != RESOURCES}
        for option, sources in SECTIONS[name].takes.items():
            found = [value for value in map(self._find, sources) if value is not None]
            if option not in values and found:
                values[option] = [found[0]] if option == "folders" else found[0]
        return values

    def result(self, name: str) -> Path | None:
        """The file or folder that a section's command makes; None where it makes none, or the section does not say."""
        values = self.values(name)
        if name == "download":
            repo_id = values.get("repo_id")
            return Path(values.get("checkpoint_dir", "checkpoints")) / str(repo_id) if repo_id else None
        value = values.get(SECTIONS[name].result)
        if name == "plot" and value is None and values.get("folders"):
            return Path(str(values["folders"][0])) / "convergence.png"
        return None if value is None else Path(str(value))

    def resources(self, name: str) -> dict[str, Any]:
        """sbatch's options for the job of a section's stage."""
        return dict(self.sections[name].get(RESOURCES) or {})

    def _find(self, source: str) -> Any:
        name, option = source.split(".")
        if name not in self.sections:
            return None
        if option == "result":
            result = self.result(name)
            return result and str(result)
        return self.values(name).get(option)


def read_recipe(path: Path) -> Recipe | None:
    """The recipe in a YAML file; None for a file without any section, which has the options of one command.

    Raises:
        UserError: for a file that is not there, not YAML, or has something beside its sections.
    """
    content = _read_yaml(path)
    if not isinstance(content, dict) or not SECTIONS.keys() & content.keys():
        return None
    recipe, problems = _recipe_of(path, content)
    raise_problems([f"{path}: {problem}" for problem in problems])
    return recipe


def read_all_sections(path: Path) -> tuple[Recipe, list[str]]:
    """The recipe of the sections that can be read, and what is wrong with the others; raises as `read_recipe` does."""
    content = _read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} has none of a recipe's sections: {', '.join(SECTIONS)}")
    if not SECTIONS.keys() & content.keys() and not any(isinstance(value, dict) for value in content.values()):
        raise UserError(
            f"{path} is no recipe: its options ({next(iter(content))}, …) stand in no section such as pretrain; "
            "a file with the options of one command is given to that command, by --config"
        )
    return _recipe_of(path, content)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _KeysOnce)
    except FileNotFoundError:
        raise UserError(f"--config {path} is not there") from None
    except UnicodeDecodeError as e:
        raise UserError(f"--config {path} is not UTF-8 text: {e}") from None
    except yaml.MarkedYAMLError as e:
        line = f", line {e.problem_mark.line + 1}" if e.problem_mark else ""
        reason = e.problem if "twice" in str(e.problem) else f"not YAML: {e.problem}"
        raise UserError(f"--config {path}{line}: {reason}") from None
    except yaml.YAMLError as e:
        raise UserError(f"--config {path} is not YAML: {e}") from None


def _recipe_of(path: Path, content: dict[Any, Any]) -> tuple[Recipe, list[str]]:
    problems = []
    for name, values in content.items():
        if name not in SECTIONS:
            nearest = difflib.get_close_matches(str(name), SECTIONS, n=1, cutoff=0.7)
            hint = f", the nearest is {nearest[0]}" if nearest else f"; sections are {', '.join(SECTIONS)}"
            problems.append(f"unknown section {name}{hint}")
        elif not (values is None or isinstance(values, dict)):
            problems.append(f"section {name} must be a mapping of options")
    known = [name for name in SECTIONS if isinstance(content.get(name, 0), (dict, type(None)))]
    return Recipe(path, {name: dict(content[name] or {}) for name in known}), problems
