"""A raw corpus and a tokenizer in, shards and their manifest out.

1. The corpus' files are found (`utils/prepare/sources.py`), and by a sample of the text the fastest library that
   tokenises as the tokenizer does (`encoding.py`).
2. Asked to, duplicates are found and chats divided among training and validation, over all datasets (`sifting.py`).
3. Processes turn each split's blocks into rows (`block_rows.py`), which go into its shards as they come (`splits.py`).
   `parts/<dataset>-<split>.json` says what they were made from: a second call keeps every split whose part still fits.
4. The manifest is written last (`data_folder.py`): its presence means the folder is complete.

The tasks of a Slurm step (`srun -n 8 python prepare_data.py …`) share the splits; their number changes nothing written.
"""

import sys
from functools import partial

from utils import cli
from utils.prepare.options import PrepareOptions

if __name__ == "__main__":
    OPTIONS = cli.parse_or_exit(PrepareOptions)  # --help and mistakes are answered before the imports below

from utils.cluster.slurm import join_tasks
from utils.data.inspection import inspect
from utils.files.folder_lock import locked
from utils.prepare.check import check
from utils.prepare.data_folder import publish, require_folder
from utils.prepare.plan import PARTS_FOLDER, make_plan, make_pool, share_out
from utils.prepare.sifting import sift_sources, with_test_runs
from utils.prepare.splits import prepare_splits
from utils.prepare.tasks import gather, on_first_task


def main(options: PrepareOptions) -> None:
    if options.inspect is not None:
        inspect(options.inspect, options.show, options.seed, options.worst, options.html)
        return
    if options.check:
        check(options)
        return
    data_dir = require_folder(options)
    tasks = join_tasks(data_dir)
    plan = on_first_task(lambda: make_plan(options, data_dir / PARTS_FOLDER), tasks)
    with locked(data_dir, lambda take: on_first_task(take, tasks), leave=False) as lock:
        plan = on_first_task(partial(with_test_runs, plan), tasks)
        own = share_out(plan.sources, plan.sizes, tasks.count)[tasks.rank]
        with make_pool(own, plan) as pool:
            sifted = sift_sources(own, plan, tasks, pool)
            done = prepare_splits(own, sifted, plan, pool)
        done_by_task = gather(lambda: done, tasks)
        if lock:
            lock.check()
            publish({source: split for of_task in done_by_task for source, split in of_task.items()}, plan)


if __name__ == "__main__":
    sys.exit(cli.run(main, OPTIONS))
