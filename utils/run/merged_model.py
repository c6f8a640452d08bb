"""Models that are ready to use: from a run folder, a checkpoint, an adapter or a `lit_model.pth` to whole weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from torch import Tensor

from lit_gpt.checksums import SUMS, Check, expected
from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.hf_config import read_hf_config
from lit_gpt.formats.litgpt_directory import CONFIG, WEIGHTS, lazy_weights, read_config, read_weights
from lit_gpt.formats.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_peft
from lit_gpt.formats.peft_whole import with_rows_for
from lit_gpt.inference.generation import TextModel
from lit_gpt.json_files import read_json_if_there
from lit_gpt.model.growing import grow
from lit_gpt.model.lazy_tensors import in_dtype
from lit_gpt.model.lora import LoRASettings, base_name, is_adapter, merge_adapter
from lit_gpt.tokenizer.tokenizer import TOKENIZER_FILES, Tokenizer
from utils.data.mixture import MIXTURE
from utils.run.checkpoint_folders import best_checkpoint, list_checkpoints, verify_checkpoint
from utils.run.checkpoint_reader import read_model_tensors
from utils.run.csv_log import ALL, ENDING_COLUMNS, METRICS, SAMPLES_COLUMN, read_csv
from utils.run.foundation import begin_check, expected_base, require_base
from utils.run.model_options import ModelOptions
from utils.run.progress import STATE, TrainingProgress
from utils.run.record import PROVENANCE, RUN, RunRecord


@dataclass(frozen=True)
class MergedModel:
    """A model's weights and where they come from."""

    config: Config
    """Without adapters."""
    state_dict: Mapping[str, Tensor]
    """litgpt's names, adapters merged; each tensor is read, and merged, when it is asked for."""
    tokenizer_dir: Path
    foundation_dir: Path | None
    """The litgpt directory the training began from; None if it began from random weights."""
    lora: LoRASettings | None = None
    """Settings of the adapter that was merged; None after full training."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What was run, on what, and with what loss, as plain values; empty for a plain `lit_model.pth`."""
    run_dir: Path | None = None
    base: Mapping[str, Tensor] | None = None
    """The foundation model's weights, as long as there is an adapter."""
    adapter: Mapping[str, Tensor] | None = None
    """The adapter that was merged, by litgpt's names."""
    peft_dir: Path | None = None
    """peft's folder, where the adapter came from there."""
    check: Check = field(default_factory=Check)
    """Compares the files with their checksums; who publishes what he made of the weights waits for it."""

    @property
    def is_chat(self) -> bool:
        """Whether it was trained on chats: by the template, and to the ends, that are in `tokenizer_dir`."""
        return bool(self.provenance.get("template"))

    @property
    def has_own_tokenizer(self) -> bool:
        """Whether the tokenizer's files are others than the foundation's."""
        return self.is_chat or self.has_new_tokens

    @property
    def has_new_tokens(self) -> bool:
        """Whether it may have tokens that the foundation lacks."""
        return bool(self.provenance.get("added_tokens")) or self.tokenizer_dir == self.peft_dir


def find_input(path: Path) -> Path:
    """Finds a training checkpoint (of a run folder the best, else the newest) or a `lit_model.pth` by a user's path."""
    is_weights = path.is_file() and path.suffix == ".pth"
    if is_weights or (path / STATE).is_file() or ((path / SUMS).is_file() and (path / ".metadata").is_file()):
        return path
    if (path / RUN).is_file():
        checkpoints = list_checkpoints(path)
        if not checkpoints:
            raise UserError(f"the run in {path} has no complete checkpoint yet")
        return best_checkpoint(path, checkpoints)
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    raise UserError(f"{path} is neither a run folder, nor a training checkpoint, nor a {WEIGHTS}")


def is_of_peft(path: Path) -> bool:
    """Whether the folder holds an adapter of peft; a UserError if it holds whole weights too."""
    if not (path / ADAPTER_CONFIG).is_file():
        return False
    if (path / WEIGHTS).is_file():
        raise UserError(f"{path} holds an adapter ({ADAPTER_CONFIG}) and {WEIGHTS}; move one of them away")
    return True


def load_merged_model(
    input_path: Path, checkpoint_dir: Path | None = None, verify: bool = True, dtype: torch.dtype | None = None
) -> MergedModel:
    """Loads the model that `input_path` means, see `find_input`; or peft's adapter in that folder, merged.

    Args:
        checkpoint_dir: the foundation model, where run.yaml's is not to be found any more.
        verify: compare the checkpoint with its checksums first.
        dtype: of the weights. Default: as they are; of an adapter's base as the base is.

    Raises:
        UserError: for a path that is none of these.
        DataError: for a damaged checkpoint, or a foundation model other than the one it was trained on.
    """
    if is_of_peft(input_path):
        return _load_peft(input_path, checkpoint_dir, dtype)
    source = find_input(input_path)
    if source.suffix == ".pth":
        if source.name != WEIGHTS:
            raise UserError(f"{source} must be named {WEIGHTS}")
        folder = source.parent
        weights, check = in_dtype(lazy_weights(folder), dtype), begin_check(expected_base(folder))
        return MergedModel(read_config(folder), weights, folder, folder, check=check)
    if verify and (problem := verify_checkpoint(source)):
        raise DataError(f"{problem}; take another checkpoint")
    record = RunRecord.load(source)
    foundation = None
    if record.identity.base:
        foundation = checkpoint_dir or Path(record.options["checkpoint_dir"])
    config, tensors = read_config(source / CONFIG), read_model_tensors(source)
    run_dir = source.resolve().parents[1]
    provenance = _provenance(record, source, run_dir)
    trained = MergedModel(config, tensors, source, foundation, provenance=provenance, run_dir=run_dir)
    if not record.identity.lora:
        return replace(trained, state_dict=in_dtype(tensors, dtype))
    adapter = {base_name(name): tensor for name, tensor in tensors.items()}
    base, check = _foundation_weights(record, foundation, source)
    if record.identity.added_tokens:
        base = grow(base, config, len(record.identity.added_tokens))
    if zero := [name for name, tensor in adapter.items() if _is_untrained(name, tensor, base)]:
        reason = "the base model's" if min(zero) in base else "zero"
        raise DataError(f"the adapter in {source} changes nothing: {min(zero)} is {reason}; it is untrained")
    lora = LoRASettings(**record.identity.lora)
    merged = merge_adapter(base, adapter, config, lora, dtype)
    return replace(trained, state_dict=merged, lora=lora, base=base, adapter=adapter, check=check)


def _is_untrained(name: str, tensor: Tensor, base: Mapping[str, Tensor]) -> bool:
    """Whether training has changed nothing: A and B, of which B begins as zeros, or what is trained whole."""
    if is_adapter(name):
        return not tensor.any()
    return name in base and torch.equal(tensor.float(), base[name].float())


def _load_peft(folder: Path, checkpoint_dir: Path | None, dtype: torch.dtype | None) -> MergedModel:
    if checkpoint_dir is None:
        raise UserError(f"{folder} is an adapter of peft; give its base model's litgpt directory by --checkpoint_dir")
    provenance = read_json_if_there(folder / PROVENANCE)
    foundation, hf = read_config(checkpoint_dir), read_hf_config(checkpoint_dir)
    config, base = with_rows_for(folder, foundation, lazy_weights(checkpoint_dir), hf)
    added = config.padded_vocab_size - foundation.padded_vocab_size
    require_base(checkpoint_dir, provenance.get("base"), folder)
    own = expected(folder, lambda name: name == ADAPTER_WEIGHTS)
    check = begin_check([*own, *expected_base(checkpoint_dir)])
    adapter, lora = read_peft(folder, config, hf, base)
    merged = merge_adapter(base, adapter, config, lora, dtype)
    has_own = added or provenance.get("template") or provenance.get("added_tokens")
    tokenizer_dir = folder if has_own else checkpoint_dir
    if added and not any((folder / name).is_file() for name in TOKENIZER_FILES[:2]):
        raise UserError(
            f"{folder} is for {added} tokens more than {checkpoint_dir} has, and has no tokenizer to say which"
        )
    trained = MergedModel(config, merged, tokenizer_dir, checkpoint_dir, lora, base=base, adapter=adapter)
    return replace(trained, peft_dir=folder, check=check)


