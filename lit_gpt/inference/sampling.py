"""How a text goes on: the options that generating and chatting share, and from logits to the next token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lit_gpt.errors import DataError, raise_problems

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and where a text ends; a `UserError` names all values that cannot be."""

    max_new_tokens: int = 50
    """Longest continuation, in tokens; it ends earlier at an end-of-text token or where the context is full."""
    temperature: float = 0.8
    """Below 1 the likely tokens become likelier; 0 takes the likeliest one always."""
    top_k: int | None = 200
    """Choose among this many likeliest tokens."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that together have this probability."""
    repetition_penalty: float = 1.0
    """Above 1 the tokens of the prompt and of the continuation so far become less likely to come again."""
    stop: tuple[str, ...] = ()
    """Texts at which a continuation ends; what is found is left out."""
    seed: int = 1234
    """Seed of the first sample (sample number i has seed + i), or of a conversation."""

    def __post_init__(self) -> None:
        problems = []
        if self.max_new_tokens < 1:
            problems.append(f"--max_new_tokens must be 1 or more, not {self.max_new_tokens}")
        if not (self.temperature == 0 or 1e-6 <= self.temperature < math.inf):
            problems.append(
                f"--temperature must be 0 (the likeliest token always) or at least 1e-6, not {self.temperature}"
            )
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"--top_k must be 1 or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            problems.append(f"--top_p must be above 0 and at most 1, not {self.top_p}")
        if not 0 < self.repetition_penalty < math.inf:
            problems.append(f"--repetition_penalty must be above 0 (1: none), not {self.repetition_penalty}")
        if "" in self.stop:
            problems.append("--stop: an empty text is found everywhere")
        if not 0 <= self.seed < 2**62:
            problems.append(f"--seed must be 0 or more and below 2^62, not {self.seed}")
        raise_problems(problems)


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """CTRL's repetition penalty (https://arxiv.org/abs/1909.05858), for negative logits too, as transformers has it.

    Args:
        logits: [rows, vocabulary].
        seen: bool [rows, vocabulary], the tokens that came before.
        penalty: divides the logits of such tokens, or multiplies them where they are negative.
    """
    return logits.where(~seen, (logits * penalty).where(logits < 0, logits / penalty))


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """[rows, vocabulary] → the same, after temperature, top-k and top-p in this order; at temperature 0 certainty.

    Tokens as likely as the last of the `top_k` stay, and so does always the likeliest one.
    """
    if sampling.temperature == 0:
        return logits.new_zeros(logits.shape).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    # the likeliest one becomes 0: a tiny temperature must not make two of them infinite
    logits = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature
    if sampling.top_k is not None:
        least = logits.topk(min(sampling.top_k, logits.size(-1))).values[:, -1:]
        logits = logits.masked_fill(logits < least, -float("inf"))
    if sampling.top_p < 1:
        ascending, order = logits.sort(-1)
        unlikely = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        unlikely[:, -1] = False
        logits = logits.masked_fill(unlikely.scatter(-1, order, unlikely), -float("inf"))
    return logits.softmax(-1)


def choose(logits: Tensor, seen: Tensor | None, sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """The next token of each row, drawn by its own generator, so that it does not depend on the other rows.

    Args:
        logits: [rows, vocabulary].
        seen: bool [rows, vocabulary], the tokens that came before; the chosen ones are added. None without a penalty.
        sampling: how to choose.
        generators: one per row, on the logits' device.

    Raises:
        DataError: if a logit is no number.
    """
    import torch

    if not logits.isfinite().all():
        raise DataError("the model's logits are not finite: damaged weights, or too large ones for --precision 16-true")
    if seen is not None:
        logits = penalise(logits, seen, sampling.repetition_penalty)
    chances = probabilities(logits, sampling)
    if sampling.temperature == 0:
        tokens = chances.argmax(-1, keepdim=True)
    else:
        drawn = [row.multinomial(1, generator=own) for row, own in zip(chances, generators, strict=True)]
        tokens = torch.stack(drawn)
    if seen is not None:
        seen.scatter_(-1, tokens, True)
    return tokens.flatten().tolist()
