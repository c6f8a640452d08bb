"""Quantised bases: against plain float64 on the weights that bitsandbytes itself expands, in training, and saved."""

from __future__ import annotations

import sys

import bitsandbytes.functional
import litgpt.lora
import pytest
import torch
from torch import nn

from lit_gpt.errors import UserError
from lit_gpt.model.building import build_model, empty_model, materialise
from lit_gpt.model.lora import base_name, is_adapter, merge_adapter
from lit_gpt.model.qlora import FrozenFormat, QLoRALinear, qlora_layers, replace_frozen_layers
from tests.model.loading_worker import BF16, CONFIG, FP32, LORA, SEED, ids, loss_of
from utils.run.checkpoint_reader import trained_tensors

KINDS = ["bnb.nf4", "bnb.int8"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Random ones, large enough for the loss to depend on every matrix."""
    state = build_model(CONFIG, None, None, 9, FP32).state_dict()
    return {name: tensor * 4 if tensor.dim() > 1 else tensor for name, tensor in state.items()}


def quantised(kind: FrozenFormat, weights: dict[str, torch.Tensor], frozen_dtype: torch.dtype = FP32) -> nn.Module:
    model = empty_model(CONFIG, LORA, FP32, frozen_dtype, kind)
    materialise(model, weights, SEED, CPU)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            nn.init.normal_(parameter, std=0.1)
    return model


def expanded(kind: FrozenFormat, weight: torch.Tensor) -> torch.Tensor:
    """`weight` after bitsandbytes has quantised it, expanded in plain torch by the formats' definitions.

    bitsandbytes' own `dequantize_4bit` is wrong for short rows on some CPUs.
    """
    if kind == "bnb.int8":
        packed, scale, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.half())
        return packed * scale.unsqueeze(1) / 127
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    levels = bitsandbytes.functional.get_4bit_type("nf4", device="cpu")
    values = levels[torch.stack((packed.flatten() >> 4, packed.flatten() & 15), dim=1).flatten().long()]
    values = values[: weight.numel()] * state.absmax.repeat_interleave(64)[: weight.numel()]
    return values.view(weight.shape)


def twin_of(kind: FrozenFormat, model: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    """litgpt's own LoRA model in float64, with the expanded weights in its blocks and the adapters of `model`."""
    twin = litgpt.lora.GPT(LORA.extend(CONFIG)).double()
    in_blocks = {name: tensor for name, tensor in weights.items() if ".h." in name and tensor.dim() == 2}
    base = weights | {name: expanded(kind, tensor) for name, tensor in in_blocks.items()}
    missing, unexpected = twin.load_state_dict(base | dict(model.named_parameters()), strict=False)
    assert not missing and not unexpected
    return twin


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_the_expanded_weights(
    kind: FrozenFormat, weights: dict[str, torch.Tensor]
) -> None:
    model = quantised(kind, weights)
    twin = twin_of(kind, model, weights)
    ids = torch.randint(0, 97, (2, 30))
    torch.testing.assert_close(model(ids).double(), twin(ids), atol=2e-5, rtol=2e-5)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names and all(map(is_adapter, names))
    found, expected = (
        torch.autograd.grad(loss_of(each), [dict(each.named_parameters())[name] for name in names])
        for each in (model, twin)
    )
    for name, gradient, exact in zip(names, found, expected, strict=True):
        assert exact.abs().max() > 1e-5, name
        difference = (gradient.double() - exact).norm() / exact.norm()
        assert difference < 1e-5, f"{name}: {difference}"


@pytest.mark.parametrize(("kind", "error"), [("bnb.nf4", 0.1), ("bnb.int8", 0.01)])
def test_weights_lose_as_much_as_their_format_allows(
    kind: FrozenFormat, error: float, weights: dict[str, torch.Tensor]
) -> None:
    """The RMS error of normally distributed weights: 9 % in NF4, 0.7 % in int8 with a scale per row of 32."""
    layers = dict(qlora_layers(quantised(kind, weights)))
    assert len(layers) == 2 * 5  # of each of two blocks qkv, the projection and three matrices of the MLP
    for name, layer in layers.items():
        exact = weights[base_name(f"{name}.weight")]
        lost = (layer.expanded() - exact).norm() / exact.norm()
        assert error / 4 < lost < error, name
        assert layer.weight.numel() * layer.weight.element_size() * (2 if kind == "bnb.nf4" else 1) == exact.numel()


@pytest.mark.parametrize("kind", KINDS)
def test_moving_and_converting_the_model_leaves_the_scales(
    kind: FrozenFormat, weights: dict[str, torch.Tensor]
) -> None:
    model = quantised(kind, weights, BF16)
    before = {name: layer.expanded() for name, layer in qlora_layers(model)}
    model.to(BF16).to(CPU)
    assert all(torch.equal(layer.expanded(), before[name]) for name, layer in qlora_layers(model))
    assert all(tensor.dtype == BF16 for tensor in before.values())


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss_and_saves_the_adapter_alone(
    kind: FrozenFormat, weights: dict[str, torch.Tensor]
) -> None:
    model = empty_model(CONFIG, LORA, FP32, BF16, kind)
    materialise(model, weights, SEED, CPU)
    base = {name: layer.expanded() for name, layer in qlora_layers(model)}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        with torch.autocast("cpu", BF16):
            loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5, losses
    assert all(torch.equal(layer.expanded(), base[name]) for name, layer in qlora_layers(model))
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()
    adapter = trained_tensors(model)
    plain = build_model(CONFIG, weights, LORA, SEED, FP32).state_dict()
    assert {name: tensor.shape for name, tensor in adapter.items()} == {
        name: tensor.shape for name, tensor in plain.items() if is_adapter(name)
    }
    merged = merge_adapter(weights, adapter, CONFIG, LORA)
    assert merged.keys() == weights.keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(7, 14), (8, 48), (3, 96), (5, 48), (64, 128), (6, 130)])
