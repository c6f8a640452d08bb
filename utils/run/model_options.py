"""Options of the commands that generate and chat. Nothing heavy is imported here: `--help` answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_gpt.inference.sampling_options import Sampling


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Sampling):
    """Where a model is, where it computes, and how it continues texts."""

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
