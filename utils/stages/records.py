"""What a stage made, of what: `.RESULT.STAGE.json` beside its result, by which it is known to be complete.

1. Before a stage begins, the record says of which options and inputs it makes its result, and whether something was
   there that is not its own.
2. When the command has ended well, the record is written anew, with the result's digest.

Nothing in it depends on a clock. It lies beside the result, which most commands replace as a whole.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from utils.files.atomic import write_atomically
from utils.prepare.chat.converters import identity_of
from utils.prepare.splits import PREPARATION_VERSION
from utils.recipe.sections import Recipe
from utils.stages.digests import input_digest, result_digest
from utils.stages.options import named_paths, section_options

VERSIONS = {"prepare": PREPARATION_VERSION}
"""Raised when a command makes something else of the same options and inputs than it did; of the others it is 1."""
WITHOUT_EFFECT = ("debug", "num_workers", "max_memory", "hang_timeout", "gpu_memory", "mfu", "delay")
"""Options that change nothing of what is made."""


@dataclass(frozen=True)
class StageRecord:
    stage: str
    version: int
    options: dict[str, Any]
    """Those that are not at their default."""
    inputs: dict[str, dict[str, str | None]]
    """Option → path → digest of what is there."""
    result: str | None = None
    """The digest of what was made; None as long as it is being made."""
    found: bool = False
    """Whether there was a result before that is not this stage's."""

    def difference(self, before: "StageRecord") -> str | None:
        """What is not as it was; None if the same would be made again."""
        if self.version != before.version:
            return "another version of the program made it"
        for name in (*self.options, *before.options):
            was, now = before.options.get(name), self.options.get(name)
            if was != now:
                return f"{name} was {_short(was)}, now {_short(now)}"
        for name in (*self.inputs, *before.inputs):
            was, now = before.inputs.get(name, {}), self.inputs.get(name, {})
            changed = [path for path in (*now, *was) if was.get(path) != now.get(path)]
            if changed:
                return f"{name} {changed[0]} has changed"
        return None


def _short(value: Any) -> str:
    text = "the default" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def expected_record(recipe: Recipe, name: str) -> StageRecord:
    """What a stage would make its result of now."""
    options, problems = section_options(recipe, name)
    if options is None:
        raise UserError("; ".join(problems))
    given = {}
    for field in fields(options):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(options, field.name)
        if value != default and field.name not in WITHOUT_EFFECT:
            given[field.name] = _plain(value)
    inputs: dict[str, dict[str, str | None]] = {}
    for option, path in named_paths(options, name):
        inputs.setdefault(option, {})[str(path)] = _input_digest(recipe, name, path)
    if name == "prepare":
        converters = [entry.converter for entry in options.entries]
        converters += [options.own_converter] if options.own_converter else []
        codes = {converter.name: identity_of(converter)["code"] for converter in converters if converter.name != "text"}
        inputs |= {"converter": {key: code for key, code in codes.items() if code}}
    return StageRecord(name, VERSIONS.get(name, 1), given, inputs)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def _input_digest(recipe: Recipe, name: str, path: Path) -> str | None:
    """The digest of an input: of what earlier stages made there, or of what lies there."""
    found = []
    for earlier in recipe.sections:
        if earlier == name:
            break
        result = recipe.result(earlier)
        if result is not None and (lies_in(path, result) or lies_in(result, path)):
            found.append(result_digest(recipe, earlier) or "")
    return " ".join(found) if found else input_digest(name, path)


def lies_in(path: Path, folder: Path) -> bool:
    return path.absolute().is_relative_to(folder.absolute())


def record_path(recipe: Recipe, name: str) -> Path | None:
    """Where the record of a stage lies; None for one that makes nothing."""
    result = recipe.result(name)
    if result is None:
        return None
    result = result.absolute()
    return result.with_name(f".{result.name}.{name}.json")


def read_record(recipe: Recipe, name: str) -> StageRecord | None:
    """The record of the last time that a stage was begun; None if there is none that can be read."""
    path = record_path(recipe, name)
    try:
        return StageRecord(**json.loads(path.read_text(encoding="utf-8"))) if path else None
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, ValueError, TypeError):
        return None


def is_own_result(recipe: Recipe, name: str) -> bool:
    """Whether what is there was made by this stage, finished or not; True where nothing is there."""
    digest, before = result_digest(recipe, name), read_record(recipe, name)
    if digest is None:
        return True
    return before is not None and (before.result == digest if before.result else not before.found)


def is_unfinished(recipe: Recipe, name: str) -> bool:
    """Whether a stage has still to make its result, or was killed while it did."""
    before = read_record(recipe, name)
    return result_digest(recipe, name) is None or (before is not None and before.result is None)


def write_record(recipe: Recipe, record: StageRecord) -> None:
    path = record_path(recipe, record.stage)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n")
