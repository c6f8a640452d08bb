"""Tokens of a chat template that the foundation model does not know: their rows look as if they had never been trained.

A row of the embeddings, or of the head, looks untrained if it is zero, equal to another token's, or far from the
others' norms. The norms of a trained vocabulary lie around their median by factors, not by sums, and have long tails:
so their logarithms are compared, with the median and the median deviation from it, which untrained rows, up to a
quarter of all, hardly move. A row is far from the others if its norm is less than half or more than twice the median
(`FACTOR`) and that is more than `DEVIATIONS` standard deviations, as a normal distribution would have them. Of
all-MiniLM-L6-v2, whose vocabulary has 994 entries for later use, that finds 992 of them, and 3 of 21,745 words in
Latin letters, rare names; the others that it finds are characters that an English text does not have.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lit_gpt.errors import UserError
from lit_gpt.formats.litgpt_directory import WEIGHTS, read_weights
from lit_gpt.model.growing import EMBEDDINGS, HEAD
from lit_gpt.model.lora import LoRASettings
from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.shipped_templates import written_tokens
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.train.options import PretrainOptions

FACTOR = 2.0  # frequent and rare tokens of trained models differ by that, without being wrong
DEVIATIONS = 5.0
_NORMAL = 1.4826  # standard deviations of a normal distribution in its median deviation
_ROWS_AT_ONCE = 8192
_MEND = "--lora_train embeddings,head"


class Untrained(NamedTuple):
    """Why a row looks untrained."""

    reason: str
    is_large: bool = False
    """Whether only its norm is larger than the others': nothing begins like that."""


def untrained_rows(matrix: Tensor, ids: Iterable[int], entries: int) -> dict[int, Untrained]:
    """Those of the rows `ids` of a matrix [rows, columns] that look untrained among the first `entries` of them."""
    parts = [part.float().norm(dim=1) for part in matrix[:entries].split(_ROWS_AT_ONCE)]
    norms = torch.cat(parts)
    logs = norms[norms > 0].log()
    if not len(logs):
        return {index: Untrained("zero") for index in ids}
    median = logs.median()
    deviation = _NORMAL * float((logs - median).abs().median())
    bound = max(math.log(FACTOR), DEVIATIONS * deviation)
    found = {}
    for index in ids:
        norm = float(norms[index])
        if not norm:
            found[index] = Untrained("zero")
        elif twin := _twin(matrix, norms, index):
            found[index] = Untrained(f"equal to that of token {twin - 1}")
        elif abs(distance := math.log(norm) - float(median)) > bound:
            reason = f"of norm {norm:.2g}, where the others' median is {float(median.exp()):.2g}"
            found[index] = Untrained(reason, is_large=distance > 0)
    return found


def _twin(matrix: Tensor, norms: Tensor, index: int) -> int:
    """1 + the first other row that is equal; 0 if none is."""
    for other in torch.isclose(norms, norms[index], rtol=1e-5, atol=0.0).nonzero().flatten().tolist():
        if other != index and torch.equal(matrix[other], matrix[index]):
            return other + 1
    return 0


def template_warnings(
    options: PretrainOptions, template: ChatTemplate, added: int, lora: LoRASettings | None
) -> list[str]:
    """Names the template's tokens whose rows look untrained; nothing for a new model.

    The last `added` of the tokens of the template's tokenizer are not the foundation model's. A UserError for a LoRA
    that could not learn to end an answer: neither does the head know the end, nor is it trained.
    """
    if options.model_config or not (options.checkpoint_dir / WEIGHTS).is_file():
        return []
    tokenizer = template.tokenizer
    weights = read_weights(options.checkpoint_dir)
    before = tokenizer.vocab_size - added
    written = [_id(tokenizer, name) for name in written_tokens(template.source, tokenizer)]
    end = template.end_of_turn
    embedded = untrained_rows(weights[EMBEDDINGS], [index for index in written if index < before], before)
    predicted = {}
    if end is not None and end < before:
        predicted = untrained_rows(weights[HEAD], [end], before)
    _require_end(lora, tokenizer, end, predicted)
    return _in_words(tokenizer, {"embeddings": embedded, "head": predicted}, lora)


def _id(tokenizer: Tokenizer, name: str) -> int:
    index = tokenizer.token_id(name)
    assert index is not None, f"{name} is a token of the tokenizer"
    return index


def _require_end(
    lora: LoRASettings | None, tokenizer: Tokenizer, end: int | None, predicted: Mapping[int, Untrained]
) -> None:
    if lora is None or lora.train_head or lora.head or end not in predicted or predicted[end].is_large:
        return
    raise UserError(
        f"an answer ends with {tokenizer.vocabulary[end]}, whose row in the foundation's head looks untrained "
        f"({predicted[end].reason}): LoRA's adapters alone would not learn to stop; give {_MEND}"
    )


def _in_words(
    tokenizer: Tokenizer, found: Mapping[str, Mapping[int, Untrained]], lora: LoRASettings | None
) -> list[str]:
    lines = []
    is_trained = {"embeddings": not lora or lora.train_embeddings, "head": not lora or lora.train_head or lora.head}
    for where, rows in found.items():
        if not rows:
            continue
        each = ", ".join(f"{tokenizer.vocabulary[index]} ({row.reason})" for index, row in rows.items())
        mend = "" if is_trained[where] else f"; {_MEND} trains them"
        lines.append(f"warning: tokens of the chat template whose rows in the {where} look untrained: {each}{mend}")
    return lines
