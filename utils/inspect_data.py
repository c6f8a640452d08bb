"""Looks into a data folder: what it holds, whether its files are what they were, and what some rows say."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this file's folder

from lit_gpt.errors import raise_problems
from utils import cli


@dataclass(frozen=True)
class InspectOptions:
    """Show a data folder's datasets, compare its shards with their checksums, and print some rows as text."""

    folders: list[Path]
    """Data folders that prepare_data.py made."""
    show: int = 3
    """Rows to print of each split."""
    seed: int = 1337
    """Decides which rows."""
    worst: Literal["longest", "fewest_targets", "most_left_out"] | None = None
    """Show the worst texts by this instead, the worst one first; most_left_out shows the reports of preparation, too.
    """
    html: Path | None = None
    """Write the rows to this file, as a page, instead."""
    debug: bool = False
    """Show a traceback for any error."""

    def __post_init__(self) -> None:
        given = {"show": self.show, "seed": self.seed}
        problems = [f"--{name} must be at least 0, not {value}" for name, value in given.items() if value < 0]
        if self.html is not None and len(self.folders) > 1:
            problems.append("--html is the page of one data folder")
        raise_problems(problems)


if __name__ == "__main__":
    OPTIONS = cli.parse_or_exit(InspectOptions)  # --help and mistakes are answered before the imports below

from utils.data.inspection import inspect


def main(options: InspectOptions) -> None:
    for folder in options.folders:
        inspect(folder, options.show, options.seed, options.worst, options.html)


if __name__ == "__main__":
    sys.exit(cli.run(main, OPTIONS))
