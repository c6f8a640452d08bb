"""What a preparation makes, or will make, as far as a training asks for it."""

from pathlib import Path
from typing import NamedTuple

from lit_gpt.tokenizer.chat_template import ChatTemplate


class Prepared(NamedTuple):
    """What is known of the data before they are made, or of those that are there."""

    tokenizer: Path
    """Folder with its files."""
    positions: int
    added: list[str]
    """Tokens that were, or will be, added to the foundation's."""
    template: ChatTemplate | None
    """That of the chats, on this tokenizer; None where there are none."""
