"""What a Hugging Face folder makes of a text, by transformers in a fresh process, to compare llama.cpp with.

hf_probabilities_process.py is that process. It writes log-probabilities in the file format of llama-perplexity.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.formats.programs import run_transformers

WINDOW = 512  # tokens at most, llama-perplexity's default: the second half is predicted, the first is context


@dataclass(frozen=True)
class Reference:
    ids: list[int]  # of the whole text, with begin and end tokens as the folder's tokenizer adds them
    window: int  # tokens of a window
    perplexity: float  # over the second halves of the windows, each after the first half; in float32
    predicted: int  # tokens that `perplexity` is the mean of
    prompt: str  # a beginning of one of the windows
    continuation: str  # text of the most probable tokens after the prompt, as far as it is valid UTF-8
    ends: list[int]  # characters of `continuation` after each of its tokens; none of a model that ends every window
    decided: int  # how many of these tokens come before the first that another is nearly as probable as
    chats: list[dict[str, Any] | None] = field(default_factory=list)  # of each conversation `text` and `ids`, or None


def ask(
    folder: Path, text: str, context: int, windows: int, target: Path, chats: Sequence[dict[str, Any]] = ()
) -> Reference:
    """Loads `folder` in a fresh process, in float32, and writes its log-probabilities to `target`.

    `chats` are `messages` and `tools` of conversations to be rendered.

    Raises:
        UserError: for a text that is too short.
        DataError: if transformers cannot load the folder.
        OSError: if `target` cannot be written, or the memory does not suffice.
    """
    request = {
        "text": text,
        "context": context,
        "windows": windows,
        "target": str(target.resolve()),
        "chats": list(chats),
    }
    answered = target.with_name("answer.json")
    run_transformers("utils.export.hf_probabilities_process", folder, request, answered)
    answer = json.loads(answered.read_text(encoding="utf-8"))
    if "too_short" in answer:
        raise UserError(
            f"the text has {answer['too_short']} tokens, too few to measure on; give a longer one by --text"
        )
    return Reference(**answer)


def choose_windows(tokens: int, context: int, windows: int) -> tuple[int, list[int]]:
    """Length of the windows and where they begin in a text of so many tokens; none if the text is too short."""
    length = min(WINDOW, context)
    while True:
        # llama-perplexity gives no figures for fewer than 100 predicted tokens
        windows = max(windows, math.ceil(100 / (length - 1 - length // 2)))
        if tokens >= length * windows:
            return length, [window * (tokens - length) // max(1, windows - 1) for window in range(windows)]
        if length <= 8:
            return length, []
        length //= 2  # a short text is measured in short windows
