"""Attention within segments against a dense mask in float64."""

from __future__ import annotations

import re
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_gpt.model import attention, cpu_attention
from lit_gpt.model.attention import Segments, attend, segment_positions, whole_rows

HEADS, SIZE, SCALE = 6, 16, 0.3


def dense(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, window: int | None, softcap: float | None = None) -> Tensor:
    """By one mask over all positions, pair by pair."""
    count = len(q)
    owner = [sum(int(bound) <= position for bound in bounds) for position in range(count)]
    rows = [
        [owner[i] == owner[j] and j <= i and (window is None or i - j < window) for j in range(count)]
        for i in range(count)
    ]
    k, v = (t.repeat_interleave(HEADS // t.size(1), 1) for t in (k, v))
    q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (q, k, v))
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.tensor(rows), scale=SCALE)[0].transpose(0, 1)
    scores = softcap * torch.tanh(q @ k.mT * SCALE / softcap)
    return (scores.masked_fill(~torch.tensor(rows), -torch.inf).softmax(-1) @ v)[0].transpose(0, 1)


# The relative error of one rounding is 1e-16, 6e-8 and 4e-3; sums of some dozen terms of size 1.
TOLERANCES = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 8e-2}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 40) | st.sampled_from([63, 64, 65, 130]), min_size=1, max_size=5),
    window=st.none() | st.integers(1, 45),
    groups=st.sampled_from([1, 2, 3, 6]),
    short=st.sampled_from([0, 50, 512]),
    softcap=st.sampled_from([None, 0.7]),
    seed=st.integers(0, 2**31),
)
def test_outputs_and_gradients_are_those_of_a_dense_mask(
    dtype: torch.dtype,
    lengths: list[int],
    window: int | None,
    groups: int,
    short: int,
    softcap: float | None,
    seed: int,
) -> None:
    """Below `short` 16-bit tiles are computed in fp32, from there on rounded up."""
    torch.manual_seed(seed)
    bounds, count = torch.tensor([0, *lengths]).cumsum(0).int(), sum(lengths)
    shapes = ((count, heads, SIZE) for heads in (HEADS, groups, groups))
    inputs = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    segments = Segments(bounds, max(lengths))
    slope = torch.randn(count, HEADS, SIZE)
    with mock.patch.object(cpu_attention, "_SHORT", short):
        found = attend(*inputs, segments, SCALE, window, softcap)
        gradients = torch.autograd.grad(found, inputs, slope.to(dtype))
    expected = dense(*exact, bounds, window, softcap)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
    for own, twin in zip(gradients, torch.autograd.grad(expected, exact, slope.double()), strict=True):
        torch.testing.assert_close(own.double(), twin, atol=tolerance * 4, rtol=tolerance)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 7])
def test_block_masks_are_the_same_documents(window: int | None, softcap: float | None) -> None:
    """What GPUs without the flash kernel do; the CPU has its forward pass."""
    torch.manual_seed(0)
    bounds = torch.tensor([0, 5, 6, 50, 97], dtype=torch.int32)
    q, k, v = (torch.randn(97, heads, SIZE, dtype=torch.float64) for heads in (HEADS, 2, 2))
    blocks = [attention._block_mask(bounds, 97, reach) for reach in (None, window)]
    found = attend(q, k, v, Segments(bounds, 97, *blocks), SCALE, window, softcap)
    torch.testing.assert_close(found, dense(q, k, v, bounds, window, softcap))


def test_positions_restart_with_every_segment() -> None:
    bounds = torch.tensor([0, 3, 4, 8], dtype=torch.int32)
    assert segment_positions(bounds, 8).tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert segment_positions(whole_rows(2, 3), 6).tolist() == [0, 1, 2, 0, 1, 2]


def test_memory_does_not_grow_with_the_lengths_it_has_seen() -> None:
    """In bf16 torch keeps code for each shape: a hundred passes over random documents once took 1.6 GB."""

    def resident() -> int:
        return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

    generator = torch.Generator().manual_seed(0)
    before = resident()
    for _ in range(60):
        cut = int(torch.randint(520, 1000, (), generator=generator))
        bounds = torch.tensor([0, cut, 1024], dtype=torch.int32)
        q, k, v = torch.randn(3, 1024, 4, 32, dtype=torch.bfloat16, requires_grad=True)
        attend(q, k, v, Segments(bounds, 1024), 0.2).sum().backward()
    assert resident() - before < 200
