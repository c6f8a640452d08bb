"""The work of the processes that tokenise: which blocks a split is cut into, and how many processes share them."""

import os
from collections.abc import Iterator, Mapping
from functools import partial

from utils.cluster.slurm import slurm_tasks
from utils.prepare.block_rows import Dialogue, Work, start_worker
from utils.prepare.blocks import read_blocks
from utils.prepare.options import MAIN_MEMORY, WORKER_MEMORY
from utils.prepare.plan import PreparePlan
from utils.prepare.sources import Source
from utils.prepare.work_pool import WorkPool

BLOCK_BYTES = 4 * 2**20  # text that a process gets at once: 0.1 s of work or more
PACKED = {".gz": 4, ".zst": 4, ".parquet": 3}  # text that a compressed file is taken to hold, in its own size

Duplicates = Mapping[tuple[int, int], dict[int, str]]
"""Number of a split's file and of a block in it → number of a document there → the document that it repeats."""


def text_bytes(sources: list[Source]) -> int:
    files = [file.path for source in sources for file in source.files]
    return sum(path.stat().st_size * PACKED.get(path.suffix, 1) for path in files)


def works_of(source: Source, plan: PreparePlan, duplicates: Duplicates) -> Iterator[Work]:
    """The blocks of a source's files, and how each is treated."""
    dialogue = plan.dialogues[source]
    size = block_bytes(plan, dialogue)
    for index, file in enumerate(source.files):
        for number, block in enumerate(read_blocks(file, size, plan.recipe.text_field)):
            yield Work(index, number, block, dialogue, duplicates.get((index, number), {}))


def block_bytes(plan: PreparePlan, dialogue: Dialogue | None) -> int:
    # with windows above 4,096 more text, at most 32 MB, so that rows are packed from enough documents
    times = min(8.0, max(1.0, plan.recipe.window / 4096))
    # with variants less, since they become as many tokens
    forms = 1 + dialogue.level if dialogue else 1
    wanted = int(times * BLOCK_BYTES) // forms
    # a document longer than a block is cut, so whatever fits a window or is not too long must fit a block:
    # a token has up to 32 bytes, a character up to four
    return max(wanted, 32 * plan.recipe.window, 4 * (plan.recipe.max_characters or 0))


def make_pool(sources: list[Source], plan: PreparePlan) -> WorkPool:
    """As many processes as are wanted, fit in memory, and get enough text to be worth their start."""
    options = plan.options
    wanted = options.num_workers or own_cpus()
    if options.max_memory is not None:
        fitting = int((1000 * options.max_memory - MAIN_MEMORY) / WORKER_MEMORY)
        wanted = min(wanted, max(1, fitting))
    useful = -(-text_bytes(sources) // BLOCK_BYTES)
    make_worker = partial(start_worker, plan.recipe, plan.sample if options.fast_tokenizer else None)
    return WorkPool(make_worker, max(1, min(wanted, useful)))


def own_cpus() -> int:
    """The CPUs of this process: of a Slurm task those it was given, by default one, bound to them or not."""
    if slurm_tasks():
        return int(os.environ.get("SLURM_CPUS_PER_TASK", 1))
    return len(os.sched_getaffinity(0))
