"""A small recipe with every kind of stage, and `utils/recipes.py run` as a process whose stages are forks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_gpt.formats.litgpt_directory import read_config, write_litgpt_directory
from lit_gpt.model.building import build_model
from tests import warm_start
from tests.conftest import ROOT, TINY_MODEL, TOKENIZER

POPEN = subprocess.Popen
FILES = ("tokenizer.model", "tokenizer_config.json", "generation_config.json")


def make_foundation(folder: Path) -> Path:
    """A litgpt directory with random weights and the sample's tokenizer."""
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(TINY_MODEL)
    config = read_config(folder / "tiny.yaml", vocab_size=1280)
    (folder / "tiny.yaml").unlink()
    model = build_model(config, None, None, 0, torch.float32)
    write_litgpt_directory(folder, config, model.state_dict(), [TOKENIZER / name for name in FILES])
    return folder


def sections(folder: Path, foundation: Path) -> dict[str, dict[str, Any]]:
    """A LoRA training on some of the sample, and all that is made of it, in `folder`."""
    return {
        "prepare": {
            "source_path": "data/sample/french/FR/Marche",
            "checkpoint_dir": str(foundation),
            "destination_path": str(folder / "data"),
            "max_length": 64,
            "num_workers": 1,
        },
        "pretrain": {
            "out_dir": str(folder / "run"),
            "use_lora": True,
            "lora_dropout": 0.1,
            "precision": "32-true",
            "batch_size": 4,
            "micro_batch_size": 2,
            "max_steps": 12,
            "warmup_steps": 2,
            "learning_rate": 1.0e-2,
            "interval_unit": "steps",
            "eval_interval": 6,
            "save_interval": 3,
            "eval_samples": 8,
        },
        "validate": {"max_batches": 1},
        "merge": {"save_path": str(folder / "merged")},
        "convert": {"output_dir": str(folder / "hf"), "verify": "tensors"},
        "chat": {
            "once": str(ROOT / "data" / "sample" / "prompts.jsonl"),
            "answers": str(folder / "answers.jsonl"),
            "max_new_tokens": 4,
            "temperature": 0.0,
        },
    }


def write_recipe(path: Path, content: dict[str, Any]) -> Path:
    path.write_text("# A recipe of a test.\n" + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


class ForkedStage:
    """What `subprocess.Popen` starts, begun as a fork of a process that has made the imports."""

    def __init__(self, words: Sequence[str], pass_fds: Sequence[int] = ()) -> None:
        self.pid = os.fork()
        if not self.pid:
            subprocess.Popen = POPEN  # the stage's own programs are started as they are
            os._exit(_become(words[1:]))

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def __enter__(self) -> ForkedStage:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _become(words: Sequence[str]) -> int:
    try:
        warm_start.program(Path(words[0]), *words[1:])
    except SystemExit as e:
        return e.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def run_recipe(*words: str) -> None:
    """Becomes `python utils/recipes.py run WORDS`; for tests/warm_start.py, whose process group it then leads."""
    subprocess.Popen = ForkedStage
    warm_start.program(ROOT / "utils" / "recipes.py", "run", *words)
