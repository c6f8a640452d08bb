"""A conversation with a litgpt directory's model, in the form of the training text: `[speaker001:] …` turns."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lit_gpt.inference import TextModel


@dataclass(frozen=True)
class Options:
    """Talk with a model trained on conversations. An empty line or the end of the input (Ctrl-D) ends it."""

    checkpoint_dir: Path
    """litgpt directory: lit_model.pth, model_config.yaml and the tokenizer's files."""
    user_name: str = "speaker001"
    """How your turns begin: [speaker001:]"""
    bot_name: str = "speaker002"
    """How the model's turns begin: [speaker002:]"""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    temperature: float = 0.8
    """Below 1 the likely tokens become likelier; 0 takes the likeliest one always."""
    top_k: int | None = 200
    """Choose among this many likeliest tokens."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that together have this probability."""
    seed: int = 1234
    """Seed of the whole conversation."""
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
    model = TextModel(options.checkpoint_dir, options.precision, options.accelerator)
    torch.manual_seed(options.seed)
    turns: list[str] = []
    while text := read_line(f"[{options.user_name}:] "):
        turns.append(f"[{options.user_name}:] {text}\n[{options.bot_name}:]")
        kept, ids = fit(turns, model.encode, model.config.block_size, options.max_new_tokens)
        if not kept:
            turns.pop()
            print(f"too long for a context of {model.config.block_size} tokens; say it shorter", file=sys.stderr)
            continue
        turns = kept
        print(f"[{options.bot_name}:]", end="", flush=True)
        answer = ""
        for piece in answer_pieces(model, ids, options):
            answer += piece
            print(piece, end="", flush=True)
        print()
        turns[-1] += answer + "\n"


def read_line(prompt: str) -> str:
    """A line from the keyboard or a pipe, without its end; empty at the end of the input."""
    print(prompt if sys.stdin.isatty() else "", end="", flush=True)
    return sys.stdin.readline().strip()


def fit(
    turns: list[str], encode: Callable[[str], list[int]], block_size: int, max_new_tokens: int
) -> tuple[list[str], list[int]]:
    """The newest of `turns` whose ids leave room for an answer (at most half of the context), and these ids.

    Without any turn left, the newest one alone is too long.
    """
    room = block_size - min(max_new_tokens, block_size // 2)
    for oldest in range(len(turns)):
        ids = encode("".join(turns[oldest:]))
        if len(ids) <= room:
            return turns[oldest:], ids
    return [], []


def answer_pieces(model: TextModel, ids: list[int], options: Options) -> Iterator[str]:
    """The model's turn as it comes, up to the next turn of the user."""
    pieces = model.stream(ids, options.max_new_tokens, options.temperature, options.top_k, options.top_p)
    return until(pieces, f"\n[{options.user_name}:]")


def until(pieces: Iterable[str], stop: str) -> Iterator[str]:
    """`pieces` up to the first occurrence of `stop`; what may be its beginning is held back until that is decided."""
    held = ""
    for piece in pieces:
        held += piece
        if stop in held:
            yield held[: held.index(stop)]
            return
        undecided = next((size for size in range(min(len(stop), len(held)), 0, -1) if held.endswith(stop[:size])), 0)
        ready = held[: len(held) - undecided]
        held = held[len(held) - undecided :]
        if ready:
            yield ready
    if held:
        yield held.rstrip("\n")


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # the repository, not this file's folder
    from lit_gpt import command

    sys.exit(command.run(Options, main))
