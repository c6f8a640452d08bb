"""Tiny random models made by transformers, and a tiny SentencePiece tokenizer, as inputs of the conversion tests."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

TEXT = [
    "[speaker001:] Bonjour, ça va ?",
    "[speaker002:] Très bien, merci ! Et toi ?",
    "Il était une fois, dans un village au bord de la mer, une petite fille qui parlait aux oiseaux.",
    "The quick brown fox jumps over the lazy dog, and the dog does not care about it at all.",
] * 8

VOCABULARY = 420

SCRATCH_MODEL = {
    "n_layer": 2,
    "n_embd": 32,
    "n_head": 4,
    "n_query_groups": 2,
    "block_size": 96,
    "norm_class_name": "RMSNorm",
    "parallel_residual": False,
    "bias": False,
    "mlp_class_name": "LLaMAMLP",
    "intermediate_size": 40,
    "rotary_percentage": 1.0,
}
"""litgpt's fields of a model that no foundation has, but for the vocabulary."""


def make_hf(folder: Path, architecture: str = "Llama", config: dict[str, Any] | None = None, **save: Any):
    """Saves a random model in `folder` and returns it, in float32 unless `save` names a dtype.

    `architecture` is transformers' class, or what stands before ForCausalLM.
    """
    import torch
    import transformers

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    torch.manual_seed(0)
    is_whole = architecture.endswith(("ForCausalLM", "LMHeadModel"))
    model_class = getattr(transformers, architecture if is_whole else f"{architecture}ForCausalLM")
    known = inspect.signature(model_class.config_class.__init__).parameters
    sizes = {name: size for name, size in sizes.items() if name in known}
    model_config = model_class.config_class(**{**sizes, **(config or {})})
    # the other kinds of attention leave out Gemma 2's soft cap
    model = model_class._from_config(model_config, attn_implementation="eager")
    adds_one = "gemma" in model.config.model_type
    for name, parameter in model.named_parameters():
        # large enough that attention is not flat: a wrong head order or position must change the logits
        is_norm = name.endswith(".weight") and any(part in name for part in ("norm", "ln_"))
        torch.nn.init.normal_(parameter, mean=1.0 if is_norm and not adds_one else 0.0, std=0.3)
    model.tie_weights()
    model = model.to(save.pop("dtype", torch.float32)).eval()
    model.save_pretrained(folder, **save)
    return model


def make_tokenizer(folder: Path, **settings: Any) -> None:
    """Trains a SentencePiece model on `TEXT` and writes its files into `folder`."""
    import sentencepiece

    defaults = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=VOCABULARY,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
        **{**defaults, **settings},
    )
    (folder / "tokenizer.vocab").unlink()
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def make_litgpt(folder: Path, architecture: str = "Llama", config: dict[str, Any] | None = None, **save: Any):
    """A Hugging Face folder with its tokenizer, converted in place; returns transformers' model."""
    from lit_gpt.scripts.convert_hf_checkpoint import ConvertHFOptions, main

    model = make_hf(folder, architecture, config, **save)
    make_tokenizer(folder)
    main(ConvertHFOptions(checkpoint_dir=folder, verify="none"))
    return model
