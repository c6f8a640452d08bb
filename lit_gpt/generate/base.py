"""Continues a prompt with a litgpt directory's model."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Options:
    """Continue a prompt. Samples go to stdout, timings to stderr."""

    checkpoint_dir: Path
    """litgpt directory: lit_model.pth, model_config.yaml and the tokenizer's files."""
    prompt: str
    """Text to continue."""
    num_samples: int = 1
    """How many continuations."""
    max_new_tokens: int = 50
    """Longest continuation, in tokens; it ends earlier at the end-of-text token or where the context is full."""
    temperature: float = 0.8
    """Below 1 the likely tokens become likelier; 0 takes the likeliest one always."""
    top_k: int | None = 200
    """Choose among this many likeliest tokens."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that together have this probability."""
    seed: int = 1234
    """Seed of the first sample; sample number i has seed + i."""
    precision: Literal["auto", "32-true", "16-true", "bf16-true"] = "auto"
    """Type of weights and arithmetic; auto: that of the weights in the file."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: on the GPU if there is one."""
    debug: bool = False
    """Show tracebacks."""


def main(options: Options) -> None:
    import torch

    from lit_gpt.inference import TextModel, check_sampling

    check_sampling(options.temperature, options.top_k, options.top_p, options.max_new_tokens)
    start = time.perf_counter()
    model = TextModel(options.checkpoint_dir, options.precision, options.accelerator)
    ids = model.encode(options.prompt)
    print(f"model loaded in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    for index in range(options.num_samples):
        torch.manual_seed(options.seed + index)
        start = time.perf_counter()
        print(options.prompt, end="", flush=True)
        for piece in model.stream(ids, options.max_new_tokens, options.temperature, options.top_k, options.top_p):
            print(piece, end="", flush=True)
        print()
        print(f"sample {index + 1}: {time.perf_counter() - start:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # the repository, not this file's folder
    from lit_gpt import command

    sys.exit(command.run(Options, main))
