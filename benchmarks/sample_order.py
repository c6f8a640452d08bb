"""Microseconds per sample of `SampleOrder.locate`, far into a run and on many processes, and the shares it achieves.

    python benchmarks/sample_order.py [--samples 2000 --datasets 1 35 500]

1. Processes are simulated: a step consumes `--batch` samples of each of P, and rank r takes its range of them
   (batches.py). The first, the middle and the last rank locate their samples of the steps around sample i. A time is
   a process's share of a step over its samples; printed are medians.
2. Shares are counted sample by sample over the whole cycle that i is in, from its first sample to its last. At each
   block's end, after n samples, each dataset's count must be within one of n · its weight / all weights.

Exits with 1 if a share is off by a sample. Appends the medians to benchmarks/results.csv.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from utils.data.sample_order import SampleOrder

ROOT = Path(__file__).resolve().parents[1]
PLACES = (10**3, 10**6, 10**9, 10**12)
PROCESSES = (8, 8192)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2000, help="samples timed per figure")
    parser.add_argument("--batch", type=int, default=16, help="samples of a process per step")
    parser.add_argument("--datasets", type=int, nargs="+", default=[1, 35, 500])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no_record", action="store_true", help="leave results.csv as it is")
    arguments = parser.parse_args()
    from benchmarks.results import Figure, record

    print(f"{'µs per sample, i =':>26} {''.join(f'{place:>12.0e}' for place in PLACES)}")
    figures = []
    orders = {count: make_order(count, arguments.seed) for count in arguments.datasets}
    for count, order in orders.items():
        for processes in PROCESSES:
            medians = [time_locate(order, place, processes, arguments) for place in PLACES]
            shape = f"{count} datasets, {processes} processes"
            print(f"{shape:>26} {''.join(f'{median:12.2f}' for median in medians)}", flush=True)
            names = [f"{shape}, i={place:.0e}" for place in PLACES]
            figures += [
                Figure("locate", name, f"{median:.2f}", "µs") for name, median in zip(names, medians, strict=True)
            ]
    for count, order in orders.items():
        error, blocks, samples = worst_share(order)
        print(f"{count} datasets: counts off by at most {error:.3f} samples ({samples:,} counted, {blocks} blocks)")
        figures.append(Figure("share error", f"{count} datasets", f"{error:.3f}", "samples"))
        if error >= 1:
            sys.exit("error: a share is off by a sample or more")
    if not arguments.no_record:
        record("sample_order", figures)


def make_order(datasets: int, seed: int) -> SampleOrder:
    """Datasets of 1,000 to a million rows whose weights differ by a factor of ten; a single one of 20,000 rows."""
    from utils.data.sample_order import SampleOrder

    rng = np.random.default_rng(seed)
    rows = (10 ** rng.uniform(3, 6, datasets)).astype(int).tolist() if datasets > 1 else [20_000]
    return SampleOrder(seed, tuple(rows), tuple(rng.integers(20, 200, datasets).tolist()))


def time_locate(order: SampleOrder, place: int, processes: int, arguments: argparse.Namespace) -> float:
    """The median µs per sample over ranks and steps, from the step that `place` is in on."""
    batch, ranks = arguments.batch, (0, processes // 2, processes - 1)
    first_step = place // (processes * batch)
    steps = max(1, arguments.samples // (batch * len(ranks)))
    times = []
    gc.disable()  # a collection in the middle of 16 samples is not theirs
    for step in range(first_step, first_step + steps):
        for rank in ranks:
            first = step * processes * batch + rank * batch
            began = time.perf_counter()
            for i in range(first, first + batch):
                order.locate(i)
            times.append((time.perf_counter() - began) / batch * 1e6)
    gc.enable()
    return statistics.median(times)


def worst_share(order: SampleOrder) -> tuple[float, int, int]:
    """The largest distance of a count from its share at the end of a block, with the blocks and samples it took."""
    weights = np.array(order.weights if len(order.weights) > 1 else order.rows)
    worst, blocks, samples = 0.0, 0, 0
    for place in PLACES:
        start = place - place % order.cycle
        counts = np.zeros(len(weights), dtype=np.int64)
        for i in range(start, start + order.cycle):
            counts[order.locate(i).dataset] += 1
            if order.block(i)[1] == i + 1:
                aim = (i + 1 - start) * weights / weights.sum()
                worst = max(worst, float(np.abs(counts - aim).max()))
                blocks += 1
        samples += order.cycle
    return worst, blocks, samples


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
