"""What is left out of a corpus and what is held out, decided over all its datasets before any of it becomes rows.

Each task signs its documents (`duplicates.py`), and task 0 decides. Texts are compared with texts and chats with chats,
test splits first, so that what is in both stays in validation and training never sees it; then datasets by name,
documents in their order. The first of equal ones stays. Chats are divided among training and validation by the groups
of their prompts (`prompts.py`), duplicates among them.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from utils.cluster.slurm import Tasks
from utils.prepare.clean_reports import forget_duplicates, write_duplicates
from utils.prepare.contamination import TEST_RUNS, write_runs
from utils.prepare.duplicates import sign_sources
from utils.prepare.plan import PreparePlan, Sifted
from utils.prepare.progress import say
from utils.prepare.prompts import find_groups, held_out
from utils.prepare.signatures import find_repeats
from utils.prepare.signed_corpus import SignedCorpus
from utils.prepare.sources import Source
from utils.prepare.tasks import gather, on_first_task
from utils.prepare.work_pool import WorkPool


def with_test_runs(plan: PreparePlan) -> PreparePlan:
    """The plan with the runs of words of the test files, on the disk."""
    options = plan.options
    if not options.contamination:
        return plan
    files = [Path(file) for file in options.contamination]
    leave_out = options.contaminated == "leave_out"
    runs = write_runs(files, options.contamination_words, leave_out, plan.parts_dir / TEST_RUNS)
    return replace(plan, recipe=replace(plan.recipe, test_runs=runs))


def sift_sources(own: list[Source], plan: PreparePlan, tasks: Tasks, pool: WorkPool) -> dict[str, Sifted]:
    """By name of the split, what repeats a document of this corpus, and which chats are of the other split."""
    if plan.options.deduplicate == "no" and not plan.divides_chats:
        on_first_task(lambda: forget_duplicates(plan.data_dir), tasks)
        return {}
    gather(lambda: sign_sources(own, plan, pool), tasks)
    return on_first_task(lambda: decide(plan), tasks)


def decide(plan: PreparePlan) -> dict[str, Sifted]:
    options = plan.options
    corpus = SignedCorpus(plan.parts_dir, plan.sources)
    repeats = np.full(len(corpus.places), -1)
    if options.deduplicate != "no":
        threshold = options.similarity if options.deduplicate == "near" else None
        exact = corpus.exact()
        for kind in (corpus.is_chat, ~corpus.is_chat):
            documents = np.flatnonzero(kind)
            sketches = corpus.sketches(kind) if threshold is not None else None
            found = find_repeats(exact[documents], sketches, threshold or 1.0)
            repeats[documents[found >= 0]] = documents[found[found >= 0]]
        write_duplicates(plan, corpus, repeats)
    else:
        forget_duplicates(plan.data_dir)
    is_moved = np.zeros(len(corpus.places), bool)
    if plan.divides_chats:
        is_moved = divide(corpus, repeats, options.validation_share)
    return corpus.by_split(repeats, is_moved)


def divide(corpus: SignedCorpus, repeats: np.ndarray, share: float) -> np.ndarray:
    """Which documents go from training to validation, [documents] bool."""
    chats = np.flatnonzero(corpus.is_chat)
    prompts = corpus.prompts()
    groups = find_groups(prompts)
    is_test = corpus.is_test[chats]
    is_held_out = held_out(prompts.exact, groups.first, share, is_test)
    is_moved = np.zeros(len(corpus.places), bool)
    is_moved[chats] = is_held_out & ~is_test
    stay = repeats[chats] < 0
    to_divide = stay & ~is_test
    total, moved = int(to_divide.sum()), int((to_divide & is_held_out).sum())
    sizes = np.bincount(groups.first[to_divide])
    largest = int(sizes.max(initial=0))
    achieved = f"{moved:,} of {total:,} chats are held out ({100 * moved / max(total, 1):.2f} %)"
    in_groups = f"{int((sizes > 0).sum()):,} groups of nearly equal prompts, the largest of {largest:,}"
    say(f"--validation_share {share:g}: {achieved}; {in_groups}")
    if groups.coarse:
        say(f"warning: {groups.coarse:,} prompts of one form are one group, being too many to compare each with each")
    if not moved or moved == total or largest > share * total:
        say("warning: the share held out is not as wanted: there are too few groups, or too large ones")
    return is_moved


def digest(sifted: Sifted) -> str:
    duplicates = [[key, sorted(documents.items())] for key, documents in sorted(sifted.duplicates.items())]
    others = [[key, numbers.tolist()] for key, numbers in sorted(sifted.others.items()) if len(numbers)]
    return hashlib.sha256(json.dumps([duplicates, others]).encode()).hexdigest()
