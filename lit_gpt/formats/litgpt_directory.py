"""litgpt checkpoint directories: `lit_model.pth`, `model_config.yaml` and the tokenizer's files."""

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from litgpt.config import Config
from torch import Tensor

from lit_gpt.checksums import Check, Expected, add_sums, as_listed, expected, file_sha256
from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.hf_config import config_from_hf, read_hf_config
from lit_gpt.formats.hf_files import CONFIG, WEIGHTS, is_of_model, noted_sums
from lit_gpt.formats.hf_logits import verify_conversion
from lit_gpt.formats.hf_weights import ForeignWeights
from lit_gpt.formats.tensor_files import only_tensors, open_tensors, reading, write_lit_model
from lit_gpt.json_files import read_json
from lit_gpt.model.lazy_tensors import LazyTensors
from lit_gpt.tokenizer.tokenizer_config import keep_spaces_in_litgpt


def read_config(path: Path, vocab_size: int | None = None) -> Config:
    """The model config of a YAML file with litgpt's fields, or of a litgpt directory; a UserError if there is none.

    `vocab_size` is the tokenizer's, for a file that leaves the model's open.
    """
    path = path / CONFIG if path.is_dir() else path
    _check_there(path)
    try:
        values = yaml.safe_load(as_listed(path).read_text(encoding="utf-8"))
        if vocab_size is not None and not {"vocab_size", "padded_vocab_size"} & values.keys():
            values |= {"vocab_size": vocab_size, "padded_vocab_size": vocab_size}
        return Config(**values)
    except (ValueError, TypeError, AttributeError, AssertionError, yaml.YAMLError) as e:
        raise UserError(f"{path} is no model config: {e}") from None


def convert_hf_checkpoint(directory: Path, dtype: torch.dtype | None = None, verify: bool = False) -> list[str]:
    """Writes `lit_model.pth` and `model_config.yaml` beside a Hugging Face checkpoint; returns lines that say so.

    The list of checksums beside them then has every weight file. `dtype` None keeps the files'. `verify` compares the
    result with transformers before it is put in place. Raises what `read_hf_config`, `config_from_hf` and
    `ForeignWeights` do, and a DataError for a file that is not as it was downloaded or listed.
    """
    hf = read_hf_config(directory)
    if "model_type" not in hf:
        raise DataError(f"{directory / 'config.json'} has no model_type, by which transformers chooses the class")
    config = config_from_hf(hf)
    weights = ForeignWeights(directory, config, hf)
    staged_config, staged_model = (directory / f".{name}.tmp" for name in (CONFIG, WEIGHTS))
    files = expected_hf(directory)
    try:
        with Check(files) as check:
            parameters, sha256 = write_lit_model(staged_model, weights.tensors(dtype))
            verified = verify_conversion(directory, config, open_tensors(staged_model), weights.spare) if verify else ""
        staged_config.write_text(yaml.safe_dump(asdict(config)), encoding="utf-8")
        sums = {path.name: found for path, found in check.finish().items()}
        add_sums(directory, {**sums, CONFIG: file_sha256(staged_config), WEIGHTS: sha256})
        staged_config.replace(directory / CONFIG)
        staged_model.replace(directory / WEIGHTS)  # last: where it is, the directory is complete
    finally:
        staged_config.unlink(missing_ok=True)
        staged_model.unlink(missing_ok=True)
    lines = [f"{hf['architectures'][0]}, {parameters:,} parameters, context {config.block_size:,}"]
    whole = read_json(directory / "config.json")["architectures"][0]
    if whole != hf["architectures"][0]:
        lines.append(f"the text part of a {whole}: what reads pictures is left out")
    lines += weights.notes
    if weights.tied:
        rows, columns = config.padded_vocab_size, config.n_embd
        lines.append(
            f"the output layer is tied to the embeddings; here each has its own {rows:,} × {columns:,},"
            f" {rows * columns:,} parameters more than in the files, and a training of all weights parts them"
        )
    if config.sliding_window_size:
        sliding = sum(config.sliding_window_indices)
        lines.append(f"{sliding} of {config.n_layer} layers have a sliding window of {config.sliding_window_size:,}")
    lines += keep_spaces_in_litgpt(directory)
    if compared := sum(file.sha256 is not None for file in files):
        lines.append(f"{compared} files as they were downloaded or made: SHA-256 equal")
    lines += [verified] if verified else []
    return [*lines, f"wrote {directory / WEIGHTS} and {directory / CONFIG}"]


def expected_hf(directory: Path) -> list[Expected]:
    """The weights of a Hugging Face folder with the SHA-256 that the Hub's client noted, else with that of the folder's
    list, and what else that list has of the model."""
    noted = noted_sums(directory)
    files = []
    for file in expected(directory, lambda name: name not in (WEIGHTS, CONFIG) and not name.endswith(".gguf")):
        if file.path.name in noted:
            sha256, record = noted[file.path.name]
            files.append(Expected(file.path, sha256, "the Hub, noted when it was fetched", record))
        elif file.sha256 is not None or is_of_model(file.path.name):
            files.append(file)
    return files


def config_values(config: Config) -> dict[str, Any]:
    """The config as plain YAML values, as litgpt writes them."""
    return yaml.safe_load(yaml.dump(asdict(config)))


def read_weights(checkpoint_dir: Path) -> dict[str, Tensor]:
    """Maps `lit_model.pth`: a node's processes share it. A UserError if it is missing, a DataError if damaged."""
    path = checkpoint_dir / WEIGHTS
    _check_there(path)
    with reading(path):
        return only_tensors(torch.load(path, mmap=True, weights_only=True, map_location="cpu"))


def lazy_weights(checkpoint_dir: Path) -> LazyTensors:
    """As `read_weights`, but each tensor is read, and compared with its CRC, when it is asked for."""
    path = checkpoint_dir / WEIGHTS
    _check_there(path)
    return open_tensors(path)


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise UserError(
            f"{path} is missing: not a litgpt checkpoint directory (lit_gpt/scripts/convert_hf_checkpoint.py)"
        )


def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, over names, shapes and a sample of each tensor's values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        # 64 values, evenly spread, tell any two trained models apart without reading hundreds of gigabytes
        flat = tensor.reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)].float()
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(sample.contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_litgpt_directory(
    folder: Path, config: Config, weights: Mapping[str, Tensor], companions: Iterable[Path]
) -> Path:
    """Makes `folder` a litgpt directory with `companions` and a list of checksums; returns `lit_model.pth`, which is
    whole or not there."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [CONFIG]
    for companion in companions:
        if companion.parent.resolve() != folder.resolve():
            shutil.copyfile(companion, folder / companion.name)
            names.append(companion.name)
    keep_spaces_in_litgpt(folder)
    (folder / CONFIG).write_text(yaml.safe_dump(config_values(config), sort_keys=False), encoding="utf-8")
    staged = folder / f".{WEIGHTS}.tmp"
    try:
        weights_sha256 = write_lit_model(staged, weights.items()).sha256
        add_sums(folder, {name: file_sha256(folder / name) for name in names} | {WEIGHTS: weights_sha256})
        return staged.rename(folder / WEIGHTS)
    finally:
        staged.unlink(missing_ok=True)