def _foundation_weights(record: RunRecord, foundation: Path | None, source: Path) -> tuple[Mapping[str, Tensor], Check]:
    """The weights that the adapter in `source` was trained on, and the check that they are."""
    if foundation is None:
        raise UserError(f"{source} is an adapter on random weights, which are not kept; train it on a foundation model")
    if not foundation.is_dir():
        raise UserError(f"the foundation model {foundation} is not there; give its place by --checkpoint_dir")
    if not (foundation / WEIGHTS).is_file():
        raise UserError(f"{foundation} has no {WEIGHTS}; give the foundation model's place by --checkpoint_dir")
    require_base(foundation, record.identity.base, source)
    return lazy_weights(foundation), begin_check(expected_base(foundation))


def _provenance(record: RunRecord, checkpoint: Path, run_dir: Path) -> dict[str, Any]:
    progress = TrainingProgress.load(checkpoint)
    losses, figures = {}, {}
    for row in read_csv(run_dir / METRICS):
        if row["split"] != "valid":
            continue
        step, is_measured = int(row["step"]), row["targets"] != "0"
        if step == progress.step and is_measured:
            losses[row["dataset"]] = float(row["loss"])
        if row["dataset"] == ALL:
            names = ("loss", *ENDING_COLUMNS) if is_measured else (SAMPLES_COLUMN,)
            figures[step] = {name: float(row[name]) for name in names if row.get(name)}
    return {
        **{key: value for key, value in vars(record).items() if key != "identity"},
        **{key: getattr(record.identity, key) for key in ("lora", "base", "data", "template", "mixture", "seed")},
        **({"added_tokens": record.identity.added_tokens} if record.identity.added_tokens else {}),
        **asdict(progress),
        "checkpoint": checkpoint.name,
        "validation_loss": losses.pop(ALL, None),
        "validation_losses": losses,
        "validation": figures.get(progress.step, {}),
        "validation_before_training": figures.get(0, {}),
        "turns": sum(int(row["turns"]) for row in read_csv(run_dir / MIXTURE)),
    }


def load_text_model(options: ModelOptions) -> TextModel:
    """The model and tokenizer for generating and chatting: a litgpt directory's, with an adapter merged into it."""
    if options.lora_path is not None:
        trained = load_merged_model(options.lora_path, options.checkpoint_dir)
        if trained.lora is None:
            raise UserError(
                f"--lora_path {options.lora_path} holds all weights, not an adapter: make it a litgpt directory"
                " (convert_litgpt_to_transformers.py, then lit_gpt/scripts/convert_hf_checkpoint.py)"
            )
        config, weights, folder, check = trained.config, trained.state_dict, trained.tokenizer_dir, trained.check
    elif options.checkpoint_dir is not None:
        folder = options.checkpoint_dir
        config, weights, check = read_config(folder), read_weights(folder), begin_check(expected_base(folder))
    else:
        raise UserError("--checkpoint_dir (or --lora_path) is required; see --help")
    return TextModel(config, weights, Tokenizer(folder), options.precision, options.accelerator, check)


def companion_files(trained: MergedModel) -> list[Path]:
    """The files that belong beside the weights: the tokenizer's, and Hugging Face's config.json if there was one."""
    places = [trained.tokenizer_dir / name for name in TOKENIZER_FILES]
    if trained.foundation_dir:
        places.append(trained.foundation_dir / "config.json")
    return [path for path in places if path.is_file()]
