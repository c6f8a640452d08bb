"""Attention within documents, without a [T, T] mask.

The rows of a batch are one sequence of N = B·T positions, in segments. A query attends to the keys of its own segment
up to itself; in layers with a sliding window to the last `window` of them. A GPU uses torch's variable-length flash
attention, or FlexAttention where that cannot (fp32, GPUs before Ampere, older torch, soft caps). The CPU uses torch's
flash kernel segment by segment, which is less work than a causal pass over whole rows. Keys and values of grouped
queries are never repeated.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_gpt.errors import UserError
from lit_gpt.model.cpu_attention import segment_attention

_FLASH_HEAD_SIZE = 256  # the largest that flash attention does; it wants a multiple of 8
_FLEX_HEAD_SIZE = 16  # the smallest that FlexAttention does


class Segments(NamedTuple):
    """Where the documents of a batch lie: made once per batch, used by every layer."""

    bounds: Tensor  # int32 [segments + 1]: the first position of each segment, and N
    longest: int  # at least the length of the longest segment
    blocks: Any = None  # FlexAttention's block mask; None where another kernel is used
    window_blocks: Any = None  # the same for layers with a sliding window


def whole_rows(rows: int, positions: int, device: torch.device | str = "cpu") -> Tensor:
    """The bounds where each row is one segment."""
    return torch.arange(0, rows * positions + 1, positions, dtype=torch.int32, device=device)


def segment_positions(bounds: Tensor, count: int) -> Tensor:
    """int64 [count]: each position counted from the beginning of its segment."""
    index = torch.arange(count, dtype=torch.int32, device=bounds.device)
    return (index - bounds[_segment_numbers(bounds, index)]).long()


def _segment_numbers(bounds: Tensor, index: Tensor) -> Tensor:
    return torch.searchsorted(bounds, index, right=True) - 1


def find_segments(
    bounds: Tensor,
    count: int,
    longest: int,
    dtype: torch.dtype,
    head_size: int,
    window: int | None,
    softcap: float | None = None,
) -> Segments:
    """Chooses the kernel for `count` positions, and makes what it needs; a UserError if heads are too small."""
    is_for_flash = bounds.device.type == "cpu" or (not softcap and _varlen_does(bounds.device, dtype, head_size))
    if is_for_flash:
        return Segments(bounds, longest)
    if head_size < _FLEX_HEAD_SIZE:
        raise UserError(f"attention on a GPU needs heads of at least {_FLEX_HEAD_SIZE} numbers, not {head_size}")
    window_blocks = _block_mask(bounds, count, window) if window else None
    return Segments(bounds, longest, _block_mask(bounds, count, None), window_blocks)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal attention within each segment: q [N, heads, head size], k and v [N, groups, head size] → the shape of q.

    Each group serves heads / groups neighbouring heads. A query sees at most `window` keys up to its own position. With
    a `softcap` scores are softcap · tanh(scores / softcap) (Gemma 2, https://arxiv.org/abs/2408.00118).
    """
    if segments.blocks is not None:
        blocks = segments.window_blocks if window else segments.blocks
        return _attend_by_blocks(q, k, v, blocks, scale, softcap)
    if q.device.type == "cuda":
        before = window - 1 if window else -1
        bounds, longest, is_grouped = segments.bounds, segments.longest, q.size(1) != k.size(1)
        from torch.nn.attention.varlen import varlen_attn  # brings torch._dynamo, 0.6 s

        return varlen_attn(
            q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=(before, 0), enable_gqa=is_grouped
        )
    return segment_attention(q, k, v, segments.bounds, scale, window or 0, softcap or 0.0)[0]


@cache
def _varlen_attention() -> Callable[..., Tensor] | None:
    """torch's variable-length attention, if it has sliding windows and grouped queries (since 2.11)."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # older versions of torch lack it; it brings torch._dynamo
    except ImportError:
        return None
    parameters = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"window_size", "enable_gqa"} <= parameters.keys() else None


def _varlen_does(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    fits = dtype in (torch.bfloat16, torch.float16) and head_size <= _FLASH_HEAD_SIZE and head_size % 8 == 0
    if not fits or _varlen_attention() is None:
        return False
    return device.type == "meta" or torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


def _block_mask(bounds: Tensor, count: int, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask  # brings torch._dynamo, 0.6 s

    number = _segment_numbers(bounds, torch.arange(count, dtype=torch.int32, device=bounds.device))

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (number[query] == number[key]) & (query >= key)
        return seen & (query - key < window) if window else seen

    # compiled it is made block by block: [N, N] never exists
    make = _compiled(create_block_mask) if bounds.is_cuda else create_block_mask
    return make(sees, None, None, count, count, device=str(bounds.device))


@cache  # one function for each value, as torch compiles every new one
def _cap(softcap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


def _attend_by_blocks(q: Tensor, k: Tensor, v: Tensor, blocks: Any, scale: float, softcap: float | None) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention  # brings torch._dynamo, 0.6 s

    is_eager = q.is_cuda and not torch.compiler.is_compiling()
    compute = _compiled(flex_attention) if is_eager else flex_attention
    q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (q, k, v))
    changed = _cap(softcap) if softcap else None
    y = compute(q, k, v, score_mod=changed, block_mask=blocks, scale=scale, enable_gqa=q.size(1) != k.size(1))
    return y.squeeze(0).transpose(0, 1)
