"""Dataset cards: the README.md of a Hugging Face dataset, whose `configs` may say which files make which split."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from lit_gpt.errors import DataError
from utils.prepare.split_names import is_held_out

CARD = "README.md"
_FRONT_MATTER = re.compile(r"\s*---[ \t]*\n(.*?\n)---[ \t]*(?:\n|$)", re.DOTALL)


def files_held_out(folder: Path) -> set[Path]:
    """The files that the card in `folder` names for splits to hold out; a DataError if it cannot be understood."""
    card = folder / CARD
    front_matter = _FRONT_MATTER.match(card.read_text(encoding="utf-8-sig", errors="replace").replace("\r\n", "\n"))
    if front_matter is None or "configs" not in front_matter[1]:
        return set()
    try:
        values = yaml.safe_load(front_matter[1])
    except yaml.YAMLError as e:
        raise DataError(f"{card}: no valid YAML between its first lines `---`: {' '.join(str(e).split())}") from None
    files: set[Path] = set()
    configs = values.get("configs") if isinstance(values, dict) else None
    for config in configs if isinstance(configs, list) else []:
        if not isinstance(config, dict):
            continue
        for split, pattern in _patterns(config.get("data_files")):
            if is_held_out(split):
                files.update(_matching(folder / str(config.get("data_dir") or "."), pattern))
    return files


def _patterns(data_files: Any) -> Iterator[tuple[str, str]]:
    """Splits and the patterns of their files, in any of the forms a card may have."""
    if isinstance(data_files, dict):
        data_files = [{"split": split, "path": path} for split, path in data_files.items()]
    for entry in data_files if isinstance(data_files, list) else []:
        if isinstance(entry, dict):
            paths = entry.get("path")
            for path in paths if isinstance(paths, list) else [paths]:
                yield str(entry.get("split")), str(path)


def _matching(folder: Path, pattern: str) -> Iterator[Path]:
    if "://" in pattern or PurePosixPath(pattern).is_absolute():
        return  # not in this corpus
    every_depth = f"{pattern}/*" if pattern.endswith("**") else pattern  # pathlib's ** alone is folders
    yield from folder.glob(every_depth)
