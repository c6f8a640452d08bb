"""What llama.cpp's converter can make of a model, known without llama.cpp: its architecture, and its tokenizer.

The converter recognises a byte-level BPE by a hash of what it makes of one text, and refuses every other: by which
rules a text is split before the merges, a vocabulary does not say. `pre_tokenizers.json` holds the hashes of the pinned
version. SentencePiece's models it takes as they are, but llama.cpp then does what Llama's own tokenizer does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_gpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from litgpt.config import Config

PRE_TOKENIZERS = Path(__file__).with_name("pre_tokenizers.json")


def _nothing(hf: Mapping[str, Any]) -> list[str]:
    return []


def _gpt2(hf: Mapping[str, Any]) -> list[str]:
    return [] if hf.get("n_inner") in (None, 4 * hf["n_embd"]) else ["n_inner is not 4 times n_embd"]


def _falcon(hf: Mapping[str, Any]) -> list[str]:
    problems = []
    if hf.get("ffn_hidden_size") not in (None, 4 * hf["hidden_size"]):
        problems.append("ffn_hidden_size is not 4 times hidden_size")
    if not hf.get("parallel_attn", True) or hf.get("bias"):
        problems.append("Falcon is only known with attention and MLP side by side and without biases")
    return problems


def _gpt_neox(hf: Mapping[str, Any]) -> list[str]:
    problems = ["an output layer tied to the embeddings"] if hf.get("tie_word_embeddings") else []
    return problems + ([] if hf.get("attention_bias", True) else ["attention without biases"])


def _phi(hf: Mapping[str, Any]) -> list[str]:
    wide = hf["intermediate_size"] == 4 * hf["hidden_size"]
    return [] if wide else ["intermediate_size is not 4 times hidden_size"]


class Support(NamedTuple):
    """What the pinned converter knows of an architecture."""

    sentencepiece: bool
    """Whether it reads a tokenizer.model."""
    byte_level: bool
    """Whether it reads a byte-level BPE in tokenizer.json."""
    problems: Callable[[Mapping[str, Any]], list[str]] = _nothing
    """What of a config.json llama.cpp does not have."""
    slides: bool = False
    """Whether llama.cpp keeps a sliding window; where not, it sees more than the model did beyond that window."""


SUPPORTED = {
    "LlamaForCausalLM": Support(True, True),
    "MistralForCausalLM": Support(True, True),
    "GPT2LMHeadModel": Support(False, True, _gpt2),
    "FalconForCausalLM": Support(False, True, _falcon),
    "GPTNeoXForCausalLM": Support(False, True, _gpt_neox),
    "Qwen2ForCausalLM": Support(True, True),
    "Qwen3ForCausalLM": Support(True, True),
    "GemmaForCausalLM": Support(True, False),
    "Gemma2ForCausalLM": Support(True, False, slides=True),
    "Gemma3ForCausalLM": Support(True, True, slides=True),
    "PhiForCausalLM": Support(False, True, _phi),
    "Phi3ForCausalLM": Support(True, False),
    "Olmo2ForCausalLM": Support(False, True),
    "StableLmForCausalLM": Support(False, True),
}


def obstacles(hf: Mapping[str, Any], tokenizer: Tokenizer) -> list[str]:
    """Why llama.cpp could not read a model with this config.json and tokenizer; empty if nothing is known of."""
    name = next(iter(hf.get("architectures") or []), "(none)")
    support = SUPPORTED.get(name)
    if support is None:
        return [f"architecture {name} is unknown to its converter"]
    return support.problems(hf) + tokenizer_obstacles(tokenizer, support, name)


def tokenizer_obstacles(tokenizer: Tokenizer, support: Support, architecture: str) -> list[str]:
    """Why llama.cpp could not read the tokenizer, where it knows the architecture."""
    if (tokenizer.directory / "tokenizer.model").is_file():
        if not support.sentencepiece:
            return [f"for {architecture} it reads byte-level BPE tokenizers, not SentencePiece's"]
        return sentencepiece_obstacles(tokenizer.directory / "tokenizer.model", architecture)
    content = json.loads((tokenizer.directory / "tokenizer.json").read_text(encoding="utf-8"))
    if content["model"].get("type") != "BPE" or content["model"].get("byte_fallback"):
        return ["of a tokenizer.json without a tokenizer.model it reads byte-level BPE only"]
    if not support.byte_level:
        return [f"for {architecture} it reads SentencePiece's tokenizer.model only"]
    if pre_tokenizer(tokenizer) is None:
        return ["it does not know the pre-tokenizer of this byte-level BPE"]
    return []


def sentencepiece_obstacles(path: Path, architecture: str) -> list[str]:
    """How a tokenizer.model differs from Llama's, or Gemma's, in what llama.cpp does not take from the file."""
    from lit_gpt.hf_tokenizer import BPE, UNIGRAM, parse_sentencepiece

    _, trainer, normalizer = parse_sentencepiece(path)
    problems = []
    if trainer.get(3, UNIGRAM) != BPE:
        problems.append("of SentencePiece's models it knows BPE only")
    if normalizer.get(2) or normalizer.get(4, 1):  # precompiled_charsmap, remove_extra_whitespaces
        problems.append("it does not normalise text as this SentencePiece model does")
    if bool(normalizer.get(3, 1)) == architecture.startswith("Gemma"):  # add_dummy_prefix
        problems.append("it treats a text's first space otherwise than this SentencePiece model")
    return problems


def pre_tokenizer(tokenizer: Tokenizer) -> str | None:
    """The name that llama.cpp has for the rules of a byte-level BPE; None if the pinned version does not know them.

    Source: `get_vocab_base_pre` in llama.cpp's conversion/base.py; the hash is of the ids with begin and end tokens.
    """
    known = json.loads(PRE_TOKENIZERS.read_text(encoding="utf-8"))
    begin = [tokenizer.bos_id] if tokenizer.adds_bos else []
    ids = begin + tokenizer.encode(known["text"])
    return known["hashes"].get(sha256(str(ids).encode()).hexdigest())


def converter_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with what the converter reads under other keys, or takes for granted.

    GPT-2's positions and GPT-NeoX's rotated share have had two names; of a Falcon with one key for all heads
    transformers ignores `num_kv_heads`, the converter does not.
    """
    name = hf["architectures"][0]
    own: dict[str, Any] = {}
    if name == "GPT2LMHeadModel":
        own = {"n_ctx": hf.get("n_positions", 1024)}
    elif name == "GPTNeoXForCausalLM":
        scaling = hf.get("rope_parameters") or {}
        own = {"rotary_pct": hf.get("rotary_pct", scaling.get("partial_rotary_factor", 0.25))}
        # its class in transformers 5 drops that key; of a model that transformers cannot name, the converter takes
        # config.json as it is
        hf = {key: value for key, value in hf.items() if key != "model_type"}
    elif name == "FalconForCausalLM" and not hf.get("new_decoder_architecture"):
        own = {"num_kv_heads": 1 if hf.get("multi_query", True) else hf["num_attention_heads"]}
    return {**hf, **own}


def visible_context(hf: Mapping[str, Any], config: Config) -> int:
    """Tokens over which llama.cpp sees what the model saw: its positions, or the window that slides where it cannot."""
    window = config.sliding_window_size
    keeps = SUPPORTED[hf["architectures"][0]].slides
    return min(config.block_size, window) if window and not keeps else config.block_size
