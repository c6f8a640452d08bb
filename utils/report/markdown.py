"""Markdown of values that come from elsewhere: they stay values, whatever they hold."""

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from utils.run.samples_file import readable

_CHARACTERS = 2000  # of a text that a model wrote


def table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str | None:
    """A Markdown table; None without rows. Columns in which every cell is empty are left out."""
    cells = pd.DataFrame(rows, columns=list(titles), dtype=object).map(cell)
    cells = cells.loc[:, (cells != "").any()]
    if cells.empty:
        return None
    lines = [list(cells), ["---"] * cells.shape[1], *cells.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    """A value as text of one line that neither ends a table's cell nor is HTML."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def fenced(text: str) -> str:
    """A text as a block of code that nothing in it can end; what cannot be shown is written as in JSON."""
    shown = text[:_CHARACTERS] + "…" * (len(text) > _CHARACTERS)
    content = "\n".join(map(readable, shown.split("\n")))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", content)), default=0))
    return f"{fence}text\n{content}\n{fence}"
