"""A model of the Hugging Face Hub → checkpoints/ORG/NAME, ready to be trained on.

1. The revision is settled to a commit, and the files that are needed are chosen. Programs are not among them: only
   numbers and text are loaded later.
2. The configuration and the tokenizer come first: whether the model is supported is known before its weights are here.
3. Files that an interrupted call has left are completed. Each file's hash must be the one that the Hub lists.
4. The checkpoint is converted to litgpt's form (`--convert`).
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # the repository, not this file's folder

from lit_gpt.checksums import add_sums, file_sha256
from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.options import DownloadOptions
from utils import cli

# The card says which licence the weights have. Weights in other layouts (original/, consolidated.*) are left there.
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*.json",
    "chat_template*.jinja",
    "README.md",
    "LICENSE*",
    "NOTICE*",
)
PROGRAMS = (".py", ".sh", ".so")


if __name__ == "__main__":
    OPTIONS = cli.parse_or_exit(DownloadOptions)  # --help and mistakes are answered before the slow imports below

from huggingface_hub import HfApi, ModelInfo, snapshot_download

from lit_gpt.formats.hf_files import PICKLE_LAYOUT, SAFETENSORS_LAYOUT, is_of_model, matches
from lit_gpt.formats.hub import hub_errors, is_same
from lit_gpt.formats.programs import require_transformers


def main(options: DownloadOptions) -> None:
    folder = options.checkpoint_dir / options.repo_id
    if options.weights and options.convert and options.verify == "logits":
        require_transformers(", or give --verify none")
    with hub_errors(options.repo_id):
        info = HfApi().model_info(options.repo_id, revision=options.revision, files_metadata=True)
    names = [file.rfilename for file in info.siblings or []]
    weights, companions = choose_weights(names), matching(names, COMPANIONS)
    if options.weights and not weights:
        raise UserError(f"{options.repo_id} has no weights in Hugging Face's layout (model.safetensors)")
    if programs := [name for name in names if name.endswith(PROGRAMS)]:
        print(f"left on the Hub, as programs of others are never loaded: {', '.join(programs)}")
    fetch(info, companions, folder)
    if not options.weights:
        print(f"downloaded {len(companions)} files of {options.repo_id} (commit {info.sha}) to {folder}, no weights")
        return
    if options.convert:
        from lit_gpt.formats.hf_config import config_from_hf, read_hf_config  # a download alone needs no torch

        config_from_hf(read_hf_config(folder))  # raises for a model that cannot be converted
    fetch(info, weights, folder)
    remove_other_weights(folder, weights)
    large = {file.rfilename: file.lfs.sha256 for file in info.siblings or [] if file.lfs}
    add_sums(folder, {name: large.get(name) or file_sha256(folder / name) for name in weights})
    print(f"downloaded {len(companions) + len(weights)} files of {options.repo_id} (commit {info.sha}) to {folder}")
    if options.convert:
        convert(folder, options.dtype, options.verify == "logits")
    else:
        print(f"next: python lit_gpt/scripts/convert_hf_checkpoint.py --checkpoint_dir {folder}")


def matching(names: Sequence[str], patterns: tuple[str, ...]) -> list[str]:
    """The files at the top of the repository that match one of the patterns, in name order."""
    plain = [name for name in names if re.fullmatch(r"[A-Za-z0-9_.-]+", name) and not name.endswith(PROGRAMS)]
    return sorted(name for name in plain if matches(name, patterns))


def choose_weights(names: Sequence[str]) -> list[str]:
    """The weights among a repository's files: safetensors, and .bin only where there are none."""
    chosen = matching(names, SAFETENSORS_LAYOUT) or matching(names, PICKLE_LAYOUT)
    return chosen if any(not name.endswith(".json") for name in chosen) else []


def fetch(info: ModelInfo, names: Sequence[str], folder: Path) -> None:
    """Downloads files of the commit `info`, though its branch may move on meanwhile, and compares their hashes."""
    with hub_errors(info.id):
        snapshot_download(info.id, revision=info.sha, local_dir=folder, allow_patterns=list(names))
    listed = {file.rfilename: file for file in info.siblings or []}
    if wrong := [name for name in names if not is_same(folder / name, listed[name])]:
        for name in wrong:
            (folder / name).unlink(missing_ok=True)
        raise DataError(f"not what the Hub lists, and removed from {folder}: {', '.join(wrong)}; download again")


def remove_other_weights(folder: Path, weights: Sequence[str]) -> None:
    """Removes weights of a revision that was here before: an index of theirs would be read in place of `weights`."""
    others = [path for path in sorted(folder.iterdir()) if is_of_model(path.name) and path.name not in weights]
    for path in others:
        path.unlink()
    if others:
        print(f"removed, being of another revision: {', '.join(path.name for path in others)}")


def convert(folder: Path, dtype: str | None, verify: bool) -> None:
    # a download alone needs no torch
    import torch

    from lit_gpt.formats.litgpt_directory import convert_hf_checkpoint

    print("\n".join(convert_hf_checkpoint(folder, getattr(torch, dtype) if dtype else None, verify)))


if __name__ == "__main__":
    sys.exit(cli.run(main, OPTIONS))
