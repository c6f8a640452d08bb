"""hf_config.py and hf_weights.py against transformers: same logits one way, the same bits back, damage named."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from litgpt.config import Config

from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.hf_config import config_from_hf, config_to_hf, is_tied, read_hf_config, settle_config
from lit_gpt.formats.hf_weights import ForeignWeights, TensorFiles, tensors_to_hf
from lit_gpt.model.gpt import GPT
from tests.formats.hf_models import SCRATCH_MODEL, VOCABULARY, make_hf

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "grouped queries": ("Llama", {}, {}),
    "tied": ("Llama", {"tie_word_embeddings": True}, {}),
    "attention bias": ("Llama", {"attention_bias": True}, {}),
    "mlp bias": ("Llama", {"mlp_bias": True}, {}),
    "both biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, {}),
    "llama3 positions": ("Llama", {"rope_parameters": LLAMA3}, {}),
    "linear positions": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}, {}),
    "one key head": ("Llama", {"num_key_value_heads": 1, "num_attention_heads": 8, "rms_norm_eps": 1e-4}, {}),
    "mistral": ("Mistral", {"head_dim": 12, "sliding_window": None}, {}),
    "several files": ("Mistral", {"sliding_window": 64}, {"max_shard_size": "20KB"}),
    "bfloat16": ("Llama", {"attention_bias": True}, {"dtype": torch.bfloat16}),
}


def convert(folder):
    hf = read_hf_config(folder)
    config = config_from_hf(hf)
    return hf, config, dict(ForeignWeights(folder, config, hf).tensors())


def litgpt_logits(config, state_dict, ids):
    model = GPT(config)
    model.load_state_dict(state_dict)
    with torch.inference_mode():
        return model(ids)


def transformers_logits(model, ids):
    with torch.inference_mode():
        return model(ids).logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_same_logits_and_same_bits_back(variant, tmp_path):
    from transformers import AutoModelForCausalLM

    architecture, settings, save = VARIANTS[variant]
    make_hf(tmp_path, architecture, settings, **save)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    hf, config, state_dict = convert(tmp_path)
    ids = torch.randint(0, VOCABULARY, (3, 64), generator=torch.Generator().manual_seed(1))
    files = TensorFiles(tmp_path)
    back = dict(tensors_to_hf(state_dict, config, hf))
    assert back.keys() == files.keys()
    for name, tensor in back.items():
        assert tensor.dtype == files[name].dtype and torch.equal(tensor, files[name]), name
    assert config.padded_vocab_size == config.vocab_size == VOCABULARY
    theirs = transformers_logits(model, ids)
    assert theirs.abs().max() > 3, "flat logits would compare nothing"
    ours = litgpt_logits(config, state_dict, ids)
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, theirs.abs().max().item())


def test_sliding_window_is_kept_where_it_matters(tmp_path):
    make_hf(tmp_path, "Mistral", {"sliding_window": 48})
    config = config_from_hf(read_hf_config(tmp_path))
    assert config.block_size == 128 and config.sliding_window_size == 48 and config.sliding_window_indices == [1, 1]
    config = config_from_hf({**read_hf_config(tmp_path), "sliding_window": 4096})
    assert config.block_size == 128 and config.sliding_window_size is None


def test_config_keys_of_transformers_4(tmp_path):
    make_hf(tmp_path, "Llama", {"rope_parameters": LLAMA3})
    new = json.loads((tmp_path / "config.json").read_text())
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    old |= {"rope_theta": 50000.0, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}}
    assert config_from_hf(old) == config_from_hf(new)
    for name in ("head_dim", "num_key_value_heads", "tie_word_embeddings", "attention_bias", "rms_norm_eps"):
        old.pop(name)
    assert config_from_hf(old).n_query_groups == 4  # Llama's default is as many as heads


def test_bin_files_are_read_like_safetensors(tmp_path):
    make_hf(tmp_path)
    hf, config, expected = convert(tmp_path)
    files = TensorFiles(tmp_path)
    weights = {name: files[name].clone() for name in sorted(files.keys())}
    # a buffer that old checkpoints carry
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.tensor([1.0, 0.1, 0.01, 0.001])
    (tmp_path / "model.safetensors").unlink()
    half = list(weights)[: len(weights) // 2]
    torch.save({n: weights[n] for n in half}, tmp_path / "pytorch_model-00001-of-00002.bin")
    rest = {n: weights[n] for n in weights if n not in half}
    torch.save(rest, tmp_path / "pytorch_model-00002-of-00002.bin", _use_new_zipfile_serialization=False)
    places = {n: f"pytorch_model-0000{1 if n in half else 2}-of-00002.bin" for n in weights}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    found = dict(ForeignWeights(tmp_path, config, hf).tensors())
    assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)
    found = dict(ForeignWeights(tmp_path, config, hf).tensors(torch.bfloat16))
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


SCRATCH = {**SCRATCH_MODEL, "vocab_size": 100, "padded_vocab_size": 104, "rope_base": 1000}
GPT2 = {
    "n_query_groups": 4,
    "rotary_percentage": 0.0,
    "bias": True,
    "norm_class_name": "LayerNorm",
    "mlp_class_name": "GptNeoxMLP",
}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bias": True},
        {"head_size": 16, "norm_eps": 1e-3},
        {"rope_adjustments": {"factor": 2.0}},
        {
            "rope_adjustments": {
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_seq_len": 24,
            }
        },
        GPT2,
        {**GPT2, "gelu_approximate": "tanh", "norm_eps": 1e-3},
    ],
    ids=str,
)
def test_model_from_scratch_has_the_same_logits_in_transformers(settings):
    import transformers

    config = Config(**{**SCRATCH, **settings})
    torch.manual_seed(0)
    model = GPT(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name or "ln_f" in name else 0.0, std=0.3)
    hf = config_to_hf(config, 1, 2, "float32")
    model_class = getattr(transformers, hf["architectures"][0])
    theirs = model_class(model_class.config_class(**hf)).eval()
    theirs.load_state_dict(dict(tensors_to_hf(model.state_dict(), config, hf)))
    assert isinstance(theirs, transformers.GPT2LMHeadModel) == ("norm_class_name" in settings)
    ids = torch.randint(0, 100, (2, 96))
    difference = (model(ids) - transformers_logits(theirs, ids)).abs().max()
    assert difference <= 1e-5 * max(1.0, model(ids).abs().max().item())
    again = config_from_hf(hf)
    assert again.rope_adjustments == config.rope_adjustments and again.padded_vocab_size == 104


def test_model_that_is_no_llama_names_its_options():
    config = Config(**{**SCRATCH, "parallel_residual": True, "rotary_percentage": 0.5, "lm_head_bias": True})
    with pytest.raises(UserError, match=r"parallel_residual is True.*rotary_percentage is 0.5.*lm_head_bias is True"):
        config_to_hf(config, 1, 2, "float32")
    with pytest.raises(UserError, match=r"GPT2LMHeadModel: norm_class_name is 'RMSNorm'.*n_query_groups is 2, not 4"):
        config_to_hf(Config(**{**SCRATCH, "rotary_percentage": 0.0}), 1, 2, "float32")


def test_training_that_unties_or_moves_biases_changes_the_config(tmp_path):
    make_hf(tmp_path, "Llama", {"tie_word_embeddings": True, "attention_bias": True})
    hf, config, state_dict = convert(tmp_path)
    settled, changes = settle_config(hf, config, state_dict, "float32")
    assert is_tied(state_dict) and settled["tie_word_embeddings"] and not changes
    trained = {name: tensor.clone() for name, tensor in state_dict.items()}
    trained["lm_head.weight"][3, 3] += 1
    trained["transformer.h.1.mlp.fc_2.bias"][0] = 0.5
    with pytest.raises(DataError, match=r"mlp.fc_2.bias is not zero"):
        dict(tensors_to_hf(trained, config, hf))
    settled, changes = settle_config(hf, config, trained, "float32")
    assert not settled["tie_word_embeddings"] and settled["mlp_bias"] and len(changes) == 2
    written = dict(tensors_to_hf(trained, config, settled))
    assert written["lm_head.weight"][3, 3] == trained["lm_head.weight"][3, 3]
    assert written["model.layers.1.mlp.up_proj.bias"][0] == 0.5
    with pytest.raises(DataError, match="intermediate_size is 56"):
        settle_config({**hf, "intermediate_size": 60}, config, state_dict, "float32")


def damage_missing_shard(folder):
    sorted(folder.glob("model-*.safetensors"))[2].unlink()
    return "model-00003-of"


def damage_truncated(folder):
    path = sorted(folder.glob("model-*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-100])
    return path.name


def damage_index_entry(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = "model.norm.weight"
    index["weight_map"][name] = next(file for file in index["weight_map"].values() if file != index["weight_map"][name])
    path.write_text(json.dumps(index))
    return name


def damage_missing_tensor(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["model.layers.1.self_attn.k_proj.weight"]
    path.write_text(json.dumps(index))
    return "1 tensors are missing from the weight files: model.layers.1.self_attn.k_proj.weight"


def damage_more_layers_than_configured(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 1}))
    return "9 tensors are in the weight files, but not in this architecture"


def damage_shape(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 60}))
    return r"\(56, 32\), config.json says \(60, 32\)"


@pytest.mark.parametrize(
    "damage",
    [
        damage_missing_shard,
        damage_truncated,
        damage_index_entry,
        damage_missing_tensor,
        damage_more_layers_than_configured,
        damage_shape,
    ],
)
def test_damaged_checkpoint_is_named(damage, tmp_path):
    make_hf(tmp_path, max_shard_size="20KB")
    named = damage(tmp_path)
    with pytest.raises(DataError, match=named):
        convert(tmp_path)


def test_bin_file_that_would_run_code_is_refused(tmp_path):
    make_hf(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"model.norm.weight": Payload()}, protocol=2))
    with pytest.raises(DataError, match=r"pytorch_model.bin cannot be read"):
        convert(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["BloomForCausalLM"]},
            "BloomForCausalLM is not supported; supported: LlamaForCausalLM, Mistral",
        ),
        ({"architectures": None}, "supported: LlamaForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling 'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
    ],
)
def test_unsupported_model_is_the_users_error(change, message, tmp_path):
    make_hf(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        convert(tmp_path)


def test_config_without_a_size_is_named(tmp_path):
    make_hf(tmp_path)
    hf = read_hf_config(tmp_path)
    hf.pop("hidden_size")
    with pytest.raises(DataError, match="no 'hidden_size'"):
        config_from_hf(hf)
