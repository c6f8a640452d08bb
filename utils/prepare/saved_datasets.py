"""Folders that `Dataset.save_to_disk` of the library `datasets` wrote: which of their Arrow files hold the rows.

`state.json` names them. Others beside them, such as `cache-….arrow` of a `map`, repeat or replace rows and are not
read. `dataset_dict.json` in the folder above names the splits, each a folder of its name.
"""

import json
import re
from pathlib import Path
from typing import Any

from lit_gpt.errors import DataError
from utils.prepare.split_names import is_held_out

STATE, SPLITS = "state.json", "dataset_dict.json"
DESCRIBE_SAVED = {STATE, "dataset_info.json"}


def saved_files(folder: Path, names: set[str]) -> set[str] | None:
    """The Arrow files of a saved dataset; None if the folder is none. Raises a DataError for one that is incomplete."""
    if not names >= DESCRIBE_SAVED:
        return None
    state = _read(folder / STATE)
    try:
        files = {file["filename"] for file in state["_data_files"]}
    except (KeyError, TypeError):
        raise DataError(f"{folder / STATE} does not name the files of a dataset (_data_files); save it again") from None
    if state.get("_indices_data_files"):
        way = "load it, and save its flatten_indices()"
        raise DataError(f"{folder / STATE} names rows of its files by an index, which is not read; {way}")
    if missing := sorted(files - names):
        raise DataError(f"{folder} lacks {missing[0]}, which its {STATE} names")
    return files


def saved_split_is_held_out(folder: Path) -> bool:
    """Whether a dataset that was saved by itself was a split to hold out, or had a part of one: `test[:10%]`."""
    split = _read(folder / STATE).get("_split")
    return isinstance(split, str) and any(map(is_held_out, re.split(r"[^-.\w ]+", split)))


def require_splits(folder: Path) -> None:
    """Raises a `DataError` if a split that `dataset_dict.json` names is not there."""
    splits = _read(folder / SPLITS).get("splits")
    missing = [split for split in splits or [] if not (folder / str(split) / STATE).is_file()]
    if missing:
        raise DataError(f"{folder} lacks the split {missing[0]}, which its {SPLITS} names")


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except ValueError as e:
        raise DataError(f"{path} is no valid JSON: {e}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} is no JSON object")
    return values
