"""A Python in which transformers is imported already: 0.3 s instead of 6 s of a core for every comparison with it.

Commands compare what they write by `python -m MODULE` of their own, and llama.cpp converts by another program that
imports torch and transformers. In tests their `python` is a script that hands these command lines to a process that
has made the imports and forks; it runs all others as they are. Arguments, environment, output, exit code and signals
are the program's own. That the programs start without, `as_users_start_it` shows: the tests that use it.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PYTHON = sys.executable
IMPORTED = (
    "numpy",
    "torch",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.modeling_utils",
    "transformers.models.llama.modeling_llama",  # and what all models have in common
    "transformers.tokenization_utils_tokenizers",
    "transformers.generation.utils",
)
PROGRAMS = ("lit_gpt.formats.hf_logits_process", "lit_gpt.formats.peft_logits_process")
PROGRAMS += ("utils.export.hf_probabilities_process", "tests.formats.peft_zoo")
SCRIPTS = ("convert_hf_to_gguf.py",)
READ_ON_IMPORT = ("HF_", "TRANSFORMERS_", "TORCH", "OMP_", "XDG_", "CUDA_")
"""What the names of variables begin with that packages read when they are imported."""
CLIENT = """\
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    asked = [sys.argv[2:], os.getcwd(), dict(os.environ)]
    socket.send_fds(server, [json.dumps(asked).encode() + b"\\n"], [0, 1, 2])
    code = int(server.makefile().read() or -9)
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@contextmanager
def warm_python() -> Iterator[Path]:
    """The script, which may be run instead of `PYTHON`, while the process behind it is there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "client.py").write_text(CLIENT, encoding="utf-8")
        names = "|".join([*(f"-m\\ {module}" for module in PROGRAMS), *(f"*/{script}\\ *" for script in SCRIPTS)])
        python, client, address = (shlex.quote(str(path)) for path in (PYTHON, folder / "client.py", folder / "socket"))
        script = folder / "python"
        script.write_text(
            f'#!/bin/sh\ncase "$1 $2" in\n{names}) exec {python} -I -S {client} {address} "$@" ;;\nesac\n'
        )
        with script.open("a", encoding="utf-8") as file:
            file.write(f'exec {python} "$@"\n')
        script.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listening:  # asked before it is ready, it lets the first wait
            listening.bind(str(folder / "socket"))
            listening.listen(64)
            yield from _served(listening, script)


def _served(listening: socket.socket, script: Path) -> Iterator[Path]:
    number = listening.fileno()
    command = [PYTHON, "-m", "tests.warm_transformers", str(number)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).resolve().parents[1]
    server = subprocess.Popen(command, cwd=root, env=environment, pass_fds=[number], stdin=subprocess.PIPE)
    try:
        yield script
    finally:
        server.stdin.close()
        server.wait()


def _serve(number: int) -> None:
    """Answers until stdin is closed, as it is when whoever started this process ends."""
    listening, read = socket.socket(fileno=number), _read_on_import(os.environ)  # before a package adds its own

    def is_asked() -> bool:
        return 0 not in select.select([listening, 0], [], [])[0]

    if not is_asked():  # as in most runs of a few tests: nothing was imported
        return
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # so that no fork copies what it only looks at
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks what became of those that watch
    while is_asked():
        connection, _ = listening.accept()
        if os.fork():
            connection.close()
            continue
        listening.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _watch(connection, read)


def _watch(connection: socket.socket, read: dict[str, str]) -> None:
    """Starts what a client asks for, which ends with the client, and tells it the exit code or negative signal."""
    content, files, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    while not content.endswith(b"\n"):
        content += connection.recv(1 << 16)
    program = os.fork()
    if not program:
        connection.close()
        os._exit(_become(read, files, *json.loads(content)))
    for file in files:
        os.close(file)
    ended = os.pidfd_open(program)
    ready, _, _ = select.select([connection, ended], [], [])
    if connection in ready:
        os.kill(program, signal.SIGKILL)
    _, status = os.waitpid(program, 0)
    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(
    read: dict[str, str], files: Sequence[int], words: list[str], folder: str, environment: dict[str, str]
) -> int:
    """Becomes `python WORDS`; what it exits with."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    if _read_on_import(environment) != read:
        os.execve(PYTHON, [PYTHON, *words], environment)
    os.environ.clear()
    os.environ.update(environment)
    try:
        code = _run(words)
    except SystemExit as e:
        code = e.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code or 0


def _read_on_import(environment: Any) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_ON_IMPORT)}


def _run(words: list[str]) -> None:
    more = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [path for path in more if path]  # instead of this process's folder
    if words[0] == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv[:] = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(words[0]).parent))
        sys.argv[:] = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
