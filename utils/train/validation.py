"""The loss on each dataset's validation rows, and on chats whether the model would end an answer where it ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from torch import nn

from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.cluster.collectives import sum_over_processes
from utils.cluster.launch import data_parallel_part
from utils.data.batches import Batch, validation_batches
from utils.data.ends import AT_END, INSIDE
from utils.data.manifest import TOKENIZER, DatasetSplit, Manifest
from utils.prepare.chat.encoding import DATE
from utils.run.csv_log import ALL, END_COLUMNS

_VALUES = 6  # of `Validation.of`


class Validation(NamedTuple):
    """What was measured on a dataset's rows."""

    mean: float
    """Mean cross-entropy per target, NaN where there is none."""
    targets: int
    end_at_ends: float | None
    """Mean probability of the tokens that end an answer, where answers end; None where none does."""
    end_inside: float | None
    """The same at the other targets of answers."""

    @classmethod
    def of(cls, sums: Iterable[float]) -> Validation:
        """From the sums of losses, of probabilities at ends and inside answers, each followed by its count."""
        loss, targets, at_ends, ends, inside, others = sums
        return cls(
            loss / targets if targets else math.nan,
            round(targets),
            at_ends / ends if ends else None,
            inside / others if others else None,
        )

    @property
    def columns(self) -> dict[str, Any]:
        """Those of `LOSS_COLUMNS` and `END_COLUMNS` but for the dataset's."""
        ends = (self.end_at_ends, self.end_inside)
        return {"loss": self.mean, "targets": self.targets} | dict(zip(END_COLUMNS, ends, strict=True))


def told(found: dict[str, Validation]) -> str:
    """What was measured, in one line for a log."""
    each = "  ".join(f"{name} {one.mean:.4f}" for name, one in found.items() if name != ALL)
    text = f"{found[ALL].mean:.4f}  ({each})"
    at_ends, inside = found[ALL].end_at_ends, found[ALL].end_inside
    if at_ends is not None and inside is not None:
        text += f"  answers end with a probability of {at_ends:.4f} at their ends, {inside:.2g} inside"
    return text


def template_of(data_dir: Path, manifest: Manifest) -> ChatTemplate | None:
    """The template of the data's chats, which writes the date that the data have; None for data without chats."""
    return ChatTemplate(Tokenizer(data_dir / TOKENIZER), now=lambda: DATE) if manifest.template else None


def end_ids_of(template: ChatTemplate | None) -> list[int]:
    """The tokens that end an answer; none without chats."""
    return sorted(template.end_ids) if template else []


@torch.no_grad()
def validate(
    fabric: Fabric,
    model: nn.Module,
    data_dir: Path,
    entries: Iterable[DatasetSplit],
    window: int,
    micro_batch_size: int,
    max_rows: int | None,
    mask_documents: bool,
    end_ids: Collection[int] = (),
    cut_short: Callable[[], bool] = lambda: False,
) -> dict[str, Validation] | None:
    """What is measured on each dataset, and on all (`ALL`), weighted by their targets; None if it was cut short.

    Rows without a target give a loss of NaN with a count of zero.

    `micro_batch_size` is rows per forward pass. Of each dataset the first `max_rows` are taken (None: all). `end_ids`
    are the tokens that end an answer. Every process asks `cut_short` before each batch, which must answer the same on
    all.
    """
    entries = list(entries)
    model.eval()
    part, parts = data_parallel_part(fabric)
    sums: list[float] = []
    for entry in entries:
        ends = end_ids if entry.conversations else ()
        own = _Sums(model, fabric.device, ends)
        for batch in validation_batches(
            data_dir, entry, window, part, parts, micro_batch_size, max_rows, mask_documents, ends
        ):
            if cut_short():
                model.train()
                return None
            own.add(batch)
        sums += own.read(parts / fabric.world_size)  # processes that share a model count the same
    model.train()
    each = torch.tensor(sum_over_processes(sums), dtype=torch.float64).view(len(entries), _VALUES)
    found = {entry.dataset: Validation.of(own) for entry, own in zip(entries, each.tolist(), strict=True)}
    return {**found, ALL: Validation.of(each.sum(0).tolist())}


class _Sums:
    """What a process has measured on one dataset's rows; the device is waited for at the end alone."""

    def __init__(self, model: nn.Module, device: torch.device, end_ids: Collection[int]) -> None:
        self._model, self._device = model, device
        self._watched = torch.tensor([*end_ids], device=device) if end_ids else None
        self._counts = [0, 0, 0]
        self._sums = torch.zeros(3, device=device, dtype=torch.float64)

    def add(self, batch: Batch) -> None:
        kinds = (AT_END, INSIDE)
        found = [batch.target_count, *(0 if batch.ends is None else int((batch.ends == kind).sum()) for kind in kinds)]
        self._counts = [count + more for count, more in zip(self._counts, found, strict=True)]
        batch = batch.to(self._device)
        losses = self._model(batch.input_ids, segments=batch.segments, targets=batch.targets, watched=self._watched)
        self._sums[0] += losses.sum
        if batch.ends is None:
            return
        for index, kind in enumerate(kinds, start=1):
            self._sums[index] += torch.where(batch.ends == kind, losses.watched, 0).double().sum()

    def read(self, share: float) -> list[float]:
        """The arguments of `Validation.of`, each count a `share` of what was counted."""
        values = []
        for measured, count in zip(self._sums.tolist(), self._counts, strict=True):
            values += [measured, count * share]
        return values
