"""Weights in files, a few tensors in memory at a time: litgpt's `lit_model.pth`, and Hugging Face's two formats."""

import ctypes
import errno
import hashlib
import json
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from litgpt.utils import incremental_save
from safetensors import safe_open
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_gpt.checksums import add_sums
from lit_gpt.errors import DataError
from lit_gpt.formats.direct_file import DirectFile
from lit_gpt.formats.hf_files import SAFETENSORS_INDEX, shard_name
from lit_gpt.model.lazy_tensors import LazyTensors, specs_of

_LFS_POINTER = b"version https://git-lfs"

CHUNK_BYTES = 1 << 18  # written at once of a tensor that is not contiguous: so much is held twice

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

# https://github.com/huggingface/safetensors#format
_SAFETENSORS_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def lay_out_memory() -> None:
    """Prepares the allocators for large tensors that come and go; is called before the first of them."""
    # torch asks for huge pages where the system leaves that to programs: reading 2.2 GB takes 1.7 s instead of 3.3
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        # glibc gives tensors of 1 MB and more back to the system. It would keep those of up to 32 MB in its heap, whose
        # gaps it does not fill with aligned memory again: a merge of 2.2 GB left 1.6 GB behind.
        set_option(_M_MMAP_THRESHOLD, 1 << 20)
        # It keeps some MB of smaller ones: to get them anew, cleared, a merge's comparison took 19 s instead of 14.
        set_option(_M_TRIM_THRESHOLD, 1 << 24)


# ----------------------------------------------------------------------------------------------------------- reading


