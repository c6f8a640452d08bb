"""Which of a model's tensors a checkpoint holds, and torch's functions that save and load them."""

import warnings
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

_ALONE = "torch.distributed is disabled"
"""How torch's warning begins that without a process group it takes one process, which is meant here."""


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes, by name: with LoRA only the adapter's. They share the model's memory."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name in trained}


def save_tensors(tensors: dict[str, Any], writer: dcp.StorageWriter, group: dist.ProcessGroup | None) -> None:
    """Writes the processes' parts of `tensors` together; without a `group` this process is alone.

    Raises:
        CheckpointException: if a process could not write, on every one.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _ALONE, UserWarning)
        dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=group is None)


def load_tensors(tensors: dict[str, Any], reader: dcp.StorageReader, alone: bool) -> None:
    """Reads into `tensors`, in place, what each process has of them; `alone`: for this process only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _ALONE, UserWarning)
        dcp.load(tensors, storage_reader=reader, no_dist=alone)
