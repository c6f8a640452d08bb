"""Work among processes: its order, how much of it is under way, and what becomes of the processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from lit_gpt.errors import DataError
from tests.conftest import ROOT
from utils.prepare.work_pool import WorkPool


class Maker:
    """Says in which process it was made."""

    def __init__(self, name: str) -> None:
        self.name, self.process = name, os.getpid()


def who(worker: Maker, item: float) -> tuple[str, int, int, float]:
    time.sleep(item)
    return worker.name, worker.process, os.getpid(), item


def fail_at(worker: Maker, item: int, bad: int) -> int:
    if item == bad:
        raise DataError(f"item {item}")
    return item


def begin(worker: Maker, item: tuple[Path, int]) -> None:
    """Leaves a file that says so."""
    folder, number = item
    (folder / str(number)).touch()


def die(worker: Maker, item: Callable[[], None] | None) -> None:
    if item:
        item()


def environment(worker: Maker, item: str) -> str | None:
    return os.environ.get(item)


def children_of(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(workers):
    items = [0.05, 0.0, None, 0.03, None, None, 0.0, 0.0, 0.04, 0.0, 0.02, None]
    with WorkPool(partial(Maker, "a"), workers) as pool:
        results = list(pool.map(who, items))
        assert list(pool.map(who, [])) == []
        again = list(pool.map(who, [0.01, 0.0]))
    assert [item for item, _ in results] == items and [item for item, _ in again] == [0.01, 0.0]
    assert all((result is None) == (item is None) for item, result in results)
    done = [result for _, result in results + again if result]
    assert [item for *_, item in done] == [item for item in items if item is not None] + [0.01, 0.0]
    assert all(made_in == called_in and name == "a" for name, made_in, called_in, _ in done)
    processes = {process for _, process, *_ in done}
    assert len(processes) <= workers and (os.getpid() in processes) == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("wait", [0.0, 0.01])
def test_no_more_than_two_items_per_process_are_under_way(workers, wait):
    under_way: list[int] = []
    received = 0

    def items() -> Iterator[float]:
        for number in range(30):
            under_way.append(number + 1 - received)
            yield wait * (number % 3)

    with WorkPool(partial(Maker, "a"), workers) as pool:
        for _ in pool.map(who, items()):
            received += 1
    assert max(under_way) == (1 if workers == 1 else 2 * workers)


def test_none_does_not_wait_for_more_items():
    drawn = []

    def items() -> Iterator[float | None]:
        for item in (0.0, None, 0.0):
            drawn.append(item)
            yield item

    with WorkPool(partial(Maker, "a"), 2) as pool:
        results = pool.map(who, [None, 0.0])
        assert next(results) == (None, None)
        results = pool.map(who, items())
        assert [item for item, _ in results] == [0.0, None, 0.0]


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_the_work_are_the_callers(workers):
    with WorkPool(partial(Maker, "a"), workers) as pool:
        results = pool.map(partial(fail_at, bad=3), range(100))
        assert [next(results)[1] for _ in range(3)] == [0, 1, 2]
        with pytest.raises(DataError, match=r"^item 3$"):
            next(results)
        assert [result for _, result in pool.map(partial(fail_at, bad=-1), range(5))] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_the_items_are_the_callers(workers):
    def items() -> Iterator[float]:
        yield 0.0
        raise DataError("truncated")

    with WorkPool(partial(Maker, "a"), workers) as pool, pytest.raises(DataError, match="truncated"):
        list(pool.map(who, items()))


@pytest.mark.parametrize("at", [0, 5])
def test_a_killed_process_is_an_error_of_the_machine(at):
    items = [None] * at + [partial(os._exit, 9)] + [partial(time.sleep, 0.01)] * 20
    with WorkPool(partial(Maker, "a"), 2) as pool, pytest.raises(OSError, match="fewer --num_workers") as error:
        list(pool.map(die, items))
    assert error.value.errno == errno.ENOMEM


def test_a_process_killed_from_outside():
    with WorkPool(partial(Maker, "a"), 2) as pool:
        results = pool.map(who, [0.0] * 4 + [0.2] * 50)
        process = next(results)[1][1]
        os.kill(process, signal.SIGKILL)
        with pytest.raises(OSError, match="was killed"):
            list(results)


def test_processes_leave_an_interrupt_to_the_parent():
    with WorkPool(partial(Maker, "a"), 2) as pool:
        results = pool.map(who, [0.0] * 30)
        for _, (_, process, *_) in results:
            os.kill(process, signal.SIGINT)


def test_processes_end_with_the_pool_and_what_is_not_begun_is_not_done(tmp_path):
    before = set(children_of(os.getpid()))
    with WorkPool(partial(Maker, "a"), 2) as pool:
        next(pool.map(begin, [(tmp_path, number) for number in range(200)]))
        assert len(set(children_of(os.getpid())) - before) >= 2
    assert 1 <= len(list(tmp_path.iterdir())) <= 4  # two per process
    left = set(children_of(os.getpid())) - before
    names = [Path(f"/proc/{process}/cmdline").read_bytes() for process in left if is_alive(process)]
    assert all(b"resource_tracker" in name for name in names)


PROGRAM = """
import time
from functools import partial
from tests.prepare.test_work_pool import Maker, who
from utils.prepare.work_pool import WorkPool

if __name__ == "__main__":
    with WorkPool(partial(Maker, "a"), 2) as pool:
        for _ in pool.map(who, [0.0] * 4 + [WAIT] * 100_000):
            print("one", flush=True)
"""


@pytest.mark.parametrize("wait", [0.01, 1000])
def test_processes_end_when_their_parent_is_killed(tmp_path, wait):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("WAIT", str(wait)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout and process.stdout.readline() == b"one\n"
        children = children_of(process.pid)
        process.kill()
    assert len(children) >= 2
    wait_until(lambda: not any(map(is_alive, children)))


def test_one_tokenizer_thread_per_process():
    expected = [("TOKENIZERS_PARALLELISM", "false"), ("RAYON_NUM_THREADS", "1")]
    with WorkPool(partial(Maker, "a"), 2) as pool:
        assert list(pool.map(environment, [name for name, _ in expected])) == expected


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_starts_before_there_is_work(workers):
    def fail() -> Maker:
        raise AssertionError

    before = children_of(os.getpid())
    with WorkPool(fail, workers) as pool:
        assert list(pool.map(who, [None, None])) == [(None, None), (None, None)]
        assert children_of(os.getpid()) == before
