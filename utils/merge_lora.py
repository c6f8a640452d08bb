"""Merges a LoRA checkpoint, or an adapter of peft, into its foundation model and writes a litgpt directory.
The weights pass through one by one. They are written beside --save_path, read again and compared, and renamed last."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this file's folder

from utils import cli
from utils.export.options import MergeOptions

if __name__ == "__main__":
    OPTIONS = cli.parse_or_exit(MergeOptions)  # --help and mistakes are answered before the imports below

import torch

from lit_gpt.checksums import add_sums, listed_sums
from lit_gpt.errors import UserError
from lit_gpt.formats.litgpt_directory import WEIGHTS, lazy_weights, write_litgpt_directory
from lit_gpt.formats.peft_config import read_peft_config
from lit_gpt.formats.peft_logits import require_peft
from lit_gpt.formats.tensor_files import lay_out_memory
from utils.files.staged_folder import recover, staged_into
from utils.run.merge_check import compare_merged
from utils.run.merged_model import companion_files, is_of_peft, load_merged_model


def main(options: MergeOptions) -> None:
    lay_out_memory()
    folder = options.save_path.parent if options.save_path.suffix == ".pth" else options.save_path
    if options.save_path.suffix == ".pth" and options.save_path.name != WEIGHTS:
        raise UserError(f"--save_path {options.save_path} must be named {WEIGHTS}, which litgpt looks for")
    recover(folder)  # before it is looked into
    if (folder / WEIGHTS).exists():
        raise UserError(f"{folder / WEIGHTS} exists already; give another --save_path")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--save_path {folder} is a file")
    if options.verify == "logits" and is_of_peft(options.lora_path):
        require_peft(", or give --verify none")
    dtype = getattr(torch, options.dtype) if options.dtype else None
    model = load_merged_model(options.lora_path, options.checkpoint_dir, dtype=dtype)
    if model.lora is None:
        raise UserError(f"{options.lora_path} holds all weights, not an adapter: there is nothing to merge")
    with staged_into(folder, last=WEIGHTS) as stage, model.check:
        write_litgpt_directory(stage, model.config, model.state_dict, companion_files(model))
        add_sums(stage, {**listed_sums(folder), **listed_sums(stage)})  # of other files that are there already
        verified = compare_merged(model, lazy_weights(stage)) if options.verify == "logits" else "not verified"
        print(verified, flush=True)
    merged = model.provenance.get("checkpoint", "the adapter")
    made_for = read_peft_config(model.peft_dir).base if model.peft_dir else None
    by_its_words = f", by its own words for {made_for}," if made_for else ""
    print(f"merged {merged} of {options.lora_path}{by_its_words} into {folder / WEIGHTS}")


if __name__ == "__main__":
    sys.exit(cli.run(main, OPTIONS))
