"""Tokens per second of a training step: ours on packed rows against litgpt's model on the same rows, alternately.

    python benchmarks/training_step.py [--device cuda --layers 12 --width 768 --vocabulary 32000]

litgpt's step is its own: full logits and `chunked_cross_entropy`, no document mask. Ours masks documents, keeps grouped
keys and values unrepeated, and computes the loss in chunks. Both in bf16 autocast, AdamW, batch × 512 positions. Prints
the medians and their ratio, and appends a line to benchmarks/results.csv.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

POSITIONS = 512
ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    from benchmarks.results import Figure, record

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    steps = make_steps(arguments)
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    memory = dict.fromkeys(steps, 0.0)
    for round_number in range(arguments.rounds + 1):
        for name, step in steps.items():
            seconds, peak = timed(step, arguments.device)
            if round_number:  # the first is warm-up
                speeds[name].append(arguments.batch * POSITIONS / seconds)
                memory[name] = max(memory[name], peak)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    for name, median in medians.items():
        print(f"{name:8} {median:12,.0f} tokens/s  peak {memory[name]:.2f} GiB")
    print(f"ours / litgpt: {medians['ours'] / medians['litgpt']:.3f}")
    shape = f"{arguments.layers}x{arguments.width} v{arguments.vocabulary} b{arguments.batch}x{POSITIONS}"
    figures = [
        Figure(name, shape, f"{median:.0f}", "tokens/s", f"{memory[name]:.2f}") for name, median in medians.items()
    ]
    record("training_step", figures)


def make_steps(arguments: argparse.Namespace) -> dict[str, Callable[[], None]]:
    import litgpt.model
    from litgpt.config import Config
    from litgpt.utils import chunked_cross_entropy

    from lit_gpt.model import GPT

    config = Config(
        name="benchmark",
        block_size=POSITIONS,
        n_layer=arguments.layers,
        n_embd=arguments.width,
        n_head=arguments.width // 64,
        n_query_groups=max(1, arguments.width // 256),
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=arguments.width * 8 // 3,
        vocab_size=arguments.vocabulary,
        padded_vocab_size=arguments.vocabulary,
    )
    device = torch.device(arguments.device)
    ids = torch.randint(0, arguments.vocabulary, (arguments.batch, POSITIONS + 1), device=device)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    segments = (torch.arange(POSITIONS, device=device) // (POSITIONS // 4)).expand_as(inputs)

    def litgpt_loss(model: nn.Module) -> Tensor:
        return chunked_cross_entropy(model(inputs), targets)

    def our_loss(model: nn.Module) -> Tensor:
        return model(inputs, segments=segments, targets=targets) / targets.numel()

    return {
        "litgpt": training_step(litgpt.model.GPT(config).to(device), litgpt_loss, device),
        "ours": training_step(GPT(config).to(device), our_loss, device),
    }


def training_step(model: nn.Module, loss: Callable[[nn.Module], Tensor], device: torch.device) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            value = loss(model)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(step: Callable[[], None], device: str) -> tuple[float, float]:
    """Seconds, and the peak of allocated GPU memory in GiB (0 on a CPU)."""
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    step()
    if on_gpu:
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
    return time.perf_counter() - began, peak


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
