"""The model that generating and chatting read: a litgpt directory, or one with an adapter that is merged in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lit_gpt.errors import UserError
from lit_gpt.inference.sampling import Sampling

if TYPE_CHECKING:
    from lit_gpt.inference.generation import TextModel


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Sampling):
    """Where the model lies, where it computes, and how texts go on."""

    checkpoint_dir: Path | None = None
    """litgpt directory: lit_model.pth, model_config.yaml and the tokenizer's files. Default: that of --lora_path."""
    lora_path: Path | None = None
    """Adapter on it: a run folder (its best checkpoint, else its newest), a training checkpoint, or peft's folder."""
    precision: Literal["auto", "32-true", "16-true", "bf16-true"] = "auto"
    """Type of weights and arithmetic; auto: that of the weights in the file."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: on the GPU if there is one."""
    debug: bool = False
    """Show tracebacks."""


def load_text_model(options: ModelOptions) -> TextModel:
    """The model of `options`.

    Raises:
        UserError: for paths that are not what they should be.
        DataError: if files are damaged or do not belong together.
    """
    from lit_gpt.formats.litgpt_directory import read_config, read_weights
    from lit_gpt.inference.generation import TextModel
    from lit_gpt.tokenizer.tokenizer import Tokenizer
    from utils.run.merged_model import load_merged_model

    if options.lora_path is not None:
        trained = load_merged_model(options.lora_path, options.checkpoint_dir)
        if trained.lora is None:
            raise UserError(
                f"--lora_path {options.lora_path} holds all weights, not an adapter: make it a litgpt directory"
                " (convert_litgpt_to_transformers.py, then lit_gpt/scripts/convert_hf_checkpoint.py)"
            )
        config, weights, folder = trained.config, trained.state_dict, trained.tokenizer_dir
    elif options.checkpoint_dir is not None:
        folder = options.checkpoint_dir
        config, weights = read_config(folder), read_weights(folder)
    else:
        raise UserError("--checkpoint_dir (or --lora_path) is required; see --help")
    return TextModel(config, weights, Tokenizer(folder), options.precision, options.accelerator)
