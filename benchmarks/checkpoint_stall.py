"""Seconds that training waits for a checkpoint: written in the background and not, alternately.

    python benchmarks/checkpoint_stall.py [--width 768 --layers 6 --rounds 3]

Runs pretrain.py itself on the embedded sample, with and without --async_checkpoints, and reads what its log says.
Prints the medians and their ratio, and appends a line for each to benchmarks/results.csv.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = """
name: benchmark
block_size: 256
n_layer: {layers}
n_embd: {width}
n_head: {heads}
rotary_percentage: 1.0
parallel_residual: false
bias: false
norm_class_name: RMSNorm
mlp_class_name: LLaMAMLP
intermediate_size: {mlp}
"""


def main() -> None:
    from benchmarks.results import Figure, record

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    stalls: dict[str, list[float]] = {"background": [], "waiting": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {"layers": arguments.layers, "width": arguments.width}
        model = MODEL.format(**sizes, heads=arguments.width // 64, mlp=arguments.width * 8 // 3)
        (folder / "model.yaml").write_text(model)
        source = ["--source_path", "data/sample/french", "--checkpoint_dir", "data/sample/tokenizer"]
        run_script("prepare_data.py", *source, "--max_length", "256", "--destination_path", str(folder / "data"))
        for round_number in range(arguments.rounds):
            for way, found in stalls.items():
                found += measure(folder, way, round_number)
        size = sum(path.stat().st_size for path in (folder / "waiting-0" / "checkpoints" / "step-00000008").iterdir())
    medians = {way: statistics.median(found) for way, found in stalls.items()}
    for way, median in medians.items():
        print(f"{way:10} {median:8.3f} s, checkpoint of {size / 1e6:,.0f} MB")
    print(f"background / waiting: {medians['background'] / medians['waiting']:.3f}")
    shape = f"{arguments.layers}x{arguments.width}, {size / 1e6:.0f} MB"
    record("checkpoint_stall", [Figure(way, shape, f"{median:.3f}", "s") for way, median in medians.items()])


def measure(folder: Path, way: str, round_number: int) -> list[float]:
    """The stalls of a run's scheduled checkpoints; its first is a warm-up, and for its last every run waits."""
    options = ["--config", "configs/quickstart/foundation.yaml", "--model_config", str(folder / "model.yaml")]
    options += ["--data_dir", str(folder / "data"), "--enable_validation", "false", "--max_steps", "17"]
    options += ["--save_interval", "4", "--batch_size", "4", "--micro_batch_size", "4"]
    options += ["--async_checkpoints", str(way == "background"), "--out_dir", str(folder / f"{way}-{round_number}")]
    log = run_script("pretrain.py", *options)
    waited = {int(step): float(seconds) for step, seconds in re.findall(r"at step (\d+): training waited (\S+) s", log)}
    return [waited[step] for step in (8, 12, 16)]


def run_script(*command: str) -> str:
    return subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
