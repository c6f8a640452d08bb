"""QLoRA's base shared by processes: each keeps a part of every block's quantised bytes and gathers a block's for use.

1. The weights and scales of a block's matrices lie behind each other as bytes, padded to a multiple of the number of
   processes; process i keeps the i-th part. Where a part ends has nothing to do with rows, scales or matrices.
2. Every process quantises whole matrices, one at a time, so that the bytes are those of a single process.
3. Whoever needs a matrix gets its block, by one all-gather of bytes. Two blocks fit: the one that is computed with, and
   the one after it, forward or backward, which arrives in the meantime.

All processes go through the blocks in the same order, which FSDP2 demands too.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_gpt.model.qlora import QLoRALinear

_ALIGNMENT = 16
"""Bytes: where a matrix or its scales may begin, for the widest loads of a GPU."""


def share_base(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Makes the processes of `group` share the empty QLoRA layers of a model's blocks: `fill` keeps a part."""
    gathered = GatheredBlocks(group)
    for block in model.transformer.h:
        layers = [child for child in block.modules() if isinstance(child, QLoRALinear)]
        block.frozen_part = SharedBlock(layers, gathered)


class SharedBlock(nn.Module):
    """A block's bytes, of which this process keeps a part: a buffer that is neither trained nor saved."""

    def __init__(self, layers: Sequence[QLoRALinear], gathered: "GatheredBlocks") -> None:
        super().__init__()
        self._gathered, self._index = gathered, gathered.add(self)
        size = 0
        for layer in layers:
            sizes = layer.stored_bytes
            starts = (size, size + _aligned(sizes[0]))
            layer.place = _Place(self, starts, sizes)
            size = starts[1] + _aligned(sizes[1])
        processes = dist.get_world_size(gathered.group)
        self.part_bytes = -(-size // processes)
        self._first = self.part_bytes * dist.get_rank(gathered.group)
        self.register_buffer("part", torch.zeros(0, dtype=torch.uint8, device="meta"), persistent=False)

    def keep(self, start: int, stored: Tensor) -> None:
        """Keeps those of the bytes of `stored`, which begin at `start` of the block's, that are of this part."""
        values = stored.contiguous().view(torch.uint8).flatten()
        if self.part.is_meta:
            self.part = torch.zeros(self.part_bytes, dtype=torch.uint8, device=values.device)
        low = max(start, self._first)
        high = min(start + len(values), self._first + self.part_bytes)
        if low < high:
            self.part[low - self._first : high - self._first] = values[low - start : high - start]

    def gather(self) -> Tensor:
        """The whole block's bytes, which are valid until two other blocks have been asked for."""
        return self._gathered.whole(self._index)


class _Place:
    """Where a matrix and its scales lie in their block's bytes."""

    def __init__(self, block: SharedBlock, starts: tuple[int, int], sizes: tuple[int, int]) -> None:
        self._block, self._starts, self._sizes = block, starts, sizes

    def keep(self, *stored: Tensor) -> None:
        assert [tensor.nbytes for tensor in stored] == list(self._sizes)
        for start, tensor in zip(self._starts, stored, strict=True):
            self._block.keep(start, tensor)

    def gather(self) -> list[Tensor]:
        """The matrix and its scales, as bytes."""
        whole = self._block.gather()
        return [whole[start : start + size] for start, size in zip(self._starts, self._sizes, strict=True)]


class _Slot:
    """A buffer for one gathered block."""

    def __init__(self) -> None:
        self.index = -1
        self.buffer = torch.empty(0, dtype=torch.uint8)
        self.arriving: dist.Work | None = None

    def wait(self) -> None:
        """Makes the device's next operations wait for the bytes; on the CPU, the program."""
        if self.arriving is not None:
            self.arriving.wait()
            self.arriving = None


class GatheredBlocks:
    """Two buffers of the largest block's size, which hold the blocks that were gathered last."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self._blocks: list[SharedBlock] = []
        self._slots = (_Slot(), _Slot())
        self._used = self._slots[0]

    def add(self, block: SharedBlock) -> int:
        self._blocks.append(block)
        return len(self._blocks) - 1

    def whole(self, index: int) -> Tensor:
        """The bytes of a block; asks for those of the block after it, which may come while this one computes."""
        self._used = self._slot_of(index)
        self._used.wait()
        # what a block computes again in the backward pass is a part of that, though it looks like a forward pass
        backward = torch._C._current_graph_task_id() != -1
        following = index - 1 if backward else index + 1
        if 0 <= following < len(self._blocks):
            self._slot_of(following)
        return self._used.buffer

    def _slot_of(self, index: int) -> _Slot:
        """The buffer that has a block or will have it; the one not used last is overwritten for it."""
        for slot in self._slots:
            if slot.index == index:
                return slot
        slot = self._slots[self._slots[0] is self._used]
        slot.wait()
        part = self._blocks[index].part
        if not slot.buffer.numel():
            largest = max(block.part_bytes for block in self._blocks) * dist.get_world_size(self.group)
            with torch.inference_mode(False):
                slot.buffer = torch.empty(largest, dtype=torch.uint8, device=part.device)
        own = slot.buffer[: part.numel() * dist.get_world_size(self.group)]
        slot.arriving = _all_gather()(own, part, group=self.group, async_op=True)
        slot.index = index
        return slot


def _all_gather() -> Callable[..., dist.Work]:
    """torch's all-gather into one tensor, which has another name from torch 2.13 on."""
    return getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
