"""Generating: prompts in a batch, one after the other and by litgpt's own loop, and what a chat's cache saves.

    python benchmarks/generate.py [--rounds 3]

A Llama shape with random weights (6 layers x 256, vocabulary 32,000) on the CPU. Prompts of 64 tokens are continued by
64; a conversation of 8 turns has 100 tokens each. The ways take turns, medians are printed and appended to
benchmarks/results.csv.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_gpt.inference.generation import TextModel

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = 32_000
SHAPE = {"n_layer": 6, "n_embd": 256, "n_head": 8, "n_query_groups": 4, "intermediate_size": 704}
LLAMA = {"rotary_percentage": 1.0, "parallel_residual": False, "bias": False, "norm_class_name": "RMSNorm"}


def main() -> None:
    from benchmarks.results import Figure, record

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="of a prompt and of its continuation")
    parser.add_argument("--no_record", action="store_true", help="leave results.csv as it is")
    arguments = parser.parse_args()
    model = make_model()
    prompts = random_ids(arguments.prompts, arguments.tokens)
    ways: dict[str, Callable[[], float]] = {
        "ours, batched": lambda: ours(model, [prompts], arguments.tokens),
        "ours, one by one": lambda: ours(model, [[prompt] for prompt in prompts], arguments.tokens),
        "litgpt, one by one": lambda: litgpts(model, prompts, arguments.tokens),
        "chat, cached": lambda: first_token(model, keep=True),
        "chat, read anew": lambda: first_token(model, keep=False),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, measure in ways.items():
            found[name].append(measure())
    shape = f"6x256 v{VOCABULARY} {arguments.prompts}x({arguments.tokens}+{arguments.tokens})"
    figures = []
    for name, values in found.items():
        unit = "s" if name.startswith("chat") else "tokens/s"
        value = f"{statistics.median(values):.3f}" if unit == "s" else f"{statistics.median(values):.0f}"
        figures.append(Figure(name, "6x256 v32000 8 turns of 100" if unit == "s" else shape, value, unit))
        print(f"{name:20} {value:>8} {unit}")
    if not arguments.no_record:
        record("generate", figures)


def make_model() -> TextModel:
    import torch
    from litgpt.config import Config

    from lit_gpt.inference.generation import TextModel
    from lit_gpt.model.building import build_model
    from lit_gpt.tokenizer.tokenizer import Tokenizer

    sizes = {"vocab_size": VOCABULARY, "padded_vocab_size": VOCABULARY, "block_size": 2048}
    config = Config(name="benchmark", mlp_class_name="LLaMAMLP", **SHAPE, **LLAMA, **sizes)
    weights = build_model(config, None, None, seed=0, dtype=torch.float32).state_dict()
    return TextModel(config, weights, Tokenizer(ROOT / "data" / "sample" / "tokenizer"), accelerator="cpu")


def random_ids(rows: int, length: int) -> list[list[int]]:
    import torch

    return torch.randint(3, 1000, (rows, length), generator=torch.Generator().manual_seed(0)).tolist()


def ours(model: TextModel, batches: list[list[list[int]]], tokens: int) -> float:
    """Tokens per second."""
    from lit_gpt.inference.sampling import Sampling

    rows: list[int] = []
    hook = model.model.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    start = time.perf_counter()
    for batch in batches:
        for _ in model.stream(batch, Sampling(max_new_tokens=tokens)):
            pass
    seconds = time.perf_counter() - start
    hook.remove()
    return sum(rows) / seconds


def litgpts(model: TextModel, prompts: list[list[int]], tokens: int) -> float:
    """Tokens per second."""
    import torch
    from litgpt.generate.base import generate_fn

    count, start = 0, time.perf_counter()
    for prompt in prompts:
        options = {"temperature": 0.8, "top_k": 200, "include_prompt": False, "include_eos": False}
        count += len(list(generate_fn(model.model, torch.tensor(prompt), len(prompt) + tokens, **options)))
    return count / (time.perf_counter() - start)


def first_token(model: TextModel, keep: bool) -> float:
    """Seconds until the answer to the eighth question begins, which is read after all that was said before."""
    from lit_gpt.inference.sampling import Sampling

    once = Sampling(max_new_tokens=1)
    conversation = random_ids(1, 800)[0]
    list(model.stream([conversation[:700]], once))
    if not keep:
        list(model.stream([[1, 2]], once))
    start = time.perf_counter()
    list(model.stream([conversation], once))
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
