"""Reads checkpoints: the newest that verifies, into a training or as tensors, on any number of processes."""

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import Optimizer

from lit_gpt.errors import DataError
from lit_gpt.model.lazy_tensors import LazyTensors
from utils.cluster.collectives import on_rank_zero, rank, together, world_size
from utils.run.checkpoint_folders import list_checkpoints, verify_checkpoint
from utils.run.progress import TrainingProgress


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes, by name: with LoRA only the adapter's. They share the model's memory."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name in trained}


@contextmanager
def without_warning() -> Iterator[None]:
    """Silences torch's warning that without a process group it takes one process, which is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def newest_valid_checkpoint(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with the newer ones; the processes share the reading."""
    problems = []
    for checkpoint in reversed(on_rank_zero(lambda: list_checkpoints(run_dir))):
        found = together(lambda path=checkpoint: verify_checkpoint(path, rank(), world_size()))
        problem = next(filter(None, found), None)
        if problem is None:
            return checkpoint, problems
        problems.append(problem)
    return None, problems


def load_checkpoint(checkpoint: Path, model: nn.Module, optimizer: Optimizer) -> TrainingProgress:
    """Loads a checkpoint into a model and its optimiser; a `DataError` if its tensors are not the model's."""
    optimizer_state = get_optimizer_state_dict(model, optimizer)
    tensors = {"model": trained_tensors(model), "optimizer": optimizer_state["state"]}
    reader = CheckpointReader(checkpoint)
    _check_shapes(reader.read_metadata(), tensors["model"], checkpoint)
    with without_warning():
        dcp.load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    set_optimizer_state_dict(model, optimizer, optimizer_state)
    return TrainingProgress.load(checkpoint)


def _model_entries(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    entries = {}
    for name, entry in metadata.state_dict_metadata.items():
        if name.startswith("model.") and isinstance(entry, TensorStorageMetadata):
            entries[name.removeprefix("model.")] = entry
    return entries


def _check_shapes(metadata: Metadata, tensors: dict[str, Tensor], checkpoint: Path) -> None:
    saved = {name: list(entry.size) for name, entry in _model_entries(metadata).items()}
    expected = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if saved != expected:
        differing = min(name for name in saved.keys() | expected.keys() if saved.get(name) != expected.get(name))
        raise DataError(
            f"{checkpoint} is a checkpoint of another model: {differing} has shape "
            f"{saved.get(differing, 'none')} there, {expected.get(differing, 'none')} here"
        )


def read_model_tensors(checkpoint: Path) -> LazyTensors:
    """The model's tensors of a checkpoint (with LoRA only the adapter's), each whole, on the CPU, when asked for."""
    reader = CheckpointReader(checkpoint)
    specs = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in _model_entries(reader.read_metadata()).items()
    }

    def read(name: str) -> Tensor:
        tensor = torch.empty_like(specs[name], device="cpu")
        with without_warning():
            dcp.load({"model": {name: tensor}}, storage_reader=reader, no_dist=True)
        return tensor

    return LazyTensors(specs, read)


# what random bytes make pickle raise; lengths that nothing can hold are a MemoryError
_DAMAGED = (OSError, pickle.UnpicklingError, EOFError, AttributeError, LookupError, MemoryError, TypeError, ValueError)
_DAMAGED += (OverflowError,)  # a string longer than a machine's largest number


_ALLOWED = {
    ("torch.distributed.checkpoint.metadata", "Metadata"),
    ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
    ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "TensorProperties"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.metadata", "StorageMeta"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
}


def _memory_format(kind: Any, name: Any) -> _MEM_FORMAT_ENCODING:
    """What Python 3.11.0 to 3.11.3 (Debian 12's) call getattr for: they pickle a member of an Enum by its name."""
    if kind is not _MEM_FORMAT_ENCODING or name not in _MEM_FORMAT_ENCODING.__members__:
        raise DataError(f"a checkpoint's .metadata asks for {name!r} of {kind}, which is no part of the format")
    return _MEM_FORMAT_ENCODING[name]


class _MetadataUnpickler(pickle.Unpickler):
    """Builds only the classes that a checkpoint's metadata is made of: unpickling anything could run foreign code."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) == ("builtins", "getattr"):
            return _memory_format
        if (module, name) not in _ALLOWED:
            raise DataError(f"a checkpoint's .metadata asks for {module}.{name}, which is no part of the format")
        return super().find_class(module, name)


class CheckpointReader(dcp.FileSystemReader):
    """torch's reader, with the pickled metadata restricted to its format's classes and read once."""

    _metadata: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self._metadata is not None:
            return self._metadata
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as file:
                metadata = _MetadataUnpickler(file).load()
        except _DAMAGED as e:
            raise DataError(f"{path} is no checkpoint's metadata ({e or type(e).__name__})") from None
        if not isinstance(metadata, Metadata):
            raise DataError(f"{path} is no checkpoint's metadata")
        self._metadata = metadata
        return metadata
