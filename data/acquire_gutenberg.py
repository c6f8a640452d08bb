"""Downloads books of Project Gutenberg as text, with a list of where each comes from; a second call goes on."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this file's folder

from utils import cli
from utils.books.options import AcquireOptions

if __name__ == "__main__":
    OPTIONS = cli.parse_or_exit(AcquireOptions)  # --help and mistakes are answered before the imports below

from utils.books.downloads import acquire


def main(options: AcquireOptions) -> None:
    acquire(options)


if __name__ == "__main__":
    sys.exit(cli.run(main, OPTIONS))
