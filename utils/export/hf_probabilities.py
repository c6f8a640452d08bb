"""What a Hugging Face folder says of a text, from transformers in a fresh process, for llama.cpp to be held against.

Its token ids; the log-probabilities of every token over windows of the text, in the file format that llama-perplexity
reads; how it goes on with a beginning, always by its most probable token.

`python -m utils.export.hf_probabilities FOLDER REQUEST.json ANSWER.json` is that process.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.formats.hf_process import run_transformers
from lit_gpt.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

WINDOW = 512
"""Tokens of a window at most, llama-perplexity's default: its second half is predicted, the first is context."""
FEWEST = 100
"""Predicted tokens below which llama-perplexity gives no figures."""
PROMPT = 32
"""Tokens that are continued, at most."""
CONTINUED = 24
"""Tokens of the continuation, at most."""
CLOSE = 0.05
"""Nats between two tokens' log-probabilities below which 16-bit weights may turn the order round."""


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
    """How many of these tokens come before the first that another is `CLOSE` to."""


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
    run_transformers(__name__, folder, request, answered)
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
    windows = max(windows, math.ceil(FEWEST / (length - 1 - length // 2)))
    while length > 8 and tokens < length * windows:
        length //= 2  # a short text is measured in short windows
        windows = max(windows, math.ceil(FEWEST / (length - 1 - length // 2)))
    if tokens < length * windows:
        return length, []
    return length, [window * (tokens - length) // max(1, windows - 1) for window in range(windows)]


def write_log_probabilities(file: BinaryIO, logits: np.ndarray) -> None:
    """Appends rows of llama-perplexity's file: per row scale and smallest log-probability as float32, then uint16.

    Source of the format: llama.cpp's tools/perplexity, `--kl-divergence-base`. `logits` is float32 [rows, vocabulary].
    """
    rows, vocabulary = logits.shape
    largest = logits.max(axis=1, keepdims=True)
    smallest = np.maximum(logits.min(axis=1, keepdims=True), largest - 16)
    log_sum = np.log(np.exp(logits - largest).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    scale = ((largest - smallest) / 65535).astype(np.float32)
    steps = np.clip(np.rint((logits - smallest) / np.where(scale, scale, 1)), 0, 65535)
    written = np.zeros((rows, 4 + 2 * ((vocabulary + 1) // 2)), np.uint16)
    written[:, :2], written[:, 2:4] = scale.view(np.uint16), (smallest - largest - log_sum).view(np.uint16)
    written[:, 4 : 4 + vocabulary] = steps
    file.write(written.tobytes())


def _answer(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    # imported by the fresh process alone
    import torch
    from transformers import AutoTokenizer

    from lit_gpt.formats.hf_loading import FROM_FOLDER, load_model

    tokenizer = AutoTokenizer.from_pretrained(folder, **FROM_FOLDER)
    ids = tokenizer.encode(request["text"])
    begin = ids[: len(ids) - len(tokenizer.encode(request["text"], add_special_tokens=False))]
    length, starts = choose_windows(len(ids), request["context"], request["windows"])
    if not starts:
        return {"too_short": len(ids)}
    model = load_model(folder)
    rows = torch.tensor([begin + ids[start + len(begin) : start + length] for start in starts])
    with torch.inference_mode():
        loss, predicted = _measure(model, rows, Path(request["target"]))
        for row in rows:  # the first that the model has something to say after
            beginning = row[: min(PROMPT, request["context"] // 2)].tolist()
            said = _continue(model, tokenizer, beginning, Tokenizer(folder).end_ids, request["context"])
            if said[2]:
                break
    return asdict(Reference(ids, length, math.exp(loss / predicted), predicted, *said))


def _measure(model: torch.nn.Module, rows: torch.Tensor, target: Path) -> tuple[float, int]:
    """Writes the log-probabilities of `rows` [windows, length]; the summed loss of the tokens predicted, and how many.

    Position `length // 2` is the first that predicts, as in llama-perplexity.
    """
    import torch

    loss, predicted, first = 0.0, 0, rows.shape[1] // 2
    with target.open("wb") as file:
        for index, row in enumerate(rows):
            logits = model(row[None]).logits[0, first:-1].float()
            if index == 0:
                file.write(b"_logits_")
                file.write(np.array([rows.shape[1], logits.shape[1], len(rows)], np.int32).tobytes())
                file.write(rows.numpy().astype(np.int32).tobytes())
            loss += torch.nn.functional.cross_entropy(logits.double(), row[first + 1 :], reduction="sum").item()
            predicted += len(logits)
            write_log_probabilities(file, logits.numpy())
    return loss, predicted


def _continue(
    model: torch.nn.Module, tokenizer: Any, beginning: list[int], end_ids: set[int], context: int
) -> tuple[str, str, list[int], int]:
    """Prompt, continuation, ends and decided of a `Reference`; it goes on before an end token, within the context."""
    import torch

    def text_of(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    prompt = text_of(beginning).rstrip("\ufffd").rstrip()  # llama.cpp takes a last line's end off
    ids = tokenizer.encode(prompt)
    before, ends, decided = len(text_of(ids)), [], None
    for index in range(min(CONTINUED, context - len(ids) - 1)):
        best = model(torch.tensor([ids])).logits[0, -1].float().log_softmax(0).topk(2)
        if int(best.indices[0]) in end_ids:
            break
        if decided is None and best.values[0] - best.values[1] < CLOSE:
            decided = index
        ids.append(int(best.indices[0]))
        ends.append(len(text_of(ids)) - before)
    continuation = text_of(ids)[before:].split("\ufffd")[0]
    # of a character in several tokens, the first may stand for more characters than in the end
    ends = [end for end in list(accumulate(reversed(ends), min))[::-1] if end <= len(continuation)]
    return prompt, continuation, ends, len(ends) if decided is None else min(decided, len(ends))


if __name__ == "__main__":
    answer = _answer(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    Path(sys.argv[3]).write_text(json.dumps(answer), encoding="utf-8")
