"""litgpt's model, extended for training on rows that hold several documents.

Three things are added and nothing is copied: a token attends only to its own document and positions restart with it
(`segments`); keys and values of grouped queries are not repeated in memory; and the loss is computed from the hidden
states in chunks, so that the logits of a whole batch never exist at once.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import litgpt.lora
import litgpt.model
import torch
import torch.nn.functional as F
from litgpt.config import Config
from litgpt.model import apply_rope, do_softcapping
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_gpt.command import UserError

IGNORE = -100
"""The target of a position that predicts nothing."""

# Logits of one chunk: 2^27 numbers are 4,096 positions at a vocabulary of 32,000, 0.5 GB in fp32.
_LOGITS_PER_CHUNK = 1 << 27


def segment_positions(segments: Tensor) -> Tensor:
    """Position of each token inside its segment.

    Args:
        segments: [B, T] integers, constant over a segment and different for its neighbours.

    Returns:
        [B, T] int64, 0 at each segment's first token.
    """
    index = torch.arange(segments.size(1), device=segments.device).expand_as(segments)
    is_start = torch.ones_like(segments, dtype=torch.bool)
    is_start[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return index - torch.cummax(torch.where(is_start, index, 0), dim=1).values


def segment_mask(segments: Tensor) -> Tensor:
    """bool [B, 1, T, T]: query (row) may see key (column): same segment and not later."""
    same = segments.unsqueeze(2) == segments.unsqueeze(1)
    return same.tril().unsqueeze(1)


def summed_cross_entropy(
    lm_head: nn.Module, hidden: Tensor, targets: Tensor, vocabulary: int, final: Any = None
) -> Tensor:
    """Cross-entropy summed over all positions that have a target, in fp32.

    Args:
        lm_head: from hidden states to logits.
        hidden: [B, T, C].
        targets: [B, T] int64, `IGNORE` where there is nothing to predict.
        vocabulary: logits per position, which decides how many positions make a chunk.
        final: applied to the logits (soft-capping), if any.

    Returns:
        A scalar. Where there are several chunks each one's logits are computed again in the backward pass.
    """

    def chunk_loss(states: Tensor, chunk_targets: Tensor) -> Tensor:
        logits = lm_head(states).float()
        logits = final(logits) if final is not None else logits
        return F.cross_entropy(logits, chunk_targets, ignore_index=IGNORE, reduction="sum")

    hidden, targets = hidden.flatten(0, 1), targets.flatten()
    positions = max(1, _LOGITS_PER_CHUNK // vocabulary)
    if hidden.size(0) <= positions:
        return chunk_loss(hidden, targets)
    losses = [
        checkpoint(chunk_loss, states, chunk_targets, use_reentrant=False)
        for states, chunk_targets in zip(hidden.split(positions), targets.split(positions), strict=True)
    ]
    return torch.stack(losses).sum()


class DocumentAttention(nn.Module):
    """litgpt's attention without a cache, for any mask, with grouped keys and values left as they are."""

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        input_pos: Tensor | None = None,
        input_pos_maxp1: int | None = None,
    ) -> Tensor:
        if input_pos is not None:
            return super().forward(x, cos, sin, mask, input_pos, input_pos_maxp1)
        config: Config = self.config
        size = config.head_size
        heads = (config.n_head, config.n_query_groups, config.n_query_groups)
        parts = self.qkv(x).split([count * size for count in heads], dim=-1)
        q, k, v = (part.unflatten(-1, (-1, size)).transpose(1, 2) for part in parts)
        n = config.rope_n_elem
        q, k = (torch.cat((apply_rope(t[..., :n], cos, sin), t[..., n:]), dim=-1) for t in (q, k))
        grouped = config.n_head != config.n_query_groups
        if grouped and mask is not None and q.is_cuda:
            # of the kernels that take a mask, the memory-efficient one takes no groups, and the other makes all scores
            k, v = (t.repeat_interleave(config.n_head // config.n_query_groups, dim=1) for t in (k, v))
            grouped = False
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            scale=(config.attention_scores_scalar or size) ** -0.5 * self.mscale**2,
            enable_gqa=grouped,
        )
        return self.proj(y.transpose(1, 2).flatten(2))


class CausalSelfAttention(DocumentAttention, litgpt.model.CausalSelfAttention):
    """litgpt's attention with document masks."""


class LoRACausalSelfAttention(DocumentAttention, litgpt.lora.CausalSelfAttention):
    """litgpt's LoRA attention with document masks."""


def _check_supported(config: Config) -> None:
    unsupported = {
        "norm_qk": config.norm_qk,
        "sliding_window_size": config.sliding_window_size,
        "attention_logit_softcapping": config.attention_logit_softcapping,
        "rope_interleave": config.rope_interleave,
        "latent_attention": config.latent_attention,
        "rope_local_base_freq": config.rope_local_base_freq,
    }
    if used := [name for name, value in unsupported.items() if value]:
        raise UserError(f"model '{config.name}' uses {', '.join(used)}, which training on packed rows does not support")


class DocumentGPT(nn.Module):
    """What both models below share: the forward pass over packed rows."""

    def forward(
        self,
        idx: Tensor,
        input_pos: Tensor | None = None,
        input_pos_maxp1: int | None = None,
        lm_head_chunk_size: int = 0,
        segments: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor | list[Tensor]:
        """As litgpt's, or over packed rows when `segments` or `targets` is given.

        Args:
            idx: [B, T] token ids.
            segments: [B, T], the document each token belongs to; None for one document a row.
            targets: [B, T] int64, the next tokens.

        Returns:
            Logits [B, T, vocabulary], or with `targets` the summed cross-entropy, a scalar.
        """
        if input_pos is not None or (segments is None and targets is None):
            return super().forward(idx, input_pos, input_pos_maxp1, lm_head_chunk_size)
        hidden = self._hidden(idx, segments)
        capping = self.config.final_logit_softcapping
        final = partial(do_softcapping, thresh=capping) if capping is not None else None
        if targets is not None:
            return summed_cross_entropy(self.lm_head, hidden, targets, self.config.padded_vocab_size, final)
        logits = self.lm_head(hidden)
        return final(logits) if final is not None else logits

    def _hidden(self, idx: Tensor, segments: Tensor | None) -> Tensor:
        """[B, T] token ids → [B, T, n_embd], the states after the last norm."""
        if idx.size(1) > self.max_seq_length:
            raise UserError(f"rows of {idx.size(1)} positions do not fit the model's window of {self.max_seq_length}")
        if segments is None:
            cos, sin, mask = self.cos[: idx.size(1)].unsqueeze(0), self.sin[: idx.size(1)].unsqueeze(0), None
        else:
            positions = segment_positions(segments)
            cos, sin, mask = self.cos[positions], self.sin[positions], segment_mask(segments)
        x = self.transformer.wte(idx)
        if self.config.scale_embeddings:
            x = x * torch.tensor(self.config.n_embd**0.5, dtype=x.dtype)
        for block in self.transformer.h:
            x = block(x, cos, sin, mask)
        return self.transformer.ln_f(x)


class GPT(DocumentGPT, litgpt.model.GPT):
    """The full model."""

    def __init__(self, config: Config) -> None:
        _check_supported(config)
        super().__init__(config)
        for index, block in enumerate(self.transformer.h):
            block.attn = CausalSelfAttention(config, index)


class LoRAGPT(DocumentGPT, litgpt.lora.GPT):
    """The model with LoRA adapters; only they are trained."""

    def __init__(self, config: litgpt.lora.Config) -> None:
        _check_supported(config)
        super().__init__(config)
        for index, block in enumerate(self.transformer.h):
            block.attn = LoRACausalSelfAttention(config, index)
        litgpt.lora.mark_only_lora_as_trainable(self)
