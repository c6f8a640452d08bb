"""hf_keys.py and families.py: a config.json is understood whole, as transformers understands it, or refused by name."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.families import ARCHITECTURES
from lit_gpt.formats.hf_config import config_from_hf, read_hf_config
from lit_gpt.formats.hf_keys import _NEUTRAL, _NOTES
from lit_gpt.formats.hf_logits import largest_difference, litgpt_logits, probe_sequences
from lit_gpt.formats.hf_weights import ForeignWeights
from lit_gpt.formats.litgpt_directory import convert_hf_checkpoint
from lit_gpt.scripts.convert_hf_checkpoint import ConvertHFOptions, main
from tests.conftest import run_command
from tests.formats.hf_models import make_hf
from tests.formats.test_families import FAMILIES

LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}


class Folders(dict):
    """A folder of transformers of each family, made when it is asked for, and its config.json."""

    def __init__(self, tmp_path_factory):
        self.factory = tmp_path_factory

    def __missing__(self, family):
        folder = self.factory.mktemp("family")
        make_hf(folder, *FAMILIES[family])
        self[family] = folder, json.loads((folder / "config.json").read_text())
        return self[family]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return Folders(tmp_path_factory)


# --------------------------------------------------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("Llama", "num_attention_heads", None),
        ("Llama", "num_attention_heads", "4"),
        ("Llama", "num_attention_heads", 4.0),
        ("Llama", "num_attention_heads", 0),
        ("Llama", "num_attention_heads", [4]),
        ("Llama", "num_key_value_heads", True),
        ("Llama", "hidden_size", None),
        ("Llama", "hidden_size", -32),
        ("Llama", "rms_norm_eps", "1e-5"),
        ("Llama", "rms_norm_eps", float("nan")),
        ("Llama", "tie_word_embeddings", "false"),
        ("Llama", "tie_word_embeddings", None),
        ("Llama", "attention_bias", 1),
        ("Llama", "hidden_act", None),
        ("Llama", "max_position_embeddings", None),
        ("Llama", "rope_parameters", "llama3"),
        ("Llama", "rope_parameters", []),
        ("Llama", "architectures", "LlamaForCausalLM"),
        ("Llama", "model_type", None),
        ("Llama", "rope_parameters.rope_theta", None),
        ("Llama", "rope_parameters.rope_theta", "10000"),
        ("Llama", "rope_parameters.rope_theta", float("inf")),
        ("Llama", "rope_parameters.factor", None),
        ("Llama", "rope_parameters.factor", "8"),
        ("Llama", "rope_parameters.factor", 0),
        ("Llama", "rope_parameters.original_max_position_embeddings", 32.5),
        ("Llama", "rope_theta", None),
        ("Mistral", "sliding_window", -1),
        ("GPT-2", "n_head", None),
        ("GPT-2", "layer_norm_epsilon", None),
        ("GPT-2", "scale_attn_weights", None),
        ("Falcon 40B", "num_kv_heads", "2"),
        ("Falcon 7B", "multi_query", None),
        ("GPT-NeoX", "rotary_pct", 2),
        ("Qwen 2", "layer_types", "sliding_attention"),
        ("Qwen 2", "max_window_layers", -1),
        ("Gemma 2", "query_pre_attn_scalar", None),
        ("Gemma 3", "rope_parameters.full_attention.rope_theta", None),
        ("Gemma 3", "sliding_window_pattern", 0),
    ],
)
def test_a_value_of_the_wrong_type_is_named(family, key, value, folders, tmp_path, capsys):
    hf = json.loads(json.dumps(folders[family][1]))
    if family == "Llama" and "rope_parameters" in key:
        hf["rope_parameters"] = dict(LLAMA3)
    *above, last = key.split(".")
    place = hf
    for name in above:
        place = place[name]
    place[last] = value
    (tmp_path / "config.json").write_text(json.dumps(hf))
    capsys.readouterr()
    assert run_command(ConvertHFOptions, main, ["--checkpoint_dir", str(tmp_path), "--verify", "none"]) == 65
    said = capsys.readouterr().err
    shown = "null" if value is None else repr(value)
    assert f"config.json: {key} is {shown}, not " in said and said.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("Llama", {"attention_chunk_size": 8}, "attention_chunk_size 8, and it is not known here what that does"),
        ("Llama", {"is_causal": False}, "is_causal False"),
        ("Llama", {"is_causal": None}, "is_causal None"),
        ("Llama", {"transformers_weights": "other.safetensors"}, "transformers_weights 'other.safetensors'"),
        ("Llama", {"rope_interleaved": True}, "rope_interleaved True"),
        ("Llama", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("Llama", {"rope_scaling": {**LLAMA3, "attention_factor": 2.0}}, "rope_scaling has {'attention_factor': 2.0}"),
        ("Llama", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("Mistral", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("GPT-2", {"num_hidden_layers": 1}, "num_hidden_layers 1"),
        ("GPT-2", {"rope_theta": 10000.0}, "rope_theta"),
        ("Falcon 7B", {"n_embed": 128}, "n_embed 128"),
        ("Falcon 7B", {"head_dim": 32}, "head_dim 32"),
        ("Falcon 7B", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ("Falcon 40B", {"parallel_attn": False}, "parallel_attn False is not supported"),
        ("Falcon multi-head", {"num_kv_heads": 2}, "num_kv_heads 2 is not supported"),
        ("GPT-NeoX", {"rope_theta": 5e5}, "rope_theta 500000.0 is not supported, only 10000"),
        ("Gemma", {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}, "hidden_activation 'gelu_pyt"),
        ("Gemma 3", {"attn_logit_softcapping": 2.0}, "attn_logit_softcapping 2.0 is not supported"),
        ("StableLM", {"rope_scaling": {"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}, "beside"),
        ("GPT-NeoX", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "beside rotary_pct"),
        ("Phi 3", {"lm_head_bias": True}, "lm_head_bias True"),
        ("Qwen 2", {"use_mrope": True}, "use_mrope True"),
    ],
)
def test_a_key_that_may_change_the_computation_is_refused_by_name(family, change, message, folders):
    with pytest.raises(UserError) as caught:
        config_from_hf({**folders[family][1], **change})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("Llama", {"model_type": "mistral"}, "model_type is 'mistral', which is another class"),
        ("Llama", {"num_key_value_heads": 3}, "num_attention_heads is 4, no multiple of the 3 num_key_value_heads"),
        ("Qwen 2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("Qwen 2", {"layer_types": ["chunked_attention"] * 2}, "layer_types"),
        ("Qwen 2", {"layer_types": ["sliding_attention"] * 2}, "use_sliding_window is false"),
        ("Phi", {"num_attention_heads": 16, "num_key_value_heads": 16}, "partial_rotary_factor 0.5 of 2 is odd"),
    ],
)
def test_values_that_do_not_go_together_are_named(family, change, message, folders):
    with pytest.raises(DataError) as caught:
        config_from_hf({**folders[family][1], **change})
    assert message in str(caught.value)


def test_a_model_without_a_type_is_refused_as_transformers_does(folders, tmp_path):
    hf = {key: value for key, value in folders["Llama"][1].items() if key != "model_type"}
    (tmp_path / "config.json").write_text(json.dumps(hf))
    with pytest.raises(DataError, match="has no model_type"):
        convert_hf_checkpoint(tmp_path)


PUBLISHED = {
    "SmolLM 2": (
        "Llama",
        {
            "is_llama_config": True,
            "rope_interleaved": False,
            "rope_scaling": None,
            "rope_theta": 100000,
            "pretraining_tp": 1,
            "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
        },
    ),
    "Llama 3 by Unsloth": ("Llama", {"unsloth_fixed": True, "unsloth_version": "2025.1", "pad_token_id": 3}),
    "Vicuna": ("Llama", {"max_sequence_length": 2048, "attention_bias": False, "_name_or_path": "vicuna"}),
    "falcon-7b": (
        "Falcon 7B",
        {"apply_residual_connection_post_layernorm": False, "auto_map": {"AutoConfig": "configuration_falcon.Config"}},
    ),
    "gpt2": (
        "GPT-2",
        {
            "n_ctx": 128,
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
            "resid_pdrop": 0.1,
            "predict_special_tokens": True,
            "output_past": True,
            "torchscript": False,
            "pruned_heads": {},
        },
    ),
    "distilgpt2": ("GPT-2", {"_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}),
    "gpt-neox-20b": ("GPT-NeoX", {"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0}),
    "falcon-11B": ("Falcon 40B", {"ff_factor": 4}),
    "dolly": ("GPT-NeoX", {"custom_pipelines": {"text-generation": {}}, "rotary_pct": 0.25, "rotary_emb_base": 10000}),
    "Qwen 2.5": ("Qwen 2", {"use_mrope": False, "max_window_layers": 2, "sliding_window": 4096}),
    "Gemma 2": ("Gemma 2", {"cache_implementation": "hybrid", "hidden_act": "gelu_pytorch_tanh"}),
    "Phi 3": ("Phi 3", {"attention_bias": False, "original_max_position_embeddings": 128, "embd_pdrop": 0.0}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_of_published_models_are_no_obstacle(name, folders):
    family, keys = PUBLISHED[name]
    config_from_hf({**folders[family][1], **keys})


# Notes that classes read for what is no part of this model's logits: dropout, classifiers, generation, the form of the
# output, gradients of an embedding, another algorithm for the same numbers, or longrope, which is refused.
READ_ALL_THE_SAME = set(
    "attention_dropout hidden_dropout attn_pdrop embd_pdrop resid_pdrop classifier_dropout num_labels problem_type"  # noqa: SIM905
    " summary_type summary_use_proj summary_activation summary_first_dropout summary_proj_to_labels initializer_range"
    " use_cache output_attentions output_hidden_states is_decoder pad_token_id reorder_and_upcast_attn dtype"
    " original_max_position_embeddings _attn_implementation".split()
)


def test_a_note_is_nothing_that_a_class_computes_with():
    """Of what the classes read, each key is understood by the family, neutral at one value, or among the above."""
    for name, architecture in ARCHITECTURES.items():
        source = Path(inspect.getsourcefile(getattr(transformers, name))).read_text()
        read = set(re.findall(r"\bconfig\.([a-z_]+)", source)) | set(
            re.findall(r"getattr\((?:self\.)?config, \"(\w+)", source)
        )
        understood = {*architecture.defaults, *architecture.keys.split()}
        notes = read & set(_NOTES.split()) - understood
        assert notes <= READ_ALL_THE_SAME, f"{name}: {notes - READ_ALL_THE_SAME}"


def test_no_key_is_both_a_note_and_neutral_at_one_value():
    assert not set(_NOTES.split()) & _NEUTRAL.keys()


# ---------------------------------------------------------------------------------------------------------------- fuzz

KINDS = st.sampled_from(["default", "linear", "llama3", "yarn", None])
ROPE = st.fixed_dictionaries(
    {},
    optional={
        "rope_type": KINDS,
        "type": KINDS,
        "rope_theta": st.sampled_from([10000.0, 500, 1e6, None, "1e4"]),
        "factor": st.sampled_from([2.0, 4, 1.0, None]),
        "low_freq_factor": st.sampled_from([1.0, 2]),
        "high_freq_factor": st.sampled_from([4.0, 8]),
        "original_max_position_embeddings": st.sampled_from([32, 64]),
        "partial_rotary_factor": st.sampled_from([1.0, 0.5, 0.25]),
        "attention_factor": st.just(2.0),
    },
)
JUNK = st.sampled_from([None, True, False, 0, -1, 1.5, "1", "x", [], {}, float("nan")])
SPECIAL = {
    "rope_scaling": ROPE | st.fixed_dictionaries({"full_attention": ROPE, "sliding_attention": ROPE}),
    "layer_types": st.lists(st.sampled_from(["full_attention", "sliding_attention"]), min_size=2, max_size=4),
    "model_type": st.sampled_from(["llama", "mistral", "gemma", "gemma2", "qwen2"]),
    "architectures": st.sampled_from([["LlamaForCausalLM"], ["MistralForCausalLM"], []]),
}
SPECIAL["rope_parameters"] = SPECIAL["rope_scaling"]
ACTIVATIONS = st.sampled_from(["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "silu", "relu"])
SPECIAL |= dict.fromkeys(("hidden_act", "hidden_activation", "activation", "activation_function"), ACTIVATIONS)
OTHERS = (
    "head_dim rope_theta rope_scaling rope_parameters partial_rotary_factor rotary_pct rotary_emb_base num_kv_heads"
    " layer_types n_embed is_causal attention_chunk_size sliding_window_pattern rope_local_base_freq use_sliding_window"
    " sliding_window max_window_layers attention_bias mlp_bias num_key_value_heads n_inner num_ln_in_parallel_attn"
    " hidden_size num_attention_heads tie_word_embeddings use_bidirectional_attention hidden_activation n_head"
)


@st.composite
def changed(draw, hf):
    """A config.json with up to three keys changed or removed."""
    hf = json.loads(json.dumps(hf))
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted({*hf, *OTHERS.split()})))
        now = hf.get(key)
        near = st.sampled_from([now, 1, 2, 4, 8, 16, 24, 0.5, 1e-3, 30.0, 10000.0, True, False])
        if isinstance(now, bool):
            near = st.just(not now)
        elif isinstance(now, int | float) and now == now:
            near = st.sampled_from([now * 2, now / 2, float(now), now + 1, int(now) // 2, 1, 2, 4, 8, 16, 24])
        hf[key] = draw(st.one_of(*[SPECIAL.get(key, near)] * 5, JUNK))
        if draw(st.integers(0, 9)) == 0:
            del hf[key]
    return hf


def our_logits(folder):
    hf = read_hf_config(folder)
    config = config_from_hf(hf)
    weights = dict(ForeignWeights(folder, config, hf).tensors())
    sequences = probe_sequences(config.padded_vocab_size, config.block_size)
    return sequences, litgpt_logits(config, weights, sequences)


def transformers_logits(folder, sequences):
    """None where transformers does not load the folder, or makes up what the files do not hold."""
    try:
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, local_files_only=True
        )
        with torch.inference_mode():
            logits = [model.eval()(torch.tensor([ids])).logits[0].numpy() for ids in sequences]
    except Exception:  # its errors are of all kinds
        return None
    return None if any(loading.values()) else logits


def assert_same_or_refused(folder):
    """With `--verify` a model that transformers does not load is refused too: reading is tested here."""
    try:
        sequences, ours = our_logits(folder)
    except (DataError, UserError):
        return
    theirs = transformers_logits(folder, sequences)
    # attention that softcaps or a tiny scale sharpen loses some digits
    assert theirs is None or largest_difference(ours, theirs)[1] <= 1e-4


@pytest.mark.parametrize(
    "family", ["Llama", "Mistral", "GPT-2", "Falcon 40B", "GPT-NeoX", "Qwen 2 tied, windows", "Gemma 3", "StableLM"]
)
def test_no_config_makes_another_model_than_transformers(family, folders):
    folder, hf = folders[family]

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(changed(hf))
    def try_it(hf):
        (folder / "config.json").write_text(json.dumps(hf))
        assert_same_or_refused(folder)

    try:
        try_it()
    finally:
        (folder / "config.json").write_text(json.dumps(hf))


@st.composite
def changed_index(draw, index):
    """An index with up to three entries changed, removed or added."""
    index = json.loads(json.dumps(index))
    where = index["weight_map"]
    files = [*sorted(set(where.values())), "model.safetensors", "../config.json", "config.json", "", None, 3]
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from([*sorted(where), "lm_head.weight", "model.extra.weight", "_orig_mod.norm"]))
        where[name] = draw(st.sampled_from(files))
        if draw(st.booleans()):
            del where[name]
    return draw(
        st.sampled_from([index] * 8 + [{"weight_map": where}, {"metadata": {}}, {"weight_map": [], "metadata": {}}])
    )


def test_no_index_makes_another_model_than_transformers(tmp_path):
    make_hf(tmp_path, "Llama", {"tie_word_embeddings": True}, max_shard_size="40KB")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())

    @settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(changed_index(index))
    def try_it(index):
        path.write_text(json.dumps(index))
        assert_same_or_refused(tmp_path)

    try_it()
