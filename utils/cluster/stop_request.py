"""Signals that ask a program to stop: Slurm sends one before the time limit, and when it wants a node back."""

import signal
from types import FrameType


class StopRequest:
    """Whether SIGTERM or SIGUSR1 has come. The handler sets a flag and nothing else, whatever is running meanwhile.

    Made first thing in a program: until then either signal ends it, as one that has done nothing yet.
    """

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = True
