"""The model families: how each one's config.json reads as a litgpt `Config`, and what its tensors are called.

The model itself tells which tensors there are, and their shapes (`hf_weights.py`). A family's entry of `ARCHITECTURES`
only names the modules, litgpt's on the left and Hugging Face's on the right. Either side may be several modules, whose
rows follow each other: `"mlp.fc_1 mlp.fc_2": "mlp.gate_up_proj"`.

Two of litgpt's fields mean more than their names say: a model with `rotary_percentage` 0 has learned positions
(`transformer.wpe`), and one with "Gemma" in its `name` adds 1 to the weights of its norms.

The classes' defaults are those of transformers, which a test compares. They are written down because a training reads
config.json without importing transformers, which would assume another model's size where it has none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from litgpt.config import Config

from lit_gpt.errors import DataError, UserError

_OUTER = {"transformer.wte": "model.embed_tokens", "transformer.ln_f": "model.norm", "lm_head": "lm_head"}
_BLOCK = {
    "norm_1": "input_layernorm",
    "attn.qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "attn.norm_q": "self_attn.q_norm",
    "attn.norm_k": "self_attn.k_norm",
    "attn.proj": "self_attn.o_proj",
    "norm_2": "post_attention_layernorm",
    "mlp.fc_1": "mlp.gate_proj",
    "mlp.fc_2": "mlp.up_proj",
    "mlp.proj": "mlp.down_proj",
}


_SIZES = "vocab_size hidden_size num_hidden_layers num_attention_heads"
_ROPE = "rope_theta rope_scaling rope_parameters partial_rotary_factor"
_KEYS = f"{_SIZES} intermediate_size num_key_value_heads head_dim {_ROPE}"


@dataclass(frozen=True)
class Architecture:
    config: Callable[[dict[str, Any]], Config]  # from a config.json completed by `defaults`
    defaults: dict[str, Any]  # what the class assumes where config.json has none
    outer: dict[str, str] = field(default_factory=lambda: _OUTER)  # the modules outside the blocks
    layers: str = "model.layers"  # the module that holds Hugging Face's blocks
    block: Callable[[dict[str, Any]], dict[str, str]] = lambda _: _BLOCK  # modules the model lacks are passed over
    transposed: bool = False  # the matrices of its blocks are [inputs, outputs]
    interleaved: bool = False  # its matrix of queries, keys and values has them group by group
    prefix: str = ""  # older files leave this out of all names but the output layer's
    model_type: str = ""  # by which transformers chooses the class, not by `architectures`
    keys: str = _KEYS  # of config.json, that are understood beside those of `defaults`


# --------------------------------------------------------------------------------------------- what many have in common


def _config(hf: Mapping[str, Any], **fields: Any) -> Config:
    """A configuration of Llama's shape, with other values for `fields`."""
    heads, scaling = hf["num_attention_heads"], _rope_settings(hf)
    groups = hf.get("num_key_value_heads") or heads
    if heads % groups:
        raise DataError(f"config.json: num_attention_heads is {heads}, no multiple of the {groups} num_key_value_heads")
    head_size = hf.get("head_dim") or hf["hidden_size"] // heads
    if "rotary_percentage" not in fields:
        _only({**hf, **scaling}, partial_rotary_factor=1.0)
    elif int(fields["rotary_percentage"] * head_size) % 2:
        raise DataError(f"config.json: partial_rotary_factor {fields['rotary_percentage']} of {head_size} is odd")
    values = {
        # litgpt looks for family names in `name` ("Gemma" changes its norm), so a directory's name must not get here
        "name": hf.get("model_type", ""),
        "block_size": hf["max_position_embeddings"],
        "n_layer": hf["num_hidden_layers"],
        "n_embd": hf["hidden_size"],
        "n_head": heads,
        "n_query_groups": groups,
        "head_size": head_size,
        "vocab_size": hf["vocab_size"],
        "padded_vocab_size": hf["vocab_size"],
        "norm_class_name": "RMSNorm",
        "norm_eps": hf.get("rms_norm_eps"),
        "parallel_residual": False,
        "bias": False,
        "mlp_class_name": "LLaMAMLP",
        "intermediate_size": hf["intermediate_size"],
        "rotary_percentage": 1.0,
        "rope_base": scaling.get("rope_theta", hf.get("rope_theta", 10000)),
        "rope_adjustments": _rope_adjustments(scaling),
    }
    if float(values["rope_base"]).is_integer():
        values["rope_base"] = int(values["rope_base"])
    return Config(**{**values, **fields})


