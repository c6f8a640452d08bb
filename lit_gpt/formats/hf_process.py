"""Starts transformers in a fresh process, which knows of a model only what its Hugging Face folder holds.

`python -m MODULE FOLDER REQUEST.json ANSWER` is that process.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.programs import failure_of_system
from lit_gpt.repository import REPOSITORY


def require_transformers(instead: str = "") -> None:
    """Raises a UserError if transformers is not installed; `instead` is what else the user can do."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError(f"transformers is needed and not installed: pip install transformers==5.3.0{instead}")


def run_transformers(module: str, folder: Path, request: dict[str, Any], answer: Path) -> None:
    """Runs `module` on `folder`: it reads `request` and writes `answer`, a file.

    Raises:
        DataError: if transformers cannot load the folder.
        OSError: if the memory or the disk does not suffice.
        Interrupted: if the process was stopped.
    """
    asked = answer.with_name("request.json")
    asked.write_text(json.dumps(request), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", module, *(str(path.resolve()) for path in (folder, asked, answer))],
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        if failure := failure_of_system("transformers", done.returncode, done.stderr, answer.parent):
            raise failure
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise DataError(f"transformers does not load {folder}: {lines[-1]}")
