"""What a Hugging Face folder says of a text, from transformers in a fresh process, for llama.cpp to be held against.

Its token ids; the log-probabilities of every token over windows of the text, in the file format that llama-perplexity
reads; how it continues a beginning, always by its most probable token. hf_probabilities_process.py is that process.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from lit_gpt.errors import UserError
from lit_gpt.formats.hf_process import run_transformers

PROCESS = "utils.export.hf_probabilities_process"
WINDOW = 512
"""Tokens of a window at most, llama-perplexity's default: its second half is predicted, the first is context."""
FEWEST = 100
"""Predicted tokens below which llama-perplexity gives no figures."""


@dataclass(frozen=True)
class Reference:
    """What transformers makes of the text."""

    ids: list[int]
    """Token ids, with begin and end tokens as the folder's tokenizer adds them."""
    window: int
    """Tokens of a window."""
    perplexity: float
    """Over the second halves of the windows, each after the first half; in float32."""
    predicted: int
    """Tokens that `perplexity` is the mean of."""
    prompt: str
    """A beginning of one of the windows, as text."""
    continuation: str
    """Text of the most probable tokens after the prompt, as far as it is valid UTF-8."""
    ends: list[int]
    """Characters of `continuation` after each of its tokens; there is one at least."""
    decided: int
    """How many of these tokens come before the first that another is nearly as probable as."""


def ask(folder: Path, text: str, context: int, windows: int, target: Path) -> Reference:
    """Loads `folder` in a fresh process, in float32, and writes its log-probabilities to `target`.

    Args:
        folder: a Hugging Face folder.
        text: what to measure on.
        context: tokens that the model can see.
        windows: how many windows, spread evenly over the text; fewer where it is short.
        target: file to write, in llama-perplexity's format.

    Raises:
        UserError: for a text that is too short, or after which the model says nothing.
        DataError: if transformers cannot load the folder.
        OSError: if `target` cannot be written, or the memory does not suffice.
    """
    request = {"text": text, "context": context, "windows": windows, "target": str(target.resolve())}
    answered = target.with_name("answer.json")
    run_transformers(PROCESS, folder, request, answered)
    answer = json.loads(answered.read_text(encoding="utf-8"))
    if "too_short" in answer:
        raise UserError(
            f"the text has {answer['too_short']} tokens, too few to measure on; give a longer one by --text"
        )
    if not answer["ends"]:
        raise UserError("the model ends its text at once, or writes no valid UTF-8; give another text by --text")
    return Reference(**answer)


def choose_windows(tokens: int, context: int, windows: int) -> tuple[int, list[int]]:
    """Length of the windows and where they begin in a text of so many tokens; none if the text is too short."""
    length = min(WINDOW, context)
    windows = max(windows, fewest_windows(length))
    while length > 8 and tokens < length * windows:
        length //= 2  # a short text is measured in short windows
        windows = max(windows, fewest_windows(length))
    if tokens < length * windows:
        return length, []
    return length, [window * (tokens - length) // max(1, windows - 1) for window in range(windows)]


def fewest_windows(length: int) -> int:
    """How many windows of `length` tokens predict `FEWEST` tokens."""
    predicted = length - 1 - length // 2
    return math.ceil(FEWEST / predicted)
