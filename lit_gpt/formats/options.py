"""Options of the commands that fetch and convert models. Nothing heavy is imported here: `--help` answers at once."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_gpt.errors import raise_problems
from lit_gpt.formats.repo_id import check_repo_id


@dataclass(frozen=True)
class DownloadOptions:
    """Download a model from the Hugging Face Hub and convert it; a second call goes on where the first one stopped.

    Gated and private models need a token: run `hf auth login`, or set HF_TOKEN.
    """

    SECTION = "download"

    repo_id: str
    """The model, as ORG/NAME."""
    checkpoint_dir: Path = Path("checkpoints")
    """Where models are kept; this one comes into the folder ORG/NAME in it."""
    revision: str | None = None
    """Branch, tag or commit. Default: the main branch."""
    weights: bool = True
    """false: only its tokenizer and configuration, for a model from scratch."""
    convert: bool = True
    """Make it a litgpt directory, as lit_gpt/scripts/convert_hf_checkpoint.py does."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Type of the converted weights. Default: as in the files."""
    verify: Literal["logits", "none"] = "logits"
    """logits: those of the converted model are those that transformers computes from the files, in a fresh process."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        problems = check_repo_id(self.repo_id, "--repo_id")
        if self.revision is not None and not re.fullmatch(r"[\w./-]+", self.revision):
            problems.append(f"--revision must be a branch, a tag or a commit, not {self.revision!r}")
        raise_problems(problems)


@dataclass(frozen=True)
class ConvertHFOptions:
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
