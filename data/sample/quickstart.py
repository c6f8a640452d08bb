"""The whole chain on the embedded sample: each stage is a command that a person could type, and is printed as such."""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # the repository, not this file's folder

from lit_gpt.errors import UserError
from utils import cli
from utils.data.table import aligned


@dataclass(frozen=True)
class QuickstartOptions:
    """Train, continue, validate, plot, merge, convert and generate with the embedded sample, on a CPU."""

    out_dir: Path = Path("out/quickstart")
    """Folder of all results; it must not exist yet or be empty."""
    debug: bool = False
    """Show tracebacks."""


STAGES = (
    (
        "prepare French",
        "prepare_data.py --source_path data/sample/french --checkpoint_dir data/sample/tokenizer"
        " --destination_path {out}/data_fr --max_length 256 --group_datasets_by_genre data/sample/groups.json",
        "{out}/data_fr",
    ),
    (
        "train foundation model",
        "pretrain.py --config configs/sample_pretrain.yaml --data_dir {out}/data_fr --out_dir {out}/run_foundation",
        "{out}/run_foundation",
    ),
    (
        "convert to Hugging Face",
        "convert_litgpt_to_transformers.py --input_path {out}/run_foundation --output_dir {out}/foundation",
        "{out}/foundation",
    ),
    (
        "convert to litgpt",
        "lit_gpt/scripts/convert_hf_checkpoint.py --checkpoint_dir {out}/foundation",
        "{out}/foundation/lit_model.pth",
    ),
    (
        "prepare English",
        "prepare_data.py --source_path data/sample/english --checkpoint_dir {out}/foundation"
        " --destination_path {out}/data_en --group_datasets_by_genre data/sample/groups.json",
        "{out}/data_en",
    ),
    (
        "continue with LoRA",
        "pretrain.py --config configs/sample_lora.yaml --data_dir {out}/data_en --checkpoint_dir {out}/foundation"
        " --out_dir {out}/run_lora",
        "{out}/run_lora",
    ),
    ("validate", "validate_pretrain.py --out_dir {out}/run_lora --batch_size 16", "{out}/run_lora/validation.csv"),
    ("plot", "plot_convergence_curves.py {out}/run_lora --output {out}/convergence.png", "{out}/convergence.png"),
    (
        "merge",
        "utils/merge_lora.py --lora_path {out}/run_lora --save_path {out}/merged/lit_model.pth",
        "{out}/merged/lit_model.pth",
    ),
    (
        "convert to Hugging Face",
        "convert_litgpt_to_transformers.py --input_path {out}/run_lora --output_dir {out}/transformers",
        "{out}/transformers",
    ),
    (
        "generate",
        "lit_gpt/generate/base.py --checkpoint_dir {out}/merged --prompt '[speaker001:] Good morning'"
        " --max_new_tokens 60 --temperature 0.7",
        "(above)",
    ),
)
"""Name, command, and where the result lies."""


def main(options: QuickstartOptions) -> None:
    out = options.out_dir
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} holds an earlier quickstart; remove it, or give another --out_dir")
    rows = []
    for name, command, result in STAGES:
        words = shlex.split(command.format(out=shlex.quote(str(out))))
        print(f"\n$ python {shlex.join(words)}", flush=True)
        began = time.monotonic()
        done = subprocess.run([sys.executable, *words], cwd=ROOT)
        if done.returncode:
            raise UserError(f"the stage '{name}' ended with exit code {done.returncode}, see above")
        rows.append((name, result.format(out=out), f"{time.monotonic() - began:.1f} s"))
    print("", *aligned([("stage", "result", "time"), *rows], left=2), "", sep="\n")
    print_losses("foundation model on the French sample", out / "run_foundation" / "metrics.csv")
    print_losses("foundation model → LoRA on the English sample", out / "run_lora" / "metrics.csv")


def print_losses(title: str, metrics: Path) -> None:
    with metrics.open(encoding="utf-8") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["dataset"] == "all"]
    print(f"validation loss, {title}: {losses[0]:.3f} before, {min(losses):.3f} after")


if __name__ == "__main__":
    sys.exit(cli.run(main, cli.parse_or_exit(QuickstartOptions)))
