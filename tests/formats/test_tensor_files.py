"""Weights that pass through files one by one: what other programs make of them, damage, and what is held meanwhile."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import weakref
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import litgpt.lora
import pytest
import safetensors.torch
import torch
from torch import Tensor

from lit_gpt.checksums import file_sha256
from lit_gpt.errors import DataError
from lit_gpt.formats.hf_config import config_to_hf
from lit_gpt.formats.hf_weights import tensors_to_hf
from lit_gpt.formats.litgpt_directory import WEIGHTS
from lit_gpt.formats.tensor_files import open_tensors, write_lit_model, write_safetensors
from lit_gpt.model.building import build_model
from lit_gpt.model.lazy_tensors import LazyTensors, in_dtype, specs_of
from lit_gpt.model.lora import LoRASettings, check_merged, merge_adapter
from tests.conftest import ROOT
from tests.model.gradient_worker import CONFIG as MODEL

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


def some_tensors() -> dict[str, Tensor]:
    """Of several types and layouts; two share their memory."""
    torch.manual_seed(0)
    tensors = {f"{index}": torch.randn(5 + index, 8).to((BF16, FP32, FP16)[index % 3]) for index in range(9)}
    return tensors | {"rows": tensors["4"][2:5], "transposed": tensors["3"].T, "double": torch.randn(3, dtype=FP64)}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_what_torch_saves_is_read_and_what_is_written_torch_loads(tmp_path: Path) -> None:
    tensors = some_tensors()
    torch.save(tensors, tmp_path / "theirs.pth")
    torch.save({"model": tensors}, tmp_path / "nested.pth")
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    written = write_lit_model(tmp_path / "ours.pth", tensors.items())
    assert written.parameters == sum(t.numel() for t in tensors.values())
    assert written.sha256 == file_sha256(tmp_path / "ours.pth")
    for name in ("theirs", "nested", "old", "ours"):
        assert_same(open_tensors(tmp_path / f"{name}.pth"), tensors)
    assert_same(torch.load(tmp_path / "ours.pth", weights_only=True, mmap=True), tensors)
    specs = open_tensors(tmp_path / "theirs.pth").specs
    assert {name: (spec.shape, spec.dtype) for name, spec in specs.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(("max_bytes", "files"), [(10**6, 1), (350, 7), (1, 12)])
def test_the_safetensors_library_reads_what_is_written(max_bytes: int, files: int, tmp_path: Path) -> None:
    tensors = some_tensors()
    write_safetensors(tmp_path, specs_of(tensors), tensors.items(), max_bytes)
    found, names = {}, {}
    for path in sorted(tmp_path.glob("*.safetensors")):
        own = safetensors.torch.load_file(path)
        assert len(own) == 1 or sum(tensor.nbytes for tensor in own.values()) <= max_bytes
        found |= own
        names |= dict.fromkeys(own, path.name)
    assert len(set(names.values())) == files
    assert_same(dict(sorted(found.items())), dict(sorted(tensors.items())))
    if files > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == names
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())


def test_a_tensor_that_would_begin_between_two_places_of_its_type_has_another_file(tmp_path: Path) -> None:
    types = {"a": BF16, "b": FP32, "c": BF16, "d": FP16}
    tensors = {name: torch.randn(3).to(kind) for name, kind in types.items()}
    write_safetensors(tmp_path, specs_of(tensors), tensors.items(), 10**6)
    files = [safetensors.torch.load_file(path) for path in sorted(tmp_path.glob("*.safetensors"))]
    assert [list(file) for file in files] == [["a"], ["b", "c", "d"]]
    assert_same(files[0] | files[1], tensors)


def test_every_flipped_bit_of_a_tensor_is_found(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    tensors = some_tensors()
    write_lit_model(path, tensors.items())
    whole, rng = path.read_bytes(), random.Random(0)
    with zipfile.ZipFile(path) as archive:
        records = [info for info in archive.infolist() if "/data/" in info.filename]
    assert len(records) == len(tensors)
    for info in records:
        content = archive_content(whole, info)
        damaged = bytearray(whole)
        damaged[content.start + rng.randrange(info.file_size)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"lit_model\.pth cannot be read \(Bad CRC-32"):
            dict(open_tensors(path))


def test_no_flipped_bit_of_an_archive_passes_or_crashes(tmp_path: Path) -> None:
    """Some are in what nobody reads, such as a date: then all is as it was."""
    path = tmp_path / WEIGHTS
    tensors = {"a": torch.randn(6, 5), "b": torch.randn(7).bfloat16()}
    torch.save(tensors, path)
    whole, rng, found = path.read_bytes(), random.Random(1), 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            assert_same(dict(open_tensors(path)), tensors)
        except DataError:
            found += 1
    assert found > 100


def archive_content(archive: bytes, info: zipfile.ZipInfo) -> range:
    """Where the bytes of an entry lie, found by themselves."""
    begin = info.header_offset + 30
    name, extra = (int.from_bytes(archive[begin - 4 + 2 * i : begin - 2 + 2 * i], "little") for i in (0, 1))
    return range(begin + name + extra, begin + name + extra + info.file_size)


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin"])
def test_a_truncated_file_is_an_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    tensors = {"a": torch.randn(300), "b": torch.randn(20, 20)}
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        safetensors.torch.save_file(tensors, path)
    whole = path.read_bytes()
    for size in (0, 1, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=name):
            dict(open_tensors(path))


class Hostile:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_of_something_else_is_refused_and_not_run(
    archive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for content in ({"a": Hostile()}, [torch.ones(2)], {"a": 5}):
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=archive)
        with pytest.raises(DataError, match=r"a\.pth cannot be read"):
            open_tensors(tmp_path / "a.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


class Watched(LazyTensors):
    """Tensors of which it is known how many are alive."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.alive, self.most = 0, 0
        super().__init__(specs_of(tensors), lambda name: self._watch(tensors[name].clone()))

    def _watch(self, tensor: Tensor) -> Tensor:
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(tensor.untyped_storage(), self._gone)
        return tensor

    def _gone(self) -> None:
        self.alive -= 1


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return dict(build_model(MODEL, None, None, 1, FP32).state_dict())


