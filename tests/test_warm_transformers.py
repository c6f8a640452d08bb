"""The Python of tests/warm_transformers.py is for whoever starts it the one that it stands for."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests import warm_transformers
from tests.warm_transformers import PYTHON, READ_ON_IMPORT, warm_python

PROGRAM = """
import os, pathlib, signal, sys, time
print(sys.argv[1:], pathlib.Path.cwd(), os.environ["HOME"], "transformers" in sys.modules, __name__, flush=True)
print(sys.stdin.read(), file=sys.stderr)
pathlib.Path("up").touch()
{end}
"""


@pytest.fixture(scope="module")
def python():
    """Of a folder's program asked_process.py; imports little, so that it starts soon."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(warm_transformers, "PROGRAMS", ("asked_process",))
        with warm_python() as script:
            yield script


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("sys.exit(7)", 7),
        ("sys.exit('a reason')", 1),
        ("raise ValueError('a reason')", 1),
        ("os.kill(os.getpid(), signal.SIGTERM)", -15),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
    ],
)
def test_a_program_does_as_in_a_python_of_its_own(python, tmp_path, end, code):
    (tmp_path / "asked_process.py").write_text(PROGRAM.format(end=end))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(READ_ON_IMPORT)}
    of_server = {name: value for name, value in os.environ.items() if name.startswith(READ_ON_IMPORT)}
    said = []
    for program, more in (
        (python, of_server | {"HF_HUB_OFFLINE": "1"}),
        (python, {"HF_HUB_OFFLINE": "0"}),
        (PYTHON, {}),
    ):
        words = [program, "-m", "asked_process", "a b", "'c'"]
        given = {**environment, **more, "HOME": "/nowhere"}
        done = subprocess.run(words, cwd=tmp_path, env=given, input="typed", capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert done.stderr.startswith("typed\n")
        last = done.stderr.splitlines()[-1]
        said.append((done.stdout.replace("True", "False"), last, "True" in done.stdout))
    assert said[0][:2] == said[1][:2] == said[2][:2]
    assert [was_imported for _, _, was_imported in said] == [True, False, False]


def test_a_program_ends_with_who_started_it(python, tmp_path):
    tell = "pathlib.Path('pid').write_text(str(os.getpid())); pathlib.Path('pid').rename('told'); time.sleep(100)"
    (tmp_path / "asked_process.py").write_text(PROGRAM.format(end=tell))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    started = subprocess.Popen([python, "-m", "asked_process"], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not (tmp_path / "told").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started.kill()
    started.wait()
    program = int((tmp_path / "told").read_text())
    while is_running(program):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_other_lines_are_run_by_python_itself(python):
    said = subprocess.check_output(
        [python, "-c", "import sys; print(sys.executable, sys.modules.get('torch'))"], text=True
    )
    assert said.split() == [PYTHON, "None"]
    assert sys.executable != PYTHON  # but for what the tests' commands start
