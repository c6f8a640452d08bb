"""Other programs: transformers in a fresh process, and why a program that a command started has failed."""

import errno
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from lit_gpt.errors import DataError, Interrupted, UserError
from lit_gpt.repository import REPOSITORY

_SYSTEM_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
_UNWRITTEN = re.compile(r"iostream error|basic_ios::clear|\d requested and \d+ written")
"""Messages of C++ and NumPy about a write that failed, which do not give the reason."""
_NOISE = re.compile(r"^(\s*$|\s*File \"|Traceback|During handling|The above exception|.{0,20}WARNING)")


def failure_of_system(name: str, returncode: int, output: str, scratch: Path) -> OSError | Interrupted | None:
    """The reason why the machine, not the data, ended a program that wrote to the folder `scratch`, else None."""
    if returncode == -signal.SIGKILL:
        return OSError(errno.ENOMEM, f"{name} was killed by signal 9, probably out of memory")
    if returncode in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP):
        return Interrupted(f"{name} was stopped by signal {-returncode}; run the same command again")
    match = re.search(r"\[Errno (\d+)\]", reason_of(output))
    number = int(match[1]) if match else None
    if number is None:
        number = next((known for known in _SYSTEM_ERRORS if os.strerror(known) in output), None)
    if number is None and (_UNWRITTEN.search(output) or shutil.disk_usage(scratch).free < 2**16):
        number = errno.ENOSPC
    return None if number is None else OSError(number, os.strerror(number), str(scratch))


def reason_of(output: str) -> str:
    """The line that tells best why a program stopped: the last exception, else the first error, else the last line."""
    lines = [line.strip() for line in output.splitlines() if not _NOISE.match(line)] or ["it said nothing"]
    exceptions = [line for line in lines if re.match(r"\w*(Error|Exception)\b", line)]
    errors = [line for line in lines if "error" in line.lower() or "failed" in line.lower()]
    return (exceptions[-1:] or errors[:1] or lines[-1:])[0]


def require_transformers(instead: str = "") -> None:
    """Raises a UserError if transformers is not installed; `instead` is what else the user can do."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError(f"transformers is needed and not installed: pip install transformers==5.3.0{instead}")


def run_transformers(
    module: str, folder: Path, request: dict[str, Any], answer: Path, library: str = "transformers"
) -> None:
    """Runs `python -m module FOLDER REQUEST.json ANSWER` in a fresh process, which reads `request` and writes `answer`.

    A DataError says that the `library` cannot load the folder; also raised is what `failure_of_system` returns.
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
        if failure := failure_of_system(library, done.returncode, done.stderr, answer.parent):
            raise failure
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise DataError(f"{library} does not load {folder}: {lines[-1]}")
