"""Which files of a corpus are held out, by the names of their folders and their own.

The rule is the one of the library `datasets` for a folder: a word such as `test`, `dev` or `validation` in the name of
a folder, whole or between `-`, `.`, `_`, spaces and digits; else in the file's own name. Where words contradict each
other, the one that holds out wins. Held out is more than there: a file whose name begins with such a word in any case
(`Test.jsonl`), also in a folder `train`, and what is in a folder with such a name in capital letters.
"""

import re
from pathlib import PurePosixPath

_TRAIN = "(?:train|training)"
_VALIDATION = "(?:validation|valid|dev|val)"
_TEST = "(?:test|testing|eval|evaluation)"
_HELD_OUT = f"(?:{_VALIDATION}|{_TEST})"
_SEPARATOR = "[-._ 0-9]"
_WORDS = {"train": _TRAIN, "validation": _VALIDATION, "test": _TEST}

_TRAIN_FOLDER = re.compile(rf"(?s:(?:.*{_SEPARATOR})?{_TRAIN}(?:{_SEPARATOR}.*)?)")
_HELD_OUT_FOLDER = re.compile(rf"(?s:(?:.*{_SEPARATOR})?{_HELD_OUT}(?:{_SEPARATOR}.*)?)|(?i:{_HELD_OUT})")
_HELD_OUT_FILE = re.compile(rf"(?s:(?:.*{_SEPARATOR})?{_HELD_OUT}{_SEPARATOR}.*)")
_BEGINS_HELD_OUT = re.compile(rf"(?is:{_HELD_OUT}(?:[-_.].*)?)")
_SPLIT = re.compile(rf"(?i:{_TRAIN}|{_HELD_OUT})")
_SHARD = re.compile(r"(?s:(.+)-[0-9]{5}-of-[0-9]{5}.*\..*)")


def held_out_by(file: PurePosixPath, is_one_text: bool) -> str:
    """The folder (with `/` behind it) or file name for which `file`, relative to the corpus, is held out; else empty.

    `is_one_text` says that the file is one document, which has a title rather than the name of a split.
    """
    folders = file.parts[:-1]
    for folder in folders:
        if is_held_out(folder):
            return f"{folder}/"
    if _BEGINS_HELD_OUT.fullmatch(file.name) and not is_one_text:
        return file.name
    if names_training(file.parent):
        return ""
    name = file.name
    if file.parent.name == "data" and (shard := _SHARD.fullmatch(name)):
        name = f"{shard[1]}."  # the name of the split, whatever is behind its number
    return file.name if _HELD_OUT_FILE.fullmatch(name) else ""


def is_held_out(split: str) -> bool:
    """Whether a folder, or a split of this name, is held out."""
    return _HELD_OUT_FOLDER.fullmatch(split) is not None


def names_training(folder: PurePosixPath) -> bool:
    return any(map(_TRAIN_FOLDER.fullmatch, folder.parts))


def is_split(name: str) -> bool:
    """Whether a name is one of the words for splits and nothing else."""
    return _SPLIT.fullmatch(name) is not None


def without_splits(folder: PurePosixPath) -> PurePosixPath:
    """A folder's path without the parts that are nothing but the name of a split: the `web` of `web/test`."""
    return PurePosixPath(*[part for part in folder.parts if not is_split(part)])


def split_words(name: str, is_file: bool = False) -> set[str]:
    """The splits train, validation and test that the name of a folder or a file has a word for."""
    end = f"{_SEPARATOR}.*" if is_file else f"(?:{_SEPARATOR}.*)?"
    return {split for split, word in _WORDS.items() if re.fullmatch(rf"(?s:(?:.*{_SEPARATOR})?{word}{end})", name)}
