"""Trained models: from a run folder, one of its checkpoints or a `lit_model.pth` to whole, merged weights."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litgpt.config import Config
from torch import Tensor

from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.hf_config import read_hf_config
from lit_gpt.formats.hf_logits import TOLERANCE, largest_difference, litgpt_logits, probe_sequences
from lit_gpt.formats.litgpt_directory import (
    CONFIG,
    WEIGHTS,
    lazy_weights,
    read_config,
    read_weights,
    weights_fingerprint,
)
from lit_gpt.formats.peft import ADAPTER_CONFIG, read_peft
from lit_gpt.model.lazy_tensors import in_dtype, specs_of
from lit_gpt.model.lora import LoRASettings, check_merged, merge_adapter
from lit_gpt.tokenizer.tokenizer import TOKENIZER_FILES
from utils.data.mixture import MIXTURE
from utils.run.checkpoint_folders import verify_checkpoint
from utils.run.checkpoint_reader import read_model_tensors
from utils.run.csv_log import ALL, METRICS, read_csv
from utils.run.input_path import find_input
from utils.run.progress import TrainingProgress
from utils.run.record import RunRecord

LOST_AT_MOST = 0.5
"""What merging in 16 bits may change of the logits, as a share of what the adapter changes of them."""


@dataclass(frozen=True)
class MergedModel:
    """A model's weights and where they come from."""

    config: Config
    state_dict: Mapping[str, Tensor]
    """litgpt's names, adapters merged; each tensor is read, and merged, when it is asked for."""
    tokenizer_dir: Path
    foundation_dir: Path | None
    """The litgpt directory the training began from; None if it began from random weights."""
    lora: LoRASettings | None
    """Of the adapter that was merged, None after full training."""
    provenance: dict[str, Any]
    """What was run, on what, and with what loss, as plain values; empty for a plain `lit_model.pth`."""
    run_dir: Path | None = None
    """The run folder that a checkpoint lies in."""
    base: Mapping[str, Tensor] | None = None
    """The foundation model's weights, as long as there is an adapter."""
    adapter: Mapping[str, Tensor] | None = None
    """The adapter that was merged, by litgpt's names."""


def load_merged_model(
    input_path: Path, checkpoint_dir: Path | None = None, verify: bool = True, dtype: torch.dtype | None = None
) -> MergedModel:
    """The model that `input_path` stands for, see `find_input`; or peft's adapter in it, merged.

    Args:
        input_path: run folder, checkpoint, `lit_model.pth` or peft's folder.
        checkpoint_dir: the foundation model, where run.yaml's is not to be found any more.
        verify: compare the checkpoint with its checksums first.
        dtype: of the weights. Default: as they are; of an adapter's base as the base is.

    Raises:
        UserError: for a path that is none of these.
        DataError: for a damaged checkpoint, or a foundation model other than the one it was trained on.
    """
    if (input_path / ADAPTER_CONFIG).is_file():
        return _load_peft(input_path, checkpoint_dir, dtype)
    source = find_input(input_path)
    if source.suffix == ".pth":
        if source.name != WEIGHTS:
            raise UserError(f"{source} must be named {WEIGHTS}")
        folder = source.parent
        return MergedModel(read_config(folder), in_dtype(lazy_weights(folder), dtype), folder, folder, None, {})
    if verify and (problem := verify_checkpoint(source)):
        raise DataError(f"{problem}; take another checkpoint")
    record = RunRecord.load(source)
    foundation = None
    if record.identity.base:
        foundation = checkpoint_dir or Path(record.options["checkpoint_dir"])
    trained = MergedModel(
        read_config(source / CONFIG),
        read_model_tensors(source),
        source,
        foundation,
        None,
        _provenance(record, source),
        source.resolve().parents[1],
    )
    if not record.identity.lora:
        return replace(trained, state_dict=in_dtype(trained.state_dict, dtype))
    adapter = dict(trained.state_dict)
    if zero := [name for name, tensor in adapter.items() if not tensor.any()]:
        raise DataError(f"the adapter in {source} changes nothing: {min(zero)} is zero; it is untrained")
    base = _foundation_weights(record, foundation, source)
    return _merge(trained, base, adapter, LoRASettings(**record.identity.lora), dtype)


