"""Adapters out to the peft library and back in, for every family, against peft itself."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.hf_config import config_from_hf, read_hf_config
from lit_gpt.formats.hf_weights import ForeignWeights
from lit_gpt.formats.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_peft, write_peft
from lit_gpt.model.building import build_model
from lit_gpt.model.lora import LoRASettings, is_adapter, merge_adapter
from tests.formats.hf_models import make_hf
from tests.formats.test_families import FAMILIES, assert_same, load, some_ids

ALL = LoRASettings(3, 6, 0.0, query=True, key=True, value=True, projection=True, mlp=True, head=True)
SOME = replace(ALL, key=False, mlp=False, head=False)


@pytest.fixture(scope="module", params=FAMILIES)
def base(request, tmp_path_factory):
    """A folder of transformers, its config.json, and litgpt's configuration and weights."""
    folder = tmp_path_factory.mktemp("base")
    make_hf(folder, *FAMILIES[request.param])
    hf = read_hf_config(folder)
    config = config_from_hf(hf)
    return folder, hf, config, dict(ForeignWeights(folder, config, hf).tensors())


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    make_hf(folder, *FAMILIES["Llama"])
    hf = read_hf_config(folder)
    config = config_from_hf(hf)
    return hf, config, dict(ForeignWeights(folder, config, hf).tensors())


def random_adapter(config, settings):
    model = build_model(config, None, settings, seed=0, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    shapes = {name: p.shape for name, p in model.named_parameters() if is_adapter(name)}
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


@pytest.mark.parametrize("settings", [ALL, SOME], ids=["all", "some"])
def test_peft_loads_it_on_the_base_with_our_logits(base, settings, tmp_path):
    from peft import PeftModel

    folder, hf, config, weights = base
    adapter = random_adapter(config, settings)
    modules = write_peft(tmp_path, adapter, config, settings, hf, str(folder))
    ours = build_model(config, weights, settings, seed=0, dtype=torch.float32)
    ours.load_state_dict(adapter, strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied heads peft says that merging them is another matter
        theirs = PeftModel.from_pretrained(load(folder), tmp_path).eval()
    assert sum("lora_A" in name for name, _ in theirs.named_parameters()) == modules
    ids = some_ids(2, 40)
    with torch.inference_mode():
        expected = theirs(ids).logits
        assert_same(ours.eval()(ids), expected)
        with theirs.disable_adapter():
            assert (theirs(ids).logits - expected).abs().max() > 0.1, "the adapter does nothing"


@pytest.mark.parametrize("settings", [ALL, SOME], ids=["all", "some"])
def test_back_in_it_is_the_same_change(base, settings, tmp_path):
    _, hf, config, weights = base
    adapter = random_adapter(config, settings)
    write_peft(tmp_path, adapter, config, settings, hf, None)
    found, found_settings = read_peft(tmp_path, config, hf, weights)
    expected = merge_adapter(weights, adapter, config, settings)
    for name, tensor in merge_adapter(weights, found, config, found_settings).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-5)


def test_an_adapter_that_peft_made(llama, tmp_path):
    """Two ranks, two alphas, one layer left out."""
    from peft import LoraConfig, get_peft_model

    hf, config, weights = llama
    model = make_hf(tmp_path / "base", *FAMILIES["Llama"])
    targets = ["q_proj", "down_proj"]
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 5}}
    made = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, layers_to_transform=[1], **patterns)
    )
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    made.save_pretrained(tmp_path / "adapter")
    adapter, settings = read_peft(tmp_path / "adapter", config, hf, weights)
    assert (settings.r, settings.query, settings.key, settings.mlp) == (4, True, False, True)
    merged = build_model(config, merge_adapter(weights, adapter, config, settings), None, 0, torch.float32)
    ids = some_ids(1, 30)
    with torch.inference_mode():
        assert_same(merged(ids), made.eval()(ids).logits)


@pytest.mark.parametrize(
    ("family", "initialisation"),
    [("GPT-2", "pissa"), ("Falcon 40B", "pissa"), ("Falcon 40B", "olora"), ("Phi 3", "olora"), ("SmolLM 2", "pissa")],
)
def test_what_an_initialisation_took_out_of_the_base_is_found_again(family, initialisation, tmp_path):
    """Also of matrices that hold several of ours, one of them in turns, and one transposed; with an adapted head."""
    from peft import LoraConfig, get_peft_model

    model = make_hf(tmp_path / "base", *FAMILIES[family])
    hf = read_hf_config(tmp_path / "base")
    config = config_from_hf(hf)
    weights = dict(ForeignWeights(tmp_path / "base", config, hf).tensors())
    linear = r"(transformer|model)\.(h|layers)\.\d+\..*(c_attn|c_proj|c_fc|query_key_value|dense.*|_proj)"
    made = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=6, target_modules=linear, init_lora_weights=initialisation)
    ).eval()
    ids = some_ids(1, 30)
    with torch.inference_mode():
        before = made(ids).logits
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.1
        expected = made(ids).logits
    assert (expected - before).abs().max() > 0.1
    made.save_pretrained(tmp_path / "adapter")
    adapter, settings = read_peft(tmp_path / "adapter", config, hf, weights)
    merged = build_model(config, merge_adapter(weights, adapter, config, settings), None, 0, torch.float32)
    with torch.inference_mode():
        assert_same(merged(ids), expected)


