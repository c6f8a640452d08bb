"""Continues prompts with a litgpt directory's model, or with an adapter on it."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # the repository, not this file's folder

from lit_gpt.errors import DataError, raise_problems
from utils import cli
from utils.run.model_options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """Continue prompts. Texts go to stdout, timings to stderr."""

    prompt: str | None = None
    """Text to continue; it is printed before each continuation."""
    prompt_file: Path | None = None
    """Instead of --prompt a text on each line, or in a *.jsonl file an object with the key "prompt". To stdout goes a
    JSON object a line, with the keys "prompt", "sample" and "text", the continuation."""
    special_tokens_in_text: bool = False
    """Make `<s>` or `<|endoftext|>` in a prompt that token; else a prompt is text, with its names of special tokens."""
    num_samples: int = 1
    """Continuations of each prompt."""
    batch_size: int = 16
    """Continuations computed at once, at most; none depends on the others, but for rounding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = []
        if (self.prompt is None) == (self.prompt_file is None):
            problems.append("give either --prompt or --prompt_file")
        for name in ("num_samples", "batch_size"):
            if getattr(self, name) < 1:
                problems.append(f"--{name} must be 1 or more, not {getattr(self, name)}")
        raise_problems(problems)


if __name__ == "__main__":
    OPTIONS = cli.parse_or_exit(Options)  # --help and mistakes are answered before the imports below

from lit_gpt.inference.generation import TextModel
from utils.prepare.chat.prompt_files import prompt_lines
from utils.run.merged_model import load_text_model


def main(options: Options) -> None:
    start = time.perf_counter()
    prompts = read_prompts(options.prompt_file) if options.prompt_file else [options.prompt]
    model = load_text_model(options)
    print(f"model loaded in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    start = time.perf_counter()
    if options.prompt is not None and options.num_samples == 1:
        ids = model.encode(options.prompt, options.special_tokens_in_text)
        print(options.prompt, end="", flush=True)
        for _, piece in model.stream([ids], options):
            print(piece, end="", flush=True)
        print()
    else:
        for prompt, sample, text in continuations(model, prompts, options):
            if options.prompt_file is None:
                print(prompt + text, flush=True)
                continue
            record = {"prompt": prompt, "sample": sample, "text": text}
            print(json.dumps(record, ensure_ascii=False), flush=True)
    count = len(prompts) * options.num_samples
    print(f"{count} continuation(s) in {time.perf_counter() - start:.1f} s", file=sys.stderr)


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: its lines, or in *.jsonl the texts under "prompt"; a DataError if there are none."""
    is_json = path.suffix == ".jsonl"
    return [_prompt_of(line, where) if is_json else line for where, line in prompt_lines(path)]


def _prompt_of(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as e:
        raise DataError(f"{where} is not valid JSON: {e}") from None
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise DataError(f'{where} is no object with a text under "prompt"')
    return value["prompt"]


def continuations(model: TextModel, prompts: list[str], options: Options) -> Iterator[tuple[str, int, str]]:
    """Each prompt with the number of a sample and its text, in order, batch by batch."""
    ids = [model.encode(prompt, options.special_tokens_in_text) for prompt in prompts]
    model.check(ids)  # all of them, before the first is continued
    size, count = options.batch_size, options.num_samples
    per_batch = max(1, size // count)
    for first, sample in product(range(0, len(prompts), per_batch), range(0, count, size)):
        batch, samples = range(first, min(first + per_batch, len(prompts))), range(sample, min(sample + size, count))
        numbers = list(product(batch, samples))
        texts = [""] * len(numbers)
        for row, piece in model.stream([ids[index] for index in batch], options, samples):
            texts[row] += piece
        for (index, number), text in zip(numbers, texts, strict=True):
            yield prompts[index], number, text


if __name__ == "__main__":
    sys.exit(cli.run(main, OPTIONS))
