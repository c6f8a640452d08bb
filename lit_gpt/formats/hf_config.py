"""A Hugging Face model's config.json ⇄ litgpt's `Config`, chosen by architecture, never by a model's name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config

from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.families import ARCHITECTURES, Architecture
from lit_gpt.formats.hf_keys import check_keys, check_type
from lit_gpt.json_files import read_json

BIASES = {"attention_bias": "attn", "mlp_bias": "mlp"}  # some classes' options, and whose matrices they give biases

# Models that also read pictures: the class of the text part, and the values that config.json leaves to that class.
_TEXT_PARTS = {
    "Gemma3ForConditionalGeneration": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": 262208,
        "num_attention_heads": 8,
    }
}


def read_hf_config(checkpoint_dir: Path) -> dict[str, Any]:
    """The config.json of a model or of its text part; a UserError if it is missing or not supported."""
    path = checkpoint_dir / "config.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: not a Hugging Face checkpoint (lit_gpt/scripts/download.py fetches one)")
    hf = _text_part(read_json(path))
    architecture_of(hf)
    return hf


def _text_part(hf: dict[str, Any]) -> dict[str, Any]:
    for key in {"architectures", "model_type", "text_config"} & hf.keys():
        check_type(key, hf[key])
    for name in hf.get("architectures") or []:
        if name in _TEXT_PARTS:
            known = _TEXT_PARTS[name]
            outer = ("bos_token_id", "eos_token_id", "pad_token_id", "quantization_config")
            ids = {key: hf[key] for key in outer if key in hf}
            return {**known, **ids, **hf.get("text_config", {}), "architectures": known["architectures"]}
    return hf


def is_text_part(hf: Mapping[str, Any]) -> bool:
    """Whether the class may be the text part of a model that also reads pictures."""
    return any(part["architectures"] == hf["architectures"] for part in _TEXT_PARTS.values())


def architecture_of(hf: Mapping[str, Any]) -> Architecture:
    """The entry of `ARCHITECTURES` that a config.json names; a UserError lists the supported ones if there is none."""
    names = hf.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    known = ", ".join([*ARCHITECTURES, *_TEXT_PARTS])
    raise UserError(f"architecture {', '.join(names) or '(none)'} is not supported; supported: {known}")


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """litgpt's configuration; a UserError says what is not supported, a DataError which size config.json lacks."""
    architecture = architecture_of(hf)
    if hf.get("quantization_config") is not None:
        raise UserError("the checkpoint is quantised; continual pretraining starts from the unquantised model")
    kind = hf.get("model_type", architecture.model_type)
    if kind != architecture.model_type:
        names = f"architectures {hf['architectures']}, of model_type {architecture.model_type!r}"
        raise DataError(f"config.json: model_type is {kind!r}, which is another class than {names}")
    check_keys(hf, {*architecture.defaults, *architecture.keys.split()})
    try:
        return architecture.config({**architecture.defaults, **hf})
    except KeyError as e:
        raise DataError(f"config.json has no {e}") from None


# litgpt's options that have no counterpart in an architecture, with the one value that they may have there
_LLAMA_FIXED: dict[str, Any] = {
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
    "parallel_residual": False,
    "shared_attention_norm": False,
    "norm_qk": False,
    "norm_1": True,
    "norm_2": True,
    "post_attention_norm": False,
    "post_mlp_norm": False,
    "rotary_percentage": 1.0,
    "rope_condense_ratio": 1,
    "rope_interleave": False,
    "rope_local_base_freq": None,
    "attention_scores_scalar": None,
    "attention_logit_softcapping": None,
    "final_logit_softcapping": None,
    "sliding_window_size": None,
    "latent_attention": None,
    "scale_embeddings": False,
    "lm_head_bias": False,
    "n_expert": 0,
    "attn_bias": False,  # biases of queries, keys and values without one of the output
}
_GPT2_FIXED = {
    **_LLAMA_FIXED,
    "norm_class_name": "LayerNorm",
    "mlp_class_name": "GptNeoxMLP",
    "rotary_percentage": 0.0,  # its positions are learned
    "bias": True,
    "rope_adjustments": None,
}


