"""Conversations per second from JSON lines to packed rows with targets, beside SFTTrainer and Impruver's rules.

    python benchmarks/chat.py [--rows 100000 --rounds 1 --workers 2 --tokenizer gpt2]
    python benchmarks/chat.py --memory

1. The rows: synthetic conversations of three scripts (benchmarks/chat_rows.py).
2. The tokenizer is one of ../shared with the two tokens of ChatML added. trl has the template with `{% generation %}`
   marks, ours the same without them: what is a target has to come out by proof, and as many tokens and targets as
   trl's, or the program stops.
3. Alternately, in fresh processes, from a warm page cache: prepare_data.py and trl's preparation of a dataset, without
   duplicates looked for; then prepare_data.py as Impruver composes a dataset (`--deduplicate near`, too long dropped,
   one in twenty for validation) and Impruver's rules (benchmarks/chat_peers.py).
4. Compared is the time from the file to the prepared rows: that of the command without what the same command takes on
   ten conversations. Whole commands are printed too, and the processor time of all processes, which other work on the
   machine changes less.

`--memory` prepares 100,000 and 1,000,000 conversations, with and without a look for duplicates, and prints the peaks
of the memory of all processes together. Ratios and figures are appended to benchmarks/results.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
from benchmarks.chat_rows import make_rows
from benchmarks.prepare import SHARED, measure, read_answer, start_over
from benchmarks.results import Figure, record

PEERS = ROOT / "benchmarks" / "chat_peers.py"
MARKED = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|im_end|>' + '\\n' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|im_end|>' + '\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
UNMARKED = re.sub(r"\{%- (end)?generation -%\}", "", MARKED)
ADDED = ("<|im_start|>", "<|im_end|>")
FEW = 10  # conversations of the command that measures the start
AS_IMPRUVER = ("--deduplicate", "near", "--too_long", "drop", "--validation_share", "0.05")
MEMORY_ROWS = (100_000, 1_000_000)


class Run(NamedTuple):
    seconds: float  # from the file to the prepared rows
    processor: float  # seconds of all processes meanwhile
    whole: float  # seconds from start to exit
    peak: int  # bytes of memory of all processes together
    tokens: int
    targets: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tokenizer", default="gpt2", help="a name in ../shared/tokenizers, with a tokenizer.json")
    parser.add_argument("--max_length", type=int, default=2048)
    parser.add_argument("--source", type=Path, default=SHARED / "data" / "claire")
    parser.add_argument("--only", nargs="+", choices=("ours", "trl", "ours_as_rules", "rules"), help="default: all")
    parser.add_argument("--memory", action="store_true", help="the memory of 100,000 and 1,000,000 rows, nothing else")
    parser.add_argument("--work_dir", type=Path, help="keeps the rows for the next call; default: a temporary folder")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no_record", action="store_true", help="leave results.csv as it is")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments.work_dir = arguments.work_dir or Path(folder)
        arguments.work_dir.mkdir(parents=True, exist_ok=True)
        make_tokenizer(arguments)
        figures = measure_memory(arguments) if arguments.memory else compare(arguments)
    if not arguments.no_record:
        record("chat", figures)


def make_tokenizer(arguments: argparse.Namespace) -> None:
    """`work_dir`/tokenizer with ChatML's tokens, and the template with and without marks beside it."""
    source, folder = SHARED / "tokenizers" / arguments.tokenizer, arguments.work_dir / "tokenizer"
    folder.mkdir(exist_ok=True)
    content = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    first = 1 + max(*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"]))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] += [{"id": first + number, "content": name, **flags} for number, name in enumerate(ADDED)]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    shutil.copyfile(source / "tokenizer_config.json", folder / "tokenizer_config.json")
    (arguments.work_dir / "marked.jinja").write_text(MARKED, encoding="utf-8")
    (arguments.work_dir / "unmarked.jinja").write_text(UNMARKED, encoding="utf-8")


def compare(arguments: argparse.Namespace) -> list[Figure]:
    runs: dict[str, Callable[[Path], Run]] = {
        "ours": partial(run_ours, arguments, ()),
        "trl": partial(run_peer, arguments, "trl"),
        "ours_as_rules": partial(run_ours, arguments, AS_IMPRUVER),
        "rules": partial(run_peer, arguments, "rules"),
    }
    chosen = arguments.only or list(runs)
    rows = make_rows(arguments.work_dir, arguments.source, arguments.rows, arguments.seed)
    few = make_rows(arguments.work_dir, arguments.source, FEW, arguments.seed)
    runs[chosen[0]](few)  # once per tokenizer gigatoken is tried on all characters
    starts = {who: runs[who](few) for who in chosen}
    done: dict[str, list[Run]] = {who: [] for who in chosen}
    for round_number in range(arguments.rounds):
        for who in chosen[:: -1 if round_number % 2 else 1]:
            run = without_start(runs[who](rows), starts[who])
            done[who].append(run)
            load = os.getloadavg()[0]
            print(f"round {round_number + 1}: {who}: {describe(run, arguments.rows)}, load {load:.1f}", flush=True)
    if "ours" in done and "trl" in done:
        require_equal(done["ours"][0], done["trl"][0])
    return report(done, arguments)


def without_start(run: Run, start: Run) -> Run:
    return run._replace(seconds=run.seconds - start.seconds, processor=run.processor - start.processor)


def require_equal(ours: Run, trl: Run) -> None:
    """Ends the program if other tokens or targets were made: then other work was compared."""
    for name in ("tokens", "targets"):
        if getattr(ours, name) != getattr(trl, name):
            sys.exit(f"error: {getattr(ours, name):,} {name} of ours, {getattr(trl, name):,} of trl's")
    print(f"{ours.tokens:,} tokens and {ours.targets:,} targets, of ours and of trl's")


def run_ours(arguments: argparse.Namespace, options: tuple[str, ...], rows: Path) -> Run:
    data_dir = start_over(arguments, [rows])
    command = [sys.executable, ROOT / "prepare_data.py", "--source_path", rows.parents[2], "--converter", "messages"]
    command += ["--template", arguments.work_dir / "unmarked.jinja", "--destination_path", data_dir]
    command += ["--checkpoint_dir", arguments.work_dir / "tokenizer", "--num_workers", str(arguments.workers)]
    run, _ = run_command([*command, "--max_length", str(arguments.max_length), *options])
    splits = json.loads((data_dir / "manifest.json").read_text(encoding="utf-8"))["splits"]
    tokens, targets = (sum(split[name] for split in splits) for name in ("tokens", "targets"))
    return run._replace(tokens=tokens, targets=targets)


def run_peer(arguments: argparse.Namespace, name: str, rows: Path) -> Run:
    destination = start_over(arguments, [rows])
    command = [sys.executable, PEERS, name, "--tokenizer", arguments.work_dir / "tokenizer", "--source", rows]
    command += ["--template", arguments.work_dir / "marked.jinja", "--destination", destination]
    command += ["--max_length", str(arguments.max_length), "--workers", str(arguments.workers)]
    run, output = run_command(command)
    answer = read_answer(output)
    return run._replace(tokens=int(answer["tokens"]), targets=int(answer["targets"]))


def run_command(command: list[str | Path]) -> tuple[Run, str]:
    before = processor_seconds()
    seconds, peak, output = measure(command)
    return Run(seconds, processor_seconds() - before, seconds, peak, 0, 0), output


def processor_seconds() -> float:
    """Of every process that has ended so far and was waited for, its own ended children included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure_memory(arguments: argparse.Namespace) -> list[Figure]:
    figures = []
    for count in MEMORY_ROWS:
        rows = make_rows(arguments.work_dir, arguments.source, count, arguments.seed)
        for who, options in (("ours", ()), ("ours_as_rules", AS_IMPRUVER)):
            run = run_ours(arguments, options, rows)
            print(f"{count:,} conversations, {who}: {describe(run, count)}", flush=True)
            figures.append(Figure(who, shape_of(arguments, count), *rate_of(run, count)))
    return figures


# What is reported


def describe(run: Run, rows: int) -> str:
    return (
        f"{rows / run.seconds:,.0f} rows/s ({run.seconds:.1f} s; whole {run.whole:.1f} s, processor "
        f"{run.processor:.1f} s, peak {run.peak / 1e6:,.0f} MB)"
    )


def rate_of(run: Run, rows: int) -> tuple[str, str, str]:
    return f"{rows / run.seconds:.0f}", "rows/s", f"{run.peak / 2**30:.3f}"


def shape_of(arguments: argparse.Namespace, rows: int) -> str:
    return f"{arguments.tokenizer}+chatml {rows} rows x{arguments.workers}"


def median_run(runs: list[Run]) -> Run:
    return Run(*(statistics.median(values) for values in zip(*runs, strict=True)))


def report(done: dict[str, list[Run]], arguments: argparse.Namespace) -> list[Figure]:
    """Prints the medians and each pair's ratios, medians of the rounds' own."""
    shape = shape_of(arguments, arguments.rows)
    figures = []
    for who, runs in done.items():
        print(f"{who:16} {describe(median_run(runs), arguments.rows)}")
        figures.append(Figure(who, shape, *rate_of(median_run(runs), arguments.rows)))
    for ours, peer in (("ours", "trl"), ("ours_as_rules", "rules")):
        if ours not in done or peer not in done:
            continue
        pairs = list(zip(done[ours], done[peer], strict=True))
        for name in ("seconds", "whole", "processor"):
            ratio = statistics.median(getattr(theirs, name) / getattr(own, name) for own, theirs in pairs)
            print(f"{peer} / {ours}, {name}: {ratio:.2f}")
            figures.append(Figure(f"{peer} / {ours}", shape, f"{ratio:.2f}", name))
    return figures


if __name__ == "__main__":
    main()
