"""Attention within documents, without a [T, T] mask.

All rows of a batch stand side by side as one sequence of N = B·T positions, and `bounds` says where its segments begin.
A query attends to the keys of its own segment up to itself; in a sliding window's layers to the last `window` of them.

On a GPU torch's variable-length flash attention does it, or FlexAttention where that cannot (fp32, GPUs before Ampere,
older torch, soft caps); on the CPU torch's flash kernel, one segment after the other, which is less work than one
causal pass over whole rows. Keys and values of grouped queries are never repeated.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.errors import UserError

_FLASH_HEAD_SIZE = 256
"""The largest that flash attention does; it wants a multiple of 8."""
_FLEX_HEAD_SIZE = 16
"""The smallest that FlexAttention does."""


class Segments(NamedTuple):
    """Where the documents of a batch lie: made once per batch, used by every layer.

    bounds: int32 [segments + 1], the first position of each segment and N.
    longest: at least the length of the longest one.
    blocks, window_blocks: FlexAttention's block masks, of all layers and of a sliding window's; None where unused.
    """

    bounds: Tensor
    longest: int
    blocks: Any = None
    window_blocks: Any = None


def whole_rows(rows: int, positions: int, device: torch.device | str = "cpu") -> Tensor:
    """The bounds where each row is one segment."""
    return torch.arange(0, rows * positions + 1, positions, dtype=torch.int32, device=device)


def segment_positions(bounds: Tensor, count: int) -> Tensor:
    """int64 [count]: the place of each position in its segment."""
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
    """The `Segments` of `count` positions whose attention is computed in `dtype`."""
    if bounds.device.type == "cpu" or (not softcap and _varlen_does(bounds.device, dtype, head_size)):
        return Segments(bounds, longest)
    if head_size < _FLEX_HEAD_SIZE:
        raise UserError(f"attention on a GPU needs heads of at least {_FLEX_HEAD_SIZE} numbers, not {head_size}")
    blocks = _block_mask(bounds, count, None)
    return Segments(bounds, longest, blocks, _block_mask(bounds, count, window) if window else None)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal attention within each segment.

    Args:
        q: [N, heads, head size].
        k, v: [N, groups, head size]; each group serves heads / groups neighbouring heads.
        segments: of these N positions.
        scale: factor of the scores.
        window: how many keys up to its own position a query sees at most; None for all of its segment's.
        softcap: scores are softcap · tanh(scores / softcap), if given (Gemma 2, https://arxiv.org/abs/2408.00118).

    Returns:
        [N, heads, head size].
    """
    if segments.blocks is not None:
        return _attend_by_blocks(q, k, v, segments.window_blocks if window else segments.blocks, scale, softcap)
    if q.device.type == "cuda":
        reach = (window - 1 if window else -1, 0)
        bounds, longest, grouped = segments.bounds, segments.longest, q.size(1) != k.size(1)
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(
            q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=reach, enable_gqa=grouped
        )
    return _segment_attention(q, k, v, segments.bounds, scale, window or 0, softcap or 0.0)[0]


# GPU


@cache
def _varlen_attention() -> Callable[..., Tensor] | None:
    """torch's, if it has one with sliding windows and grouped queries (2.11 has)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys() else None


def _varlen_does(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    half = dtype in (torch.bfloat16, torch.float16)
    if _varlen_attention() is None or not half or head_size > _FLASH_HEAD_SIZE or head_size % 8:
        return False
    return device.type == "meta" or torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


def _block_mask(bounds: Tensor, count: int, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

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
    from torch.nn.attention.flex_attention import flex_attention

    is_eager = q.is_cuda and not torch.compiler.is_compiling()
    compute = _compiled(flex_attention) if is_eager else flex_attention
    q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (q, k, v))
    changed = _cap(softcap) if softcap else None
    y = compute(q, k, v, score_mod=changed, block_mask=blocks, scale=scale, enable_gqa=q.size(1) != k.size(1))
    return y.squeeze(0).transpose(0, 1)


# CPU


_SHORT = 512
"""In 16 bits the CPU's kernel is slower than in fp32 up to some 1,000 keys (by 30 % at 170), where these tiles go."""
_HALF_STEP = 64
"""In 16 bits torch also compiles products for every shape that it meets, and keeps them all: 100 passes over random
documents took 1.6 GB, and their compilation half of the time. Such tiles are rounded up to a multiple of this."""


class _Tile(NamedTuple):
    """Queries [start, end), which see keys from `keys` on; `is_causal`, or within the window too.

    It is computed in `dtype` up to `padded`: what lies beyond its own end no query of its sees.
    """

    start: int
    end: int
    padded: int
    keys: int
    is_causal: bool
    dtype: torch.dtype


