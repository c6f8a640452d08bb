"""The tensors of a whole model, added up on the meta device, where they take no memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from lit_gpt.model.building import empty_model
from utils.train.workload import Workload


@dataclass(frozen=True)
class TensorCount:
    """Numbers of elements and bytes of a model's tensors."""

    parameters: int
    """Elements of all parameters."""
    trained: int
    """Elements of what is trained."""
    sharded: int
    """Bytes of the weights as they are stored, of which each process has its part."""
    trained_bytes: int
    """Bytes of the part of them that is trained."""
    quantised: int
    """Bytes of the weights in QLoRA's base format, which every process has whole."""
    tables: int
    """Bytes of the rotary tables, which every process has whole."""
    block: int
    """Elements of the largest block, which are gathered for its computation."""
    block_trained: int
    """Elements of it that are trained."""
    root: int
    """Elements outside of the blocks: embedding, last norm, head."""
    root_trained: int
    """Elements of them that are trained."""


def count_tensors(workload: Workload) -> TensorCount:
    """The tensors of the whole model."""
    model = empty_model(workload.config, workload.lora, *workload.dtypes)
    everything = list(model.parameters())
    parameters, trained = elements(everything), elements(trained_of(everything))
    quantised = 0
    if workload.base_format:
        for owner, name, linear in list(frozen_linears(model)):
            quantised += _quantised_bytes(linear, workload.base_format)
            setattr(owner, name, nn.Identity())
    everything = list(model.parameters())
    blocks = [list(block.parameters()) for block in model.transformer.h]
    block = max(blocks, key=elements)
    root = list({*everything}.difference(*blocks))
    return TensorCount(
        parameters=parameters,
        trained=trained,
        sharded=bytes_of(everything),
        trained_bytes=bytes_of(trained_of(everything)),
        quantised=quantised,
        tables=bytes_of(model.buffers()),
        block=elements(block),
        block_trained=elements(trained_of(block)),
        root=elements(root),
        root_trained=elements(trained_of(root)),
    )


def frozen_linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """The matrices that QLoRA keeps in its base format, with the module that has each and its name there."""
    for block in model.transformer.h:
        for owner in block.modules():
            for name, child in owner.named_children():
                if isinstance(child, nn.Linear):
                    yield owner, name, child


def _quantised_bytes(linear: nn.Linear, kind: str) -> int:
    """Bytes of a matrix in one of lit_gpt/model/qlora.py's formats, with its scales."""
    if kind == "bnb.nf4":
        return linear.weight.numel() // 2 + -(-linear.weight.numel() // 64) * 4
    return linear.weight.numel() + linear.out_features * 4


def trained_of(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def elements(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
