"""The documents of a corpus signed, so that `sifting.py` can compare them all.

`sign_sources` signs a split's blocks in parallel and appends the signatures to files in
`parts/<dataset>-<split>.signatures/`: memory does not grow with the corpus, and a killed call does not start anew. Of
texts, the text is signed; of chats the whole conversation or its prompt, and the prompt also for the groups by which
chats are divided among training and validation. A document longer than a block, and therefore in parts, is not
compared.
"""

import json
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from lit_gpt.errors import naming
from utils.files.arrays import write_array
from utils.files.atomic import write_atomically
from utils.prepare.block_rows import Work, length_problem
from utils.prepare.chat.converters import identity_of
from utils.prepare.chat.texts import beginning, content_of, printable, prompt_of, texts_of
from utils.prepare.documents import parse
from utils.prepare.options import PrepareOptions
from utils.prepare.plan import PreparePlan, Sifted, block_bytes, text_bytes, works_of
from utils.prepare.progress import ProgressLine
from utils.prepare.prompts import PAIR, Prompts, sign_prompts
from utils.prepare.signatures import SHINGLE, Signatures, digests_of, sign_texts, sketch_shingles
from utils.prepare.sources import Source, file_facts
from utils.prepare.words import in_batches, shingles_of
from utils.prepare.work_pool import WorkPool
from utils.prepare.worker import Worker

PLACE = np.dtype([("file", "i8"), ("block", "i8"), ("number", "i8"), ("at", "i8"), ("beginning", "S96")])
"""Where a document is: in its split, its file, in its block, and in the file by byte or row; and how it begins."""
_VERSION = 2  # of the files


class Signed(NamedTuple):
    """The signatures of a block's documents."""

    places: np.ndarray  # [n] PLACE
    signatures: Signatures
    prompts: Prompts | None  # of chats that are divided

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """By the name of the file that each is appended to."""
        arrays = {"locations": self.places, "exact": self.signatures.exact}
        if self.signatures.sketches is not None:
            arrays["sketches"] = self.signatures.sketches
        if self.prompts is not None:
            arrays |= {f"prompt_{name}": array for name, array in self.prompts._asdict().items()}
        return arrays


def sign_sources(own: list[Source], plan: PreparePlan, pool: WorkPool) -> None:
    """Signs the documents of each file once: a source's `own` ones."""
    keys = {source.own: signature_key(source.own, plan) for source in own if source.own.files}
    to_do = [source for source, key in keys.items() if not are_written(plan.parts_dir, source, key)]
    if not to_do:
        return
    plan.parts_dir.mkdir(parents=True, exist_ok=True)
    progress = ProgressLine("compared", text_bytes(to_do))
    for source in to_do:
        # the blocks are those that will be tokenised: a document is known by its number in a block
        results = pool.map(partial(sign, options=plan.options), works_of(source, plan, Sifted()))
        write_signatures(plan.parts_dir, source, keys[source], results, progress)
    progress.close()


def signature_key(source: Source, plan: PreparePlan) -> str:
    """What decides a split's signatures, as JSON: its files, the settings, and the size of its blocks."""
    recipe, options = plan.recipe, plan.options
    near = options.deduplicate == "near"
    settings = [_VERSION, recipe.text_field, recipe.min_characters, recipe.max_characters, near]
    converter = source.converter and identity_of(source.converter)
    of_chats = [converter, options.deduplicate_by, options.validation_share > 0]
    sizes = [block_bytes(plan, dialogue) for dialogue in (None, plan.dialogues.get(source))]
    return json.dumps([file_facts(source), settings, of_chats, sizes])


def sign(worker: Worker, work: Work, options: PrepareOptions) -> Signed:
    near = options.deduplicate == "near"
    if work.converter:
        return _sign_chats(worker, work, near, options)
    documents, _ = parse(work.block, worker.recipe.text_field)
    texts, places = [], []
    for number, document in enumerate(documents):
        if document.is_whole and not length_problem(document, worker.recipe):
            texts.append(document.text.decode())
            places.append((work.file, work.number, number, document.at, _stored(texts[-1][:80])))
    return Signed(np.array(places, PLACE), sign_texts(texts, near), None)


def _sign_chats(worker: Worker, work: Work, near: bool, options: PrepareOptions) -> Signed:
    conversations, _ = worker.chats.convert(work)
    prompts = list(map(prompt_of, conversations))
    places = []
    for number, conversation in enumerate(conversations):
        places.append((work.file, work.number, number, conversation.at, _stored(beginning(conversation))))
    if options.deduplicate_by == "prompt":
        identities, texts, shingle = prompts, prompts, PAIR
    else:
        identities = list(map(content_of, conversations))
        texts = ["\n".join(texts_of(conversation)) for conversation in conversations] if near else []
        shingle = SHINGLE
    exact = digests_of(identities)
    sketches = sketch_words(texts, shingle, exact) if near else None
    signed_prompts = sign_prompts(prompts) if options.validation_share else None
    return Signed(np.array(places, PLACE), Signatures(exact, sketches), signed_prompts)


def sketch_words(texts: list[str], shingle: int, exact: np.ndarray) -> np.ndarray:
    """Sketches of the texts' runs of `shingle` words; a text without words is known by its digest in `exact`."""
    sketches = [sketch_shingles(np.zeros(0, np.uint64), np.zeros(1, np.int64))]
    done = 0
    for words in in_batches(texts):
        count = len(words.begins) - 1
        sketches.append(sketch_shingles(*shingles_of(words, shingle, exact[done : done + count, 0])))
        done += count
    return np.concatenate(sketches)


def _stored(beginning: str) -> bytes:
    return printable(beginning).encode()[: PLACE["beginning"].itemsize]


def signatures_folder(parts_dir: Path, source: Source) -> Path:
    return parts_dir / f"{source.name}.signatures"


def are_written(parts_dir: Path, source: Source, key: str) -> bool:
    folder = signatures_folder(parts_dir, source)
    if not (folder / "done.json").is_file():
        return False
    return json.loads((folder / "done.json").read_text(encoding="utf-8")) == key


def write_signatures(
    parts_dir: Path, source: Source, key: str, blocks: Iterable[tuple[Work, Signed]], progress: ProgressLine
) -> None:
    folder = signatures_folder(parts_dir, source)
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    try:
        with ExitStack() as files, naming(folder):
            opened: dict[str, IO[bytes]] = {}
            for work, signed in blocks:
                progress.advance(work.block.size)
                _append(signed, folder, opened, files)
        write_atomically(folder / "done.json", json.dumps(key))
    except OSError:
        shutil.rmtree(folder)
        raise


def _append(signed: Signed, folder: Path, opened: dict[str, IO[bytes]], files: ExitStack) -> None:
    for name, array in signed.arrays.items():
        if name not in opened:
            opened[name] = files.enter_context((folder / name).open("wb", buffering=0))
        write_array(opened[name], array)
