"""How a text goes on: the options that generating and chatting share."""

import math
from dataclasses import dataclass

from lit_gpt.errors import raise_problems


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
    repetition_window: int | None = None
    """How many of the last tokens --repetition_penalty looks at. Default: all."""
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
        if self.repetition_window is not None and self.repetition_window < 1:
            problems.append(f"--repetition_window must be 1 or more, not {self.repetition_window}")
        if "" in self.stop:
            problems.append("--stop: an empty text is found everywhere")
        if not 0 <= self.seed < 2**62:
            problems.append(f"--seed must be 0 or more and below 2^62, not {self.seed}")
        raise_problems(problems)
