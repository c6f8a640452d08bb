"""QLoRA: the frozen matrices of a LoRA model in 4-bit NF4 or in int8, by bitsandbytes.

NF4 has 16 levels, the quantiles of a normal distribution, and one scale per 64 numbers: 4.5 bits per weight (Dettmers
et al. 2023, https://arxiv.org/abs/2305.14314). int8 has one scale per row: 8 bits per weight. Both are storage formats
here: a matrix is expanded to the model's arithmetic where it is used, forward and backward, and activations are never
rounded to int8, unlike in LLM.int8().
"""

import logging
import math
import weakref
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.errors import UserError

FrozenFormat = Literal["bnb.nf4", "bnb.int8"]
_BLOCK = 64
_LAYERS: "dict[int, weakref.ref[QLoRALinear]]" = {}
"""By the numbers that compiled blocks know them by."""


def import_bitsandbytes(option: str = "--quantize") -> ModuleType:
    """bitsandbytes, which is an extra; a UserError says that `option` needs it."""
    # On some CPUs it warns that it could load a faster product for generation from the Hugging Face hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes.functional  # an extra
    except ImportError as e:
        raise UserError(f"{option} needs bitsandbytes: pip install bitsandbytes ({e})") from None
    return bitsandbytes


def replace_frozen_layers(model: nn.Module, kind: FrozenFormat) -> None:
    """Replaces every linear layer of the blocks, on the meta device, by an empty `QLoRALinear`; not the head."""
    import_bitsandbytes()
    for block in model.transformer.h:
        for module in list(block.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, QLoRALinear(child, kind))


def stored_bytes(kind: FrozenFormat, shape: tuple[int, int]) -> tuple[int, int]:
    """Bytes of a matrix [out, in] and of its scales."""
    numbers = math.prod(shape)
    if kind == "bnb.nf4":
        return (numbers + 1) // 2, -(-numbers // _BLOCK) * 4
    return numbers, shape[0] * 4


class Place(Protocol):
    """Where a layer's matrix and scales are, if others keep a part of them (shared_base.py)."""

    def keep(self, weight: Tensor, scale_bits: Tensor) -> None: ...

    def gather(self) -> Sequence[Tensor]:
        """Both as bytes."""


class QLoRALinear(nn.Module):
    """A frozen linear layer [out, in] in NF4 or int8, in buffers that are neither trained nor saved."""

    place: Place | None = None  # where processes share the base; its own buffers are then empty

    def __init__(self, linear: nn.Linear, kind: FrozenFormat) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.kind = kind
        self.dtype = linear.weight.dtype
        self.bias = linear.bias
        # the fp32 scales are kept as their bits, integers, which `model.to(torch.bfloat16)` leaves as they are
        for name in ("weight", "scale_bits"):
            self.register_buffer(name, torch.empty(0, dtype=torch.uint8, device="meta"), persistent=False)
        # A tensor: torch.compile takes a number for a constant, and would compile every layer of every block anew.
        self._number = torch.tensor(len(_LAYERS), device="cpu")
        _LAYERS[len(_LAYERS)] = weakref.ref(self)

    @property
    def stored_bytes(self) -> tuple[int, int]:
        return stored_bytes(self.kind, (self.out_features, self.in_features))

    @torch.no_grad()
    def fill(self, weight: Tensor, device: torch.device) -> None:
        """Takes `weight` [out, in] and keeps it in the layer's format on `device`."""
        functional = import_bitsandbytes().functional
        if self.kind == "bnb.nf4":
            weight = weight.to(device, self.dtype).contiguous()
            packed, state = functional.quantize_4bit(weight, blocksize=_BLOCK, quant_type="nf4")
            scale = state.absmax
        else:  # bitsandbytes takes fp16 alone; its rounding is at least 8 times finer than the one to int8
            weight = weight.to(device, torch.float16).contiguous()
            packed, scale, _ = functional.int8_vectorwise_quant(weight)
        bits = scale.view(torch.int32)
        if self.place:
            self.place.keep(packed, bits)
            packed, bits = packed.new_empty(0), bits.new_empty(0)
        self.weight, self.scale_bits = packed, bits

    def _stored(self) -> tuple[Tensor, Tensor]:
        """The matrix in its format, and its scales in fp32."""
        if self.place is None:
            return self.weight, self.scale_bits.view(torch.float32)
        weight, scale_bits = self.place.gather()
        if self.kind == "bnb.int8":
            return weight.view(torch.int8).view(self.out_features, self.in_features), scale_bits.view(torch.float32)
        return weight.view(-1, 1), scale_bits.view(torch.float32)

    def expanded(self) -> Tensor:
        """The weight [out, in] in the model's dtype."""
        weight, scale = self._stored()
        shape = (self.out_features, self.in_features)
        if self.kind == "bnb.int8":
            out = torch.empty(shape, dtype=self.dtype, device=weight.device)
            return torch.mul(weight, scale.unsqueeze(1) / 127, out=out)
        functional = import_bitsandbytes().functional
        # As one row: of rows whose length is a multiple of 16 and not of 64, bitsandbytes 0.50.2 mixes up the scales on
        # CPUs with AVX-512.
        row = torch.Size((1, math.prod(shape)))
        state = functional.QuantState(scale, row, dtype=self.dtype, blocksize=_BLOCK, quant_type="nf4")
        return functional.dequantize_4bit(weight, state).view(shape)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return _FrozenProduct.apply(x, self)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return frozen_product(x, self._number, self.bias, self.out_features)


def qlora_layers(model: nn.Module) -> Iterator[tuple[str, QLoRALinear]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QLoRALinear))


class _FrozenProduct(torch.autograd.Function):
    """x Wᵀ + b, with W expanded anew in the backward pass instead of kept until then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QLoRALinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.expanded(), layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.expanded().to(gradient.dtype), None


@torch.library.custom_op("fabricant::frozen_product", mutates_args=())
def frozen_product(x: Tensor, number: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    """`_FrozenProduct` for torch.compile, which does not look into it: neither quantised bytes nor messages."""
    weight = _layer(number).expanded().to(x.dtype)
    return F.linear(x, weight, None if bias is None else bias.to(x.dtype))


@frozen_product.register_fake
def _(x: Tensor, _number: Tensor, _bias: Tensor | None, rows: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


@torch.library.custom_op("fabricant::frozen_product_backward", mutates_args=())
def _frozen_product_backward(gradient: Tensor, number: Tensor, columns: int) -> Tensor:
    return gradient @ _layer(number).expanded().to(gradient.dtype)


@_frozen_product_backward.register_fake
def _(gradient: Tensor, _number: Tensor, columns: int) -> Tensor:
    return gradient.new_empty((*gradient.shape[:-1], columns))


def _layer(number: Tensor) -> QLoRALinear:
    layer = _LAYERS[int(number)]()
    assert layer is not None
    return layer


def _remember_number(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, number, _bias, _rows = inputs
    ctx.save_for_backward(number)
    ctx.columns = x.size(-1)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return _frozen_product_backward(gradient, *ctx.saved_tensors, ctx.columns), None, None, None


frozen_product.register_autograd(_backward, setup_context=_remember_number)
