"""Uploads a dataset of books to the Hugging Face Hub; an interrupted upload continues where it stopped."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this file's folder

from utils import cli
from utils.export.options import UploadDatasetOptions

if __name__ == "__main__":
    OPTIONS = cli.parse_or_exit(UploadDatasetOptions)  # --help and mistakes are answered before the imports below

from lit_gpt.formats.hub import publish
from utils.books.dataset_folder import DATASET


def main(options: UploadDatasetOptions) -> None:
    publish(options.input_dir, options.repo, options.private, options.message, options.dry_run, DATASET)


if __name__ == "__main__":
    sys.exit(cli.run(main, OPTIONS))
