"""Signals that ask a program to stop: Slurm sends one before the time limit, and when it wants a node back."""

import signal
from types import FrameType


class StopRequest:
    """Whether SIGTERM or SIGUSR1 has come since this was made; before, either signal ends the program."""

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = True
