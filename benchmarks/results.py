"""results.csv: a line per figure, with hardware, commit and date."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Figure(NamedTuple):
    """What was measured: `value` in `unit`, of `who` (ours, a peer, or a quantity's name) on `shape`."""

    who: str
    shape: str
    value: str
    unit: str
    peak_gib: str = ""


def record(benchmark: str, figures: list[Figure]) -> None:
    """Appends `figures` to results.csv."""
    import torch

    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    place = (time.strftime("%Y-%m-%d"), commit, f"{platform.machine()} {hardware}", torch.__version__)
    with (ROOT / "benchmarks" / "results.csv").open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows((benchmark, *figure, *place) for figure in figures)