def _tiles(bounds: Tensor, window: int, dtype: torch.dtype) -> Iterator[_Tile]:
    """The work of a layer: a tile per segment, or where that is longer than the window, one per window of queries."""

    def tile(start: int, end: int, keys: int, is_causal: bool) -> _Tile:
        if dtype not in (torch.bfloat16, torch.float16):
            return _Tile(start, end, end, keys, is_causal, dtype)
        if end - keys <= _SHORT:
            return _Tile(start, end, end, keys, is_causal, torch.float32)
        return _Tile(start, end, start + -(-(end - start) // _HALF_STEP) * _HALF_STEP, keys, is_causal, dtype)

    for start, end in pairwise(bounds.tolist()):
        if start == end:
            continue
        first = min(end, start + window) if window else end
        yield tile(start, first, start, True)
        for begin in range(first, end, window or 1):
            yield tile(begin, min(end, begin + window), begin - window + 1, False)


def _part(tensor: Tensor, start: int, tile: _Tile, groups: int, repeats: int) -> Tensor:
    """[N, heads, D], heads being all or the groups → [groups, repeats, L, D] in the tile's dtype, if it can a view.

    The positions from `start` to the tile's padded end; zeros where there are none.
    """
    part = tensor[start : tile.padded].to(tile.dtype)
    if missing := tile.padded - start - len(part):
        part = F.pad(part, (0, 0, 0, 0, 0, missing))
    return part.unflatten(1, (groups, -1)).permute(1, 2, 0, 3).expand(-1, repeats, -1, -1)


def _seen(tile: _Tile) -> Tensor:
    """[queries, keys], true where a tile's query sees a key."""
    queries, window = tile.padded - tile.start, tile.start - tile.keys + 1
    seen = torch.ones(queries, queries + window - 1, dtype=torch.bool).tril(window - 1)
    return seen if tile.is_causal else seen.triu()


def _band(tile: _Tile) -> Tensor | None:
    """0 where a tile's query sees a key, else -inf: [queries, keys]; None for a causal tile."""
    if tile.is_causal:
        return None
    seen = _seen(tile)
    return torch.zeros(seen.shape, dtype=tile.dtype).masked_fill_(~seen, -torch.inf)


def _capped_scores(tile: _Tile, q: Tensor, k: Tensor, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
    """tanh(scores / softcap), and the capped scores, -inf where a query does not see a key."""
    bent = torch.tanh(q @ k.mT * (scale / softcap))
    return bent, (bent * softcap).masked_fill_(~_seen(tile), -torch.inf)


def _capped(tile: _Tile, q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
    """torch's kernel knows no soft caps: the same in plain steps."""
    with torch.autocast("cpu", enabled=False):
        _, scores = _capped_scores(tile, q, k, scale, softcap)
        return scores.softmax(-1) @ v, scores.logsumexp(-1)


def _capped_backward(
    tile: _Tile, dy: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, scale: float, softcap: float
) -> tuple[Tensor, ...]:
    with torch.autocast("cpu", enabled=False):
        bent, scores = _capped_scores(tile, q, k, scale, softcap)
        shares = (scores - lse.unsqueeze(-1)).exp_()
        slope = dy @ v.mT
        slope = shares * (slope - (slope * shares).sum(-1, keepdim=True)) * (1 - bent**2) * scale
        return slope @ k, slope.mT @ q, shares.mT @ dy


@torch.library.custom_op("fabricant::segment_attention", mutates_args=(), device_types="cpu")
def _segment_attention(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float, window: int, softcap: float
) -> tuple[Tensor, Tensor]:
    """Output [N, heads, D] and log-sum-exp [heads, N]; `window` and `softcap` 0 for none."""
    groups, repeats = k.size(1), q.size(1) // k.size(1)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    sums = q.new_empty((q.size(1), q.size(0)), dtype=torch.promote_types(q.dtype, torch.float32))
    for tile in _tiles(bounds, window, torch.promote_types(q.dtype, torch.float32) if softcap else q.dtype):
        own, count = slice(tile.start, tile.end), tile.end - tile.start
        places = ((q, tile.start), (k, tile.keys), (v, tile.keys))
        parts = (_part(tensor, start, tile, groups, repeats) for tensor, start in places)
        if softcap:
            y, lse = _capped(tile, *parts, scale, softcap)
        else:
            y, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *parts, 0.0, tile.is_causal, attn_mask=_band(tile), scale=scale
            )
        out[own] = y.permute(2, 0, 1, 3).flatten(1, 2)[:count]
        sums[:, own] = lse.flatten(0, 1)[:, :count]
    return out, sums


@_segment_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float, window: int, softcap: float
) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    return out, q.new_empty((q.size(1), q.size(0)), dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op("fabricant::segment_attention_backward", mutates_args=(), device_types="cpu")
def _segment_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    sums: Tensor,
    bounds: Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    groups, repeats = k.size(1), q.size(1) // k.size(1)
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    dk, dv = (torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (k, v))
    for tile in _tiles(bounds, window, torch.promote_types(q.dtype, torch.float32) if softcap else q.dtype):
        own, count, rest = slice(tile.start, tile.end), tile.end - tile.start, tile.padded - tile.end
        queries, keys = (grad[: tile.end], q, out[: tile.end]), (k, v)
        dy, part_q, y = (_part(tensor, tile.start, tile, groups, repeats) for tensor in queries)
        part_k, part_v = (_part(tensor, tile.keys, tile, groups, repeats) for tensor in keys)
        lse = F.pad(sums[:, own], (0, rest), value=torch.inf).unflatten(0, (groups, repeats))  # probabilities of 0
        if softcap:
            grads = _capped_backward(tile, dy, part_q, part_k, part_v, lse, scale, softcap)
        else:
            grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                dy, part_q, part_k, part_v, y, lse, 0.0, tile.is_causal, attn_mask=_band(tile), scale=scale
            )
        dq[own] = grads[0].permute(2, 0, 1, 3).flatten(1, 2)[:count]
        seen = slice(tile.keys, tile.end)
        for total, part in ((dk, grads[1]), (dv, grads[2])):
            total[seen] += part.sum(1).transpose(0, 1)[: tile.end - tile.keys]
    return dq, dk, dv


@_segment_attention_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    sums: Tensor,
    bounds: Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
    return dq, dk, dv


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.window, ctx.softcap = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, grad: Tensor, _grad_sums: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, bounds, out, sums = ctx.saved_tensors
    grads = _segment_attention_backward(grad, q, k, v, out, sums, bounds, ctx.scale, ctx.window, ctx.softcap)
    return *grads, None, None, None, None


_segment_attention.register_autograd(_backward, setup_context=_save_for_backward)
