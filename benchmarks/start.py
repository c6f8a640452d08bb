"""Starting: processor time and modules of each command on the smallest work there is, as ratios to `import torch`.

    python benchmarks/start.py [--repository DIR …] [--rounds 3] [--only NAME …]

DIR is another checkout with its `.venv`, to be measured in turns with this one. Each command runs in a process of its
own, on one thread, with the sample's model of 1.1 M parameters: one optimiser step, one plot, five tokens. `download`
and `quantize` need the Hub and llama.cpp, so only their `--help` is measured. Of several rounds the best counts, as the
other work of a machine only adds to processor time; figures are appended to benchmarks/results.csv.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # the repository, not this file's folder

from benchmarks.results import Figure, record

TORCH = "import torch"
PREPARE = "prepare_data.py --source_path data/sample/french --max_length 256"
TRAIN = "pretrain.py --max_steps 1 --batch_size 1 --micro_batch_size 1 --precision 32-true --eval_samples 1"
FOUNDATION = "--model_config configs/quickstart/model.yaml --checkpoint_dir data/sample/tokenizer"
COMMANDS = {
    "prepare_data": f"{PREPARE} --checkpoint_dir data/sample/tokenizer --destination_path OUT/data",
    "pretrain": f"{TRAIN} {FOUNDATION} --data_dir OUT/data --out_dir OUT/run",
    "validate": "validate_pretrain.py --out_dir OUT/run",
    "plot": "plot_convergence_curves.py OUT/run --output OUT/curves.png",
    "convert to Hugging Face": "convert_litgpt_to_transformers.py --input_path OUT/run --output_dir OUT/hf",
    "convert to litgpt": "lit_gpt/scripts/convert_hf_checkpoint.py --checkpoint_dir OUT/hf --verify none",
    "pretrain, LoRA": f"{TRAIN} --use_lora true --checkpoint_dir OUT/hf --data_dir OUT/data --out_dir OUT/lora",
    "merge": "utils/merge_lora.py --lora_path OUT/lora --save_path OUT/merged/lit_model.pth --verify none",
    "generate": "lit_gpt/generate/base.py --checkpoint_dir OUT/merged --prompt Bonjour --max_new_tokens 5",
    "chat": "lit_gpt/chat/base.py --checkpoint_dir OUT/merged --max_new_tokens 5",
    "pretrain --help": "pretrain.py --help",
    "prepare_data --help": "prepare_data.py --help",
    "validate --help": "validate_pretrain.py --help",
    "plot --help": "plot_convergence_curves.py --help",
    "convert to Hugging Face --help": "convert_litgpt_to_transformers.py --help",
    "convert to litgpt --help": "lit_gpt/scripts/convert_hf_checkpoint.py --help",
    "merge --help": "utils/merge_lora.py --help",
    "generate --help": "lit_gpt/generate/base.py --help",
    "chat --help": "lit_gpt/chat/base.py --help",
    "download --help": "lit_gpt/scripts/download.py --help",
    "quantize --help": "utils/quantize_gguf.py --help",
}
"""By name, in an order in which each finds what it reads; OUT is a folder of the round."""

PROGRAM = """
import atexit, os, runpy, sys
from pathlib import Path
modules = Path(sys.argv.pop(1))
process = os.getpid()
atexit.register(lambda: os.getpid() == process and modules.write_text(str(len(sys.modules))))
sys.argv.pop(0)
if sys.argv[0] == "import torch":
    import torch
else:
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Becomes `python SCRIPT ARGUMENT …` and leaves the number of modules at its end in a file."""


class Start(NamedTuple):
    """What one start took."""

    seconds: float
    """Processor time, in user and system mode, with the processes that it started."""
    modules: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, nargs="*", default=[], help="other checkouts to measure in turns")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(COMMANDS), choices=list(COMMANDS), help="and what they need")
    parser.add_argument("--no_record", action="store_true", help="leave results.csv as it is")
    arguments = parser.parse_args()
    repositories = [ROOT, *(path.resolve() for path in arguments.repository)]
    found: dict[tuple[Path, str], list[Start]] = {}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            outs = {repository: Path(folder, str(number)) for number, repository in enumerate(repositories)}
            for out in outs.values():
                out.mkdir()
            for name in needed(arguments.only):
                for repository, out in outs.items():
                    for each in (TORCH, name):
                        found.setdefault((repository, each), []).append(start(repository, each, out))
    figures = []
    for repository in repositories:
        torch = best(found[repository, TORCH])
        print(f"\n{repository}: {TORCH} {torch.seconds:.2f} s, {torch.modules} modules")
        for name in arguments.only:
            own = best(found[repository, name])
            time, modules = own.seconds / torch.seconds, own.modules / torch.modules
            print(f"{name:32} {time:5.2f} of its time {modules:5.2f} of its modules {own.modules:6d}")
            who = "ours" if repository == ROOT else repository.name
            figures.append(Figure(who, name, f"{time:.2f}", f"of {TORCH}, processor time"))
            figures.append(Figure(who, name, f"{modules:.2f}", f"of {TORCH}, modules"))
    if not arguments.no_record:
        record("start", figures)


def needed(names: list[str]) -> list[str]:
    """`names`, and before them all commands on whose results they may rest."""
    working = [name for name in COMMANDS if not name.endswith("--help")]
    last = max((working.index(name) for name in names if name in working), default=-1)
    return working[: last + 1] + [name for name in names if name not in working]


def best(starts: list[Start]) -> Start:
    return min(starts, key=lambda one: one.seconds)


def start(repository: Path, name: str, out: Path) -> Start:
    """Runs a command of a checkout to its end.

    Raises:
        RuntimeError: with what it wrote, if it failed.
    """
    words = [TORCH] if name == TORCH else shlex.split(COMMANDS[name].replace("OUT", str(out)))
    modules, output = out / "modules", out / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [repository / ".venv" / "bin" / "python", "-c", PROGRAM, modules, *words],
            cwd=repository,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE if name == "chat" else subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
        if process.stdin is not None:
            process.stdin.write(b"Bonjour\n")
            process.stdin.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{shlex.join(words)} in {repository}:\n{output.read_text(encoding='utf-8')}")
    return Start(usage.ru_utime + usage.ru_stime, int(modules.read_text()))


if __name__ == "__main__":
    main()
