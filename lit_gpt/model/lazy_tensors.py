"""State dicts whose tensors are read, or computed from others, when they are asked for.

What merges or converts a model makes one of another and writes the last: a model larger than the memory passes through.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor


class LazyTensors(Mapping[str, Tensor]):
    """A state dict that reads or computes a tensor each time it is asked for it; `specs` are on the meta device."""

    def __init__(self, specs: Mapping[str, Tensor], read: Callable[[str], Tensor]) -> None:
        self.specs = specs
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.specs:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.specs

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def specs_of(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Names, shapes and types of a state dict, on the meta device, without reading it."""
    if isinstance(weights, LazyTensors):
        return weights.specs
    return {name: torch.empty_like(tensor, device="meta") for name, tensor in weights.items()}


def in_dtype(weights: LazyTensors, dtype: torch.dtype | None) -> LazyTensors:
    """`weights` cast to `dtype` as they are read; None leaves them as they are."""
    if dtype is None:
        return weights
    specs = {name: spec.to(dtype) for name, spec in weights.specs.items()}
    return LazyTensors(specs, lambda name: weights[name].to(dtype))
