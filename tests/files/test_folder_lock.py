"""Two writers of one folder: real processes, killed and stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from lit_gpt.errors import UserError
from tests.conftest import ROOT
from utils.files import folder_lock
from utils.files.folder_lock import LOCK, FolderLock, Owner

HOLD = """
import sys; from pathlib import Path; from utils.files import folder_lock
from utils.files.folder_lock import FolderLock
folder_lock.BEAT = 0.5
try:
    lock = FolderLock.acquire(Path(sys.argv[1]))
    print("number", lock.number, flush=True)
    sys.stdin.readline()
    lock.check()
    lock.release()
except Exception as e:
    print(type(e).__name__, e, flush=True)
"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For an owner that never gives a sign of life."""
    monkeypatch.setattr(folder_lock, "DEAD_AFTER", 2.0)


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock.time, "sleep", lambda _: pytest.fail("waited for a sign of life"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a process that takes the folder until its stdin has a line."""
    with ExitStack() as stack:

        def start_one(**variables: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", HOLD, str(tmp_path)],
                cwd=ROOT,
                env={**os.environ, **variables},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield start_one


def answer(process: subprocess.Popen[str]) -> str:
    return process.communicate("\n", timeout=600)[0].splitlines()[-1]


def test_a_second_writer_is_refused_and_told_who_the_first_is(
    tmp_path: Path, start: Callable, request: pytest.FixtureRequest
) -> None:
    first = start(SLURM_JOB_ID="417")
    assert first.stdout.readline() == "number 1\n"
    with pytest.raises(UserError, match=f"being written by Slurm job 417, process {first.pid} on "):
        FolderLock.acquire(tmp_path)
    assert first.communicate("\n", timeout=600)[0] == ""
    request.getfixturevalue("no_wait")
    lock = FolderLock.acquire(tmp_path)
    assert lock.number == 2
    lock.release()


def test_a_killed_writer_does_not_block(tmp_path: Path, start: Callable, request: pytest.FixtureRequest) -> None:
    first = start()
    first.stdout.readline()
    first.kill()
    first.wait()
    request.getfixturevalue("no_wait")
    FolderLock.acquire(tmp_path).release()


def test_a_restarted_jobs_earlier_start_does_not_block_and_finds_out(tmp_path: Path, start: Callable) -> None:
    first = start(SLURM_JOB_ID="417")
    first.stdout.readline()
    second = start(SLURM_JOB_ID="417", SLURM_RESTART_COUNT="1")
    assert second.stdout.readline() == "number 2\n"
    assert "UserError" in (said := answer(first)) and f"taken over by Slurm job 417, process {second.pid}" in said


def test_a_writer_that_stopped_loses_the_folder(tmp_path: Path, start: Callable, impatient: None) -> None:
    first = start()
    first.stdout.readline()
    first.send_signal(signal.SIGSTOP)
    lock = FolderLock.acquire(tmp_path)
    first.send_signal(signal.SIGCONT)
    assert lock.number == 2 and "taken over" in answer(first)
    lock.check()
    lock.release()


def test_on_another_machine_only_the_touch_counts(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / LOCK).mkdir()
    elsewhere = replace(Owner.this_process(), machine="another", host="node7", pid=1)
    path = tmp_path / LOCK / "000004.json"
    path.write_text(folder_lock._to_json(elsewhere))
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(FolderLock.acquire, tmp_path)
        while not waiting.done():
            time.sleep(0.2)
            os.utime(path)
        with pytest.raises(UserError, match="process 1 on node7"):
            waiting.result()
    request.getfixturevalue("impatient")
    lock = FolderLock.acquire(tmp_path)
    assert lock.number == 5 and not path.exists()
    lock.release()


@pytest.mark.parametrize("content", ["", "{}", '{"host": 3'])
def test_an_owner_that_died_while_it_signed_does_not_block(tmp_path: Path, content: str, impatient: None) -> None:
    (tmp_path / LOCK).mkdir()
    (tmp_path / LOCK / "000001.json").write_text(content)
    lock = FolderLock.acquire(tmp_path)
    assert lock.number == 2
    lock.release()
    assert json.loads((tmp_path / LOCK / "000002.json").read_text())["released"]


def test_of_many_at_once_one_gets_it(tmp_path: Path, start: Callable) -> None:
    processes = [start() for _ in range(6)]
    said = [process.stdout.readline() for process in processes]
    owners = [process for process, line in zip(processes, said, strict=True) if line == "number 1\n"]
    assert len(owners) == 1, said
    for process in processes:
        if process not in owners:
            assert f"is being written by process {owners[0].pid} " in process.communicate(timeout=600)[0]
    assert owners[0].communicate("\n", timeout=600)[0] == ""
    assert [path.name for path in (tmp_path / LOCK).iterdir()] == ["000001.json"]


def test_an_owner_whose_file_is_gone_has_lost_the_folder_whatever_a_listing_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = FolderLock.acquire(tmp_path)
    lock.check()
    (tmp_path / LOCK / "000001.json").unlink()
    monkeypatch.setattr(folder_lock, "_newest", lambda folder: 1)  # as an NFS client may have it in mind
    with pytest.raises(UserError, match="taken over"):
        lock.check()
    assert lock.lost
