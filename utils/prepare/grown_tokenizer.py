"""A tokenizer with the tokens of --add_tokens, as files by which every process of a preparation reads it."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from lit_gpt.errors import DataError, UserError
from lit_gpt.tokenizer.added_tokens import extends, not_there, with_added_tokens
from lit_gpt.tokenizer.tokenizer import TOKENIZER_FILES, Tokenizer
from utils.files.atomic import write_atomically
from utils.prepare.progress import say

GROWN = "tokenizer-*"


def grow_tokenizer(tokenizer: Tokenizer, names: Sequence[str], parts_dir: Path) -> tuple[Tokenizer, list[str]]:
    """The tokenizer with special tokens of these names, in a folder of `parts_dir`, and those that it did not have."""
    try:
        added = not_there(tokenizer, names)
    except UserError as e:
        raise UserError(f"--add_tokens {e}") from None
    if there := [name for name in names if name not in added]:
        say(f"--add_tokens: the tokenizer has these already, they stay as they are: {', '.join(there)}")
    if not added:
        return tokenizer, []
    files = {name: tokenizer.directory / name for name in TOKENIZER_FILES}
    contents = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
    contents |= with_added_tokens(tokenizer, added)
    # by its content: another start with other tokens, which the folder's lock will refuse, does not touch it
    digest = hashlib.sha256()
    for name, content in sorted(contents.items()):
        digest.update(f"{name} {len(content)} ".encode() + content)
    folder = parts_dir / GROWN.replace("*", digest.hexdigest()[:16])
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        if not (folder / name).is_file() or (folder / name).read_bytes() != content:
            write_atomically(folder / name, content)
    grown = Tokenizer(folder)
    if not extends(grown, tokenizer, added):
        raise DataError(
            f"--add_tokens: with them the tokenizer of {tokenizer.directory} would give other ids than before"
        )
    return grown, added


def remove_grown(parts_dir: Path) -> None:
    """Removes what `grow_tokenizer` wrote; the data folder has the tokenizer's files by then."""
    for folder in parts_dir.glob(GROWN):
        shutil.rmtree(folder)
