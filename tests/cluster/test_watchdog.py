"""A process that dies, hangs or is stopped is found and named by the others: real processes."""

from __future__ import annotations

import os
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import warm_start
from tests.cluster import watchdog_worker
from utils.cluster.watchdog import BEAT, State, Watchdog

WORLD_SIZE = 3
HANG_TIMEOUT = 10.0
"""Long enough for a busy machine to let no healthy process seem dead, stopped or hanging."""


class Ended(NamedTuple):
    exit_code: int | None
    """None if it had to be killed by the test."""
    errors: str


def run_workers(folder: Path, trouble: str, victim: int, hang_timeout: float, world_size: int) -> list[Ended]:
    """Starts the workers as Slurm does, each on its own, and waits for all but a stopped one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"SLURM_STEP_ID": "0", "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    logs, workers = [folder / f"{trouble}-{victim}-{world_size}-{rank}" for rank in range(world_size)], []
    for rank, log in enumerate(logs):
        log.touch()
        place = {**common, "RANK": str(rank)}
        arguments = (place, trouble, victim, hang_timeout)
        workers += warm_start.start(watchdog_worker.work, arguments, errors=log)
    others = [worker for rank, worker in enumerate(workers) if trouble != "stopped" or rank != victim]
    warm_start.join(others, 120)
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        if worker.exitcode is None:
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
    return [Ended(code, log.read_text(encoding="utf-8")) for code, log in zip(codes, logs, strict=True)]


CASES = [(trouble, victim, HANG_TIMEOUT, WORLD_SIZE) for trouble in ("killed", "stopped", "hangs") for victim in (0, 2)]
CASES += [("bug", 1, 60.0, WORLD_SIZE), ("none", 1, 30.0, WORLD_SIZE), ("slow", 1, 30.0, WORLD_SIZE)]
CASES += [("user error", 1, 30.0, WORLD_SIZE), ("hangs", 0, HANG_TIMEOUT, 1)]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int, float, int], list[Ended]]:
    """How all cases end, side by side: nearly all of their time is waiting."""
    folder = tmp_path_factory.mktemp("workers")
    with ThreadPoolExecutor(max_workers=len(CASES)) as pool:
        return dict(zip(CASES, pool.map(lambda case: run_workers(folder, *case), CASES), strict=True))


@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("trouble", ["killed", "stopped", "hangs"])
def test_the_others_name_it_print_their_stacks_and_end_with_75(outcomes: dict, trouble: str, victim: int) -> None:
    ended = outcomes[trouble, victim, HANG_TIMEOUT, WORLD_SIZE]
    said = "".join(end.errors for end in ended)
    others = [rank for rank in range(WORLD_SIZE) if rank != victim]
    assert [ended[rank].exit_code for rank in others] == [75, 75], said
    for rank in others:
        assert re.search(rf"stacks of rank {rank} .*at step 3", ended[rank].errors), said
        assert "any_process" in ended[rank].errors, "the stack does not say where it waits"
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert errors and all(f"rank {victim} " in line for line in errors), said
    if trouble == "hangs":
        assert "hang_in_python" in ended[victim].errors and ended[victim].exit_code == 75, said
        assert "step 3 has not ended in 10 s" in errors[0]


def test_a_bug_in_one_process_is_its_own_exit_code(outcomes: dict) -> None:
    ended = outcomes["bug", 1, 60.0, WORLD_SIZE]
    assert [end.exit_code for end in ended] == [75, 1, 75], ended
    assert "KeyError: 'a bug'" in ended[1].errors and "rank 1 " in ended[0].errors


@pytest.mark.parametrize(("trouble", "exit_code"), [("none", 0), ("slow", 0), ("user error", 2)])
def test_what_ends_in_good_order_raises_no_alarm(outcomes: dict, trouble: str, exit_code: int) -> None:
    ended = outcomes[trouble, 1, 30.0, WORLD_SIZE]
    assert [end.exit_code for end in ended] == [exit_code] * WORLD_SIZE
    assert not any("stacks of" in end.errors for end in ended), ended


def test_a_single_process_is_watched_too(outcomes: dict) -> None:
    [end] = outcomes["hangs", 0, HANG_TIMEOUT, 1]
    assert end.exit_code == 75 and "hang_in_python" in end.errors and "error: rank 0 " in end.errors


def test_a_stopped_process_is_told_from_a_hanging_one_however_late_it_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    watchdog = Watchdog(hang_timeout=20)
    clock = 0.0
    monkeypatch.setattr("utils.cluster.watchdog.time.monotonic", lambda: clock)
    verdict = None
    while verdict is None:
        clock += BEAT
        # both began step 7 a second before the other one's last beat: it is late before its silence is as long
        states = {
            rank: State(f"node{rank}", int(min(clock, (60, 2)[rank])), 7, "step 7", False, False) for rank in (0, 1)
        }
        verdict = watchdog._judge(states)
    assert verdict.startswith("rank 1 (node1) gave no sign of life for 2") and clock == 22, (clock, verdict)
