"""Ends a run in which a process died, hangs or falls behind, where the others would wait for it for ever.

Every process has a thread that tells its `State` to a store, which process 0 keeps, every BEAT seconds. Process 0
judges all of them by its own clock, and all judge process 0. Whoever finds something wrong raises the alarm: every
process prints its stacks, the guilty one is named, and all exit with 75, so that the run is started again.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import platform
import sys
import threading
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any

import torch.distributed as dist

from lit_gpt.errors import Interrupted
from utils.cluster.collectives import is_lost_connection, rank, together, world_size
from utils.cluster.ranks import end_process, own_exit_code

# Seconds. A process counts as dead after DEAD_AFTER (or hang_timeout) without a beat: a file system that fails over may
# silence a living one for minutes. Once a connection broke or a process is late (a stopped one is both) after
# DEAD_AFTER_LOSS: which of them is it? Slurm leaves KillWait, 30 by default, to say so. Between the alarm and the end,
# LAST_WORDS are for all processes to hear of it and to print their stacks.
BEAT = 1.0
DEAD_AFTER, DEAD_AFTER_LOSS = 300.0, 3.0
LAST_WORDS = 4.0


@dataclass(frozen=True)
class State:
    """How a process fares."""

    host: str
    beats: int
    """How often it has told its state."""
    marks: int
    """How many pieces of work (a step, a batch of validation, a checkpoint) it has begun."""
    doing: str | None
    """What it is working on; None while it does what may take any time."""
    waits: bool
    """Whether its main thread is in a collective operation, so that the others are to blame."""
    lost: bool
    """Whether its connection to another process broke."""


class Watchdog:
    """The thread of this process, around the common work: all processes enter and leave it together.

    A single piece of work may take `hang_timeout` seconds.
    """

    def __init__(self, hang_timeout: float) -> None:
        self._hang_timeout = hang_timeout
        self._dead_after = min(DEAD_AFTER, hang_timeout)
        self._host = os.environ.get("SLURMD_NODENAME", platform.node())
        self._rank = rank()
        self._marks, self._doing = 0, None
        self._lost: BaseException | None = None
        self._main_thread = threading.main_thread().ident
        self._seen: dict[int, tuple[State, float, float]] = {}
        self._store = _connect() if dist.is_initialized() else None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def mark(self, doing: str | None) -> None:
        """Says that a new piece of work begins; None for one that may take longer than hang_timeout."""
        self._marks, self._doing = self._marks + 1, doing

    def __enter__(self) -> Watchdog:
        if self._store is not None:
            self._tell(self._state(0))
            together(lambda: None)  # now every state is there to be read: the store waits for what is not
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and is_lost_connection(error):
            self._lost = error  # the thread finds out who is gone, and ends this process
            self._thread.join(timeout=self._dead_after + 2 * LAST_WORDS)
            raise Interrupted(
                f"the connection to another process broke; run the same command again ({error})"
            ) from error
        self._stopped.set()
        faulthandler.cancel_dump_traceback_later()
        if error is None:
            self._thread.join()
            together(lambda: None)  # process 0's store must outlive all the others' threads

    def _watch(self) -> None:
        beats = 0
        exchange = ThreadPoolExecutor(max_workers=1, thread_name_prefix="watchdog-store")
        last = time.monotonic()
        while not self._stopped.wait(BEAT):
            beats += 1
            if time.monotonic() - last > self._dead_after / 2:
                self._seen.clear()  # the job, or this machine, was suspended: all begin anew
            last = time.monotonic()
            # Should this thread itself not run any more, since another one keeps the interpreter: the stacks at least.
            faulthandler.dump_traceback_later(2 * self._dead_after)
            try:
                verdict = self._answer_to(exchange.submit(self._exchange, self._state(beats)))
            except dist.DistError as e:
                verdict = f"rank 0 is gone, its process or node died ({str(e).splitlines()[0]})"
            # process 0 may have ended in good order, as this one does in a moment
            if verdict and not (verdict.startswith("rank 0 is gone") and self._stopped.wait(LAST_WORDS)):
                self._end(verdict)

    def _answer_to(self, question: Future[str | None]) -> str | None:
        """The store's answer; a store whose process is stopped never gives any."""
        # The clock runs while the whole job is suspended: waits are counted instead.
        for _ in range(math.ceil(self._dead_after / BEAT)):
            with suppress(FutureTimeoutError):
                return question.result(timeout=BEAT)
        return f"rank 0 gave no answer for {self._dead_after:.0f} s: stopped or cut off"

    def _state(self, beats: int) -> State:
        return State(self._host, beats, self._marks, self._doing, self._waits(), self._lost is not None)

    def _tell(self, own: State) -> None:
        self._store.set(f"state/{self._rank}", json.dumps(asdict(own)))

    def _exchange(self, own: State) -> str | None:
        """Tells the store this process's state and hears what is wrong; None if nothing is."""
        if self._store is None:
            return self._judge({0: own})
        self._tell(own)
        judged = range(world_size()) if self._rank == 0 else range(1)
        states = self._store.multi_get([f"state/{number}" for number in judged])
        verdict = self._judge({number: State(**json.loads(state)) for number, state in enumerate(states)})
        if verdict:
            self._store.set("alarm", verdict)
        elif self._store.check(["alarm"]):
            verdict = self._store.get("alarm").decode()
        return verdict

    def _judge(self, states: dict[int, State]) -> str | None:
        """Says what is wrong with which processes, from their states and when those last changed; None if nothing."""
        now = time.monotonic()
        for number, state in states.items():
            before, beat_at, mark_at = self._seen.get(number, (None, now, now))
            if before is None or state.beats != before.beats:
                beat_at = now
            if before is None or state.marks != before.marks or state.doing is None:
                mark_at = now
            self._seen[number] = (state, beat_at, mark_at)
        is_lost = any(state.lost for state in states.values())
        is_late = any(now - mark_at > self._hang_timeout for _, _, mark_at in self._seen.values())
        limit = min(DEAD_AFTER_LOSS, self._dead_after) if is_lost or is_late else self._dead_after
        silences = {number: now - beat_at for number, (_, beat_at, _) in self._seen.items()}
        if dead := [number for number, silence in silences.items() if silence > limit]:
            silence = min(silences[number] for number in dead)
            return f"{_names(dead, states)} gave no sign of life for {silence:.0f} s: dead, stopped or cut off"
        if not is_late or self._rank or is_lost:
            return None
        at_work = [number for number, state in states.items() if state.doing is not None]
        fewest = min(states[number].marks for number in at_work)
        behind = [number for number in at_work if states[number].marks == fewest]
        guilty = [number for number in behind if not states[number].waits] or behind
        doing = f"{states[guilty[0]].doing} has not ended in {self._hang_timeout:.0f} s (--hang_timeout)"
        if len(guilty) == len(states) > 1:
            return f"{doing} on any process; their stacks say where"
        return f"{_names(guilty, states)} hangs: {doing}"

    def _waits(self) -> bool:
        """Whether the main thread is in a collective operation."""
        frame: FrameType | None = sys._current_frames().get(self._main_thread)
        while frame is not None:
            file = frame.f_code.co_filename
            if "/torch/distributed/" in file and "/distributed/tensor/" not in file:  # where DTensors also compute
                return True
            frame = frame.f_back
        return False

    def _end(self, verdict: str) -> None:
        faulthandler.cancel_dump_traceback_later()
        text = [f"stacks of rank {self._rank} ({self._host}), at {self._doing or 'work without a limit'}: {verdict}\n"]
        if self._lost is not None:
            text += traceback.format_exception(self._lost)
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sorted(sys._current_frames().items(), key=lambda item: item[0] != self._main_thread):
            if ident != threading.get_ident():
                text += [f"  thread {names.get(ident, ident)}:\n", *traceback.format_stack(frame)]
        sys.stderr.write("".join(text))
        if self._rank == 0 or (self._rank == 1 and verdict.startswith("rank 0 ")):
            sys.stderr.write(f"error: {verdict}; run the same command again\n")
        sys.stderr.flush()
        time.sleep(LAST_WORDS)
        end_process(own_exit_code(Interrupted.exit_code))


def _connect() -> Any:
    """A store that process 0 keeps, connected to from every process: the training's own may wait for it."""
    limit = timedelta(seconds=60)
    host = os.environ["MASTER_ADDR"]
    own = None
    if rank() == 0:
        own = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=limit)
    port = together(lambda: own.port if own else None)[0]
    return own or dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)


def _names(numbers: list[int], states: dict[int, State]) -> str:
    return " and ".join(f"rank {number} ({states[number].host})" for number in sorted(numbers))