def change_config(folder, **changes):
    path = folder / ADAPTER_CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(folder, change):
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    change(tensors)
    save_file(tensors, folder / ADAPTER_WEIGHTS)


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda folder: change_config(folder, use_dora=True), UserError, "use_dora; only plain LoRA"),
        (lambda folder: change_config(folder, peft_type="LOHA"), UserError, "peft_type LOHA"),
        (lambda folder: change_config(folder, bias="all"), UserError, "bias all"),
        (lambda folder: change_config(folder, use_new=False), UserError, "has use_new, a field that is not known here"),
        (lambda folder: change_config(folder, r="3"), DataError, "r is '3'; it has to be a whole number above 0"),
        (
            lambda folder: change_config(folder, rank_pattern={"(?i)Q": 3}),
            DataError,
            "rank_pattern is .*; it has to be ranks",
        ),
        (lambda folder: change_config(folder, rank_pattern=None), DataError, "rank_pattern is None"),
        (lambda folder: change_config(folder, task_type="SEQ_CLS"), UserError, "task_type SEQ_CLS"),
        (
            lambda folder: change_config(folder, target_modules=None),
            UserError,
            "target_modules None leaves the modules",
        ),
        (
            lambda folder: change_config(folder, target_modules=["q_proj"]),
            DataError,
            "does not adapt 13 modules whose A and B are there, such as lm_head",
        ),
        (
            lambda folder: change_config(folder, target_modules=".*"),
            DataError,
            "adapts 14 modules whose A and B are not there, such as model",
        ),
        (lambda folder: change_config(folder, r=5), DataError, "has rank 3, adapter_config.json says 5"),
        (lambda folder: (folder / ADAPTER_WEIGHTS).unlink(), UserError, "is missing: not an adapter"),
        (lambda folder: (folder / ADAPTER_CONFIG).write_text("{"), DataError, "not valid JSON"),
        (lambda folder: (folder / ADAPTER_WEIGHTS).write_bytes(b"\0" * 40), DataError, "cannot be read"),
        (lambda folder: change_tensors(folder, lambda t: t.pop(f"{Q}.lora_B.weight")), DataError, "do not belong"),
        (
            lambda folder: change_tensors(folder, lambda t: [t[name].zero_() for name in t if "lora_B" in name]),
            DataError,
            "changes nothing",
        ),
        (
            lambda folder: change_tensors(folder, lambda t: t.update({f"{Q}.lora_B.weight": torch.ones(9, 3)})),
            DataError,
            r"is for a matrix \[9, 32\], the base model's is \[32, 32\]",
        ),
        (
            lambda folder: change_tensors(
                folder,
                lambda t: t.update({k.replace(".0.", ".7."): v.clone() for k, v in t.items() if k.startswith(Q)}),
            ),
            DataError,
            "1 modules are not in the base model, such as model.layers.7",
        ),
        (
            lambda folder: change_tensors(
                folder, lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(1)})
            ),
            DataError,
            r"lm_head\.weight differs from the base model's",
        ),
        (
            lambda folder: change_tensors(
                folder, lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 420)})
            ),
            DataError,
            "no part of a LoRA",
        ),
    ],
)
def test_what_is_no_adapter_of_this_model_is_one_clear_error(llama, spoil, error, message, tmp_path):
    hf, config, weights = llama
    write_peft(tmp_path, random_adapter(config, ALL), config, ALL, hf, None)
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        read_peft(tmp_path, config, hf, weights)


def test_a_module_of_zeros_and_copies_of_the_base_are_no_fault(llama, tmp_path):
    hf, config, weights = llama
    write_peft(tmp_path, random_adapter(config, ALL), config, ALL, hf, None)
    copies = {
        "base_model.model.lm_head.base_layer.weight": weights["lm_head.weight"].clone(),
        "base_model.model.model.embed_tokens.weight": weights["transformer.wte.weight"].clone(),
    }
    change_tensors(tmp_path, lambda t: t.update(copies))
    before, _ = read_peft(tmp_path, config, hf, weights)
    change_tensors(tmp_path, lambda t: t[f"{Q}.lora_B.weight"].zero_())
    after, _ = read_peft(tmp_path, config, hf, weights)
    assert [name for name in before if not torch.equal(before[name], after[name])] == [
        "transformer.h.0.attn.qkv.lora_B"
    ]
    copies["base_model.model.lm_head.base_layer.weight"][3, 5] += 1e-4
    change_tensors(tmp_path, lambda t: t.update(copies))
    with pytest.raises(DataError, match=r"lm_head\.base_layer\.weight differs from the base model's"):
        read_peft(tmp_path, config, hf, weights)


def test_the_table_has_every_field_of_peft():
    """Also those of a newer peft, once that is the one in use."""
    from dataclasses import fields

    from peft import LoraConfig

    from lit_gpt.formats.peft_config import _NEUTRAL, _UNDERSTOOD, _WITHOUT_EFFECT

    older = {"enable_lora", "merge_weights"}
    assert {*_UNDERSTOOD, *_NEUTRAL, *_WITHOUT_EFFECT} - older == {field.name for field in fields(LoraConfig)}
    assert len(_UNDERSTOOD) + len(_NEUTRAL) + len(_WITHOUT_EFFECT) == len(fields(LoraConfig)) + len(older)
