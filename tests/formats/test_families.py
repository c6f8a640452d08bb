"""Every family of families.py against transformers: there and back bit for bit, logits, packed rows, LoRA."""

from __future__ import annotations

import json
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from convert_litgpt_to_transformers import main as convert
from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.families import ARCHITECTURES
from lit_gpt.formats.hf_config import config_from_hf, is_tied, read_hf_config, settle_config
from lit_gpt.formats.hf_weights import ForeignWeights, tensors_to_hf
from lit_gpt.formats.litgpt_directory import convert_hf_checkpoint, read_config, read_weights
from lit_gpt.model.building import build_model
from lit_gpt.model.gpt import GPT, OffsetRMSNorm
from lit_gpt.model.lora import LoRASettings, is_adapter, merge_adapter
from tests.formats.hf_models import VOCABULARY, make_hf, make_litgpt
from utils.export.options import ConvertOptions

LORA = LoRASettings(4, 8, 0.0, query=True, key=True, value=True, projection=True, mlp=True, head=True)
GPT2 = {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
FOUR = {"num_hidden_layers": 4, "head_dim": 16}
# name: transformers' class, and what its configuration says beside the sizes of tests/formats/hf_models.py
FAMILIES = {
    "Llama": ("LlamaForCausalLM", {}),
    "SmolLM 2": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "Mistral": ("MistralForCausalLM", {"sliding_window": 24}),
    "GPT-2": ("GPT2LMHeadModel", GPT2),
    "GPT-2 untied, wide": ("GPT2LMHeadModel", {**GPT2, "n_inner": 72, "tie_word_embeddings": False}),
    "ruGPT-3.5": ("GPT2LMHeadModel", {**GPT2, "activation_function": "gelu", "vocab_size": 448}),
    "Falcon 7B": ("FalconForCausalLM", {"hidden_size": 64}),
    "Falcon 40B": ("FalconForCausalLM", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "Falcon 2 11B": (
        "FalconForCausalLM",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 72},
    ),
    "Falcon multi-head": ("FalconForCausalLM", {"multi_query": False, "bias": True, "parallel_attn": False}),
    "GPT-NeoX": ("GPTNeoXForCausalLM", {}),
    "GPT-NeoX in sequence": ("GPTNeoXForCausalLM", {"use_parallel_residual": False, "attention_bias": False}),
    "GPT-NeoX tied": ("GPTNeoXForCausalLM", {"tie_word_embeddings": True, "hidden_act": "gelu_fast"}),
    "Qwen 2": ("Qwen2ForCausalLM", {}),
    "Qwen 2 tied, windows": (
        "Qwen2ForCausalLM",
        {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    "Qwen 3": ("Qwen3ForCausalLM", {"head_dim": 16}),
    "Gemma": ("GemmaForCausalLM", {"head_dim": 16}),
    "Gemma 2": ("Gemma2ForCausalLM", {**FOUR, "sliding_window": 24, "query_pre_attn_scalar": 12}),
    "Gemma 3": ("Gemma3ForCausalLM", {**FOUR, "sliding_window": 24, "sliding_window_pattern": 3}),
    "Phi": ("PhiForCausalLM", {"num_key_value_heads": 4}),
    "Phi 3": ("Phi3ForCausalLM", {"pad_token_id": 0, "sliding_window": 24}),
    "Phi 4 mini": ("Phi3ForCausalLM", {"pad_token_id": 0, "partial_rotary_factor": 0.75, "tie_word_embeddings": True}),
    "OLMo 2": ("Olmo2ForCausalLM", {}),
    "StableLM": ("StableLmForCausalLM", {}),
    "StableLM 2": ("StableLmForCausalLM", {"use_qkv_bias": True, "use_parallel_residual": True}),
}
DOCUMENTS = (40, 1, 23, 64)
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    """A folder of transformers, and its model."""
    architecture, settings = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("family")
    return folder, make_hf(folder, architecture, settings)


@pytest.fixture(scope="module")
def converted(checkpoint):
    """config.json, litgpt's configuration and weights."""
    hf = read_hf_config(checkpoint[0])
    config = config_from_hf(hf)
    return hf, config, {name: t.clone() for name, t in ForeignWeights(checkpoint[0], config, hf).tensors()}


def some_ids(*shape, seed=1):
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def assert_same(ours, theirs):
    difference, size = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    assert difference <= 1e-5 * max(1.0, size), f"{difference} of {size}"


def write(folder, hf, tensors):
    (folder / "config.json").write_text(json.dumps(hf))
    save_file({name: tensor.contiguous() for name, tensor in tensors}, folder / "model.safetensors", {"format": "pt"})


def load(folder):
    from transformers import AutoModelForCausalLM

    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(loading.values()), loading
    return model.eval()


def test_every_architecture_is_tested():
    assert {architecture for architecture, _ in FAMILIES.values()} == ARCHITECTURES.keys()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_defaults_are_those_of_transformers(name):
    values = getattr(transformers, name).config_class().to_dict()
    values |= values.get("rope_parameters") or {}
    # transformers fills in the first two from other values, and the third where no layer has a window
    computed = {"num_kv_heads", "ffn_hidden_size"} | ({"sliding_window"} if name.startswith("Qwen") else set())
    defaults = {key: value for key, value in ARCHITECTURES[name].defaults.items() if key not in computed}
    compared = {key: values[key] for key in defaults if key in values}  # older versions' keys are not among them
    assert compared == {key: defaults[key] for key in compared}
    assert len(compared) >= len(defaults) - 5


def test_there_and_back_the_same_bits_and_the_same_model(checkpoint, converted, tmp_path):
    folder, model = checkpoint
    hf, config, weights = converted
    GPT(config).load_state_dict(weights)  # all keys, all shapes
    settled, changes = settle_config(hf, config, weights, "float32")
    assert not changes
    write(tmp_path, settled, tensors_to_hf(weights, config, settled))
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = load(tmp_path)
    ids = some_ids(2, 60)
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, model(ids).logits)
    ours, theirs = again.config.to_dict(), model.config.to_dict()
    passing = {"architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path"}
    assert {k: v for k, v in ours.items() if k in theirs and k not in passing} == {
        k: v for k, v in theirs.items() if k not in passing
    }


def test_logits_of_one_document_and_of_many_in_a_row(checkpoint, converted):
    _, model = checkpoint
    _, config, weights = converted
    ours = build_model(config, weights, None, seed=0, dtype=torch.float32)
    ids = some_ids(1, sum(DOCUMENTS))
    bounds = torch.tensor([0, *DOCUMENTS]).cumsum(0).int()
    with torch.inference_mode():
        theirs = [model(part).logits for part in ids.split(DOCUMENTS, dim=1)]
        assert max(logits.abs().max() for logits in theirs) > 1, "flat logits would compare nothing"
        assert_same(ours(ids, segments=bounds), torch.cat(theirs, 1))
        assert_same(ours(ids[:, -64:]), theirs[-1])  # litgpt's own path
        assert not torch.allclose(ours(ids, segments=bounds[[0, -1]])[:, 41:], torch.cat(theirs, 1)[:, 41:], atol=1e-2)


def test_gradients_are_those_of_transformers(checkpoint, converted):
    _, model = checkpoint
    hf, config, weights = converted
    ours = build_model(config, weights, None, seed=0, dtype=torch.float32)
    ids = some_ids(1, sum(DOCUMENTS))
    bounds = torch.tensor([0, *DOCUMENTS]).cumsum(0).int()
    ours(ids, segments=bounds, targets=ids).sum.backward()
    model.zero_grad()
    for part in ids.split(DOCUMENTS, dim=1):
        torch.nn.functional.cross_entropy(model(part).logits[0], part[0], reduction="sum").backward()
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    if is_tied(weights):
        both = gradients["lm_head.weight"] + gradients["transformer.wte.weight"]
        gradients |= {"lm_head.weight": both, "transformer.wte.weight": both}
    if config.bias and not hf.get("attention_bias", True):
        gradients |= {name: g * 0 for name, g in gradients.items() if ".attn." in name and name.endswith("bias")}
    theirs = dict(model.named_parameters())
    for name, gradient in tensors_to_hf(gradients, config, hf):
        expected = theirs[name].grad
        assert (gradient - expected).abs().max() <= 2e-4 * max(1.0, expected.abs().max().item()), name


def test_a_model_continues_a_text_from_its_cache(checkpoint, converted):
    """Prompts beyond the sliding window too, then token by token."""
    _, model = checkpoint
    _, config, weights = converted
    ours = build_model(config, weights, None, seed=0, dtype=torch.float32)
    ours.set_kv_cache(batch_size=1, max_seq_length=64)
    ids = some_ids(1, 40)
    with torch.inference_mode():
        theirs = model(ids).logits
        found = [ours(ids[:, :30], torch.arange(30), input_pos_maxp1=30)]
        found += [ours(ids[:, [n]], torch.tensor([n]), input_pos_maxp1=n + 1) for n in range(30, 40)]
    assert_same(torch.cat(found, 1), theirs)


def test_a_trained_adapter_merged_is_what_transformers_computes(converted, tmp_path):
    hf, config, weights = converted
    model = build_model(config, weights, LORA, seed=0, dtype=torch.float32)
    ids, bounds = some_ids(2, 40), torch.tensor([0, 13, 40, 80]).int()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        (model(ids, segments=bounds, targets=ids.roll(-1, 1)).sum / ids.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()
    adapter = {name: p.detach() for name, p in model.named_parameters() if is_adapter(name)}
    merged = merge_adapter(weights, adapter, config, LORA)
    proj = "transformer.h.1.mlp.proj"
    by_hand = weights[f"{proj}.weight"] + LORA.alpha / LORA.r * adapter[f"{proj}.lora_B"] @ adapter[f"{proj}.lora_A"]
    torch.testing.assert_close(merged[f"{proj}.weight"], by_hand)
    settled, _ = settle_config(hf, config, merged, "float32")
    write(tmp_path, settled, tensors_to_hf(merged, config, settled))
    with torch.inference_mode():
        expected = torch.cat([load(tmp_path)(part).logits for part in ids.flatten()[None].split([13, 27, 40], 1)], 1)
        assert_same(model(ids, segments=bounds).flatten(0, 1), expected[0])


def test_wrong_missing_and_left_over_tensors_are_named(checkpoint, converted, tmp_path):
    folder, _ = checkpoint
    hf, config, weights = converted
    tensors = load_file(folder / "model.safetensors")
    for name in (min(tensors), max(tensors)):
        changed = {key: tensor for key, tensor in tensors.items() if key != name}
        write(tmp_path, hf, changed.items())
        with pytest.raises(DataError, match=f"1 tensors are missing from the weight files: {name}"):
            dict(ForeignWeights(tmp_path, config, hf).tensors())
        write(tmp_path, hf, {**changed, name: tensors[name][1:]}.items())
        with pytest.raises(DataError, match=rf"{name} in .* has shape"):
            dict(ForeignWeights(tmp_path, config, hf).tensors())
    write(tmp_path, hf, {**tensors, "transformer.extra": torch.zeros(1)}.items())
    with pytest.raises(DataError, match=r"1 tensors are in the weight files, but not in this architecture: .*extra"):
        dict(ForeignWeights(tmp_path, config, hf).tensors())
    for change, message in (
        ({"transformer.ln_f.weight": None}, "missing from the trained model"),
        ({"transformer.extra": torch.zeros(1)}, "not in its configuration: transformer.extra"),
        ({"transformer.ln_f.weight": torch.zeros(3)}, "transformer.ln_f.weight has shape"),
    ):
        damaged = {key: tensor for key, tensor in {**weights, **change}.items() if tensor is not None}
        with pytest.raises(DataError, match=message):
            dict(tensors_to_hf(damaged, config, hf))


@pytest.mark.parametrize("family", ["GPT-2", "Falcon 40B", "Gemma 2"])
def test_a_foundation_is_written_back_and_verified(family, tmp_path, capsys):
    architecture, settings = FAMILIES[family]
    model = make_litgpt(tmp_path / "in", architecture, settings)
    convert(ConvertOptions(tmp_path / "in", tmp_path / "out"))
    assert "verified: largest difference of logits" in capsys.readouterr().out
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in model.state_dict().items() if name in written)
    assert written.keys() == load_file(tmp_path / "in" / "model.safetensors").keys()


def test_gemmas_norm_is_that_of_transformers_in_bf16():
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

    theirs, ours = GemmaRMSNorm(64, eps=1e-6), OffsetRMSNorm(64, eps=1e-6)
    torch.nn.init.normal_(theirs.weight, std=0.01)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(9, 64, dtype=torch.bfloat16)
    assert torch.equal(ours.bfloat16()(x), theirs.bfloat16()(x))
    model = GPT(config_from_hf({"architectures": ["Gemma3ForCausalLM"], **SIZES}))
    norms = [module for name, module in model.named_modules() if "norm" in name or "ln_f" in name]
    assert len(norms) == 6 * 6 + 1 and {type(norm) for norm in norms} == {OffsetRMSNorm}


def test_older_gpt2_files_name_no_transformer_and_carry_masks(tmp_path):
    make_hf(tmp_path, "GPT2LMHeadModel", GPT2)
    hf = read_hf_config(tmp_path)
    config = config_from_hf(hf)
    expected = dict(ForeignWeights(tmp_path, config, hf).tensors())
    tensors = {key.removeprefix("transformer."): t for key, t in load_file(tmp_path / "model.safetensors").items()}
    tensors |= {"h.0.attn.bias": torch.ones(1, 1, 128, 128).tril(), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    write(tmp_path, hf, {**tensors, "lm_head.weight": tensors["wte.weight"].clone()}.items())
    found = dict(ForeignWeights(tmp_path, config, hf).tensors())
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_the_text_part_of_a_model_with_pictures(tmp_path):
    """Logits against those of the whole model; in the names of transformers, and in those of the published files."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    text = {**SIZES, **FOUR, "head_dim": 16, "sliding_window": 24, "sliding_window_pattern": 3}
    settings = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration._from_config(settings, attn_implementation="eager").eval()
    model.save_pretrained(tmp_path / "a")
    saved = load_file(tmp_path / "a" / "model.safetensors")
    published = {re.sub(r"^model\.(language_model\.)?", r"\1model.", name): t for name, t in saved.items()}
    published = {re.sub(r"^model\.(?=vision|multi)", "", name): tensor for name, tensor in published.items()}
    assert {name.split(".")[0] for name in published} == {"language_model", "vision_tower", "multi_modal_projector"}
    (tmp_path / "b").mkdir()
    write(tmp_path / "b", json.loads((tmp_path / "a" / "config.json").read_text()), published.items())
    ids = some_ids(2, 50) % 64
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert "the text part of a Gemma3ForConditionalGeneration" in "\n".join(convert_hf_checkpoint(folder))
        ours = build_model(read_config(folder), read_weights(folder), None, 0, torch.float32).eval()
        with torch.inference_mode():
            assert_same(ours(ids), model(ids).logits)
    assert read_hf_config(tmp_path / "a")["architectures"] == ["Gemma3ForCausalLM"]


def test_keys_of_transformers_4():
    """As the files on the Hub have them, which say less."""

    def config(architecture, **settings):
        return config_from_hf({"architectures": [architecture], **SIZES, **settings})

    neox = config("GPTNeoXForCausalLM", num_key_value_heads=None, rotary_pct=0.5, rotary_emb_base=20000)
    assert neox.rotary_percentage == 0.5 and neox.rope_base == 20000 and neox.parallel_residual
    gemma = config("Gemma3ForCausalLM", rope_scaling={"rope_type": "linear", "factor": 8.0}, sliding_window=512)
    assert gemma.rope_base == 1000000 and gemma.rope_local_base_freq == 10000.0
    assert gemma.rope_adjustments == {"factor": 8.0}
    assert gemma.sliding_window_indices == gemma.rope_indices == [1, 1, 1, 1, 1, 0]
    assert config("Gemma2ForCausalLM").sliding_window_indices == [1, 0, 1, 0, 1, 0]
    qwen = config("Qwen2ForCausalLM", num_key_value_heads=2, use_sliding_window=False)
    assert qwen.sliding_window_size is None and qwen.attn_bias and not qwen.bias
    assert (
        config("PhiForCausalLM").rope_n_elem == 4
        and config("StableLmForCausalLM", num_key_value_heads=4).rope_n_elem == 2
    )


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("Falcon 7B", {"alibi": True}, "alibi True is not supported"),
        ("GPT-2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ("GPT-2", {"activation_function": "relu"}, "activation_function 'relu' is not supported, only 'gelu'"),
        ("Phi", {"qk_layernorm": True}, "qk_layernorm True"),
        ("StableLM", {"qk_layernorm": True}, "qk_layernorm True"),
        ("Phi 3", {"rope_scaling": {"type": "longrope"}, "rope_parameters": None}, "rope scaling 'longrope'"),
        ("Mistral", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported, only 1.0"),
        ("Qwen 3", {"attention_bias": True}, "attention_bias True"),
        (
            "Gemma",
            {"architectures": ["Gemma3ForConditionalGeneration"]},
            "supported: LlamaForCausalLM, .*Gemma3ForCausalLM",
        ),
    ],
)
def test_an_unsupported_variant_is_the_users_error(family, change, message, tmp_path):
    make_hf(tmp_path, *FAMILIES[family])
    hf = {**json.loads((tmp_path / "config.json").read_text()), **change}
    with pytest.raises(UserError, match=message):
        config_from_hf(hf)