def test_two_tensors_are_held_while_a_model_is_converted(weights: dict[str, Tensor], tmp_path: Path) -> None:
    hf = config_to_hf(MODEL, 1, 2, "float32")
    for consume in (
        lambda watched: write_lit_model(tmp_path / "a.pth", watched.items()),
        lambda watched: write_safetensors(
            tmp_path,
            dict(tensors_to_hf(watched.specs, MODEL, hf)),
            tensors_to_hf(watched, MODEL, hf),
            10**9,
        ),
    ):
        watched = Watched(weights)
        consume(watched)
        assert watched.alive == 0 and watched.most <= 2
    watched = Watched(weights)
    assert "lm_head.weight" in watched and "a" not in watched and watched.most == 0
    consume_in_bf16 = in_dtype(watched, BF16)
    write_lit_model(tmp_path / "b.pth", consume_in_bf16.items())
    assert watched.most <= 2 and {t.dtype for t in open_tensors(tmp_path / "b.pth").values()} == {BF16}


def test_a_merge_holds_one_matrix_of_the_base_and_changes_what_litgpt_changes(weights: dict[str, Tensor]) -> None:
    settings = LoRASettings(4, 8, 0.0, query=True, key=False, value=True, projection=True, mlp=True, head=True)
    theirs = litgpt.lora.GPT(settings.extend(MODEL))
    theirs.load_state_dict(weights, strict=False)
    for name, parameter in theirs.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter)
    adapter = {name: p.detach().clone() for name, p in theirs.named_parameters() if "lora_" in name}
    watched = Watched(weights)
    merged = merge_adapter(watched, adapter, MODEL, settings)
    found = {name: tensor.clone() for name, tensor in merged.items()}
    assert (watched.alive, watched.most) == (0, 2)  # the two of one comparison: does the adapter change anything?
    watched = Watched(weights)
    check_merged(watched, adapter, found, MODEL, settings)
    assert watched.alive == 0 and watched.most <= 2  # two are compared beside each other, if two threads meet
    litgpt.lora.merge_lora_weights(theirs)
    expected = {name.replace("linear.", ""): t for name, t in theirs.state_dict().items() if "lora_" not in name}
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-6)
    assert not torch.equal(found["lm_head.weight"], weights["lm_head.weight"])


def test_a_full_disk_while_merging_or_converting_leaves_nothing(lora_run: Path, tmp_path: Path) -> None:
    """A file that cannot grow any more is what a full disk is to who writes it."""
    for script, options in (
        ("utils/merge_lora.py", ("--lora_path", lora_run, "--save_path", tmp_path / "merged")),
        ("convert_litgpt_to_transformers.py", ("--input_path", lora_run, "--output_dir", tmp_path / "hf")),
    ):
        done = subprocess.run(
            [sys.executable, script, *map(str, options)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
        )
        assert done.returncode == 74, done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert not list(tmp_path.iterdir())
