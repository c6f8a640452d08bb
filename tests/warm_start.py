"""Processes that start in 0.1 s: forks of one that has imported torch, Lightning and litgpt, which takes 5 s.

A program is started as a user starts it, with arguments, environment, output, signals and an exit code of its own; only
the imports of other people's packages are done. That the programs start without, tests/test_readme.py and tests/slurm
show: there Python itself starts them.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = [
    "lit_gpt",  # alone, none of its modules: from here on lightning and litgpt cost what they cost the programs
    "lightning.fabric.strategies",
    "litgpt.lora",
    "torch._dynamo",  # by torch, when the first optimiser is made
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
]
"""What the programs import, whatever the environment; no threads are started, which would not live on in a fork."""


def start(
    target: Callable[..., None],
    arguments: Sequence[Any],
    processes: int = 1,
    output: Path = Path(os.devnull),
    errors: Path = Path(os.devnull),
) -> list[ForkServerProcess]:
    """Starts so many processes that call `target(*arguments)` in the repository's root: `program`, or a test's own.

    Several have the environment that torchrun would give them. Each leads a process group and appends to the files
    `output` and `errors`; its `exitcode` is the negative number of the signal that killed it.
    """
    started = [
        _forkserver().Process(
            target=_become, args=(sys.executable, {**os.environ, **place}, output, errors, target, arguments)
        )
        for place in _places(processes)
    ]
    for process in started:
        process.start()
    return started


def run(
    target: Callable[..., None], arguments: Sequence[Any], processes: int = 1, timeout: float = 900
) -> CompletedProcess[str]:
    """What the processes of `start` leave: the first exit code but 0, and all they wrote to stdout and stderr.

    Raises:
        TimeoutError: with what they wrote; after `timeout` seconds those that have not ended are killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "stdout"), Path(folder, "stderr")
        for path in files:
            path.touch()
        started = start(target, arguments, processes, *files)
        late = join(started, timeout)
        for process in late:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        stdout, stderr = (path.read_text(encoding="utf-8") for path in files)
    if late:
        raise TimeoutError(f"{arguments} did not end in {timeout:.0f} s:\n{stdout}\n{stderr}")
    code = next((process.exitcode for process in started if process.exitcode), 0)
    return CompletedProcess([target, *arguments], code, stdout, stderr)


def join(processes: Sequence[ForkServerProcess], timeout: float) -> list[ForkServerProcess]:
    """Waits for the processes' ends; those that have not ended in `timeout` seconds."""
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
    return [process for process in processes if process.exitcode is None]


def program(script: Path, *arguments: str) -> None:
    """Becomes `python SCRIPT ARGUMENT …`."""
    sys.argv[:] = [str(script), *arguments]
    sys.path[:] = [str(script.parent), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
    main = ModuleType("__main__")
    main.__file__ = str(script)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main  # the second is what multiprocessing calls it
    exec(compile(script.read_bytes(), script, "exec"), main.__dict__)


def _places(processes: int) -> list[dict[str, str]]:
    """The variables that https://docs.pytorch.org/docs/stable/elastic/run.html lists, by rank; none for one process."""
    if processes == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"TORCHELASTIC_RUN_ID": "tests", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "GROUP_RANK": "0"}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


@cache
def _forkserver() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def _become(
    python: str,
    environment: Mapping[str, str],
    output: Path,
    errors: Path,
    target: Callable[..., None],
    arguments: Sequence[Any],
) -> None:
    sys.executable = python  # as tests/warm_transformers.py changes it
    os.setsid()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, output), (2, errors)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    try:
        target(*arguments)
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends its processes without
