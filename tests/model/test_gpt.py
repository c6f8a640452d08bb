"""The model against litgpt's own on single documents, transformers' and peft's."""

from __future__ import annotations

import litgpt.model
import pytest
import torch
import yaml
from litgpt.config import Config

from lit_gpt.errors import UserError
from lit_gpt.formats.litgpt_directory import weights_fingerprint
from lit_gpt.model.building import build_model
from lit_gpt.model.gpt import GPT, LoRAGPT
from lit_gpt.model.lora import LoRASettings, is_adapter
from tests.conftest import TINY_MODEL

CONFIG_VALUES = {**yaml.safe_load(TINY_MODEL), "vocab_size": 97, "padded_vocab_size": 97}
CONFIG = Config(**CONFIG_VALUES)
LLAMA_SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000},
    "tie_word_embeddings": False,
}
LORA_WITH_DROPOUT = LoRASettings(4, 8, 0.1, query=True, key=False, value=True, projection=True, mlp=True, head=True)
ALL_LORA = LoRASettings(4, 8, 0.0, query=True, key=True, value=True, projection=True, mlp=True, head=True)


@pytest.fixture
def model() -> torch.nn.Module:
    return build_model(CONFIG, None, None, seed=1, dtype=torch.float32)


def segments_of(*lengths: int) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


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
    unmasked = model(ids, segments=segments_of(60)), model(changed, segments=segments_of(60))
    assert not torch.equal(unmasked[0][:, 20:], unmasked[1][:, 20:])


def test_rows_of_a_batch_do_not_see_each_other(model: torch.nn.Module) -> None:
    ids = torch.randint(0, 97, (3, 40))
    bounds = torch.tensor([0, 13, 40, 80, 81, 120], dtype=torch.int32)
    together = model(ids, segments=bounds)
    for index, own in enumerate(([0, 13, 40], [0, 40], [0, 1, 40])):
        alone = model(ids[index : index + 1], segments=torch.tensor(own, dtype=torch.int32))
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=1e-5)


def test_a_sliding_window_is_that_of_transformers_mistral() -> None:
    """Beyond the window too, and within it two documents of a row do not see each other."""
    from transformers import MistralConfig, MistralForCausalLM

    config = Config(**CONFIG_VALUES, sliding_window_size=8)
    ours = build_model(config, None, None, seed=3, dtype=torch.float32)
    assert all(block.attn.apply_sliding_window_attention for block in ours.transformer.h)
    theirs = MistralForCausalLM(
        MistralConfig(**LLAMA_SHAPE, head_dim=8, sliding_window=8, attn_implementation="eager")
    ).eval()
    copy_into_llama({name: tensor.detach() for name, tensor in ours.state_dict().items()}, theirs)
    ids = torch.randint(0, 97, (1, 60))
    packed = ours(ids, segments=segments_of(40, 20))
    for first, last in ((0, 40), (40, 60)):
        torch.testing.assert_close(packed[:, first:last], theirs(ids[:, first:last]).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("lora", [None, LORA_WITH_DROPOUT], ids=["full", "lora"])
def test_recomputed_activations_change_no_gradient(recompute: str, lora: LoRASettings | None) -> None:
    base = build_model(CONFIG, None, None, seed=1, dtype=torch.float32).state_dict()
    ids = torch.randint(0, 97, (2, 40))
    found = []
    for kind in ("none", recompute):
        model = build_model(CONFIG, base, lora, seed=1, dtype=torch.float32)
        for block in model.transformer.h:
            block.recompute = kind
        kept = []
        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.nbytes) or t, lambda t: t):
            loss = model(ids, segments=segments_of(20, 20, 7, 33), targets=ids).sum
        loss.backward()
        found.append((sum(kept), loss, [p.grad for p in model.parameters() if p.requires_grad]))
    (kept, loss, gradients), (kept_less, loss_again, gradients_again) = found
    assert kept_less < kept
    assert torch.equal(loss, loss_again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_again, strict=True))


def test_lora_equals_peft_on_transformers_llama(model: torch.nn.Module) -> None:
    """The same adapter, put into peft's layers of a transformers model, gives the same logits."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = LoRASettings(4, 8, 0.0, query=True, key=False, value=True, projection=True, mlp=True, head=True)
    ours = build_model(CONFIG, model.state_dict(), settings, seed=2, dtype=torch.float32)
    for name, parameter in ours.named_parameters():
        if is_adapter(name):
            torch.nn.init.normal_(parameter, std=0.1)
    config = LlamaConfig(**LLAMA_SHAPE)
    targets = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
    peft_model = get_peft_model(
        LlamaForCausalLM(config), LoraConfig(r=4, lora_alpha=8, target_modules=targets, lora_dropout=0.0)
    )
    copy_into_peft(ours, peft_model)
    ids = torch.randint(0, 97, (2, 50))
    torch.testing.assert_close(ours(ids), peft_model.eval()(ids).logits, atol=1e-5, rtol=1e-5)


def copy_into_llama(own: dict[str, torch.Tensor], llama: torch.nn.Module) -> None:
    """The weights, q/k/v taken apart."""
    weights = {"model.embed_tokens": "transformer.wte", "model.norm": "transformer.ln_f", "lm_head": "lm_head"}
    values = {f"{theirs}.weight": own[f"{ours}.weight"] for theirs, ours in weights.items()}
    names = {"self_attn.o_proj": "attn.proj", "mlp.gate_proj": "mlp.fc_1", "mlp.up_proj": "mlp.fc_2"}
    names |= {"mlp.down_proj": "mlp.proj", "input_layernorm": "norm_1", "post_attention_layernorm": "norm_2"}
    for layer in range(2):
        a, b = f"model.layers.{layer}", f"transformer.h.{layer}"
        values |= {f"{a}.{theirs}.weight": own[f"{b}.{ours}.weight"] for theirs, ours in names.items()}
        parts = own[f"{b}.attn.qkv.weight"].split([32, 16, 16])
        values |= {f"{a}.self_attn.{p}_proj.weight": part for p, part in zip("qkv", parts, strict=True)}
    llama.load_state_dict(values)


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
    sizes = ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    values = {**CONFIG_VALUES, "n_query_groups": CONFIG_VALUES["n_head"]}
    with pytest.raises(UserError, match="latent_attention"):
        GPT(Config(**values, latent_attention=dict.fromkeys(sizes, 8)))


def test_noise_is_uniform_up_to_a_bound_by_the_documents_length(model: torch.nn.Module) -> None:
    """NEFTune (Jain et al. 2023): alpha / √(length · width), in training alone, the same from the same seed."""
    lengths, width = (4, 12, 44), model.config.n_embd
    found = []
    model.transformer.h[0].register_forward_pre_hook(lambda _module, arguments: found.append(arguments[0][0].detach()))

    def states(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model(torch.zeros(1, 60, dtype=torch.int64), segments=segments_of(*lengths))
        return found.pop()

    plain = states(1)
    model.noise = 5.0
    noisy = states(1)
    assert torch.equal(states(1), noisy) and not torch.equal(states(2), noisy)
    for own, length in zip((noisy - plain).split(lengths), lengths, strict=True):
        largest = 5 / (length * width) ** 0.5
        assert 0.9 * largest < own.abs().max() <= largest * (1 + 1e-5)
        assert float(own.std()) == pytest.approx(largest / 3**0.5, rel=0.15)
    model.eval()
    assert torch.equal(states(1), plain)
