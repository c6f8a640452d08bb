"""Whether a run keeps its speed and its memory: the first tenth of half an hour of training beside the last.

    python benchmarks/steady.py [--minutes 30]

Runs pretrain.py itself on the CPU with the quickstart's model (1 M parameters, some 50 ms a step), validating and
writing checkpoints five times. Tokens per second are those of metrics.csv, so without validations and checkpoints; the
first 10 s are left out. Resident memory is read every second from outside. Prints both and appends them to
benchmarks/results.csv.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
MODEL = ROOT / "configs" / "quickstart" / "model.yaml"
POSITIONS, BATCH = 256, 4
INTERVALS = 5
"""Checkpoints and validations; none lies within the first or the last tenth."""
WARM_UP_SECONDS = 10.0


class Tenths(NamedTuple):
    """A run without its warm-up: tokens per second in its first and its last tenth, and its seconds."""

    first: float
    last: float
    seconds: float


def main() -> None:
    from benchmarks.results import Figure, record
    from benchmarks.step import prepare
    from utils.run.csv_log import METRICS, read_csv

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--source", type=Path, default=SHARED / "data" / "claire")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "data" / "sample" / "tokenizer")
    parser.add_argument("--no_record", action="store_true", help="leave results.csv as it is")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(arguments.source, arguments.tokenizer, POSITIONS, folder / "data")
        times, memory = watch(train(folder, arguments))
        speed = find_tenths(read_csv(folder / "run" / METRICS), min(WARM_UP_SECONDS, 6 * arguments.minutes))
    settled = times >= times[-1] - speed.seconds
    megabytes = memory[settled] / 1e6
    tenth = max(1, len(megabytes) // 10)
    slope = float(np.polyfit(times[settled], megabytes, 1)[0]) * 3600
    first, last = float(np.median(megabytes[:tenth])), float(np.median(megabytes[-tenth:]))
    print(f"first tenth {speed.first:10,.0f} tokens/s {first:8,.1f} MB")
    print(f"last tenth  {speed.last:10,.0f} tokens/s {last:8,.1f} MB")
    print(f"last / first: {speed.last / speed.first:.4f}; memory grew by {slope:.2f} MB an hour")
    if not arguments.no_record:
        shape = f"sample-1M b{BATCH}x{POSITIONS}, {arguments.minutes:g} minutes"
        figures = [
            Figure("first tenth", shape, f"{speed.first:.0f}", "tokens/s", f"{first * 1e6 / 2**30:.3f}"),
            Figure("last tenth", shape, f"{speed.last:.0f}", "tokens/s", f"{last * 1e6 / 2**30:.3f}"),
            Figure("memory", shape, f"{slope:.2f}", "MB an hour"),
        ]
        record("steady", figures)


def train(folder: Path, arguments: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Starts the run; it ends with its last checkpoint, as --max_checkpoints has it."""
    interval = max(1, round(arguments.minutes * 60 / INTERVALS))
    command = [sys.executable, ROOT / "pretrain.py", "--data_dir", folder / "data", "--out_dir", folder / "run"]
    command += ["--checkpoint_dir", arguments.tokenizer, "--model_config", MODEL, "--devices", 1]
    command += ["--batch_size", BATCH, "--micro_batch_size", BATCH, "--precision", "bf16-mixed"]
    command += ["--max_steps", 10**8, "--learning_rate", 3e-4, "--interval_unit", "time", "--eval_samples", 16]
    command += ["--save_interval", interval, "--eval_interval", interval, "--max_checkpoints", INTERVALS]
    return subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL)


def watch(process: subprocess.Popen[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and bytes of resident memory, until the process ends."""
    from benchmarks.step import resident_memory

    samples = []
    while process.poll() is None:
        samples.append((time.monotonic(), resident_memory("VmRSS", process.pid)))
        time.sleep(1)
    if process.returncode:
        sys.exit(f"error: pretrain.py exited with {process.returncode}")
    times, memory = np.array([sample for sample in samples if sample[1]]).T
    return times, memory


def find_tenths(rows: list[dict[str, str]], warm_up: float) -> Tenths:
    """From the lines of metrics.csv that say how fast it went since the one before; `warm_up` seconds are left out."""
    lines = [row for row in rows if row["split"] == "train" and row["tokens_per_second"]]
    seconds, tokens, speeds = (
        np.array([float(row[column]) for row in lines]) for column in ("seconds", "tokens", "tokens_per_second")
    )
    kept = seconds >= seconds[0] + warm_up
    seconds, tokens, speeds = seconds[kept], np.diff(tokens, prepend=0)[kept], speeds[kept]
    span = seconds[-1] - seconds[0]
    tenths = (seconds <= seconds[0] + span / 10, seconds >= seconds[-1] - span / 10)
    first, last = (float(tokens[tenth].sum() / (tokens / speeds)[tenth].sum()) for tenth in tenths)
    return Tenths(first, last, float(span))


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
