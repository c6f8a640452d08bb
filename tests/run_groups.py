"""Runs all tests in three groups beside each other, as `make test` does; options are handed to each pytest.

    python tests/run_groups.py [--durations=20] [--junitxml=/tmp/{group}.xml] …

The tests of tests/slurm mostly wait, and most others keep one core busy, so one after the other they would leave half
of a machine with two cores idle. The last group's output appears as it comes, that of the others when all have ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NoReturn

TESTS = Path(__file__).resolve().parent
ALONE = ("slurm",)
# What comes before a training and after it; takes about as long as all that is left.
BEFORE_AND_AFTER = ("books", "chat", "export", "formats", "inference", "model", "prepare", "report")
PYTEST = (sys.executable, "-m", "pytest")
GROUPS: dict[str, list[str]] = {
    "slurm": [*PYTEST, *(str(TESTS / folder) for folder in ALONE)],
    "before_and_after": [*PYTEST, *(str(TESTS / folder) for folder in BEFORE_AND_AFTER)],
    # whatever is new belongs to the last group until it is named in another
    "rest": [*PYTEST, str(TESTS), *(f"--ignore={TESTS / folder}" for folder in (*ALONE, *BEFORE_AND_AFTER))],
}
"""The command that runs each group."""
NO_TESTS = 5
"""pytest's exit code of a group whose tests are all left out: those of Slurm where there is none."""


def main(options: Sequence[str], groups: dict[str, list[str]] = GROUPS) -> int:
    """Runs every group to its end; 0 if all passed, else the highest exit code of those that did not."""
    live = list(groups)[-1]
    signal.signal(signal.SIGTERM, end)
    with ExitStack() as stack:
        outputs = {name: stack.enter_context(tempfile.TemporaryFile()) for name in groups if name != live}
        running = {name: start(name, command, options, outputs.get(name)) for name, command in groups.items()}
        for process in running.values():
            stack.callback(stop, process)
        codes = {name: wait(process) for name, process in running.items()}
        for name, output in outputs.items():
            output.seek(0)
            text = output.read().decode(errors="replace")
            print(f"\n== {name}\n{text}", flush=True)
    failed = [code for code in codes.values() if code not in (0, NO_TESTS)]
    if failed:
        return max(failed)
    return NO_TESTS if all(codes.values()) else 0


def start(name: str, command: list[str], options: Sequence[str], output: IO[bytes] | None) -> subprocess.Popen[bytes]:
    """Starts a group, its output in the file `output`, or here where there is none."""
    own = [option.replace("{group}", name) for option in options]
    errors = subprocess.STDOUT if output else None
    return subprocess.Popen([*command, *own], cwd=TESTS.parent, stdout=output, stderr=errors, preexec_fn=priority(name))


def priority(name: str) -> Callable[[], object] | None:
    """Slurm has time limits that a busy machine would break: its tests, which need little, come first."""
    return None if name in ALONE else lambda: os.nice(10)


def wait(process: subprocess.Popen[bytes]) -> int:
    """The exit code; Ctrl-C reaches all processes, and each pytest then reports what it has."""
    while True:
        try:
            return abs(process.wait())
        except KeyboardInterrupt:
            continue


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()


def end(*_: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
