"""The processes that benchmarks/chat.py measures beside prepare_data.py; each prints what it did as a line of JSON.

`trl` is SFTTrainer's own preparation of a dataset, by its constructor: `datasets` reads the JSON lines, then two
processes render and tokenise with transformers, make labels of the `{% generation %}` marks, and pack (best fit, as by
default). The model is tiny, since the constructor wants one. `rules` composes a dataset by Impruver's rules: each
message is rendered and tokenised alone; what is longer than the window is dropped, likewise what a MinHash of 128
permutations over the set of token ids says is more than 0.8 alike an earlier one; 95 in 100 are for training. Its
signatures are rensa's, in Rust, and two processes make them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

PERMUTATIONS, ALIKE, BANDS = 128, 0.8, 16  # 16 bands of 8: half of those at 0.71 and nearly all at 0.8 share one
TRAINED = 0.95
CHUNK = 500  # conversations that a process gets at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("trl", "rules"))
    parser.add_argument("--tokenizer", type=Path, required=True, help="a directory with tokenizer.json")
    parser.add_argument("--template", type=Path, help="of `trl`: a Jinja file with generation marks")
    parser.add_argument("--source", type=Path, required=True, help="JSON lines with `messages`")
    parser.add_argument("--destination", type=Path, required=True)
    parser.add_argument("--max_length", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    options = parser.parse_args()
    print(json.dumps({"trl": trl, "rules": rules}[options.what](options)))


def load_tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    names = {key: config[key] for key in ("bos_token", "eos_token", "unk_token") if isinstance(config.get(key), str)}
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names)


# SFTTrainer


def trl(options: argparse.Namespace) -> dict[str, float]:
    from datasets import load_dataset
    from pyarrow import compute
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = load_tokenizer(options.tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = options.template.read_text(encoding="utf-8")
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    cache = str(options.destination / "cache")
    dataset = load_dataset("json", data_files=str(options.source), split="train", cache_dir=cache)
    config = SFTConfig(
        output_dir=str(options.destination / "output"),
        max_length=options.max_length,
        packing=True,
        padding_free=False,
        assistant_only_loss=True,
        dataset_num_proc=options.workers,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = SFTTrainer(model, config, train_dataset=dataset, processing_class=tokenizer)
    # within a second of a prepared dataset that takes minutes: of the columns as they lie in the cache
    columns = trainer.train_dataset.data
    labels = [chunk.flatten() for chunk in columns["labels"].chunks]
    return {
        "rows": len(dataset),
        "tokens": sum(len(chunk) for chunk in labels),
        "targets": sum(compute.sum(compute.not_equal(chunk, -100)).as_py() or 0 for chunk in labels),
    }


# Impruver's rules


def rules(options: argparse.Namespace) -> dict[str, float]:
    import rensa

    context = multiprocessing.get_context("spawn")
    start = partial(_start_rules, options.tokenizer, options.max_length)
    with context.Pool(options.workers, _set_encoder, (start,)) as pool:
        index = rensa.RMinHashLSH(ALIKE, PERMUTATIONS, BANDS)
        kept: list[tuple[list[int], list[int]]] = []
        signatures: list[Any] = []
        rows = too_long = repeated = 0
        for encoded in pool.imap(_encode_rules, _chunks(options.source)):
            for row in encoded:
                rows += 1
                if row is None:
                    too_long += 1
                    continue
                ids, labels, signature = row
                if any(signature.jaccard(signatures[other]) > ALIKE for other in index.query(signature)):
                    repeated += 1
                    continue
                index.insert(len(signatures), signature)
                signatures.append(signature)
                kept.append((ids, labels))
        random.Random(42).shuffle(kept)
        cut = int(len(kept) * TRAINED)
        options.destination.mkdir(parents=True, exist_ok=True)
        for name, part in (("train", kept[:cut]), ("val", kept[cut:])):
            with (options.destination / f"{name}.jsonl").open("w") as file:
                for ids, labels in part:
                    file.write(json.dumps({"input_ids": ids, "labels": labels}) + "\n")
    return {
        "rows": rows,
        "too_long": too_long,
        "repeated": repeated,
        "tokens": sum(len(ids) for ids, _ in kept),
        "targets": sum(sum(label != -100 for label in labels) for _, labels in kept),
    }


def _chunks(source: Path) -> Iterator[list[str]]:
    with source.open(encoding="utf-8") as file:
        while chunk := list(islice(file, CHUNK)):
            yield chunk


_encoder: Any = None


def _set_encoder(start: Any) -> None:
    global _encoder
    _encoder = start()


def _start_rules(folder: Path, max_length: int) -> Any:
    import rensa

    tokenizer = load_tokenizer(folder)
    begin, end = tokenizer.bos_token or "", tokenizer.eos_token or ""

    def encode(line: str) -> Any:
        ids: list[int] = []
        labels: list[int] = []
        for message in json.loads(line)["messages"]:
            text = f"{begin}{message['role']}\n{message['content'].strip()}{end}"
            own = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += own
            labels += own if message["role"] == "assistant" else [-100] * len(own)
        if len(ids) > max_length:
            return None
        signature = rensa.RMinHash(PERMUTATIONS, 42)
        signature.update([str(token) for token in set(ids)])
        return ids, labels, signature

    return encode


def _encode_rules(lines: list[str]) -> list[Any]:
    return [_encoder(line) for line in lines]


if __name__ == "__main__":
    main()
