"""Converts a training's result into a Hugging Face folder with a model card, an endpoint handler and its provenance.

A fresh process loads the folder with transformers, and its logits and token ids must be ours (`--verify`). Only then
is the folder renamed to --output_dir, and uploaded if --repo_id is given.
"""

import sys
from pathlib import Path

from utils import cli
from utils.export.options import ConvertOptions, parse_size

if __name__ == "__main__":
    OPTIONS = cli.parse_or_exit(ConvertOptions)  # --help and mistakes are answered before the imports below

import torch

from lit_gpt.errors import UserError
from lit_gpt.formats.hub import describe_left_out, files_to_send, upload
from lit_gpt.formats.peft_logits import require_peft
from lit_gpt.formats.programs import require_transformers
from lit_gpt.formats.tensor_files import lay_out_memory
from utils.export.hf_folder import check_output_dir, keep_the_rest, write_adapter, write_folder
from utils.export.provenance import write_provenance
from utils.files.staged_folder import recover, staged
from utils.report.model_card import write_card
from utils.run.merge_check import compare_merged
from utils.run.merged_model import is_of_peft, load_merged_model


def main(options: ConvertOptions) -> None:
    lay_out_memory()
    output_dir = options.output_dir.resolve()
    recover(output_dir)  # before it is looked into
    check_output_dir(output_dir)
    if options.verify == "logits" and not options.as_adapter:
        require_transformers(", or give --verify tensors")
    if options.verify == "logits" and is_of_peft(options.input_path):
        require_peft(", or give --verify tensors")
    dtype = getattr(torch, options.dtype) if options.dtype else None
    model = load_merged_model(options.input_path, options.checkpoint_dir, dtype=dtype)
    if options.as_adapter and model.lora is None:
        raise UserError(f"--as_adapter: {options.input_path} holds all weights, not an adapter")
    if model.peft_dir and options.verify == "logits":
        print(compare_merged(model, model.state_dict), flush=True)

    with staged(output_dir) as stage, model.check:
        if options.as_adapter:
            hf, verified = write_adapter(stage, model, options.base_model, options.sampling())
        else:
            size = parse_size(options.max_shard_size)
            hf, verified = write_folder(stage, model, size, options.verify, options.sampling())
        print(verified)
        provenance = write_provenance(stage, model, hf, verified)
        model_id = options.repo_id or output_dir.name
        write_card(stage, model, hf, provenance, model_id, options.license, options.base_model)
        keep_the_rest(output_dir, stage)
    list_files(output_dir)

    if options.repo_id:
        names = files_to_send(output_dir, ignore=("*.gguf",))  # made from an earlier conversion
        print(describe_left_out(output_dir, names))
        address = upload(output_dir, names, options.repo_id, options.private, "Upload model", print)
        print(f"on the Hub: {len(names)} files with the hashes of those here, {address}")


def list_files(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.is_file():
            print(f"{path.stat().st_size / 1e6:12,.3f} MB  {path.name}")
    print(f"wrote {folder}")


if __name__ == "__main__":
    sys.exit(cli.run(main, OPTIONS))
