"""JSON files of models: config.json, those of tokenizers and of adapters, indexes of weights."""

import json
from pathlib import Path
from typing import Any

from lit_gpt.checksums import as_listed
from lit_gpt.errors import DataError


def read_json(path: Path) -> dict[str, Any]:
    """Reads the JSON object in `path`; a DataError names the file if it holds something else, or has changed."""
    try:
        values = json.loads(as_listed(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path} is not valid JSON: {e}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} does not hold a JSON object")
    return values


def read_json_if_there(path: Path) -> dict[str, Any]:
    """As `read_json`; nothing where there is no such file."""
    return read_json(path) if path.is_file() else {}