def _load_peft(folder: Path, checkpoint_dir: Path | None, dtype: torch.dtype | None) -> MergedModel:
    if checkpoint_dir is None:
        raise UserError(f"{folder} is an adapter of peft; give its base model's litgpt directory by --checkpoint_dir")
    config, base = read_config(checkpoint_dir), lazy_weights(checkpoint_dir)
    adapter, lora = read_peft(folder, config, read_hf_config(checkpoint_dir))
    return _merge(MergedModel(config, base, checkpoint_dir, checkpoint_dir, None, {}), base, adapter, lora, dtype)


def _merge(
    trained: MergedModel,
    base: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    lora: LoRASettings,
    dtype: torch.dtype | None,
) -> MergedModel:
    merged = merge_adapter(base, adapter, trained.config, lora, dtype)
    return replace(trained, state_dict=merged, base=base, adapter=adapter, lora=lora)


def _foundation_weights(record: RunRecord, foundation: Path | None, source: Path) -> Mapping[str, Tensor]:
    if foundation is None:
        raise UserError(f"{source} is an adapter on random weights, which are not kept; train it on a foundation model")
    if not foundation.is_dir():
        raise UserError(f"the foundation model {foundation} is not there; give its place by --checkpoint_dir")
    if weights_fingerprint(read_weights(foundation)) != record.identity.base:  # of mapped ones, it reads a sample
        raise DataError(f"{foundation} is not the model that {source} was trained on")
    return lazy_weights(foundation)


def _provenance(record: RunRecord, checkpoint: Path) -> dict[str, Any]:
    progress = TrainingProgress.load(checkpoint)
    run_dir = checkpoint.resolve().parents[1]
    rows = read_csv(run_dir / METRICS)
    losses = {
        row["dataset"]: float(row["loss"])
        for row in rows
        if row["split"] == "valid" and int(row["step"]) == progress.step
    }
    return {
        **{key: value for key, value in vars(record).items() if key != "identity"},
        **{key: getattr(record.identity, key) for key in ("lora", "base", "data", "mixture", "seed")},
        **asdict(progress),
        "checkpoint": checkpoint.name,
        "validation_loss": losses.pop(ALL, None),
        "validation_losses": losses,
        "turns": sum(int(row["turns"]) for row in read_csv(run_dir / MIXTURE)),
    }


def compare_merged(trained: MergedModel, merged: Mapping[str, Tensor]) -> str:
    """Compares `merged` weights with the base model and its adapter, matrix by matrix and by logits; says the result.

    Merging rounds to the weights' type. In 16 bits a change smaller than the last place is lost: what that makes of the
    logits, in fp32, is measured by the adapter's own effect on them, both as root mean squares.

    Raises:
        DataError: if the merged weights are something else, or most of the adapter's effect is lost.
    """
    assert trained.base is not None and trained.adapter is not None and trained.lora is not None
    config = trained.config
    check_merged(trained.base, trained.adapter, merged, config, trained.lora)
    sequences = probe_sequences(config.padded_vocab_size, config.block_size)[-1:]
    both = ChainMap(dict(trained.adapter), trained.base)
    wanted = litgpt_logits(config, both, sequences, trained.lora)
    found = litgpt_logits(config, merged, sequences)
    effect = wanted[0] - litgpt_logits(config, trained.base, sequences)[0]
    if not effect.any():
        raise DataError("the adapter changes no logits: it is untrained, or not of this model")
    lost = float(np.sqrt(np.mean((found[0] - wanted[0]) ** 2) / np.mean(effect**2)))
    in_fp32 = {spec.dtype for spec in specs_of(merged).values()} == {torch.float32}
    equal = largest_difference(found, wanted)[1] <= TOLERANCE if in_fp32 else lost <= LOST_AT_MOST
    if not equal:
        advice = "" if in_fp32 else "; give --dtype float32"
        raise DataError(f"merged, the model differs from base + adapter by {lost:.2g} of the adapter's effect{advice}")
    return f"verified: each matrix, and the logits of base + adapter but for {lost:.2g} of the adapter's effect on them"


def companion_files(trained: MergedModel) -> list[Path]:
    """The files that belong beside the weights: the tokenizer's, and Hugging Face's config.json if there was one."""
    places = [trained.tokenizer_dir / name for name in TOKENIZER_FILES]
    if trained.foundation_dir:
        places.append(trained.foundation_dir / "config.json")
    return [path for path in places if path.is_file()]
