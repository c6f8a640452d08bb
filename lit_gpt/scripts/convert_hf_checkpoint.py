"""A Hugging Face checkpoint → a litgpt directory: lit_model.pth and model_config.yaml beside the original files."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # the repository, not this file's folder

from utils import cli


@dataclass(frozen=True)
class Options:
    """Convert a downloaded Hugging Face checkpoint, in place, for training and for litgpt's own commands."""

    SECTION = "convert_hf"

    checkpoint_dir: Path
    """Folder with config.json and the weights, as lit_gpt/scripts/download.py makes it."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Type of the weights in lit_model.pth. Default: as in the files."""
    verify: Literal["logits", "none"] = "logits"
    """logits: those of the converted model are those that transformers computes from the files, in a fresh process."""
    debug: bool = False
    """Show tracebacks."""


if __name__ == "__main__":
    OPTIONS = cli.parse_or_exit(Options)  # --help and mistakes are answered before the slow imports below

import torch

from lit_gpt.formats.litgpt_directory import convert_hf_checkpoint
from lit_gpt.formats.programs import require_transformers
from lit_gpt.formats.tensor_files import lay_out_memory


def main(options: Options) -> None:
    lay_out_memory()
    if options.verify == "logits":
        require_transformers(", or give --verify none")
    dtype = getattr(torch, options.dtype) if options.dtype else None
    print("\n".join(convert_hf_checkpoint(options.checkpoint_dir, dtype, options.verify == "logits")))


if __name__ == "__main__":
    sys.exit(cli.run(main, OPTIONS))
