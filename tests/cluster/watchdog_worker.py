"""One of several processes that work in step under a watchdog; the one of rank `victim` gets into trouble at step 3."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping

import torch.distributed as dist

from lit_gpt.errors import UserError
from utils import cli
from utils.cluster.collectives import any_process, rank
from utils.cluster.watchdog import Watchdog


def hang_in_python() -> None:
    time.sleep(3600)


def get_into_trouble(trouble: str) -> None:
    if trouble == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif trouble == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif trouble == "hangs":
        hang_in_python()
    elif trouble == "bug":
        # which the interpreter would wait for before it ends
        threading.Thread(target=time.sleep, args=(3600,), daemon=False).start()
        raise KeyError("a bug")
    elif trouble == "slow":
        time.sleep(4)


def main(trouble: str, victim: int, hang_timeout: float) -> None:
    dist.init_process_group("gloo")
    with Watchdog(hang_timeout) as watchdog:
        for step in range(1, 6):
            watchdog.mark(f"step {step}")
            if step == 3 and rank() == victim:
                get_into_trouble(trouble)
            any_process(False)
        if trouble == "user error":
            error = UserError("all agree")
            error.on_every_process = True
            raise error
    print("done", flush=True)


def work(place: Mapping[str, str], trouble: str, victim: int, hang_timeout: float) -> None:
    """The process of the place that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say, as a program of its own."""
    os.environ.update(place)
    sys.exit(cli.run(lambda _: main(trouble, victim, hang_timeout), None))