def _rope_settings(hf: Mapping[str, Any]) -> Mapping[str, Any]:
    """transformers 5 keeps in `rope_parameters` what 4 had in `rope_scaling` and several other keys."""
    return hf.get("rope_scaling") or hf.get("rope_parameters") or {}


def _rope_adjustments(scaling: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return {"factor": scaling["factor"]}
    if kind == "llama3":
        adjustments = {name: scaling[name] for name in ("factor", "low_freq_factor", "high_freq_factor")}
        return {**adjustments, "original_max_seq_len": scaling["original_max_position_embeddings"]}
    raise UserError(f"rope scaling {kind!r} is not supported, only 'linear' and 'llama3'")


def _rotated_share(hf: Mapping[str, Any], outside: str = "partial_rotary_factor") -> float:
    """The share of a head's values that is rotated: `outside` of the settings of positions it may stand too."""
    inside = _rope_settings(hf).get("partial_rotary_factor", hf[outside])
    if inside != hf[outside] and (outside != "partial_rotary_factor" or _rope_adjustments(_rope_settings(hf))):
        # there transformers 5.3 takes the one that stands outside, or its default, for some of its computation
        raise UserError(f"partial_rotary_factor {inside} is not supported beside {outside} {hf[outside]}")
    return inside


def _only(hf: Mapping[str, Any], **values: Any) -> None:
    """Raises a UserError if config.json gives one of these options another value."""
    for option, value in values.items():
        if hf.get(option) not in (None, value):
            raise UserError(f"{option} {hf[option]!r} is not supported, only {value!r}")


_GELU = {"gelu": "none", "gelu_new": "tanh", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh"}


def _gelu(hf: Mapping[str, Any], option: str) -> dict[str, Any]:
    if hf[option] not in _GELU:
        raise UserError(f"{option} {hf[option]!r} is not supported, only {', '.join(map(repr, _GELU))}")
    return {"gelu_approximate": _GELU[hf[option]]}


def _sliding_layers(hf: Mapping[str, Any], slides: Callable[[int], bool]) -> list[int]:
    """1 for each layer with a sliding window, else 0; `slides` tells it by a layer's number without `layer_types`."""
    layers = range(hf["num_hidden_layers"])
    types = hf.get("layer_types")
    if types is not None:
        if len(types) != len(layers) or not set(types) <= {"full_attention", "sliding_attention"}:
            raise DataError(f"config.json: layer_types {types} are not {len(layers)} of full_ and sliding_attention")
        return [int(types[layer] == "sliding_attention") for layer in layers]
    return [int(slides(layer)) for layer in layers]


def _window(hf: Mapping[str, Any], layers: list[int]) -> dict[str, Any]:
    """litgpt's fields of a sliding window, if the model is long enough for it to matter."""
    window = hf.get("sliding_window")
    if not window or window >= hf["max_position_embeddings"] or not any(layers):
        return {}
    return {"sliding_window_size": window, "sliding_window_indices": layers}


# ------------------------------------------------------------------------------------------------------------- families


def _llama(hf: dict[str, Any]) -> Config:
    _only(hf, hidden_act="silu")
    return _config(hf, bias=hf["attention_bias"] or hf["mlp_bias"])


def _mistral(hf: dict[str, Any]) -> Config:
    _only(hf, hidden_act="silu")
    return _config(hf, **_window(hf, [1] * hf["num_hidden_layers"]))


def _gpt2(hf: dict[str, Any]) -> Config:
    _only(hf, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    sizes = {
        "hidden_size": hf["n_embd"],
        "num_hidden_layers": hf["n_layer"],
        "num_attention_heads": hf["n_head"],
        "max_position_embeddings": hf["n_positions"],
        "intermediate_size": hf.get("n_inner") or 4 * hf["n_embd"],
    }
    return _config(
        {**hf, **sizes},
        norm_class_name="LayerNorm",
        norm_eps=hf["layer_norm_epsilon"],
        bias=True,
        mlp_class_name="GptNeoxMLP",
        rotary_percentage=0.0,
        **_gelu(hf, "activation_function"),
    )


_GPT2_BLOCK = {
    "norm_1": "ln_1",
    "attn.qkv": "attn.c_attn",
    "attn.proj": "attn.c_proj",
    "norm_2": "ln_2",
    "mlp.fc": "mlp.c_fc",
    "mlp.proj": "mlp.c_proj",
}


def _falcon(hf: dict[str, Any]) -> Config:
    _only(hf, alibi=False)
    heads = hf["num_attention_heads"]
    groups = 1 if hf["multi_query"] else heads
    if hf["new_decoder_architecture"]:
        _only(hf, parallel_attn=True)
        if hf.get("num_ln_in_parallel_attn") not in (None, 1, 2):
            raise DataError(f"config.json: num_ln_in_parallel_attn is {hf['num_ln_in_parallel_attn']}, not 1 or 2")
        groups = hf.get("num_kv_heads") or heads
    elif not hf["multi_query"]:
        _only(hf, num_kv_heads=heads)
    sizes = {
        "num_key_value_heads": groups,
        "intermediate_size": hf.get("ffn_hidden_size") or 4 * hf["hidden_size"],
    }
    return _config(
        {**hf, **sizes},
        norm_class_name="LayerNorm",
        norm_eps=hf["layer_norm_epsilon"],
        parallel_residual=hf["parallel_attn"],
        shared_attention_norm=hf["parallel_attn"] and not _falcon_has_two_norms(hf),
        bias=hf["bias"],
        mlp_class_name="GptNeoxMLP",
        **_gelu(hf, "activation"),
    )


def _falcon_has_two_norms(hf: Mapping[str, Any]) -> bool:
    """Whether attention and feed-forward, computed side by side, have a norm each."""
    return hf["new_decoder_architecture"] and hf.get("num_ln_in_parallel_attn") in (None, 2)


def _falcon_block(hf: dict[str, Any]) -> dict[str, str]:
    first, second = ("ln_attn", "ln_mlp") if _falcon_has_two_norms(hf) else ("input_layernorm", _BLOCK["norm_2"])
    return {
        "norm_1": first,
        "attn.qkv": "self_attention.query_key_value",
        "attn.proj": "self_attention.dense",
        "norm_2": second,
        "mlp.fc": "mlp.dense_h_to_4h",
        "mlp.proj": "mlp.dense_4h_to_h",
    }


def _gpt_neox(hf: dict[str, Any]) -> Config:
    _only(hf, rope_theta=hf["rotary_emb_base"], partial_rotary_factor=hf["rotary_pct"])
    return _config(
        {**hf, "rope_theta": hf["rotary_emb_base"], "num_key_value_heads": None},
        rotary_percentage=_rotated_share(hf, "rotary_pct"),
        norm_class_name="LayerNorm",
        norm_eps=hf["layer_norm_eps"],
        parallel_residual=hf["use_parallel_residual"],
        bias=True,
        mlp_class_name="GptNeoxMLP",
        **_gelu(hf, "hidden_act"),
    )


_GPT_NEOX_BLOCK = {
    "norm_1": "input_layernorm",
    "attn.qkv": "attention.query_key_value",
    "attn.proj": "attention.dense",
    "norm_2": "post_attention_layernorm",
    "mlp.fc": "mlp.dense_h_to_4h",
    "mlp.proj": "mlp.dense_4h_to_h",
}


def _qwen2(hf: dict[str, Any], **fields: Any) -> Config:
    _only(hf, hidden_act="silu")
    layers = _sliding_layers(hf, lambda layer: layer >= hf["max_window_layers"])
    if hf.get("layer_types") and any(layers) and not hf["use_sliding_window"]:
        raise DataError("config.json: layer_types has sliding_attention, but use_sliding_window is false")
    window = _window(hf, layers) if hf["use_sliding_window"] else {}
    return _config(hf, **{"attn_bias": True, **window, **fields})


def _qwen3(hf: dict[str, Any]) -> Config:
    _only(hf, attention_bias=False)
    return _qwen2(hf, attn_bias=False, norm_qk=True)


def _phi(hf: dict[str, Any]) -> Config:
    _only(hf, qk_layernorm=False)
    return _config(
        hf,
        rotary_percentage=_rotated_share(hf),
        norm_class_name="LayerNorm",
        norm_eps=hf["layer_norm_eps"],
        parallel_residual=True,
        shared_attention_norm=True,
        bias=True,
        lm_head_bias=True,
        mlp_class_name="GptNeoxMLP",
        **_gelu(hf, "hidden_act"),
    )


_PHI_BLOCK = {**_BLOCK, "attn.proj": "self_attn.dense", "mlp.fc": "mlp.fc1", "mlp.proj": "mlp.fc2"}


def _phi3(hf: dict[str, Any]) -> Config:
    _only(hf, hidden_act="silu")
    return _config(hf, rotary_percentage=_rotated_share(hf), **_window(hf, [1] * hf["num_hidden_layers"]))


_PHI3_BLOCK = {
    "norm_1": "input_layernorm",
    "attn.qkv": "self_attn.qkv_proj",
    "attn.proj": "self_attn.o_proj",
    "norm_2": "post_attention_layernorm",
    "mlp.fc_1 mlp.fc_2": "mlp.gate_up_proj",
    "mlp.proj": "mlp.down_proj",
}


def _olmo2(hf: dict[str, Any]) -> Config:
    _only(hf, hidden_act="silu", attention_bias=False)
    return _config(
        hf, norm_1=False, norm_2=False, post_attention_norm=True, post_mlp_norm=True, norm_qk=True, norm_qk_type="olmo2"
    )


_POST_NORMS = {
    **_BLOCK,
    "post_attention_norm": "post_attention_layernorm",
    "norm_2": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}


def _stablelm(hf: dict[str, Any]) -> Config:
    _only(hf, hidden_act="silu", qk_layernorm=False)
    return _config(
        hf,
        rotary_percentage=_rotated_share(hf),
        norm_class_name="LayerNorm",
        norm_eps=hf["layer_norm_eps"],
        parallel_residual=hf["use_parallel_residual"],
        shared_attention_norm=hf["use_parallel_residual"],
        attn_bias=hf["use_qkv_bias"],
    )


def _gemma(hf: dict[str, Any], activation: str = "hidden_act", **fields: Any) -> Config:
    _only(hf, attention_bias=False, use_bidirectional_attention=False)
    read = _gelu(hf, activation)
    for other in ("hidden_act", "hidden_activation"):  # earlier versions of transformers read both
        if hf.get(other) is not None and _gelu(hf, other) != read:
            raise UserError(f"{other} {hf[other]!r} is not supported beside {activation} {hf[activation]!r}")
    own = {"name": "Gemma", "mlp_class_name": "GemmaMLP", "scale_embeddings": True, **read}
    return _config(hf, **{**own, **fields})


def _gemma2(hf: dict[str, Any], **fields: Any) -> Config:
    layers = _sliding_layers(hf, lambda layer: layer % 2 == 0)
    own = {
        "post_attention_norm": True,
        "post_mlp_norm": True,
        "attention_scores_scalar": hf["query_pre_attn_scalar"],
        "attention_logit_softcapping": hf["attn_logit_softcapping"],
        "final_logit_softcapping": hf["final_logit_softcapping"],
        **_window(hf, layers),
    }
    return _gemma(hf, "hidden_activation", **{**own, **fields})


def _gemma3(hf: dict[str, Any]) -> Config:
    _only(hf, attn_logit_softcapping=None)  # the class of transformers 5.3 has the option, and does not use it
    layers = _sliding_layers(hf, lambda layer: (layer + 1) % hf["sliding_window_pattern"] > 0)
    both = hf.get("rope_parameters") or {}
    distant = {**(both.get("full_attention") or {}), **(hf.get("rope_scaling") or {})}
    local = (both.get("sliding_attention") or {}).get("rope_theta", hf["rope_local_base_freq"])
    named = ["sliding_attention" if slides else "full_attention" for slides in layers]
    return _gemma2(
        {**hf, "layer_types": named, "rope_scaling": None, "rope_parameters": distant},
        norm_qk=True,
        rope_local_base_freq=float(local),
        rope_indices=layers,
    )


_DEFAULTS = {
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
"""What most classes assume; a family gives the values in which it differs."""

_MISTRAL_DEFAULTS = {**_DEFAULTS, "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}
_GPT2_DEFAULTS = {
    "n_positions": 1024,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
_FALCON_DEFAULTS = {
    **_DEFAULTS,
    "layer_norm_epsilon": 1e-5,
    "new_decoder_architecture": False,
    "multi_query": True,
    "parallel_attn": True,
    "bias": False,
    "activation": "gelu",
    "tie_word_embeddings": True,
}
_GPT_NEOX_DEFAULTS = {
    **_DEFAULTS,
    "hidden_act": "gelu",
    "rotary_pct": 0.25,
    "rotary_emb_base": 10000,
    "use_parallel_residual": True,
    "attention_bias": True,
}
_QWEN_DEFAULTS = {
    **_DEFAULTS,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_PHI_DEFAULTS = {**_DEFAULTS, "hidden_act": "gelu_new", "partial_rotary_factor": 0.5}
_PHI3_DEFAULTS = {**_DEFAULTS, "partial_rotary_factor": 1.0, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
_STABLELM_DEFAULTS = {
    **_DEFAULTS,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "partial_rotary_factor": 0.25,
    "use_qkv_bias": False,
    "use_parallel_residual": False,
}
_GEMMA_DEFAULTS = {
    **_DEFAULTS,
    "hidden_act": "gelu_pytorch_tanh",
    "num_key_value_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_GEMMA2_DEFAULTS = {
    **_GEMMA_DEFAULTS,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
_GEMMA3_DEFAULTS = {
    **_GEMMA2_DEFAULTS,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000,
    "rope_local_base_freq": 10000,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
}

_GEMMA_KEYS = f"{_KEYS} hidden_activation use_bidirectional_attention"

ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(
        _llama, {**_DEFAULTS, "attention_bias": False, "mlp_bias": False}, model_type="llama"
    ),
    "MistralForCausalLM": Architecture(_mistral, _MISTRAL_DEFAULTS, model_type="mistral"),
    "GPT2LMHeadModel": Architecture(
        _gpt2,
        _GPT2_DEFAULTS,
        {name: name for name in ("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head")},
        "transformer.h",
        lambda _: _GPT2_BLOCK,
        transposed=True,
        prefix="transformer.",
        model_type="gpt2",
        keys="vocab_size n_embd n_layer n_head n_inner scale_attn_weights scale_attn_by_inverse_layer_idx",
    ),
    "FalconForCausalLM": Architecture(
        _falcon,
        _FALCON_DEFAULTS,
        {**_OUTER, "transformer.wte": "transformer.word_embeddings", "transformer.ln_f": "transformer.ln_f"},
        "transformer.h",
        _falcon_block,
        interleaved=True,
        model_type="falcon",
        keys=f"{_SIZES} num_kv_heads ffn_hidden_size num_ln_in_parallel_attn alibi {_ROPE}",
    ),
    "GPTNeoXForCausalLM": Architecture(
        _gpt_neox,
        _GPT_NEOX_DEFAULTS,
        {
            "transformer.wte": "gpt_neox.embed_in",
            "transformer.ln_f": "gpt_neox.final_layer_norm",
            "lm_head": "embed_out",
        },
        "gpt_neox.layers",
        lambda _: _GPT_NEOX_BLOCK,
        interleaved=True,
        model_type="gpt_neox",
        keys=f"{_SIZES} intermediate_size {_ROPE}",
    ),
    "Qwen2ForCausalLM": Architecture(_qwen2, _QWEN_DEFAULTS, model_type="qwen2", keys=f"{_KEYS} layer_types"),
    "Qwen3ForCausalLM": Architecture(
        _qwen3, {**_QWEN_DEFAULTS, "head_dim": 128}, model_type="qwen3", keys=f"{_KEYS} layer_types"
    ),
    "GemmaForCausalLM": Architecture(_gemma, _GEMMA_DEFAULTS, model_type="gemma", keys=_GEMMA_KEYS),
    "Gemma2ForCausalLM": Architecture(
        _gemma2, _GEMMA2_DEFAULTS, block=lambda _: _POST_NORMS, model_type="gemma2", keys=f"{_GEMMA_KEYS} layer_types"
    ),
    "Gemma3ForCausalLM": Architecture(
        _gemma3,
        _GEMMA3_DEFAULTS,
        block=lambda _: _POST_NORMS,
        model_type="gemma3_text",
        keys=f"{_GEMMA_KEYS} layer_types",
    ),
    "PhiForCausalLM": Architecture(
        _phi,
        _PHI_DEFAULTS,
        {**_OUTER, "transformer.ln_f": "model.final_layernorm"},
        block=lambda _: _PHI_BLOCK,
        model_type="phi",
        keys=f"{_KEYS} qk_layernorm",
    ),
    "Phi3ForCausalLM": Architecture(
        _phi3, _PHI3_DEFAULTS, block=lambda _: _PHI3_BLOCK, model_type="phi3", keys=f"{_KEYS} sliding_window"
    ),
    "Olmo2ForCausalLM": Architecture(
        _olmo2, {**_DEFAULTS, "rms_norm_eps": 1e-5}, block=lambda _: _POST_NORMS, model_type="olmo2"
    ),
    "StableLmForCausalLM": Architecture(
        _stablelm, _STABLELM_DEFAULTS, model_type="stablelm", keys=f"{_KEYS} qk_layernorm"
    ),
}
