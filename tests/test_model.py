"""The model against litgpt's own on single documents, transformers' and peft's."""

from __future__ import annotations

import litgpt.model
import pytest
import torch
import yaml
from litgpt.config import Config

from lit_gpt.command import UserError
from lit_gpt.foundation import build_model, weights_fingerprint
from lit_gpt.lora import LoRASettings, is_adapter
from lit_gpt.model import GPT, IGNORE, LoRAGPT, segment_mask, segment_positions, summed_cross_entropy
from tests.conftest import TINY_MODEL

CONFIG = Config(**yaml.safe_load(TINY_MODEL), vocab_size=97, padded_vocab_size=97)
ALL_LORA = LoRASettings(4, 8, 0.0, query=True, key=True, value=True, projection=True, mlp=True, head=True)


@pytest.fixture
def model() -> torch.nn.Module:
    return build_model(CONFIG, None, None, seed=1, dtype=torch.float32)


def segments_of(*lengths: int) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).unsqueeze(0)


def test_positions_restart_and_masks_separate_documents() -> None:
    segments = segments_of(3, 1, 4)
    assert segment_positions(segments).tolist() == [[0, 1, 2, 0, 0, 1, 2, 3]]
    mask = segment_mask(segments)[0, 0]
    for query in range(8):
        for key in range(8):
            assert mask[query, key] == (key <= query and segments[0, key] == segments[0, query])


def test_packed_documents_give_the_logits_of_litgpt_on_each_alone(model: torch.nn.Module) -> None:
    reference = litgpt.model.GPT(CONFIG)
    reference.load_state_dict(model.state_dict())
    ids = torch.randint(0, 97, (1, 60))
    packed = model(ids, segments=segments_of(20, 7, 33))
    for first, last in ((0, 20), (20, 27), (27, 60)):
        torch.testing.assert_close(packed[:, first:last], reference(ids[:, first:last]), atol=1e-5, rtol=1e-5)


def test_a_tokens_logits_do_not_change_with_another_document(model: torch.nn.Module) -> None:
    segments = segments_of(20, 40)
    ids = torch.randint(0, 97, (1, 60))
    changed = ids.clone()
    changed[0, :20] = torch.randint(0, 97, (20,))
    before, after = model(ids, segments=segments), model(changed, segments=segments)
    assert torch.equal(before[:, 20:], after[:, 20:])
    assert not torch.equal(before[:, :20], after[:, :20])
    unmasked = model(ids, segments=torch.zeros_like(segments)), model(changed, segments=torch.zeros_like(segments))
    assert not torch.equal(unmasked[0][:, 20:], unmasked[1][:, 20:])


def test_chunked_loss_and_gradient_equal_the_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    head, hidden = torch.nn.Linear(16, 50, bias=False), torch.randn(3, 11, 16, requires_grad=True)
    targets = torch.randint(0, 50, (3, 11))
    targets[0, :5] = IGNORE
    logits = head(hidden).double().flatten(0, 1)
    expected = -logits.log_softmax(-1)[torch.arange(33), targets.flatten().clamp(min=0)]
    expected = expected[targets.flatten() != IGNORE].sum()
    gradients = torch.autograd.grad(expected, (hidden, head.weight))
    for chunk in (1 << 27, 50 * 4, 1):
        monkeypatch.setattr("lit_gpt.model._LOGITS_PER_CHUNK", chunk)
        loss = summed_cross_entropy(head, hidden, targets, vocabulary=50)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
        for gradient, ours in zip(gradients, torch.autograd.grad(loss, (hidden, head.weight)), strict=True):
            torch.testing.assert_close(ours, gradient.float(), atol=1e-6, rtol=1e-5)


