"""Which documents of a corpus repeat another one: signatures of each split, then one decision over all.

`sign_sources` signs a split's blocks in parallel and appends the signatures to files in
`parts/<dataset>-<split>.signatures/`: memory does not grow with the corpus, and a killed call does not start anew.
`decide` takes test splits first, so that a text in both stays in validation and training never sees it; then datasets
by name, documents in their order. The first of equal ones stays. A document longer than a block, and therefore in
parts, is not compared.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from lit_gpt.errors import naming
from utils.cluster.slurm import Tasks
from utils.data.manifest import TEST
from utils.files.atomic import write_array, write_atomically
from utils.prepare.block_rows import Work, length_problem
from utils.prepare.documents import parse
from utils.prepare.plan import Duplicates, PreparePlan, block_bytes, text_bytes, works_of
from utils.prepare.progress import ProgressLine
from utils.prepare.signatures import PERMUTATIONS, Signatures, find_repeats, sign_texts
from utils.prepare.sources import Source, file_facts
from utils.prepare.tasks import gather, on_first_task
from utils.prepare.work_pool import WorkPool
from utils.prepare.worker import Worker

PARTS = "parts"  # the folder in a data folder for what a preparation needs until it is complete, or to be continued
Signed = tuple[Signatures, np.ndarray]  # of a block's documents, and [documents, 2] int64: number, and byte or row
_LOCATION = 4  # numbers that say where a document is: file, block, document in the block, byte or row


def find_duplicates(own: list[Source], plan: PreparePlan, tasks: Tasks, pool: WorkPool) -> dict[str, Duplicates]:
    """By name of the split, what repeats a document of this corpus: each task signs its own, task 0 decides."""
    options = plan.options
    if options.deduplicate == "no":
        return {}
    parts = plan.data_dir / PARTS
    threshold = options.similarity if options.deduplicate == "near" else None
    gather(lambda: sign_sources(own, parts, plan, pool), tasks)
    return on_first_task(lambda: decide(parts, plan.sources, threshold), tasks)


def sign_sources(own: list[Source], parts: Path, plan: PreparePlan, pool: WorkPool) -> None:
    near = plan.options.deduplicate == "near"
    keys = {source: signature_key(source, plan) for source in own}
    to_do = [source for source in own if not are_written(parts, source, keys[source])]
    if not to_do:
        return
    parts.mkdir(parents=True, exist_ok=True)
    progress = ProgressLine("compared", text_bytes(to_do))
    for source in to_do:
        # the blocks are those that will be tokenised: a document is known by its number in a block
        results = pool.map(partial(sign, near=near), works_of(source, plan, {}))
        write_signatures(parts, source, keys[source], results, progress)
    progress.close()


def signature_key(source: Source, plan: PreparePlan) -> str:
    """What decides a split's signatures, as JSON: its files, the settings, and the size of its blocks."""
    recipe = plan.recipe
    near = plan.options.deduplicate == "near"
    settings = [recipe.text_field, recipe.min_characters, recipe.max_characters, near]
    return json.dumps([file_facts(source), settings, block_bytes(plan, plan.dialogues[source])])


def sign(worker: Worker, work: Work, near: bool) -> Signed:
    documents, _ = parse(work.block, worker.recipe.text_field)
    texts, locations = [], []
    for number, document in enumerate(documents):
        if document.is_whole and not length_problem(document, worker.recipe):
            texts.append(document.text.decode())
            locations.append((number, document.at))
    return sign_texts(texts, near), np.array(locations, np.int64).reshape(-1, 2)


def signatures_folder(parts: Path, source: Source) -> Path:
    return parts / f"{source.name}.signatures"


def are_written(parts: Path, source: Source, key: str) -> bool:
    folder = signatures_folder(parts, source)
    if not (folder / "locations").is_file() or not (folder / "done.json").is_file():
        return False  # an earlier version had no `locations`
    return json.loads((folder / "done.json").read_text(encoding="utf-8")) == key


def write_signatures(
    parts: Path, source: Source, key: str, blocks: Iterable[tuple[Work, Signed]], progress: ProgressLine
) -> None:
    folder = signatures_folder(parts, source)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "done.json").unlink(missing_ok=True)
    try:
        _write_blocks(folder, blocks, progress)
        write_atomically(folder / "done.json", json.dumps(key))
    except OSError:
        shutil.rmtree(folder)
        raise


def _write_blocks(folder: Path, blocks: Iterable[tuple[Work, Signed]], progress: ProgressLine) -> None:
    """Appends the blocks' arrays to three files: digests [documents, 2], sketches, and locations [documents, 4]."""
    with ExitStack() as files:
        exact = files.enter_context((folder / "exact").open("wb", buffering=0))
        sketches = files.enter_context((folder / "sketches").open("wb", buffering=0))
        locations = files.enter_context((folder / "locations").open("wb", buffering=0))
        for work, (signatures, numbers) in blocks:
            progress.advance(work.block.size)
            of_block = np.empty((len(numbers), _LOCATION), np.int64)
            of_block[:, :2] = (work.file, work.number)
            of_block[:, 2:] = numbers
            with naming(folder):
                write_array(exact, signatures.exact)
                write_array(locations, of_block)
                if signatures.sketches is not None:
                    write_array(sketches, signatures.sketches)


def decide(parts: Path, sources: list[Source], threshold: float | None) -> dict[str, Duplicates]:
    """By name of the split, what repeats another document; `threshold` is None where only equal texts do."""
    sources = sorted(sources, key=lambda source: (source.split != TEST, source.dataset))
    folders = [signatures_folder(parts, source) for source in sources]
    exact_of = [np.fromfile(folder / "exact", np.uint64).reshape(-1, 2) for folder in folders]
    locations_of = [np.fromfile(folder / "locations", np.int64).reshape(-1, _LOCATION) for folder in folders]
    source_of = np.repeat(np.arange(len(sources)), [len(exact) for exact in exact_of])
    exact, locations = np.concatenate(exact_of), np.concatenate(locations_of)
    sketches = None if threshold is None else _joined_sketches(parts, folders, len(exact))
    repeats = find_repeats(exact, sketches, threshold or 1.0)
    found: dict[str, dict[tuple[int, int], dict[int, str]]] = {source.name: {} for source in sources}
    for document in np.flatnonzero(repeats >= 0).tolist():
        file, block, number, _ = locations[document].tolist()
        original = int(repeats[document])
        original_file, *_, at = locations[original].tolist()
        kept = sources[source_of[original]].files[original_file]
        of_block = found[sources[source_of[document]].name].setdefault((file, block), {})
        of_block[number] = f"{kept.name}, {kept.unit} {at}"
    return found


def _joined_sketches(parts: Path, folders: list[Path], documents: int) -> np.ndarray:
    """The sketches of all splits as one memory map: 512 bytes per document are not held in memory."""
    if not documents:  # an empty file cannot be mapped
        return np.zeros((0, PERMUTATIONS), np.uint32)
    with TemporaryFile(dir=parts, buffering=0) as joined, naming(parts):
        for folder in folders:
            with (folder / "sketches").open("rb") as file:
                while chunk := file.read(1 << 20):
                    write_array(joined, np.frombuffer(chunk, np.uint8))
        return np.memmap(joined, np.uint32, "r", shape=(documents, PERMUTATIONS))


def digest(duplicates: Duplicates) -> str:
    content = [[key, sorted(documents.items())] for key, documents in sorted(duplicates.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
