"""Work shared among processes: results in the order of the work, and never more of it under way than fits in memory."""

import errno
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack
from functools import cache
from typing import Any

from utils.cluster.slurm import slurm_tasks

KEPT = str(1 << 28)
WORKER_ENVIRONMENT = {
    # the processes are the parallelism
    "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # malloc, which reads these as it starts, keeps memory for the next block: clearing new pages is 10 % of the time
    "MALLOC_MMAP_THRESHOLD_": KEPT,
    "MALLOC_TRIM_THRESHOLD_": KEPT,
}
_worker: Any = None  # what `make_worker` made, in a worker process


def _start(make_worker: Callable[[], Any]) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    # a parent that was killed outright leaves its workers waiting for ever
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = make_worker()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(action: Callable[[Any, Any], Any], item: Any) -> Any:
    return action(_worker, item)


class WorkPool(AbstractContextManager["WorkPool"]):
    """Runs actions in `num_workers` processes, or in this one if that is 1. What goes in and out must pickle."""

    def __init__(self, make_worker: Callable[[], Any], num_workers: int) -> None:
        self._num_workers = num_workers
        self._resources = ExitStack()
        self._own_worker = cache(make_worker)
        self._pool: ProcessPoolExecutor | None = None
        if num_workers > 1:
            # spawned, not forked: the tokenizers library has threads
            context = multiprocessing.get_context("spawn")
            os.environ |= WORKER_ENVIRONMENT
            self._pool = ProcessPoolExecutor(num_workers, context, initializer=_start, initargs=(make_worker,))
            self._resources.callback(self._pool.shutdown, cancel_futures=True)

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def map(self, action: Callable[[Any, Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Each item and `action(worker, item)`, in order; for None, None. At most two items per process are under way.

        Raises an OSError if a worker process was killed, which the system does when memory runs out.
        """
        if self._pool is None:
            for item in items:
                yield item, None if item is None else action(self._own_worker(), item)
            return
        waiting: deque[tuple[Any, Future[Any] | None]] = deque()
        try:
            for item in items:
                future = None if item is None else self._pool.submit(_do, action, item)
                waiting.append((item, future))
                while waiting and (len(waiting) >= 2 * self._num_workers or waiting[0][1] is None):
                    yield _finished(waiting.popleft())
            while waiting:
                yield _finished(waiting.popleft())
        except BrokenProcessPool:
            problem = "a process was killed, as happens when memory runs out; use fewer --num_workers"
            raise OSError(errno.ENOMEM, problem) from None


def _finished(pair: tuple[Any, Future[Any] | None]) -> tuple[Any, Any]:
    item, future = pair
    return item, None if future is None else future.result()


def own_cpus() -> int:
    """The CPUs of this process: of a Slurm task those it was given, by default one, bound to them or not."""
    if slurm_tasks():
        return int(os.environ.get("SLURM_CPUS_PER_TASK", 1))
    return len(os.sched_getaffinity(0))
