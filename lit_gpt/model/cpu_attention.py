"""Attention within documents on the CPU, as an operation of torch: tiles of queries, each by torch's flash kernel."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SHORT = 512  # keys up to which 16-bit tiles are computed in fp32: faster up to some 1,000 (by 30 % at 170)
# 16-bit tiles are rounded up to a multiple of this: torch compiles and keeps products for every shape. 100 passes over
# random documents took 1.6 GB, and their compilation half of the time.
_HALF_STEP = 64


class _Tile(NamedTuple):
    """A run of queries of one segment, and the keys that they see."""

    start: int  # first query
    end: int  # behind the last query, and behind the last key
    padded: int  # positions from `end` to here are computed, but no query before `end` sees them
    keys: int  # first key
    is_causal: bool  # each query sees all keys up to its own position; else those of the sliding window alone
    dtype: torch.dtype


def _tiles(bounds: Tensor, window: int, dtype: torch.dtype) -> Iterator[_Tile]:
    """The work of a layer: a tile per segment, or where that is longer than the window, one per window of queries."""

    def tile(start: int, end: int, keys: int, is_causal: bool) -> _Tile:
        if dtype not in (torch.bfloat16, torch.float16):
            return _Tile(start, end, end, keys, is_causal, dtype)
        if end - keys <= _SHORT:
            return _Tile(start, end, end, keys, is_causal, torch.float32)
        steps = math.ceil((end - start) / _HALF_STEP)
        return _Tile(start, end, start + steps * _HALF_STEP, keys, is_causal, dtype)

    for start, end in pairwise(bounds.tolist()):
        if start == end:
            continue
        first = min(end, start + window) if window else end
        yield tile(start, first, start, True)
        for begin in range(first, end, window or 1):
            yield tile(begin, min(end, begin + window), begin - window + 1, False)


def _part(tensor: Tensor, start: int, tile: _Tile, groups: int, repeats: int) -> Tensor:
    """[N, heads, D] → [groups, repeats, L, D], a view if possible: `start` to the tile's padded end, in its dtype."""
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
    """In plain steps what torch's kernel does, which knows no soft caps."""
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


def _tile_dtype(q: Tensor, softcap: float) -> torch.dtype:
    """The arithmetic of long tiles: soft caps are computed in plain steps, which need fp32."""
    return torch.promote_types(q.dtype, torch.float32) if softcap else q.dtype


@torch.library.custom_op("fabricant::segment_attention", mutates_args=(), device_types="cpu")
def segment_attention(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float, window: int, softcap: float
) -> tuple[Tensor, Tensor]:
    """Computes `attention.attend` on the CPU; no window and no soft cap are 0.

    It also returns the logarithm of each query's sum of exponentiated scores, [heads, N].
    """
    groups, repeats = k.size(1), q.size(1) // k.size(1)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    sums = q.new_empty((q.size(1), q.size(0)), dtype=torch.promote_types(q.dtype, torch.float32))
    for tile in _tiles(bounds, window, _tile_dtype(q, softcap)):
        own, count = slice(tile.start, tile.end), tile.end - tile.start
        part_q = _part(q, tile.start, tile, groups, repeats)
        part_k = _part(k, tile.keys, tile, groups, repeats)
        part_v = _part(v, tile.keys, tile, groups, repeats)
        if softcap:
            y, lse = _capped(tile, part_q, part_k, part_v, scale, softcap)
        else:
            y, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                part_q, part_k, part_v, 0.0, tile.is_causal, attn_mask=_band(tile), scale=scale
            )
        out[own] = y.permute(2, 0, 1, 3).flatten(1, 2)[:count]
        sums[:, own] = lse.flatten(0, 1)[:, :count]
    return out, sums


@segment_attention.register_fake
def _(q: Tensor, *_others: Any) -> tuple[Tensor, Tensor]:
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
    """The gradients of q, k and v, from the output's and from what the forward pass returned, `out` and `sums`."""
    groups, repeats = k.size(1), q.size(1) // k.size(1)
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    dk = torch.zeros_like(k, memory_format=torch.contiguous_format)
    dv = torch.zeros_like(v, memory_format=torch.contiguous_format)
    for tile in _tiles(bounds, window, _tile_dtype(q, softcap)):
        own, count, padding = slice(tile.start, tile.end), tile.end - tile.start, tile.padded - tile.end
        # gradient and output of the padding are zeros, not those of the next segment
        dy = _part(grad[: tile.end], tile.start, tile, groups, repeats)
        y = _part(out[: tile.end], tile.start, tile, groups, repeats)
        part_q = _part(q, tile.start, tile, groups, repeats)
        part_k = _part(k, tile.keys, tile, groups, repeats)
        part_v = _part(v, tile.keys, tile, groups, repeats)
        # an infinite sum makes the probabilities of the padding 0
        lse = F.pad(sums[:, own], (0, padding), value=torch.inf).unflatten(0, (groups, repeats))
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
def _(_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_others: Any) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
    return dq, dk, dv


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.window, ctx.softcap = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, grad: Tensor, _grad_sums: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, bounds, out, sums = ctx.saved_tensors
    grads = _segment_attention_backward(grad, q, k, v, out, sums, bounds, ctx.scale, ctx.window, ctx.softcap)
    return *grads, None, None, None, None


segment_attention.register_autograd(_backward, setup_context=_save_for_backward)
