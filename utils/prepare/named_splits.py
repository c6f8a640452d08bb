"""Splits by name and parts of them, as the library `datasets` writes and finds them.

`train`, `train_sft+test_sft`, `train[:1000]`, `train[10%:20%]`, `train[-5%:]`. Which files make which split is said by
a dataset card (`dataset_cards.py`), else by the names of files and folders.
"""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from utils.prepare.split_names import split_words

_NAME = r"\w+(?:\.\w+)*"
_BOUND = r"(?:(-?[0-9][0-9_]*)(%)?)?"
_PART = re.compile(rf"({_NAME})(?:\[{_BOUND}:{_BOUND}\])?(?:\((closest|pct1_dropremainder)\))?")
_SHARD = re.compile(rf"data/({_NAME})-[0-9]{{5}}-of-[0-9]{{5}}[^/]*\.[^/]*")


class SplitPart(NamedTuple):
    split: str
    begin: int | None = None  # None: from the first row
    end: int | None = None  # None: to the last row
    is_percent: bool = False
    is_whole_percent: bool = False  # a percent is a hundredth of the rows without a remainder

    @property
    def is_whole(self) -> bool:
        return self.begin is None and self.end is None

    def rows(self, count: int) -> tuple[int, int]:
        """The first row of the part and the one behind its last, of a split of `count` rows."""
        begin = 0 if self.begin is None else self._row(self.begin, count)
        end = count if self.end is None else self._row(self.end, count)
        return begin, max(begin, end)

    def _row(self, bound: int, count: int) -> int:
        if self.is_percent and self.is_whole_percent:
            bound *= count // 100
        elif self.is_percent:
            bound = round(bound * count / 100)
        return min(bound, count) if bound >= 0 else max(bound + count, 0)


def parse_split(text: str) -> list[SplitPart]:
    """The parts of `train[:50%]+test`, in order; a ValueError says what is wrong."""
    return [_parse_part(part.strip()) for part in text.split("+")]


def _parse_part(text: str) -> SplitPart:
    found = _PART.fullmatch(text)
    if found is None:
        raise ValueError(f"'{text}' is no split such as train, train[:1000] or train[10%:20%]")
    split, begin, begin_percent, end, end_percent, rounding = found.groups()
    bounds = [int(bound) if bound else None for bound in (begin, end)]
    units = {unit for bound, unit in ((begin, begin_percent), (end, end_percent)) if bound}
    is_percent = "%" in units
    if len(units) > 1:
        raise ValueError(f"'{text}': both ends of a part are rows, or both are percents")
    if is_percent and any(bound is not None and abs(bound) > 100 for bound in bounds):
        raise ValueError(f"'{text}': a percent is at most 100")
    if rounding and not is_percent:
        raise ValueError(f"'{text}': rows are not rounded")
    return SplitPart(split, *bounds, is_percent, rounding == "pct1_dropremainder")


def files_by_split(names: Iterable[str]) -> dict[str, list[str]]:
    """Which files, by their paths in a dataset, make which split: the first rule that finds one decides.

    1. `data/NAME-00000-of-00001.parquet` is of the split NAME.
    2. A folder says it by a word such as `train`, `dev` or `test` in its name; 3. a file does so.
    4. All are of `train`.
    """
    names = sorted(names)
    shards: dict[str, list[str]] = {}
    for name in names:
        if shard := _SHARD.fullmatch(name):
            shards.setdefault(shard[1], []).append(name)
    if shards:
        return shards
    for in_folders in (True, False):
        found: dict[str, list[str]] = {}
        for name in names:
            for split in _splits_of(name, in_folders):
                found.setdefault(split, []).append(name)
        if found:
            return found
    return {"train": names}


def _splits_of(name: str, in_folders: bool) -> set[str]:
    path = PurePosixPath(name)
    if not in_folders:
        return split_words(path.name, is_file=True)
    splits: set[str] = set()
    for folder in path.parts[:-1]:
        splits |= split_words(folder)
    return splits
