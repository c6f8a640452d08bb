"""Uploads a folder with a model to the Hugging Face Hub; an interrupted upload continues where it stopped."""

import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this file's folder

from utils import cli
from utils.export.options import UploadOptions

if __name__ == "__main__":
    OPTIONS = cli.parse_or_exit(UploadOptions)  # --help and mistakes are answered before the imports below

from lit_gpt.formats.hub import describe_files, describe_left_out, files_to_send, holds_model, upload


def main(options: UploadOptions) -> None:
    say = partial(print, flush=True)
    names = files_to_send(options.input_dir)
    say(describe_files(options.input_dir, names))
    say(describe_left_out(options.input_dir, names))
    if options.dry_run:
        what = "a model" if holds_model(options.input_dir, names) else "no model, which only updates one that is there"
        say(f"would be sent to {options.repo}: {what}")
        return
    address = upload(options.input_dir, names, options.repo, options.private, options.message, say)
    say(f"on the Hub: {len(names)} files with the hashes of those here, {address}")


if __name__ == "__main__":
    sys.exit(cli.run(main, OPTIONS))
