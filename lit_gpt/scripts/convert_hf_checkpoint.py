"""A Hugging Face checkpoint → a litgpt directory: lit_model.pth and model_config.yaml beside the original files."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Options:
    """Convert a downloaded Hugging Face checkpoint, in place, for training and for litgpt's own commands."""

    checkpoint_dir: Path
    """Folder with config.json and the weights, as lit_gpt/scripts/download.py makes it."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Type of the weights in lit_model.pth. Default: as in the files."""
    debug: bool = False
    """Show tracebacks."""


def main(options: Options) -> None:
    import torch
    import yaml

    from lit_gpt.hf import config_from_hf, read_hf_config, tensors_from_hf, write_lit_model

    directory = options.checkpoint_dir
    hf = read_hf_config(directory)
    config = config_from_hf(hf)
    staged_config, staged_model = (directory / f".{name}.tmp" for name in ("model_config.yaml", "lit_model.pth"))
    try:
        dtype = getattr(torch, options.dtype) if options.dtype else None
        parameters = write_lit_model(staged_model, tensors_from_hf(directory, config, hf, dtype))
        staged_config.write_text(yaml.safe_dump(asdict(config)))
        staged_config.replace(directory / "model_config.yaml")
        staged_model.replace(directory / "lit_model.pth")  # last: where it is, the directory is complete
    finally:
        staged_config.unlink(missing_ok=True)
        staged_model.unlink(missing_ok=True)
    print(f"{hf['architectures'][0]}, {parameters:,} parameters, context {config.block_size:,}")
    if config.sliding_window_size:
        sliding = sum(config.sliding_window_indices)
        print(f"{sliding} of {config.n_layer} layers have a sliding window of {config.sliding_window_size:,}")
    print(f"wrote {directory / 'lit_model.pth'} and {directory / 'model_config.yaml'}")


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # the repository, not this file's folder
    from lit_gpt import command

    sys.exit(command.run(Options, main))