def test_lora_equals_peft_on_transformers_llama(model: torch.nn.Module) -> None:
    """The same adapter, put into peft's layers of a transformers model, gives the same logits."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = LoRASettings(4, 8, 0.0, query=True, key=False, value=True, projection=True, mlp=True, head=True)
    ours = build_model(CONFIG, model.state_dict(), settings, seed=2, dtype=torch.float32)
    for name, parameter in ours.named_parameters():
        if is_adapter(name):
            torch.nn.init.normal_(parameter, std=0.1)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000},
        tie_word_embeddings=False,
    )
    targets = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
    peft_model = get_peft_model(
        LlamaForCausalLM(config), LoraConfig(r=4, lora_alpha=8, target_modules=targets, lora_dropout=0.0)
    )
    copy_into_peft(ours, peft_model)
    ids = torch.randint(0, 97, (2, 50))
    torch.testing.assert_close(ours(ids), peft_model.eval()(ids).logits, atol=1e-5, rtol=1e-5)


def copy_into_peft(ours: LoRAGPT, peft_model: torch.nn.Module) -> None:
    """Base weights and adapters, matrix by matrix; the fused q/k/v adapter is taken apart (here without keys)."""
    theirs = dict(peft_model.named_parameters())
    own = {name: tensor.detach() for name, tensor in ours.state_dict().items()}
    names = {"attn.proj": "self_attn.o_proj", "mlp.fc_1": "mlp.gate_proj", "mlp.fc_2": "mlp.up_proj"}
    names["mlp.proj"] = "mlp.down_proj"
    pairs = [("lm_head", "base_model.model.lm_head")]
    prefix = "base_model.model.model"
    for layer in range(2):
        a, b = f"transformer.h.{layer}", f"{prefix}.layers.{layer}"
        pairs += [(f"{a}.{x}", f"{b}.{y}") for x, y in names.items()]
        theirs[f"{b}.input_layernorm.weight"].data.copy_(own[f"{a}.norm_1.weight"])
        theirs[f"{b}.post_attention_layernorm.weight"].data.copy_(own[f"{a}.norm_2.weight"])
        parts = own[f"{a}.attn.qkv.linear.weight"].split([32, 16, 16])
        for part, projection in zip(parts, "qkv", strict=True):
            key = f"{b}.self_attn.{projection}_proj"
            theirs[f"{key}.weight" if projection == "k" else f"{key}.base_layer.weight"].data.copy_(part)
        for index, (projection, rows) in enumerate((("q", slice(0, 32)), ("v", slice(32, 48)))):
            key = f"{b}.self_attn.{projection}_proj"
            theirs[f"{key}.lora_A.default.weight"].data.copy_(own[f"{a}.attn.qkv.lora_A"][4 * index : 4 * index + 4])
            theirs[f"{key}.lora_B.default.weight"].data.copy_(own[f"{a}.attn.qkv.lora_B"][rows])
    for a, b in pairs:
        theirs[f"{b}.base_layer.weight"].data.copy_(own[f"{a}.linear.weight"])
        theirs[f"{b}.lora_A.default.weight"].data.copy_(own[f"{a}.lora_A"])
        theirs[f"{b}.lora_B.default.weight"].data.copy_(own[f"{a}.lora_B"])
    theirs[f"{prefix}.embed_tokens.weight"].data.copy_(own["transformer.wte.weight"])
    theirs[f"{prefix}.norm.weight"].data.copy_(own["transformer.ln_f.weight"])


def test_fresh_adapters_change_nothing_and_alone_are_trained(model: torch.nn.Module) -> None:
    lora = build_model(CONFIG, model.state_dict(), ALL_LORA, seed=2, dtype=torch.float32)
    ids = torch.randint(0, 97, (2, 30))
    assert torch.equal(lora(ids), model(ids))
    assert all(parameter.requires_grad == is_adapter(name) for name, parameter in lora.named_parameters())


def test_random_weights_depend_on_the_seed_alone() -> None:
    first, second, other = (build_model(CONFIG, None, None, seed, torch.float32).state_dict() for seed in (5, 5, 6))
    assert weights_fingerprint(first) == weights_fingerprint(second) != weights_fingerprint(other)
    assert abs(first["transformer.wte.weight"].std() - 0.02) < 1e-3
    assert all(torch.isfinite(tensor).all() for tensor in first.values())


def test_what_training_would_get_wrong_is_refused() -> None:
    with pytest.raises(UserError, match="sliding_window_size"):
        GPT(Config(**yaml.safe_load(TINY_MODEL), vocab_size=97, padded_vocab_size=97, sliding_window_size=8))
