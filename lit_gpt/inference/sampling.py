"""From logits to the next token."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_gpt.errors import DataError
from lit_gpt.inference.sampling_options import Sampling


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """CTRL's penalty on the tokens `seen` (https://arxiv.org/abs/1909.05858); negative logits as in transformers."""
    penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, penalised, logits)


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

    `logits` and `seen` are [rows, vocabulary]; the chosen tokens are added to `seen`, which is None without a penalty.
    A DataError says that a logit is not finite.
    """
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
