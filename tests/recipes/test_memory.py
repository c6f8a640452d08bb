"""The memory that each shipped recipe says it needs is what the dry run foresees for its model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.recipes.shipped import RECIPES, needs_of, options_of
from utils.train.estimate import GIB

CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 141)
"""GiB of memory of the cards that there are."""
WHERE = r"(one GPU|each of (\d+) GPUs), as pretrain.py --dry_run foresees: (a card|cards)"
LINE = re.compile(rf"# Memory: ([\d.]+) GiB on {WHERE} of (\d+) GiB\.")


@pytest.mark.parametrize("path", RECIPES.values(), ids=RECIPES)
def test_the_memory_that_a_recipe_names_is_what_the_dry_run_foresees(path: Path) -> None:
    title, second = path.read_text(encoding="utf-8").splitlines()[:2]
    assert title.startswith("# ") and len(title) > 20
    said = LINE.fullmatch(second)
    assert said, second
    needs = needs_of(path)
    assert said[1] == f"{needs.memory / GIB:.1f}"
    assert int(said[3] or 1) == needs.workload.processes
    assert int(said[5]) == options_of(path).gpu_memory == next(size for size in CARDS if needs.fits(size))
