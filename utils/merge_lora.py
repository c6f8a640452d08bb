"""Merges a LoRA checkpoint, or an adapter of peft, into its foundation model: a litgpt directory comes out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MergeOptions:
    """Merge a LoRA checkpoint, or an adapter of peft, into the foundation model it was trained on."""

    lora_path: Path
    """Run folder (its best checkpoint, else its newest), a training checkpoint's directory, or peft's folder."""
    save_path: Path
    """The merged lit_model.pth, or the directory to write it in; config and tokenizer are put beside it."""
    checkpoint_dir: Path | None = None
    """Foundation model. Default: the one in the run's run.yaml; peft's folder names none."""
    debug: bool = False
    """Show tracebacks."""


def main(options: MergeOptions) -> None:
    from lit_gpt.command import UserError
    from lit_gpt.foundation import WEIGHTS, write_foundation
    from utils.trained import companion_files, load_trained

    folder = options.save_path.parent if options.save_path.suffix == ".pth" else options.save_path
    if options.save_path.suffix == ".pth" and options.save_path.name != WEIGHTS:
        raise UserError(f"--save_path {options.save_path} must be named {WEIGHTS}, which litgpt looks for")
    if (folder / WEIGHTS).exists():
        raise UserError(f"{folder / WEIGHTS} exists already; give another --save_path")
    trained = load_trained(options.lora_path, options.checkpoint_dir)
    if trained.lora is None:
        raise UserError(f"{options.lora_path} holds all weights, not an adapter: there is nothing to merge")
    path = write_foundation(folder, trained.config, trained.state_dict, companion_files(trained))
    print(f"merged {trained.provenance.get('checkpoint', 'the adapter')} of {options.lora_path} into {path}")


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from lit_gpt import command

    sys.exit(command.run(MergeOptions, main))
