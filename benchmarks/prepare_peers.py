"""The processes that benchmarks/prepare.py measures beside prepare_data.py; each prints what it did as a line of JSON.

`alone` is a tokenizer on documents in memory and nothing else; `loop` the straightforward one-process loop; `litdata`
that library's `optimize` as its documentation shows it. `convert` and `verify` are what the measured ones need before
and after. Only `verify` imports this project: the others run in any environment that has their library.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

CHUNK_CHARACTERS = 1_000_000
WINDOW = 2049
LITDATA_CHUNK = WINDOW * 8012  # tokens: the documentation's figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("alone", "loop", "litdata", "convert", "verify"))
    parser.add_argument("--kind", choices=("gigatoken", "hf", "sentencepiece"), help="the tokenizer of `alone`")
    parser.add_argument("--tokenizer", type=Path, help="directory of tokenizer.json or tokenizer.model")
    parser.add_argument("--source", type=Path, nargs="+", help="text files of documents between blank lines")
    parser.add_argument("--destination", type=Path)
    parser.add_argument("--eos", type=int)
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    commands = {"alone": alone, "loop": loop, "litdata": litdata, "convert": convert, "verify": verify}
    print(json.dumps(commands[options.what](options)))


def read_documents(path: Path) -> Iterator[str]:
    lines: list[str] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                lines.append(line)
            elif lines:
                yield "".join(lines).strip()
                lines = []
    if lines:
        yield "".join(lines).strip()


def load_encoder(kind: str, tokenizer: Path) -> Callable[[list[Any]], int]:
    """A function that encodes documents on one thread and says how many tokens they have."""
    json_path, model_path = tokenizer / "tokenizer.json", tokenizer / "tokenizer.model"
    if kind == "gigatoken":
        import gigatoken

        load = gigatoken.Tokenizer if json_path.is_file() else gigatoken.Tokenizer.from_sentencepiece
        fast = load(json_path if json_path.is_file() else model_path)
        return lambda documents: int(fast.encode_batch(documents, parallel=False).layout.offsets[-1])
    if kind == "sentencepiece":
        from sentencepiece import SentencePieceProcessor

        processor = SentencePieceProcessor(model_file=str(model_path))
        return lambda documents: sum(map(len, processor.encode(documents, num_threads=1)))
    from tokenizers import Tokenizer

    slow = Tokenizer.from_file(str(json_path))
    return lambda documents: sum(map(len, slow.encode_batch_fast(documents, add_special_tokens=False)))


def alone(options: argparse.Namespace) -> dict[str, float]:
    """Seconds from the start of the processes to loaded tokenizers, and from there to everything encoded.

    Reading and splitting the text lies between the two and in neither.
    """
    context = multiprocessing.get_context("spawn")  # as prepare_data.py starts its processes
    ready, results = context.Barrier(options.workers), context.Queue()
    began = time.monotonic()
    workers = [
        context.Process(target=encode_share, args=(options, rank, ready, results), daemon=True)
        for rank in range(options.workers)
    ]
    for worker in workers:
        worker.start()
    found = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    loaded, encoding, encoded, tokens = zip(*found, strict=True)
    return {"start_seconds": max(loaded) - began, "seconds": max(encoded) - min(encoding), "tokens": sum(tokens)}


def encode_share(options: argparse.Namespace, rank: int, ready: Barrier, results: Queue[Any]) -> None:
    encode = load_encoder(options.kind, options.tokenizer)
    loaded = time.monotonic()
    chunks: list[list[Any]] = list(islice(read_chunks(options.source[0]), rank, None, options.workers))
    if options.kind == "gigatoken":  # 5 % to 9 % faster with bytes than with str
        chunks = [[document.encode() for document in chunk] for chunk in chunks]
    ready.wait()
    encoding = time.monotonic()
    tokens = sum(map(encode, chunks))
    results.put((loaded, encoding, time.monotonic(), tokens))


def read_chunks(path: Path) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for document in read_documents(path):
        chunk.append(document)
        size += len(document)
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def loop(options: argparse.Namespace) -> dict[str, float]:
    """Encodes document after document, joins all and saves what fills rows."""
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(options.tokenizer / "tokenizer.json"))
    documents = []
    for path in options.source:
        for text in read_documents(path):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            documents.append(np.array([*ids, options.eos], dtype=np.uint32))
    tokens = np.concatenate(documents)
    rows = len(tokens) // WINDOW
    options.destination.mkdir(parents=True)
    np.save(options.destination / "rows.npy", tokens[: rows * WINDOW].reshape(rows, WINDOW))
    return {"tokens": len(tokens)}


def tokenize_file(path: str, tokenizer: Any, eos: int) -> Iterator[Any]:
    import torch

    for text in read_documents(Path(path)):
        yield torch.tensor([*tokenizer.encode(text, add_special_tokens=False).ids, eos], dtype=torch.int32)


def litdata(options: argparse.Namespace) -> dict[str, float]:
    from litdata import StreamingDataset, TokensLoader, optimize
    from tokenizers import Tokenizer

    optimize(
        fn=partial(
            tokenize_file, tokenizer=Tokenizer.from_file(str(options.tokenizer / "tokenizer.json")), eos=options.eos
        ),
        inputs=[str(path) for path in options.source],
        output_dir=str(options.destination),
        chunk_size=LITDATA_CHUNK,
        item_loader=TokensLoader(block_size=WINDOW),
        num_workers=options.workers,
    )
    dataset = StreamingDataset(str(options.destination), item_loader=TokensLoader(block_size=WINDOW))
    return {"tokens": len(dataset) * WINDOW}


def convert(options: argparse.Namespace) -> dict[str, float]:
    """Writes the Hugging Face form of a SentencePiece model; needs transformers and protobuf."""
    from transformers import AutoTokenizer

    options.destination.mkdir(parents=True, exist_ok=True)
    backend = AutoTokenizer.from_pretrained(options.tokenizer).backend_tokenizer
    backend.save(str(options.destination / "tokenizer.json"))
    return {}


def verify(options: argparse.Namespace) -> dict[str, float]:
    """Compares every shard with the manifest's SHA-256."""
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from utils.data.manifest import Manifest
    from utils.data.shards import verify_shards

    manifest = Manifest.load(options.destination)
    verify_shards(options.destination, manifest.splits)
    return {"tokens": sum(entry.tokens for entry in manifest.splits)}


if __name__ == "__main__":
    main()