def test_biases_and_odd_sizes_are_kept(kind: FrozenFormat, sizes: tuple[int, int]) -> None:
    """Among them last blocks of fewer than 64 numbers, and blocks that span rows."""
    for dtype, tolerance in ((FP32, 1e-5), (BF16, 2e-2)):
        linear = nn.Linear(sizes[1], sizes[0], dtype=dtype).requires_grad_(False)
        layer = QLoRALinear(linear, kind)
        layer.fill(linear.weight, CPU)
        weight = expanded(kind, linear.weight)
        torch.testing.assert_close(layer.expanded(), weight.to(dtype), atol=0, rtol=0.01 if dtype == BF16 else 1e-6)
        x = torch.randn(3, 5, sizes[1], requires_grad=True)
        y = layer(x.to(dtype)).float()
        torch.testing.assert_close(y, x @ weight.T + linear.bias.float(), atol=tolerance, rtol=tolerance)
        y.sum().backward()
        torch.testing.assert_close(x.grad, weight.sum(0).expand(x.shape), atol=tolerance, rtol=tolerance)


def test_head_embedding_and_norms_are_not_quantised() -> None:
    model = empty_model(CONFIG, LORA, FP32, BF16, "bnb.nf4")
    assert type(model.lm_head.linear) is nn.Linear
    names = {name for name, _ in model.named_parameters() if not is_adapter(name)}
    blocks = {f"transformer.h.{block}.norm_{norm}.weight" for block in range(2) for norm in (1, 2)}
    assert names == blocks | {"lm_head.linear.weight", "transformer.wte.weight", "transformer.ln_f.weight"}
    assert all(name.endswith(".linear") for name, _ in qlora_layers(model))
    replace_frozen_layers(model, "bnb.nf4")  # nothing is left to do


def test_a_missing_bitsandbytes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        empty_model(CONFIG, LORA, FP32, BF16, "bnb.nf4")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_a_compiled_block_is_one_graph_for_all_blocks(
    kind: FrozenFormat, recompute: str, weights: dict[str, torch.Tensor]
) -> None:
    torch._dynamo.reset()
    model = quantised(kind, weights)
    expected, found = {}, {}
    for results, compiled in ((expected, False), (found, True)):
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for block in model.transformer.h:
            block.recompute = recompute
            if compiled:
                block.forward = torch.compile(block.forward, backend="aot_eager", fullgraph=True)
        with torch.autocast("cpu", BF16):
            loss = model(ids()[:, :-1], targets=ids()[:, 1:]).sum
        model.zero_grad()
        loss.backward()
        results |= {name: parameter.grad for name, parameter in model.named_parameters() if is_adapter(name)}
        results["loss"] = loss.detach()
    # the first block's input needs no gradient
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 2
    torch.testing.assert_close(found, expected)
