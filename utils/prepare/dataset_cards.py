"""Dataset cards: the README.md of a Hugging Face dataset, whose `configs` may say which files make which split."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from lit_gpt.errors import DataError, UserError
from utils.prepare.named_splits import files_by_split
from utils.prepare.split_names import is_held_out

CARD = "README.md"
_FRONT_MATTER = re.compile(r"\s*---[ \t]*\n(.*?\n)---[ \t]*(?:\n|$)", re.DOTALL)

_CONVERTED = re.compile(r"([^/]+)/([^/]+)/[0-9]{4}\.parquet")  # on the branch refs/convert/parquet


def files_held_out(folder: Path) -> set[Path]:
    """The files that the card in `folder` names for splits to hold out; a DataError if it cannot be understood."""
    files: set[Path] = set()
    for config in read_configs(folder / CARD):
        for split, pattern in _patterns(config.get("data_files")):
            if is_held_out(split):
                files.update(_matching(folder / str(config.get("data_dir") or "."), pattern))
    return files


def read_configs(card: Path) -> list[dict[str, Any]]:
    """The subsets that a card describes; none if it has no such description."""
    front_matter = _front_matter(card)
    return configs_of(_metadata(card, front_matter)) if "configs" in front_matter else []


def read_metadata(card: Path) -> dict[str, Any]:
    """What a card says in its first lines, between `---`; nothing if it has none."""
    return _metadata(card, _front_matter(card))


def configs_of(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    configs = metadata.get("configs")
    return [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []


def _front_matter(card: Path) -> str:
    text = card.read_text(encoding="utf-8-sig", errors="replace").replace("\r\n", "\n")
    found = _FRONT_MATTER.match(text)
    return found[1] if found else ""


def _metadata(card: Path, front_matter: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(front_matter)
    except yaml.YAMLError as e:
        raise DataError(f"{card}: no valid YAML between its first lines `---`: {' '.join(str(e).split())}") from None
    return values if isinstance(values, dict) else {}


def find_configs(card: Path | None, names: Iterable[str]) -> list[dict[str, Any]]:
    """The subsets that a card describes, else those of the Hub's own Parquet files, `SUBSET/SPLIT/0000.parquet`."""
    if card is not None and (configs := read_configs(card)):
        return configs
    found: dict[str, dict[str, list[str]]] = {}
    for name in sorted(names):
        converted = _CONVERTED.fullmatch(name)
        if converted is None:
            return []
        found.setdefault(converted[1], {}).setdefault(converted[2], []).append(name)
    return [{"config_name": subset, "data_files": splits} for subset, splits in found.items()]


def splits_of_subset(configs: list[dict[str, Any]], subset: str, names: Iterable[str]) -> dict[str, list[str]]:
    """Which files of a dataset, by their paths in it, make which split of a subset; `configs` are of its card.

    Raises a UserError that names the subsets if there is none of this name, or none is named and there are several.
    """
    config = _chosen(configs, subset)
    folder = PurePosixPath(str(config.get("data_dir") or "."))
    inside = [name for name in names if PurePosixPath(name).is_relative_to(folder)]
    patterns = list(_patterns(config.get("data_files")))
    if not patterns:
        by_path = {PurePosixPath(name).relative_to(folder).as_posix(): name for name in inside}
        return {split: [by_path[path] for path in paths] for split, paths in files_by_split(by_path).items()}
    found: dict[str, list[str]] = {}
    for split, pattern in patterns:
        wanted = re.compile(_as_regex((folder / pattern).as_posix()))
        files = found.setdefault(split, [])
        files += sorted(name for name in inside if wanted.fullmatch(name) and name not in files)
    return found


def _chosen(configs: list[dict[str, Any]], subset: str) -> dict[str, Any]:
    by_name = {str(config.get("config_name", "default")): config for config in configs}
    names = f"{', '.join(list(by_name)[:20])}{', …' if len(by_name) > 20 else ''}"
    if subset and subset not in by_name:
        raise UserError(f"it has no subset '{subset}' but {names}")
    if subset:
        return by_name[subset]
    by_default = [config for config in configs if config.get("default") is True]
    if len(configs) == 1 or by_default:
        return by_default[0] if by_default else configs[0]
    if "default" in by_name:
        return by_name["default"]
    raise UserError(f"it has several subsets; name one as subset: {names}")


def _patterns(data_files: Any) -> Iterator[tuple[str, str]]:
    """Splits and the patterns of their files, in any of the forms a card may have."""
    if isinstance(data_files, dict):
        data_files = [{"split": split, "path": paths} for split, paths in data_files.items()]
    for entry in data_files if isinstance(data_files, list) else [data_files]:
        if isinstance(entry, str):
            yield "train", entry
        if isinstance(entry, dict):
            paths = entry.get("path")
            for path in paths if isinstance(paths, list) else [paths]:
                yield str(entry.get("split")), str(path)


def _matching(folder: Path, pattern: str) -> Iterator[Path]:
    if "://" in pattern or PurePosixPath(pattern).is_absolute():
        return  # not in this corpus
    every_depth = f"{pattern}/*" if pattern.endswith("**") else pattern  # pathlib's ** alone is folders
    yield from folder.glob(every_depth)


def _as_regex(pattern: str) -> str:
    """A pattern as `datasets` reads it: `**` is any number of folders, `*` and `?` stay within a name."""
    written = ""
    for word in re.findall(r"\*\*/|\*\*|\*|\?|\[[^]]+\]|.", pattern, re.DOTALL):
        simple = {"**/": "(?:.+/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        if word in simple:
            written += simple[word]
        elif len(word) > 1:
            written += word.replace("[!", "[^")
        else:
            written += re.escape(word)
    return f"(?s:{written})"