def open_tensors(path: Path) -> LazyTensors:
    """The tensors of a .safetensors file, or of a state dict that `torch.save` wrote; a DataError if it is damaged."""
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise DataError(f"{path} is Git LFS's pointer to the weights, not the weights: git lfs pull fetches them")
    with reading(path):
        if path.suffix == ".safetensors":
            return _open_safetensors(path)
        if zipfile.is_zipfile(path):
            return _open_archive(path)
        # files older than torch 1.6 are not archives
        tensors = only_tensors(torch.load(path, weights_only=True, map_location="cpu"))
        return LazyTensors(specs_of(tensors), tensors.__getitem__)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what safetensors, torch and zipfile raise for wrong content, errors of many kinds, into a DataError."""
    try:
        yield
    except Exception as e:
        if isinstance(e, OSError) and e.errno != errno.EINVAL:  # torch's for an archive that ends too early
            raise
        reason = (" ".join(str(e).split()) or type(e).__name__).split(". ")[0][:200]
        raise DataError(f"{path} cannot be read ({reason}); fetch or make it again") from None


def _open_safetensors(path: Path) -> LazyTensors:
    def read(name: str) -> Tensor:
        # opened anew: what was mapped is let go with the tensor
        with reading(path), safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    with safe_open(path, framework="pt") as file:
        names = file.keys()
        specs = {name: torch.empty_like(file.get_tensor(name), device="meta") for name in names}
    return LazyTensors(specs, read)


def _open_archive(path: Path) -> LazyTensors:
    """The tensors of a zip archive that `torch.save` wrote; each is mapped and compared with its CRC-32 when read."""
    archive = zipfile.ZipFile(path)
    fakes, records = _fakes(path, archive), _records(path, archive)

    def read(name: str) -> Tensor:
        fake = fakes[name]
        begin = fake.untyped_storage()._checkpoint_offset
        with reading(path):
            storage = map_bytes(path, begin, records[begin].file_size)
            if zlib.crc32(storage.numpy()) != records[begin].CRC:
                raise zipfile.BadZipFile(f"Bad CRC-32 of {records[begin].filename}")
            storage = storage.untyped_storage()
            return torch.empty(0, dtype=fake.dtype).set_(storage, fake.storage_offset(), fake.shape, fake.stride())

    specs = {name: torch.empty(fake.shape, dtype=fake.dtype, device="meta") for name, fake in fakes.items()}
    return LazyTensors(specs, read)


def content_digest(path: Path) -> str:
    """SHA-256, in hexadecimal, over the tensors' names, types, shapes and CRC-32, as the state dict in `path` has them.

    The values are not read, unless the file is older than torch 1.6.
    """
    digest = hashlib.sha256()
    with reading(path):
        if zipfile.is_zipfile(path):
            archive = zipfile.ZipFile(path)
            tensors, records = _fakes(path, archive), _records(path, archive)
            crcs = {name: records[fake.untyped_storage()._checkpoint_offset].CRC for name, fake in tensors.items()}
        else:
            tensors = only_tensors(torch.load(path, weights_only=True, map_location="cpu"))
            crcs = {name: zlib.crc32(t.contiguous().flatten().view(torch.uint8).numpy()) for name, t in tensors.items()}
        for name, tensor in sorted(tensors.items()):
            layout = (list(tensor.shape), tensor.stride(), tensor.storage_offset())
            digest.update(f"{name} {tensor.dtype} {layout} {crcs[name]:08x}\n".encode())
    return digest.hexdigest()


def _fakes(path: Path, archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """The tensors of an archive without their values; its other entries are compared with their CRC-32."""
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{info.filename} is compressed")
    for info in archive.infolist():
        if "/data/" not in info.filename:  # these entries say which tensor is what; reading compares their CRC-32
            archive.read(info)
    # Either way torch.load reads no values, and says of each storage where in the file it begins:
    # https://docs.pytorch.org/docs/stable/generated/torch.load.html
    if torch.__version__ >= (2, 11):
        return only_tensors(torch.load(path, weights_only=True, map_location="meta"))
    with FakeTensorMode():  # its first use takes 1.3 s of processor time
        return only_tensors(torch.load(path, weights_only=True, map_location="cpu"))


def only_tensors(loaded: Any) -> dict[str, Tensor]:
    """The state dict that `torch.load` gave, under the key "model" or itself; a ValueError if it is something else."""
    if isinstance(loaded, dict):
        loaded = loaded.get("model", loaded)
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError("not a state dict")
    return loaded


def _records(path: Path, archive: zipfile.ZipFile) -> dict[int, zipfile.ZipInfo]:
    """The archive's entries by the byte of the file where their content begins."""
    # after a header of 30 bytes, the name and an extra field, whose lengths are the header's last four bytes:
    # https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.7
    found = {}
    with path.open("rb") as file:
        for info in archive.infolist():
            file.seek(info.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", file.read(4))
            found[info.header_offset + 30 + name_length + extra_length] = info
    return found


def map_bytes(path: Path, begin: int, size: int) -> Tensor:
    """uint8 [size], a part of a file, mapped: read when it is looked at, and let go with the last tensor on it."""
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    before = begin % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:  # a private mapping: torch knows no memory that must not be written
        mapped = mmap.mmap(file.fileno(), before + size, access=mmap.ACCESS_COPY, offset=begin - before)
    return torch.frombuffer(mapped, dtype=torch.uint8, offset=before)


# ----------------------------------------------------------------------------------------------------------- writing


def _one_ahead(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """`tensors`, of which a thread reads or computes the next one while the caller writes one."""
    source = iter(tensors)
    with ThreadPoolExecutor(max_workers=1) as thread:
        following = thread.submit(next, source, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, source, None)
            yield item
            del item  # before the next but one is made


class Written(NamedTuple):
    """A `lit_model.pth`: the number of its parameters, and its SHA-256."""

    parameters: int
    sha256: str


def write_lit_model(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> Written:
    """Writes a state dict as `torch.save` does, a tensor at a time."""
    parameters, stored = 0, {}
    with DirectFile(path) as file:
        archive = incremental_save(os.devnull)
        archive.zipfile = torch._C.PyTorchFileWriter(file)  # it takes paths only
        for name, tensor in _one_ahead(tensors):
            parameters += tensor.numel()
            # a storage is written whole, and two tensors that shared one would also do so when trained
            if not tensor.is_contiguous() or tensor.untyped_storage().nbytes() != tensor.nbytes:
                tensor = tensor.clone()
            stored[name] = archive.store_early(tensor)
            del tensor
        archive.save(stored)
        archive.zipfile.write_end_of_file()
    return Written(parameters, file.sha256)


def write_safetensors(
    folder: Path, specs: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]], max_bytes: int
) -> None:
    """Writes model.safetensors, or several files of at most `max_bytes` and their index where one would be larger, and
    their checksums into the folder's list.

    `specs` are those of `tensors`, in their order: a header comes first. A larger tensor has a file of its own.
    """
    groups = _groups(specs, max_bytes)
    remaining = _one_ahead(tensors)
    weight_map: dict[str, str] = {}
    sums: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        name = shard_name(number, len(groups))
        sums[name] = write_safetensors_file(folder / name, group, remaining)
        weight_map |= dict.fromkeys(group, name)
    assert next(remaining, None) is None, "a tensor that was not announced"
    if len(groups) > 1:
        index = {"metadata": {"total_size": sum(spec.nbytes for spec in specs.values())}, "weight_map": weight_map}
        (folder / SAFETENSORS_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    add_sums(folder, sums)


def _groups(specs: Mapping[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    """`specs` in their order, those of a file together."""
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, spec in specs.items():
        # who reads a tensor wants it at a multiple of its type's size, and between two there may be no gap
        if groups[-1] and (size + spec.nbytes > max_bytes or size % spec.itemsize):
            groups.append({})
            size = 0
        groups[-1][name] = spec
        size += spec.nbytes
    return groups


def write_safetensors_file(path: Path, specs: Mapping[str, Tensor], tensors: Iterator[tuple[str, Tensor]]) -> str:
    """Writes one file of the next tensors, which are those of `specs`, and returns its SHA-256; safetensors' own writer
    makes it mode 0600."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        kind = _SAFETENSORS_TYPES[spec.dtype]
        header[name] = {"dtype": kind, "shape": list(spec.shape), "data_offsets": [end, end := end + spec.nbytes]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with DirectFile(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, spec in specs.items():
            found, tensor = next(tensors)
            assert (found, tensor.shape, tensor.dtype) == (name, spec.shape, spec.dtype), f"{found} instead of {name}"
            _write_values(file, tensor)
            del tensor
    return file.sha256


def _write_values(file: DirectFile, tensor: Tensor) -> None:
    parts = [tensor]
    if not tensor.is_contiguous() and tensor.dim() >= 2:
        parts = tensor.split(max(1, CHUNK_BYTES * len(tensor) // tensor.nbytes))
    for part in parts:
        file.write(part.contiguous().flatten().view(torch.uint8).numpy())
