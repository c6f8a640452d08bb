"""What a preparation makes, or will make, as far as a training asks for it."""

from pathlib import Path
from typing import NamedTuple


class Prepared(NamedTuple):
    """What is known of the data before they are made, or of those that are there."""

    tokenizer: Path
    """Folder with its files."""
    positions: int
    added: int
    """Tokens that were, or will be, added to the foundation's."""