def config_to_hf(
    config: Config, bos_id: int | None, eos_id: int | None, dtype: str, tied: bool = False
) -> dict[str, Any]:
    """The config.json of a model trained from scratch: GPT-2's, if its positions are learned, else Llama's.

    A UserError names options that this architecture does not have. The keys are those of transformers 4, which 5 and
    llama.cpp's converter read too. `dtype` is torch's ('bfloat16').
    """
    fixed, keys_of, name = _LLAMA_FIXED, _llama_keys, "LlamaForCausalLM"
    if config.rotary_percentage == 0:
        sizes = {"n_query_groups": config.n_head, "head_size": config.n_embd // config.n_head}
        fixed, keys_of, name = {**_GPT2_FIXED, **sizes}, _gpt2_keys, "GPT2LMHeadModel"
    problems = [
        f"{option} is {getattr(config, option)!r}, not {value!r}"
        for option, value in fixed.items()
        if getattr(config, option) != value
    ]
    if "Gemma" in config.name:
        problems.append(f"name is {config.name!r}, which makes litgpt use Gemma's norm")
    if problems:
        raise UserError(f"the model does not fit Hugging Face's {name}: {', '.join(problems)}")
    return {
        **keys_of(config),
        "torch_dtype": dtype,
        "vocab_size": config.padded_vocab_size,
        "tie_word_embeddings": tied,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
    }


def _gpt2_keys(config: Config) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": config.n_embd,
        "n_inner": config.intermediate_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_positions": config.block_size,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu" if config.gelu_approximate == "none" else "gelu_new",
    }


def _llama_keys(config: Config) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.n_embd,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_query_groups,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.block_size,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": float(config.rope_base),
        "rope_scaling": _rope_to_hf(config.rope_adjustments),
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
    }


def _rope_to_hf(adjustments: Mapping[str, Any] | None) -> dict[str, Any] | None:
    names = set(adjustments or {})
    if not names:
        return None
    if names == {"factor"}:
        return {"rope_type": "linear", "factor": float(adjustments["factor"])}
    if names == {"factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"}:
        scaling = {name: float(adjustments[name]) for name in ("factor", "low_freq_factor", "high_freq_factor")}
        original = adjustments["original_max_seq_len"]
        return {"rope_type": "llama3", **scaling, "original_max_position_embeddings": original}
    raise UserError(f"rope_adjustments {adjustments} fit neither 'linear' nor 'llama3' scaling")


_SAME_IN_BOTH = (
    "n_layer",
    "n_embd",
    "n_head",
    "n_query_groups",
    "head_size",
    "intermediate_size",
    "padded_vocab_size",
    "norm_eps",
    "rope_base",
    "rope_adjustments",
)


def settle_config(
    hf: Mapping[str, Any], config: Config, state_dict: Mapping[str, torch.Tensor], dtype: str
) -> tuple[dict[str, Any], list[str]]:
    """Makes a foundation model's config.json true of the trained weights; returns it, and each change in words.

    Training all of a model can part the output layer from embeddings it was tied to, and moves biases that litgpt adds
    where Hugging Face's architecture had none (its one `bias` covers attention and MLP). Added tokens make the
    vocabulary larger. `dtype` is torch's name ('bfloat16'). A DataError says that the trained model has other sizes.
    """
    defaults = architecture_of(hf).defaults
    assumed = {**defaults, **hf}
    settled = {**hf, "torch_dtype": dtype}  # no defaults are written: versions of a class read keys differently
    settled.pop("dtype", None)  # transformers 5's name for torch_dtype
    settled.pop("transformers_version", None)
    changes = []
    if assumed["tie_word_embeddings"] and not is_tied(state_dict):
        settled["tie_word_embeddings"] = False
        changes.append("the output layer is no longer tied to the embeddings")
    for option, module in BIASES.items():
        if option not in defaults or assumed[option]:
            continue
        biases = [name for name in state_dict if f".{module}." in name and name.endswith(".bias")]
        if any(state_dict[name].any() for name in biases):
            settled[option] = True
            changes.append(f"training moved biases the foundation does not have: {option} is now true")
    expected = config_from_hf(settled)
    if config.padded_vocab_size > expected.padded_vocab_size:
        settled["vocab_size"] = config.padded_vocab_size
        changes.append(f"vocab_size was {expected.padded_vocab_size}, is {config.padded_vocab_size}: tokens were added")
        expected = config_from_hf(settled)
    for name in _SAME_IN_BOTH:
        if getattr(expected, name) != getattr(config, name):
            reason = f"{name} is {getattr(config, name)}, in the foundation's config.json {getattr(expected, name)}"
            raise DataError(f"the trained model and its foundation differ: {reason}")
    return settled, changes


def is_tied(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Whether the output layer equals the token embeddings bit for bit."""
    head, embeddings = state_dict["lm_head.weight"], state_dict["transformer.wte.weight"]
    return head is embeddings or (head.dtype == embeddings.dtype and torch.equal(head, embeddings))
