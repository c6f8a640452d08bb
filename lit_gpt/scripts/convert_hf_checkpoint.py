"""A Hugging Face checkpoint → a litgpt directory: lit_model.pth and model_config.yaml beside the original files."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # the repository, not this file's folder

from lit_gpt.formats.options import ConvertHFOptions
from utils import cli

if __name__ == "__main__":
    OPTIONS = cli.parse_or_exit(ConvertHFOptions)  # --help and mistakes are answered before the slow imports below

import torch

from lit_gpt.formats.litgpt_directory import convert_hf_checkpoint
from lit_gpt.formats.programs import require_transformers
from lit_gpt.formats.tensor_files import lay_out_memory


def main(options: ConvertHFOptions) -> None:
    lay_out_memory()
    if options.verify == "logits":
        require_transformers(", or give --verify none")
    dtype = getattr(torch, options.dtype) if options.dtype else None
    print("\n".join(convert_hf_checkpoint(options.checkpoint_dir, dtype, options.verify == "logits")))


if __name__ == "__main__":
    sys.exit(cli.run(main, OPTIONS))
