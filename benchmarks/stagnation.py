"""Training losses with bf16 weights beside those with fp32 weights, from one common start, as a figure.

    python benchmarks/stagnation.py [--steps 500 --learning_rate 5e-5]

bf16 keeps 8 bits of a number, so an update below 1/512 of a weight is rounded away; at the learning rates of continual
pretraining most are. Weights of 0.02, moved by 5e-5 at most, are on that edge.

1. A model of 3 M parameters is trained for --warm_steps in fp32 on the plays of ../shared. The tokenizer is that of the
   sample, whose 1,280 entries leave the parameters to the blocks.
2. From there pretrain.py goes on, on the same samples in the same order, once in each of `WAYS`.
3. The final loss is the mean of the last 50 steps' training losses.

Prints the final losses and their ratios to fp32's, draws docs/bf16-loss.svg and appends to benchmarks/results.csv.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
POSITIONS, BATCH = 256, 4
MODEL = f"""
name: benchmark-3M
block_size: {POSITIONS}
n_layer: {{layers}}
n_embd: 192
n_head: 6
rotary_percentage: 1.0
parallel_residual: false
bias: false
norm_class_name: RMSNorm
mlp_class_name: LLaMAMLP
intermediate_size: 512
"""
REFERENCE = "fp32"
WAYS = {
    REFERENCE: ("--precision", "32-true"),
    "bf16-mixed": ("--precision", "bf16-mixed"),
    "bf16-true, fp32 master weights": ("--precision", "bf16-true"),
    "bf16-true, naive update": ("--precision", "bf16-true", "--master_weights", "false"),
}
COLOURS = ("#000000", "#0072B2", "#009E73", "#D55E00")  # Okabe and Ito's (2008)
FINAL_STEPS = 50
TOLERANCE = 1.0
"""How far from fp32's loss a way may end, in %."""


def main(argv: list[str] | None = None) -> None:
    from benchmarks.results import Figure, record
    from benchmarks.step import prepare

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--warm_steps", type=int, default=300)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help=f"beside {REFERENCE}")
    parser.add_argument("--source", type=Path, default=SHARED / "data" / "claire")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "data" / "sample" / "tokenizer")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "bf16-loss.svg")
    parser.add_argument("--no_record", action="store_true", help="leave results.csv as it is")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(arguments.source, arguments.tokenizer, POSITIONS, folder / "data")
        start = train_start(folder, arguments)
        losses = {way: train(way, start, folder, arguments) for way in WAYS if way in (REFERENCE, *arguments.ways)}
    finals = {way: float(values[-FINAL_STEPS:].mean()) for way, values in losses.items()}
    for way, final in finals.items():
        print(f"{way:32} {final:8.4f}  {final / finals[REFERENCE]:.4f} of {REFERENCE}'s")
    draw(losses, arguments)
    print(f"wrote {arguments.figure}")
    if not arguments.no_record:
        shape = f"3M {arguments.steps} steps, learning rate {arguments.learning_rate:g}"
        record("stagnation", [Figure(way, shape, f"{final:.4f}", "final loss") for way, final in finals.items()])


def train_start(folder: Path, arguments: argparse.Namespace) -> Path:
    """A litgpt checkpoint directory to go on from."""
    from lit_gpt.formats.litgpt_directory import write_litgpt_directory
    from utils.run.merged_model import companion_files, load_merged_model

    (folder / "model.yaml").write_text(MODEL.format(layers=arguments.layers))
    model = ("--checkpoint_dir", arguments.tokenizer, "--model_config", folder / "model.yaml", *WAYS[REFERENCE])
    # the seed is another one, so that what follows does not begin with samples that were just seen
    options = ("--max_steps", arguments.warm_steps, "--learning_rate", 1e-3, "--warmup_steps", 20, "--seed", 1)
    run_pretrain(folder, "start", *model, *options)
    trained = load_merged_model(folder / "start")
    write_litgpt_directory(folder / "foundation", trained.config, trained.state_dict, companion_files(trained))
    return folder / "foundation"


def train(way: str, start: Path, folder: Path, arguments: argparse.Namespace) -> np.ndarray:
    """The training losses [steps]."""
    from utils.run.csv_log import METRICS, read_csv

    schedule = ("--lr_schedule", "constant", "--warmup_steps", 10, "--learning_rate", arguments.learning_rate)
    name = f"way-{list(WAYS).index(way)}"
    run_pretrain(folder, name, "--checkpoint_dir", start, "--max_steps", arguments.steps, *schedule, *WAYS[way])
    print(f"trained: {way}", flush=True)
    steps = [row for row in read_csv(folder / name / METRICS) if row["split"] == "train" and not row["dataset"]]
    return np.array([float(row["loss"]) for row in steps])


def run_pretrain(folder: Path, name: str, *options: object) -> None:
    command = [sys.executable, str(ROOT / "pretrain.py"), *pretrain_options(folder, name, *options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"error: pretrain.py exited with {done.returncode}:\n{done.stderr[-2000:]}")


def pretrain_options(folder: Path, name: str, *options: object) -> list[str]:
    common = ("--data_dir", folder / "data", "--out_dir", folder / name, "--enable_validation", "false")
    common += ("--batch_size", BATCH, "--micro_batch_size", BATCH, "--devices", 1)
    return [*map(str, (*common, *options))]


def smooth(values: np.ndarray, steps: int) -> np.ndarray:
    """Means over `steps` neighbours: [n] → [n - steps + 1]."""
    return np.convolve(values, np.full(steps, 1 / steps), mode="valid")


def draw(losses: dict[str, np.ndarray], arguments: argparse.Namespace) -> None:
    """The losses, and beside them how far each is from fp32's."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {"axes.spines.right": False, "axes.spines.top": False, "axes.grid": True, "grid.alpha": 0.3}
    with rc_context(style | {"font.size": 10, "svg.hashsalt": "stagnation", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        steps = min(30, len(losses[REFERENCE]))
        draw_curves(left, {way: smooth(values, steps) for way, values in losses.items()}, steps)
        left.set(ylabel="training loss", title=f"learning rate {arguments.learning_rate:g}, constant")
        left.legend(fontsize=9, frameon=False)
        # the samples are the same, so their noise cancels
        reference = smooth(losses[REFERENCE], steps)
        apart = {way: 100 * (smooth(values, steps) / reference - 1) for way, values in losses.items()}
        right.axhspan(-TOLERANCE, TOLERANCE, color="#000000", alpha=0.07, linewidth=0)
        draw_curves(right, apart, steps)
        right.set(ylabel="%", title=f"difference from {REFERENCE}; grey: ±{TOLERANCE:g} %")
        figure.savefig(arguments.figure, metadata={"Date": None})


def draw_curves(axes: Axes, curves: dict[str, np.ndarray], steps: int) -> None:
    """Each point lies at the end of the `steps` it is the mean of."""
    for way, values in curves.items():
        colour = COLOURS[list(WAYS).index(way)]
        axes.plot(np.arange(steps, steps + len(values)), values, color=colour, linewidth=1.4, alpha=0.85, label=way)
    axes.set(xlabel="optimiser step", xmargin=0)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
