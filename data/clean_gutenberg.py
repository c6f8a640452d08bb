"""Books in, their works out: what is not the work is taken out, and all of it reported.

1. Each book is decoded and cleaned by one of several processes (`utils/books/cleaning.py`).
2. `reports/` says what was taken out, with the text around it, and which books need a human's look, by reason.
3. A second call cleans what is new or changed (`utils/books/cleaned_folder.py`); what a person corrected is kept.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this file's folder

from utils import cli
from utils.books.options import CleanOptions

if __name__ == "__main__":
    OPTIONS = cli.parse_or_exit(CleanOptions)  # --help and mistakes are answered before the imports below

from collections import Counter

from lit_gpt.errors import DataError
from utils.books.cleaned_folder import CLEANED, EDITED, EMPTY, REFUSED, clean_folder
from utils.books.reports import REVIEW
from utils.prepare.book_folders import REPORTS
from utils.prepare.progress import say


def main(options: CleanOptions) -> None:
    outcomes = clean_folder(options)
    kinds = Counter(outcome.kind for outcome in outcomes)
    new = sum(outcome.is_new and outcome.kind == CLEANED for outcome in outcomes)
    say(f"{options.output_dir}: {kinds[CLEANED]:,} books are cleaned, {new:,} of them now")
    if kinds[EDITED]:
        say(f"{kinds[EDITED]:,} books were changed by hand and are kept")
    for kind in (EMPTY, REFUSED):
        if kinds[kind]:
            say(f"{kinds[kind]:,} books are left out: {kind}")
    if kinds[CLEANED] + kinds[EDITED] == 0:
        raise DataError(f"no book of {options.input_dir} could be cleaned; see {options.output_dir / REPORTS / REVIEW}")


if __name__ == "__main__":
    sys.exit(cli.run(main, OPTIONS))
