"""The loss on each dataset's validation rows."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch import nn

from utils.cluster.collectives import sum_over_processes
from utils.cluster.launch import data_parallel_part
from utils.data.batches import validation_batches
from utils.data.manifest import DatasetSplit
from utils.run.csv_log import ALL
from utils.train.step import Loss


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
    cut_short: Callable[[], bool] = lambda: False,
) -> dict[str, Loss] | None:
    """The loss on each dataset and over all datasets (`ALL`), weighted by their targets; None if it was cut short.

    Rows without a target give a loss of NaN with a count of zero.

    `micro_batch_size` is rows per forward pass. Of each dataset the first `max_rows` are taken (None: all).
    Every process asks `cut_short` before each batch, which must answer the same on all.
    """
    entries = list(entries)
    model.eval()
    part, parts = data_parallel_part(fabric)
    sums: list[float] = []
    for entry in entries:
        loss_sum, targets = torch.zeros((), device=fabric.device, dtype=torch.float64), 0
        for batch in validation_batches(
            data_dir, entry, window, part, parts, micro_batch_size, max_rows, mask_documents
        ):
            if cut_short():
                model.train()
                return None
            targets += batch.target_count
            batch = batch.to(fabric.device)
            loss_sum += model(batch.input_ids, segments=batch.segments, targets=batch.targets).sum
        sums += [loss_sum.item(), targets * parts / fabric.world_size]  # processes that share a model count the same
    model.train()
    sums = sum_over_processes(sums)
    losses = {
        entry.dataset: Loss.of(loss_sum, targets)
        for entry, loss_sum, targets in zip(entries, sums[::2], sums[1::2], strict=True)
    }
    return {**losses, ALL: Loss.of(sum(sums[::2]), sum(sums[1::2]))}
