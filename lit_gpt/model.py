"""litgpt's model, extended for training on rows that hold several documents.

Four things are added and nothing is copied: a token attends only to its own document and positions restart with it
(`lit_gpt/attention.py`); keys and values of grouped queries are not repeated in memory; the loss is computed from the
hidden states in chunks (`lit_gpt/loss.py`); and a block can compute its activations again in the backward pass instead
of keeping them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import litgpt.lora
import litgpt.model
import torch
import torch.nn.functional as F
from litgpt.config import Config
from litgpt.model import apply_rope, do_softcapping
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lit_gpt.attention import Segments, attend, find_segments, segment_positions, whole_rows
from lit_gpt.command import UserError
from lit_gpt.loss import Losses, cross_entropies
from lit_gpt.tensor_parallel import HeadExchange

Recompute = Literal["none", "selective", "full"]
"""What a block computes again in the backward pass: nothing, all but matrix products and attention, or everything."""


class DocumentAttention(nn.Module):
    """litgpt's attention over packed rows when `mask` is `Segments`; with a cache litgpt's own."""

    exchange: HeadExchange | None = None
    """Where other processes have some of the heads: brings this process's their queries, keys and values."""

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Segments | Tensor | None = None,
        input_pos: Tensor | None = None,
        input_pos_maxp1: int | None = None,
    ) -> Tensor:
        if not isinstance(mask, Segments):
            return super().forward(x, cos, sin, mask, input_pos, input_pos_maxp1)
        config: Config = self.config
        size, n = config.head_size, config.rope_n_elem
        q, k, v = (part.unflatten(-1, (-1, size)).transpose(1, 2) for part in self._project(x))
        q, k = (torch.cat((apply_rope(t[..., :n], cos, sin), t[..., n:]), dim=-1) for t in (q, k))
        scale = (config.attention_scores_scalar or size) ** -0.5 * self.mscale**2
        window = config.sliding_window_size if self.apply_sliding_window_attention else None
        y = attend(*(t.squeeze(0).transpose(0, 1) for t in (q, k, v)), mask, scale, window)
        return self.proj(y.flatten(1).unsqueeze(0))

    def _project(self, x: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values, [..., heads · head size] each."""
        qkv = self.qkv(x)
        return self._split(self.exchange(qkv) if self.exchange else qkv)

    def _split(self, qkv: Tensor) -> Sequence[Tensor]:
        """Of all heads, or of an equal share of each kind."""
        config = self.config
        heads = (config.n_head, config.n_query_groups, config.n_query_groups)
        return qkv.split([qkv.size(-1) * count // sum(heads) for count in heads], dim=-1)


class CausalSelfAttention(DocumentAttention, litgpt.model.CausalSelfAttention):
    """litgpt's attention with document masks."""


class LoRACausalSelfAttention(DocumentAttention, litgpt.lora.CausalSelfAttention):
    """litgpt's LoRA attention with document masks."""

    def _project(self, x: Tensor) -> Sequence[Tensor]:
        """Each adapter adds to its own part: litgpt makes a tensor of all three, of zeros where there is no adapter."""
        layer = self.qkv
        parts = list(self._split(layer.linear(x)))
        adapted = [index for index, enabled in enumerate(layer.enable_lora) if enabled]
        if adapted:
            down = F.linear(layer.lora_dropout(x), layer.lora_A).chunk(len(adapted), dim=-1)
            up = layer.lora_B.split(layer.qkv_shapes)
            for index, a, b in zip(adapted, down, up, strict=True):
                parts[index] = parts[index] + F.linear(a, b) * layer.scaling
        return parts


# What is dear to compute and cheap to keep; norms, activation functions and rotations are the rest.
_KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.fabricant.segment_attention.default,
}


def _keep_products(_context: Any, operation: Any, *_args: Any, **_options: Any) -> CheckpointPolicy:
    kept = operation in _KEPT or "_varlen_attn" in str(operation) or "flex_attention" in str(operation)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


class DocumentBlock(nn.Module):
    """litgpt's block, which may compute its activations again."""

    recompute: Recompute = "none"

    def forward(self, x: Tensor, *arguments: Any) -> Tensor:
        if self.recompute == "none" or not torch.is_grad_enabled():
            return super().forward(x, *arguments)
        selective = {"context_fn": partial(create_selective_checkpoint_contexts, _keep_products)}
        options = selective if self.recompute == "selective" else {}
        return checkpoint(super().forward, x, *arguments, use_reentrant=False, **options)


