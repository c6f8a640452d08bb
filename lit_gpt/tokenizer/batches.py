"""Texts in batches, for what takes memory by the size of all texts that it gets at once."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

Text = TypeVar("Text", str, bytes)


def batches(texts: Iterable[Text], limit: int) -> Iterator[list[Text]]:
    """Consecutive texts of up to `limit` characters or bytes together; a longer one is alone."""
    batch: list[Text] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > limit:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch
