"""Merges a LoRA checkpoint, or an adapter of peft, into its foundation model: a litgpt directory comes out.

The weights pass through one by one. They are written beside --save_path, read again and compared, and renamed last.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class MergeOptions:
    """Merge a LoRA checkpoint, or an adapter of peft, into the foundation model it was trained on."""

    lora_path: Path
    """Run folder (its best checkpoint, else its newest), a training checkpoint's directory, or peft's folder."""
    save_path: Path
    """The merged lit_model.pth, or the directory to write it in; config and tokenizer are put beside it."""
    checkpoint_dir: Path | None = None
    """Foundation model. Default: the one in the run's run.yaml; peft's folder names none."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Type of the merged weights. Default: the foundation model's. The sum is computed in float32 always."""
    verify: Literal["logits", "none"] = "logits"
    """logits: those of the written model, computed layer by layer in float32, are those of base and adapter."""
    debug: bool = False
    """Show tracebacks."""


def main(options: MergeOptions) -> None:
    import torch

    from lit_gpt.errors import UserError
    from lit_gpt.formats.litgpt_directory import WEIGHTS, lazy_weights, write_foundation
    from lit_gpt.formats.tensor_files import lay_out_memory
    from utils.files.staged_folder import recover, staged_into
    from utils.run.trained import companion_files, compare_merged, load_trained

    lay_out_memory()
    folder = options.save_path.parent if options.save_path.suffix == ".pth" else options.save_path
    if options.save_path.suffix == ".pth" and options.save_path.name != WEIGHTS:
        raise UserError(f"--save_path {options.save_path} must be named {WEIGHTS}, which litgpt looks for")
    recover(folder)  # before it is looked into
    if (folder / WEIGHTS).exists():
        raise UserError(f"{folder / WEIGHTS} exists already; give another --save_path")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--save_path {folder} is a file")
    dtype = getattr(torch, options.dtype) if options.dtype else None
    trained = load_trained(options.lora_path, options.checkpoint_dir, dtype=dtype)
    if trained.lora is None:
        raise UserError(f"{options.lora_path} holds all weights, not an adapter: there is nothing to merge")
    with staged_into(folder, last=WEIGHTS) as stage:
        write_foundation(stage, trained.config, trained.state_dict, companion_files(trained))
        if options.verify == "logits":
            print(compare_merged(trained, lazy_weights(stage)), flush=True)
    print(
        f"merged {trained.provenance.get('checkpoint', 'the adapter')} of {options.lora_path} into {folder / WEIGHTS}"
    )


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from utils import cli

    sys.exit(cli.run(main, cli.parse_or_exit(MergeOptions)))
