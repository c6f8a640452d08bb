"""A model whose vocabulary grows: new rows of the embeddings and of the head, for tokens that were added.

A new row is the mean of the rows that tokens had before: of all that says the least about any text
(https://nlp.stanford.edu/~johnhew/vocab-expansion.html). Random ones could make a new token the most likely everywhere.
"""

import copy
from collections.abc import Mapping

import torch
from litgpt.config import Config
from torch import Tensor

from lit_gpt.errors import DataError
from lit_gpt.model.lazy_tensors import LazyTensors, specs_of
from lit_gpt.model.one_core import on_one_core

EMBEDDINGS, HEAD = "transformer.wte.weight", "lm_head.weight"
_BY_TOKEN = (EMBEDDINGS, HEAD, "lm_head.bias")
_ROWS_AT_ONCE = 4096


def grown_config(config: Config, vocab_size: int) -> Config:
    """The config with a vocabulary of that many entries. Rows that filled the old one up are used first."""
    grown = copy.copy(config)
    grown.vocab_size = vocab_size
    grown.padded_vocab_size = max(config.padded_vocab_size, vocab_size)
    return grown


def grow(weights: Mapping[str, Tensor], config: Config, added: int) -> LazyTensors:
    """The weights with rows for the last `added` tokens of a `grown_config`; a new row is computed when asked for.

    All other numbers are the same, bit for bit. A DataError if the weights have fewer rows than there were tokens.
    """
    before = config.vocab_size - added
    specs = dict(specs_of(weights))
    for name in _BY_TOKEN:
        if name not in specs:
            continue
        if len(specs[name]) < before:
            raise DataError(f"{name} has {len(specs[name])} rows, and {before} tokens were there before")
        specs[name] = specs[name].new_empty((config.padded_vocab_size, *specs[name].shape[1:]))

    def read(name: str) -> Tensor:
        return _with_new_rows(weights[name], before, specs[name], added) if name in _BY_TOKEN else weights[name]

    return LazyTensors(specs, read)


@torch.no_grad()
def _with_new_rows(old: Tensor, before: int, spec: Tensor, added: int) -> Tensor:
    grown = old.new_zeros(spec.shape)
    grown[: len(old)] = old
    grown[before : before + added] = _mean(old[:before]).to(old.dtype)
    return grown


@on_one_core()
def _mean(rows: Tensor) -> Tensor:
    """The same to the last bit on every process, whatever the number of its threads."""
    total = torch.zeros(rows.shape[1:], dtype=torch.float64)
    for part in rows.split(_ROWS_AT_ONCE):
        total += part.double().sum(0)
    return (total / len(rows)).float()
