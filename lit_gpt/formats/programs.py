"""Why another program that a command started has failed."""

import errno
import os
import re
import shutil
import signal
from pathlib import Path

from lit_gpt.errors import Interrupted

_SYSTEM_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
_UNWRITTEN = re.compile(r"iostream error|basic_ios::clear|\d requested and \d+ written")
"""Messages of C++ and NumPy about a write that failed, which do not give the reason."""
_NOISE = re.compile(r"^(\s*$|\s*File \"|Traceback|During handling|The above exception|.{0,20}WARNING)")


def failure_of_system(name: str, returncode: int, output: str, scratch: Path) -> OSError | Interrupted | None:
    """The reason why the machine, not the data, ended a program; None if the program had a reason of its own.

    Args:
        name: the program's.
        returncode: as subprocess gives it, below 0 for a signal.
        output: what it printed.
        scratch: the folder it wrote to.
    """
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
