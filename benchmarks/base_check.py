"""What the comparison of a base with its checksums costs at the start of a command, beside none.

    python benchmarks/base_check.py [--gigabytes 2 --rounds 3]

A random Llama in bf16 is converted, and two commands run on it in turns with and without the comparison, each in a
process of its own: a LoRA training of two steps on the sample, and a generation of four tokens. The file is in the
system's cache of pages ("warm"), or has been taken out of it ("cold"). Measured are the seconds until the first step or
text, those of the whole command, and processor time, which other work on the machine changes least. Appends to
benchmarks/results.csv; writes about twice the model under --work_dir.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # the repository, not this file's folder

from benchmarks.export import VOCABULARY, WIDTH, layer_parameters, make_files
from benchmarks.results import Figure, record

# runs a script of the repository, without the comparison if it is told so
PROGRAM = """
import runpy, sys
from lit_gpt import checksums
if sys.argv.pop(1) == "none":
    checksums.require_equal = lambda file, stop=None: ""
sys.argv.pop(0)
sys.path.insert(0, "")
runpy.run_path(sys.argv[0], run_name="__main__")
"""
KINDS, STATES = ("none", "compared"), ("warm", "cold")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work_dir", type=Path)
    parser.add_argument("--no_record", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work_dir) as name:
        folder = Path(name)
        model = make_model(folder, arguments.gigabytes)
        found: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
        for number in range(arguments.rounds):
            for state in STATES:
                for kind in KINDS:
                    for command, (words, mark) in commands(folder, f"{number}-{state}-{kind}").items():
                        prepare_cache(model, state)
                        found.setdefault((command, state, kind), []).append(run(words, kind, mark))
        size = f"{model.stat().st_size / 1e9:.2f} GB bf16"
    report(found, size, not arguments.no_record)


def make_model(folder: Path, gigabytes: float) -> Path:
    width = WIDTH if gigabytes > 0.5 else 256
    layers = max(1, round((gigabytes * 1e9 - 4 * VOCABULARY * width) / (2 * layer_parameters(width))))
    (folder / "shape.json").write_text(json.dumps({"width": width, "layers": layers}))
    make_files(folder)
    convert = ["lit_gpt/scripts/convert_hf_checkpoint.py", "--checkpoint_dir", folder / "hf", "--verify", "none"]
    prepare = ["prepare_data.py", "--source_path", "data/sample/french", "--checkpoint_dir", folder / "hf"]
    for words in (convert, [*prepare, "--destination_path", folder / "data", "--max_length", 64]):
        subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder / "hf" / "lit_model.pth"


def commands(folder: Path, run_name: str) -> dict[str, tuple[list[object], str]]:
    """The commands, and what stands in the line that ends their start."""
    train = ["pretrain.py", "--checkpoint_dir", folder / "hf", "--data_dir", folder / "data", "--use_lora", "true"]
    train += ["--out_dir", folder / run_name, "--precision", "bf16-true", "--max_steps", 2, "--batch_size", 1]
    train += ["--micro_batch_size", 1, "--enable_validation", "false"]
    generate = ["lit_gpt/generate/base.py", "--checkpoint_dir", folder / "hf", "--prompt", "Bonjour"]
    return {"pretrain": (train, "step 1/"), "generate": ([*generate, "--max_new_tokens", 4], "Bonjour")}


def prepare_cache(model: Path, state: str) -> None:
    with model.open("rb") as file:
        if state == "cold":
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while state == "warm" and file.read(1 << 20):
            pass


def run(words: list[object], kind: str, mark: str) -> tuple[float, float, float]:
    """Seconds until the command writes `mark`, until it ends, and of processor time."""
    began = time.perf_counter()
    line = [sys.executable, "-u", "-c", PROGRAM, kind, *map(str, words)]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    written, first = "", 0.0
    while piece := process.stdout.read(1):
        written += piece
        if not first and mark in written:
            first = time.perf_counter() - began
    _, status, usage = os.wait4(process.pid, 0)
    if status or not first:
        sys.exit(f"{words[0]} failed:\n{written}")
    return first, time.perf_counter() - began, usage.ru_utime + usage.ru_stime


def report(found: dict[tuple[str, str, str], list[tuple[float, float, float]]], size: str, keep: bool) -> None:
    figures = []
    for (command, state, kind), times in found.items():
        first, whole, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        said = f"{first:6.2f} s to the first step or text, {whole:6.2f} s in all, {cpu:6.2f} s of processor time"
        print(f"{command:9} {state:5} {kind:9} {said}", flush=True)
        name = f"{command}, {state}, {kind}"
        figures += [Figure(name, size, f"{first:.2f}", "s to the first"), Figure(name, size, f"{whole:.2f}", "s")]
        figures.append(Figure(name, size, f"{cpu:.2f}", "s of processor time"))
    if keep:
        record("base_check", figures)


if __name__ == "__main__":
    main()
