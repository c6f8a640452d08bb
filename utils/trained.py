"""Trained models: from a run folder, one of its checkpoints or a `lit_model.pth` to whole, merged weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from litgpt.config import Config
from torch import Tensor

from lit_gpt.command import DataError, UserError
from lit_gpt.foundation import CONFIG, WEIGHTS, read_config, read_weights, weights_fingerprint
from lit_gpt.hf import read_hf_config
from lit_gpt.lora import LoRASettings, merge_adapter
from lit_gpt.peft import ADAPTER_CONFIG, read_peft
from lit_gpt.tokenizer import TOKENIZER_FILES
from utils.checkpoint import STATE, SUMS, Progress, list_checkpoints, read_model_tensors, verify_checkpoint
from utils.mixture import MIXTURE
from utils.run_folder import ALL, METRICS, RUN, RunRecord, best_checkpoint, read_csv


@dataclass(frozen=True)
class TrainedModel:
    """A model's weights and where they come from."""

    config: Config
    state_dict: dict[str, Tensor]
    """litgpt's names, adapters merged."""
    tokenizer_dir: Path
    foundation_dir: Path | None
    """The litgpt directory the training began from; None if it began from random weights."""
    lora: LoRASettings | None
    """Of the adapter that was merged, None after full training."""
    provenance: dict[str, Any]
    """What was run, on what, and with what loss, as plain values; empty for a plain `lit_model.pth`."""
    run_dir: Path | None = None
    """The run folder that a checkpoint lies in."""
    adapter: Mapping[str, Tensor] | None = None
    """The adapter that was merged, by litgpt's names."""


def find_input(path: Path) -> Path:
    """What `path` stands for: a training checkpoint (of a run folder the best, else the newest) or a `lit_model.pth`.

    Raises:
        UserError: if it is none of these.
    """
    if path.is_file() and path.suffix == ".pth":
        return path
    if (path / STATE).is_file() or (path / SUMS).is_file():
        return path
    if (path / RUN).is_file():
        checkpoints = list_checkpoints(path)
        if not checkpoints:
            raise UserError(f"the run in {path} has no complete checkpoint yet")
        return best_checkpoint(path, checkpoints)
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    raise UserError(f"{path} is neither a run folder, nor a training checkpoint, nor a {WEIGHTS}")


def load_trained(input_path: Path, checkpoint_dir: Path | None = None, verify: bool = True) -> TrainedModel:
    """The model that `input_path` stands for, see `find_input`; or peft's adapter in it, merged.

    Args:
        input_path: run folder, checkpoint, `lit_model.pth` or peft's folder.
        checkpoint_dir: the foundation model, where run.yaml's is not to be found any more.
        verify: compare the checkpoint with its checksums first.

    Raises:
        UserError: for a path that is none of these.
        DataError: for a damaged checkpoint, or a foundation model other than the one it was trained on.
    """
    if (input_path / ADAPTER_CONFIG).is_file():
        return _load_peft(input_path, checkpoint_dir)
    source = find_input(input_path)
    if source.suffix == ".pth":
        if source.name != WEIGHTS:
            raise UserError(f"{source} must be named {WEIGHTS}")
        folder = source.parent
        return TrainedModel(read_config(folder), read_weights(folder), folder, folder, None, {})
    if verify and (problem := verify_checkpoint(source)):
        raise DataError(f"{problem}; take another checkpoint")
    record = RunRecord.load(source)
    config = read_config(source / CONFIG)
    tensors = read_model_tensors(source)
    foundation, lora, adapter = None, None, None
    if record.identity["base"]:
        foundation = checkpoint_dir or Path(record.options["checkpoint_dir"])
    if record.identity["lora"]:
        lora = LoRASettings(**record.identity["lora"])
        adapter = tensors
        tensors = merge_adapter(_foundation_weights(record, foundation, source), adapter, config, lora)
    run_dir = source.resolve().parents[1]
    return TrainedModel(config, tensors, source, foundation, lora, _provenance(record, source), run_dir, adapter)


def _load_peft(folder: Path, checkpoint_dir: Path | None) -> TrainedModel:
    if checkpoint_dir is None:
        raise UserError(f"{folder} is an adapter of peft; give its base model's litgpt directory by --checkpoint_dir")
    config = read_config(checkpoint_dir)
    adapter, lora = read_peft(folder, config, read_hf_config(checkpoint_dir))
    merged = merge_adapter(read_weights(checkpoint_dir), adapter, config, lora)
    return TrainedModel(config, merged, checkpoint_dir, checkpoint_dir, lora, {}, adapter=adapter)


def _foundation_weights(record: RunRecord, foundation: Path | None, source: Path) -> Mapping[str, Tensor]:
    if foundation is None:
        raise UserError(f"{source} is an adapter on random weights, which are not kept; train it on a foundation model")
    if not foundation.is_dir():
        raise UserError(f"the foundation model {foundation} is not there; give its place by --checkpoint_dir")
    weights = read_weights(foundation)
    if weights_fingerprint(weights) != record.identity["base"]:
        raise DataError(f"{foundation} is not the model that {source} was trained on")
    return weights


def _provenance(record: RunRecord, checkpoint: Path) -> dict[str, Any]:
    progress = Progress.load(checkpoint)
    run_dir = checkpoint.resolve().parents[1]
    rows = read_csv(run_dir / METRICS)
    losses = {
        row["dataset"]: float(row["loss"])
        for row in rows
        if row["split"] == "valid" and int(row["step"]) == progress.step
    }
    return {
        **{key: value for key, value in vars(record).items() if key != "identity"},
        **{key: record.identity[key] for key in ("lora", "base", "data", "mixture", "seed")},
        **asdict(progress),
        "checkpoint": checkpoint.name,
        "validation_loss": losses.pop(ALL, None),
        "validation_losses": losses,
        "turns": sum(int(row["turns"]) for row in read_csv(run_dir / MIXTURE)),
    }


def companion_files(trained: TrainedModel) -> list[Path]:
    """The files that belong beside the weights: the tokenizer's, and Hugging Face's config.json if there was one."""
    places = [trained.tokenizer_dir / name for name in TOKENIZER_FILES]
    if trained.foundation_dir:
        places.append(trained.foundation_dir / "config.json")
    return [path for path in places if path.is_file()]
