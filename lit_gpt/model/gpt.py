"""litgpt's model, extended for training on rows that hold several documents.

Five things are added, and nothing is copied:

1. A token attends only to its own document, and positions restart with each document (`attention.py`).
2. Keys and values of grouped queries are not repeated in memory.
3. The loss is computed from the hidden states in chunks (`loss.py`).
4. A block can compute its activations again in the backward pass instead of keeping them.
5. A model that does not rotate (`rotary_percentage` 0) has learned positions, `transformer.wpe`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import litgpt.lora
import litgpt.model
import torch
import torch.nn.functional as F
from litgpt.config import Config
from litgpt.model import KVCache, RMSNorm, apply_rope, apply_rope_interleave, do_softcapping
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lit_gpt.errors import UserError
from lit_gpt.model.attention import Segments, attend, find_segments, segment_positions, whole_rows
from lit_gpt.model.loss import Losses, WatchedLosses, cross_entropies
from lit_gpt.model.tensor_parallel import HeadExchange, gathered

Recompute = Literal["none", "selective", "full"]
"""What a block computes again in the backward pass: nothing, all but matrix products and attention, or everything."""


class DocumentAttention(nn.Module):
    """litgpt's attention over packed rows when `mask` is `Segments`; with a cache litgpt's but for three faults."""

    exchange: HeadExchange | None = None  # where others have some heads: brings this process's their q, k, v

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Segments | Tensor | None = None,
        input_pos: Tensor | None = None,
        input_pos_maxp1: int | None = None,
    ) -> Tensor:
        """x [1, N, n_embd], all rows of a batch in turn, or with a cache litgpt's [B, T, n_embd] → the same shape.

        `cos` and `sin` are [1, N, rope_n_elem]. `mask` is the `Segments` of the N positions; or with a cache litgpt's,
        [B, 1, T, cached positions], true where a query sees a key; or None for litgpt's causal attention without a
        cache. `input_pos` are litgpt's positions [T] or [B, T], all below `input_pos_maxp1`.
        """
        if not isinstance(mask, Segments):
            if mask is not None:
                mask = self._litgpt_mask(mask, input_pos)
            return super().forward(x, cos, sin, mask, input_pos, input_pos_maxp1)
        config: Config = self.config
        size = config.head_size
        q, k, v = self._project(x)
        if config.norm_qk and config.norm_qk_type == "olmo2":  # over all heads
            q, k = self.norm_q(q), self.norm_k(k)
        q, k, v = (part.unflatten(-1, (-1, size)).transpose(1, 2) for part in (q, k, v))
        if config.norm_qk and config.norm_qk_type == "default":
            q, k = self.norm_q(q), self.norm_k(k)
        if config.rope_n_elem:
            q, k = self._rotated(q, cos, sin), self._rotated(k, cos, sin)
        scale = (config.attention_scores_scalar or size) ** -0.5 * self.mscale**2
        window = config.sliding_window_size if self.apply_sliding_window_attention else None
        softcap = config.attention_logit_softcapping
        q, k, v = (part.squeeze(0).transpose(0, 1) for part in (q, k, v))  # [N, heads, head size]
        y = attend(q, k, v, mask, scale, window, softcap)
        return self.proj(y.flatten(1).unsqueeze(0))

    def _rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotates the first `rope_n_elem` numbers of each head, [1, heads, N, head size]."""
        count = self.config.rope_n_elem
        rotate = apply_rope_interleave if self.config.rope_interleave else apply_rope
        return torch.cat((rotate(x[..., :count], cos, sin), x[..., count:]), dim=-1)

    def build_kv_cache(
        self,
        batch_size: int,
        max_seq_length: int,
        rope_cache_length: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> KVCache:
        """A cache of all positions; litgpt's holds a sliding window only, and refuses longer prompts."""
        shape = (batch_size, self.config.n_query_groups, max_seq_length, self.config.head_size)
        return KVCache(shape, shape, device=device, dtype=dtype)

    def _litgpt_mask(self, mask: Tensor, input_pos: Tensor) -> Tensor:
        """[…, queries, keys], true where a query sees a key, as litgpt's attention with a cache needs it."""
        keys = torch.arange(mask.size(-1), device=mask.device)
        queries = input_pos[..., None, :, None]
        mask = mask & (keys <= queries)
        if self.apply_sliding_window_attention:
            mask = mask & (keys > queries - self.config.sliding_window_size)
        if self.config.attention_logit_softcapping is not None:  # then litgpt adds the mask to the scores
            mask = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -torch.inf)
        return mask

    def _project(self, x: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values, [..., heads · head size] each."""
        qkv = self.qkv(x)
        return self._split(self.exchange(qkv) if self.exchange else qkv)

    def _split(self, qkv: Tensor) -> Sequence[Tensor]:
        config = self.config
        heads = (config.n_head, config.n_query_groups, config.n_query_groups)
        return qkv.split([qkv.size(-1) * count // sum(heads) for count in heads], dim=-1)


class CausalSelfAttention(DocumentAttention, litgpt.model.CausalSelfAttention):
    pass


class LoRACausalSelfAttention(DocumentAttention, litgpt.lora.CausalSelfAttention):
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


# What is expensive to compute and cheap to keep. The rest are norms, activation functions and rotations.
_KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.fabricant.segment_attention.default,
}


def _keep_products(_context: Any, operation: Any, *_args: Any, **_options: Any) -> CheckpointPolicy:
    name = str(operation)
    kept = operation in _KEPT or any(part in name for part in ("_varlen_attn", "flex_attention", "frozen_product"))
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


class DocumentBlock(nn.Module):
    """litgpt's block with document masks, which may compute its activations again."""

    attention: type[DocumentAttention]
    recompute: Recompute = "none"

    def __init__(self, config: Config, block_idx: int) -> None:
        super().__init__(config, block_idx)
        self.attn = self.attention(config, block_idx)

    def forward(self, x: Tensor, *arguments: Any) -> Tensor:
        if self.recompute == "none" or not torch.is_grad_enabled():
            return super().forward(x, *arguments)
        selective = {"context_fn": partial(create_selective_checkpoint_contexts, _keep_products)}
        options = selective if self.recompute == "selective" else {}
        return checkpoint(super().forward, x, *arguments, use_reentrant=False, **options)


class Block(DocumentBlock, litgpt.model.Block):
    attention = CausalSelfAttention


class LoRABlock(DocumentBlock, litgpt.lora.Block):
    attention = LoRACausalSelfAttention


class OffsetRMSNorm(RMSNorm):
    """Gemma's norm, by 1 + weight: litgpt's sum in bf16 loses what is below 0.004, and its training with it."""

    def forward(self, x: Tensor) -> Tensor:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = exact * torch.rsqrt(torch.mean(exact * exact, dim=-1, keepdim=True) + self.eps)
        return (normed * (1 + self.weight.to(exact.dtype))).to(x.dtype)


def has_learned_positions(config: Config) -> bool:
    """Whether the model looks its positions up (`transformer.wpe`), as GPT-2 does: it rotates nothing."""
    return config.rotary_percentage == 0


class DocumentGPT(nn.Module):
    block: type[DocumentBlock]
    noise: float = 0.0  # NEFTune's alpha: see `_noisy`
    sharing: tuple[int, int] = (0, 1)  # this process's number among those that share the model, and how many do
    add_up: Callable[[Tensor], Tensor] | None = None  # sums a tensor over those processes, where there are several

    def __init__(self, config: Config) -> None:
        if config.latent_attention:
            raise UserError(
                f"model '{config.name}' uses latent_attention, which training on packed rows does not support"
            )
        super().__init__(config)
        self.transformer.h = nn.ModuleList(self.block(config, index) for index in range(config.n_layer))
        if has_learned_positions(config):
            self.transformer["wpe"] = nn.Embedding(config.block_size, config.n_embd)
        for parent in list(self.modules()):
            for name, norm in parent.named_children():
                if isinstance(norm, RMSNorm) and norm.add_unit_offset:
                    setattr(parent, name, OffsetRMSNorm(norm.weight.numel(), eps=norm.eps))

    def forward(
        self,
        idx: Tensor,
        input_pos: Tensor | None = None,
        input_pos_maxp1: int | None = None,
        lm_head_chunk_size: int = 0,
        segments: Tensor | None = None,
        targets: Tensor | None = None,
        watched: Tensor | None = None,
        last: Tensor | None = None,
    ) -> Tensor | list[Tensor] | Losses | WatchedLosses:
        """[B, T] token ids → logits [B, T, vocabulary], as litgpt's or, with `segments` or `targets`, over packed rows.

        `segments`, int32 [segments + 1], are where the documents begin, counted through all B·T positions, and B·T;
        each row's first position is one of them. None is one document a row. With `targets`, the next tokens [B, T]
        int64, it returns `Losses`; where processes share the model those of this process's positions, whose sum over
        the processes is the batch's. With tokens to watch, int64 [tokens], it returns `WatchedLosses`. With
        `last`, positions int64 [texts] counted through all B·T, it returns their logits alone, [texts, vocabulary].
        """
        if input_pos is not None or (segments is None and targets is None and last is None):
            positions = torch.arange(idx.size(1), device=idx.device) if input_pos is None else input_pos
            with self._learned_positions(positions):
                return super().forward(idx, input_pos, input_pos_maxp1, lm_head_chunk_size)
        hidden = self._hidden(idx, whole_rows(*idx.shape, idx.device) if segments is None else segments)
        capping = self.config.final_logit_softcapping
        if targets is not None:
            first = self.sharing[0] * len(hidden)
            return cross_entropies(self.lm_head, hidden, targets, capping, first, watched)
        if last is not None:
            logits = self._logits_at(hidden, last)
        else:
            assert self.sharing[1] == 1, "each process has only the states of its positions"
            logits = self.lm_head(hidden.unflatten(0, idx.shape))
        return logits if capping is None else do_softcapping(logits, capping)

    def set_kv_cache(
        self,
        batch_size: int,
        max_seq_length: int | None = None,
        rope_cache_length: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """litgpt's, without its mask of positions times positions, 16 GiB for 128 Ki: the attention makes it."""
        positions = max_seq_length or self.max_seq_length
        self.mask_cache = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device).expand(1, 1, positions, positions)
        super().set_kv_cache(batch_size, max_seq_length, rope_cache_length, device, dtype)

    def _hidden(self, idx: Tensor, bounds: Tensor) -> Tensor:
        """[B, T] token ids → [B·T, n_embd], the states after the last norm; of this process's positions only."""
        rows, length = idx.shape
        if length > self.max_seq_length:
            raise UserError(f"rows of {length} positions do not fit the model's window of {self.max_seq_length}")
        config = self.config
        x = self.transformer.wte(idx.reshape(1, -1))  # all rows as one sequence
        if self.noise and self.training:
            x = self._noisy(x, bounds)
        device, dtype = x.device.type, x.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x = x.float()  # the sum of all layers' outputs, whatever the embedding is kept in
        window, softcap = config.sliding_window_size, config.attention_logit_softcapping
        segments = find_segments(bounds, rows * length, length, dtype, config.head_size, window, softcap)
        positions = segment_positions(bounds, rows * length)
        cos, sin = self.cos[positions].unsqueeze(0), self.sin[positions].unsqueeze(0)
        # a model with a second base for some of its blocks has both tables, in a last dimension
        tables = [(cos, sin)]
        if cos.dim() > 3:
            tables = list(zip(cos.unbind(-1), sin.unbind(-1), strict=True))
        if config.scale_embeddings:
            x = x * torch.tensor(config.n_embd**0.5, dtype=x.dtype)
        if has_learned_positions(config):
            x = x + self.transformer.wpe(positions)
        for index, block in enumerate(self.transformer.h):
            table = config.rope_indices[index] if len(tables) > 1 else 0
            x = block(x, *tables[table], segments)
        return self.transformer.ln_f(x).squeeze(0)

    def _noisy(self, x: Tensor, bounds: Tensor) -> Tensor:
        """Embeddings [1, N, n_embd] and noise, uniform up to alpha / √(length of the document · n_embd).

        Jain et al. 2023, https://arxiv.org/abs/2310.05914. It is made by torch's generator, as dropout is.
        """
        lengths = bounds.diff()
        largest = self.noise / (lengths * x.size(-1)).float().sqrt()
        largest = largest.repeat_interleave(lengths, output_size=x.size(1))
        return x + (torch.empty_like(x).uniform_(-1, 1) * largest[:, None]).to(x.dtype)

    def _logits_at(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """[positions, vocabulary], on every process that shares the model."""
        if self.add_up is None:
            return self.lm_head(hidden[positions])
        own = positions - self.sharing[0] * len(hidden)
        is_own = (own >= 0) & (own < len(hidden))
        states = hidden[own.clamp(0, len(hidden) - 1)] * is_own.unsqueeze(1)
        bias = self.lm_head.bias
        return F.linear(self.add_up(states), gathered(self.lm_head.weight), bias if bias is None else gathered(bias))

    @contextmanager
    def _learned_positions(self, positions: Tensor) -> Iterator[None]:
        """Adds them to what litgpt's forward pass, which does not know them, looks up of the tokens."""
        if not has_learned_positions(self.config):
            yield
            return
        hook = self.transformer.wte.register_forward_hook(lambda _module, _ids, x: x + self.transformer.wpe(positions))
        try:
            yield
        finally:
            hook.remove()


class GPT(DocumentGPT, litgpt.model.GPT):
    block = Block


@dataclass
class LoRAConfig(litgpt.lora.Config):
    """litgpt's, with what is trained whole beside the adapters."""

    lora_train_embeddings: bool = False
    lora_train_head: bool = False


class LoRAGPT(DocumentGPT, litgpt.lora.GPT):
    """What is trained of it has `requires_grad`; all else that asks which parameters these are goes by that."""

    block = LoRABlock

    def __init__(self, config: LoRAConfig) -> None:
        super().__init__(config)
        litgpt.lora.mark_only_lora_as_trainable(self)
        if config.lora_train_embeddings:
            self.transformer.wte.requires_grad_(True)
        if config.lora_train_head:
            self.lm_head.requires_grad_(True)
