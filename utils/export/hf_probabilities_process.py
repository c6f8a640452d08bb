"""Computes token ids, log-probabilities and a greedy continuation by transformers. hf_probabilities.py starts it as
`python -m utils.export.hf_probabilities_process FOLDER REQUEST.json ANSWER.json`."""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lit_gpt.formats.hf_logits_process import FROM_FOLDER, load_model
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.export.hf_probabilities import Reference, choose_windows


def answer(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `Reference`, or `too_short`, how many tokens a text has that is too short to measure on."""
    tokenizer = AutoTokenizer.from_pretrained(folder, **FROM_FOLDER)
    ids = tokenizer.encode(request["text"])
    begin = ids[: len(ids) - len(tokenizer.encode(request["text"], add_special_tokens=False))]
    length, starts = choose_windows(len(ids), request["context"], request["windows"])
    if not starts:
        return {"too_short": len(ids)}
    model = load_model(folder)
    end_ids = Tokenizer(folder).end_ids
    rows = torch.tensor([begin + ids[start + len(begin) : start + length] for start in starts])
    with torch.inference_mode():
        loss, predicted = measure(model, rows, Path(request["target"]))
        for row in rows:  # until the model has something to say after one
            beginning = row[: min(32, request["context"] // 2)].tolist()
            prompt, continuation, ends, decided = continue_text(
                model, tokenizer, beginning, end_ids, request["context"]
            )
            if ends:
                break
    perplexity = math.exp(loss / predicted)
    chats = [render(tokenizer, **chat) for chat in request["chats"]]
    return asdict(Reference(ids, length, perplexity, predicted, prompt, continuation, ends, decided, chats))


def render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> dict[str, Any] | None:
    """The text and the token ids of a conversation up to the answer; None if the chat template refuses it."""
    try:
        text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    except Exception:  # what the template's expressions raise is its refusal: TemplateError, TypeError and others
        return None
    ids = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True)["input_ids"]
    return {"text": text, "ids": ids}


def measure(model: torch.nn.Module, rows: torch.Tensor, target: Path) -> tuple[float, int]:
    """Writes the log-probabilities of `rows`, int64 [windows, length], to `target`, in llama-perplexity's format;
    returns the summed loss of the predicted tokens in nats, and how many they are."""
    loss, predicted = 0.0, 0
    first = rows.shape[1] // 2  # position that predicts, as in llama-perplexity
    with target.open("wb") as file:
        for index, row in enumerate(rows):
            logits = model(row[None]).logits[0, first:-1].float()
            if index == 0:
                file.write(b"_logits_")
                file.write(np.array([rows.shape[1], logits.shape[1], len(rows)], np.int32).tobytes())
                file.write(rows.numpy().astype(np.int32).tobytes())
            loss += cross_entropy(logits.double(), row[first + 1 :], reduction="sum").item()
            predicted += len(logits)
            write_log_probabilities(file, logits.numpy())
    return loss, predicted


def write_log_probabilities(file: BinaryIO, logits: np.ndarray) -> None:
    """Appends `logits`, float32 [rows, vocabulary]: per row scale and smallest log-probability as float32, then uint16.
    Source of the format: llama.cpp's tools/perplexity, `--kl-divergence-base`."""
    rows, vocabulary = logits.shape
    largest = logits.max(axis=1, keepdims=True)
    smallest = np.maximum(logits.min(axis=1, keepdims=True), largest - 16)
    log_sum = np.log(np.exp(logits - largest).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    scale = ((largest - smallest) / 65535).astype(np.float32)
    steps = np.clip(np.rint((logits - smallest) / np.where(scale, scale, 1)), 0, 65535)
    written = np.zeros((rows, 4 + 2 * ((vocabulary + 1) // 2)), np.uint16)
    written[:, :2] = scale.view(np.uint16)
    written[:, 2:4] = (smallest - largest - log_sum).view(np.uint16)
    written[:, 4 : 4 + vocabulary] = steps
    file.write(written.tobytes())


def continue_text(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, beginning: list[int], end_ids: set[int], context: int
) -> tuple[str, str, list[int], int]:
    """Continues `beginning` by the most probable token, at most 24 times, until an end token or the context's end;
    returns `prompt`, `continuation`, `ends` and `decided` of a `Reference`."""
    prompt = decode(tokenizer, beginning).rstrip("\ufffd").rstrip()  # llama.cpp removes the end of the last line
    ids = tokenizer.encode(prompt)
    before = len(decode(tokenizer, ids))
    ends: list[int] = []
    decided = None
    for index in range(min(24, context - len(ids) - 1)):
        best = model(torch.tensor([ids])).logits[0, -1].float().log_softmax(0).topk(2)
        if int(best.indices[0]) in end_ids:
            break
        # 16-bit weights may reverse the order of two tokens less than 0.05 nats apart
        if decided is None and best.values[0] - best.values[1] < 0.05:
            decided = index
        ids.append(int(best.indices[0]))
        ends.append(len(decode(tokenizer, ids)) - before)
    continuation = decode(tokenizer, ids)[before:].split("\ufffd")[0]
    # The first tokens of a character may be decoded to more characters than the whole of them.
    ends = np.minimum.accumulate(ends[::-1])[::-1].tolist()
    ends = [end for end in ends if end <= len(continuation)]
    if decided is None:
        decided = len(ends)
    return prompt, continuation, ends, min(decided, len(ends))


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


if __name__ == "__main__":
    ANSWER = answer(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    Path(sys.argv[3]).write_text(json.dumps(ANSWER), encoding="utf-8")
