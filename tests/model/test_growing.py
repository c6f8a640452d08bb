"""A vocabulary that grows: new rows are the mean of the old ones, all other numbers stay as they are."""

from __future__ import annotations

import pytest
import torch
from litgpt.config import Config

from lit_gpt.errors import DataError
from lit_gpt.model.growing import grow, grown_config
from lit_gpt.model.lazy_tensors import specs_of


def config_of(padded: int) -> Config:
    return Config(n_layer=1, n_embd=16, n_head=2, vocab_size=100, padded_vocab_size=padded, lm_head_bias=True)


def weights_of(padded: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"transformer.wte.weight": (padded, 16), "lm_head.weight": (padded, 16), "lm_head.bias": (padded,)}
    shapes["transformer.ln_f.weight"] = (16,)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("padded, rows", [(100, 103), (101, 103), (128, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_rows_are_the_mean_and_the_others_the_same_bit_for_bit(padded: int, rows: int, dtype: torch.dtype) -> None:
    weights, config = weights_of(padded, dtype), grown_config(config_of(padded), 103)
    assert (config.vocab_size, config.padded_vocab_size) == (103, rows)
    grown = grow(weights, config, 3)
    assert grown["transformer.ln_f.weight"] is weights["transformer.ln_f.weight"]
    for name in ("transformer.wte.weight", "lm_head.weight", "lm_head.bias"):
        found, old = grown[name], weights[name]
        assert found.dtype == dtype and found.shape == specs_of(grown)[name].shape == (rows, *old.shape[1:])
        # rows that only filled the matrix up are no part of the mean, and are taken first
        mean = old[:100].double().mean(0).float().to(dtype)
        assert torch.equal(found[100:103], mean.expand(3, *mean.shape))
        assert torch.equal(found[:100], old[:100]) and torch.equal(found[103:], old[103:])


def test_the_mean_does_not_depend_on_the_number_of_threads() -> None:
    weights = {"lm_head.weight": torch.randn(50_000, 64, generator=torch.Generator().manual_seed(0)).bfloat16()}
    config = grown_config(Config(n_layer=1, n_embd=64, n_head=2, vocab_size=50_000, padded_vocab_size=50_000), 50_002)
    before, rows = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            rows.append(grow(weights, config, 2)["lm_head.weight"][-1])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])


def test_weights_of_another_vocabulary_are_refused() -> None:
    with pytest.raises(DataError, match=r"lm_head.weight has 90 rows, and 100 tokens were there before"):
        weights = weights_of(100, torch.float32)
        weights["lm_head.weight"] = weights["lm_head.weight"][:90]
        grow(weights, grown_config(config_of(100), 103), 3)