class Block(DocumentBlock, litgpt.model.Block):
    """litgpt's block with document masks."""

    def __init__(self, config: Config, block_idx: int) -> None:
        super().__init__(config, block_idx)
        self.attn = CausalSelfAttention(config, block_idx)


class LoRABlock(DocumentBlock, litgpt.lora.Block):
    """litgpt's LoRA block with document masks."""

    def __init__(self, config: litgpt.lora.Config, block_idx: int) -> None:
        super().__init__(config, block_idx)
        self.attn = LoRACausalSelfAttention(config, block_idx)


def _check_supported(config: Config) -> None:
    unsupported = {
        "norm_qk": config.norm_qk,
        "attention_logit_softcapping": config.attention_logit_softcapping,
        "rope_interleave": config.rope_interleave,
        "latent_attention": config.latent_attention,
        "rope_local_base_freq": config.rope_local_base_freq,
    }
    if used := [name for name, value in unsupported.items() if value]:
        raise UserError(f"model '{config.name}' uses {', '.join(used)}, which training on packed rows does not support")


class DocumentGPT(nn.Module):
    """What both models below share: the forward pass over packed rows."""

    place: tuple[int, int] = (0, 1)
    """This process's number among those that share the model, and how many do (lit_gpt/tensor_parallel.py)."""

    def forward(
        self,
        idx: Tensor,
        input_pos: Tensor | None = None,
        input_pos_maxp1: int | None = None,
        lm_head_chunk_size: int = 0,
        segments: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor | list[Tensor] | Losses:
        """As litgpt's, or over packed rows when `segments` or `targets` is given.

        Args:
            idx: [B, T] token ids.
            segments: int32 [segments + 1], where the documents begin, counted through all B·T positions, and B·T; each
                row's first position is one of them. None for one document a row.
            targets: [B, T] int64, the next tokens.

        Returns:
            Logits [B, T, vocabulary], or with `targets` the `Losses`: where processes share the model those of this
            process's positions, of which the sum over the processes is the batch's.
        """
        if input_pos is not None or (segments is None and targets is None):
            return super().forward(idx, input_pos, input_pos_maxp1, lm_head_chunk_size)
        hidden = self._hidden(idx, whole_rows(*idx.shape, idx.device) if segments is None else segments)
        capping = self.config.final_logit_softcapping
        if targets is not None:
            return cross_entropies(self.lm_head, hidden, targets, capping, first=self.place[0] * len(hidden))
        assert self.place[1] == 1, "each process has only the states of its positions"
        logits = self.lm_head(hidden.unflatten(0, idx.shape))
        return logits if capping is None else do_softcapping(logits, capping)

    def _hidden(self, idx: Tensor, bounds: Tensor) -> Tensor:
        """[B, T] token ids → [B·T, n_embd], the states after the last norm; of this process's positions only."""
        rows, length = idx.shape
        if length > self.max_seq_length:
            raise UserError(f"rows of {length} positions do not fit the model's window of {self.max_seq_length}")
        config = self.config
        x = self.transformer.wte(idx.reshape(1, -1))  # all rows side by side
        device, dtype = x.device.type, x.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x = x.float()  # the sum of all layers' outputs, whatever the embedding is kept in
        window = config.sliding_window_size
        segments = find_segments(bounds, rows * length, length, dtype, config.head_size, window)
        positions = segment_positions(bounds, rows * length)
        cos, sin = self.cos[positions].unsqueeze(0), self.sin[positions].unsqueeze(0)
        if config.scale_embeddings:
            x = x * torch.tensor(config.n_embd**0.5, dtype=x.dtype)
        for block in self.transformer.h:
            x = block(x, cos, sin, segments)
        return self.transformer.ln_f(x).squeeze(0)


class GPT(DocumentGPT, litgpt.model.GPT):
    """The full model."""

    def __init__(self, config: Config) -> None:
        _check_supported(config)
        super().__init__(config)
        self.transformer.h = nn.ModuleList(Block(config, index) for index in range(config.n_layer))


class LoRAGPT(DocumentGPT, litgpt.lora.GPT):
    """The model with LoRA adapters; only they are trained."""

    def __init__(self, config: litgpt.lora.Config) -> None:
        _check_supported(config)
        super().__init__(config)
        self.transformer.h = nn.ModuleList(LoRABlock(config, index) for index in range(config.n_layer))
        litgpt.lora.mark_only_lora_as_trainable(self)
