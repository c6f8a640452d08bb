"""A folder with a model → a repository of the Hugging Face Hub; an interrupted upload goes on where it stopped."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class UploadOptions:
    """Upload a Hugging Face folder, or a new card for a model that is there; a second call sends only what is missing.

    The Hub needs a token that may write: run `hf auth login`, or set HF_TOKEN.
    """

    repo: str
    """The repository, as ORG/NAME; it is made if there is none."""
    input_dir: Path
    """Folder whose files are sent, as convert_litgpt_to_transformers.py makes it; litgpt's and hidden ones stay."""
    message: str = "Upload model"
    """The commit's message."""
    private: bool = True
    """Whether the repository is private, if it has to be made."""
    dry_run: bool = False
    """Show what would be sent, and end."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        from lit_gpt.errors import raise_problems
        from lit_gpt.formats.hub import check_repo_id

        problems = check_repo_id(self.repo, "REPO")
        if not self.message.strip():
            problems.append("--message must not be empty")
        raise_problems(problems)


def main(options: UploadOptions) -> None:
    from lit_gpt.formats.hub import describe_files, files_to_send, holds_model, upload

    names = files_to_send(options.input_dir)
    print(describe_files(options.input_dir, names), flush=True)
    if options.dry_run:
        what = "a model" if holds_model(options.input_dir, names) else "no model, which only updates one that is there"
        print(f"would be sent to {options.repo}: {what}")
        return
    address = upload(options.input_dir, names, options.repo, options.private, options.message, say)
    print(f"on the Hub: {len(names)} files with the hashes of those here, {address}")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from utils import cli

    sys.exit(cli.run(main, cli.parse_or_exit(UploadOptions)))
