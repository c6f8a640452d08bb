"""A model of the Hugging Face Hub → checkpoints/ORG/NAME: configuration, tokenizer and weights."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

# The card says which licence the weights have. Weights in other layouts (original/, consolidated.*) are left there.
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "README.md",
    "LICENSE*",
)
SAFETENSORS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
BIN = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Options:
    """Download a model from the Hugging Face Hub; a second call goes on where the first one stopped.

    Gated and private models need a token: run `hf auth login`, or set HF_TOKEN.
    """

    repo_id: str
    """The model, as ORG/NAME."""
    checkpoint_dir: Path = Path("checkpoints")
    """Where models are kept; this one comes into the folder ORG/NAME in it."""
    revision: str | None = None
    """Branch, tag or commit. Default: the main branch."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        from lit_gpt.command import UserError

        if self.repo_id.count("/") != 1 or not all(part.strip(".") for part in self.repo_id.split("/")):
            raise UserError(f"--repo_id must be ORG/NAME, not '{self.repo_id}'")


def main(options: Options) -> None:
    from huggingface_hub import HfApi, snapshot_download

    from lit_gpt.command import UserError
    from lit_gpt.hub import hub_errors

    folder = options.checkpoint_dir / options.repo_id
    with hub_errors(options.repo_id):
        info = HfApi().model_info(options.repo_id, revision=options.revision)
        wanted = choose_files([file.rfilename for file in info.siblings or []])
        if not any(fnmatch(name, pattern) for name in wanted for pattern in (*SAFETENSORS, *BIN)):
            raise UserError(f"{options.repo_id} has no weights in Hugging Face's layout (model.safetensors)")
        # the commit that was listed, though the branch may move on meanwhile
        snapshot_download(options.repo_id, revision=info.sha, local_dir=folder, allow_patterns=wanted)
    print(f"downloaded {len(wanted)} files of {options.repo_id} (commit {info.sha}) to {folder}")
    print(f"next: python lit_gpt/scripts/convert_hf_checkpoint.py --checkpoint_dir {folder}")


def choose_files(names: list[str]) -> list[str]:
    """Of a repository's files the ones that are needed; .bin weights only where there are no safetensors."""

    def matching(patterns: tuple[str, ...]) -> list[str]:
        return [name for name in names if "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)]

    return sorted(matching(COMPANIONS) + (matching(SAFETENSORS) or matching(BIN)))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # the repository, not this file's folder
    from lit_gpt import command

    sys.exit(command.run(Options, main))
