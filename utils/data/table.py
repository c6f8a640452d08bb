"""Tables for a person to read; importing pandas for them takes 0.4 s, which every process of a training would pay."""

from collections.abc import Sequence


def aligned(lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of cells as lines of text, two spaces between columns; all but the first `left` columns end together."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = []
    for line in lines:
        cells = []
        for column, (cell, width) in enumerate(zip(line, widths, strict=True)):
            cells.append(cell.ljust(width) if column < left else cell.rjust(width))
        texts.append("  ".join(cells))
    return texts
