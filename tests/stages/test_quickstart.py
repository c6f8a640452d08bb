"""The quickstart's recipes, over a few steps: each takes what the one before has made."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tests import warm_start
from tests.conftest import ROOT
from tests.stages.recipes import run_recipe, write_recipe

STEPS = {"max_steps": 4, "eval_interval": 2, "save_interval": 2, "eval_samples": 8, "warmup_steps": 1}


def in_folder(folder: Path, name: str) -> Path:
    """The recipe of this name, which writes to `folder` and trains for a moment."""
    text = (ROOT / "configs" / "quickstart" / f"{name}.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text.replace("out/quickstart", str(folder / "out")))
    content["prepare"]["num_workers"] = 1
    content["pretrain"] |= STEPS
    if "chat" in content:
        content["chat"] |= {"max_new_tokens": 4, "answers": str(folder / "out" / f"{name}.jsonl")}
    for section in {"convert", "convert_hf"} & content.keys():
        content[section]["verify"] = "none"  # tests/export and tests/formats compare
    return write_recipe(folder / f"{name}.yaml", content)


def test_the_quickstart_makes_models_that_answer(tmp_path: Path) -> None:
    for name, last in (("foundation", "convert"), ("lora", "chat"), ("chats", "chat")):
        done = warm_start.run(run_recipe, [str(in_folder(tmp_path, name))])
        assert done.returncode == 0, done.stdout + done.stderr
        table = done.stdout[done.stdout.rindex("\nstage ") :].splitlines()
        assert any(line.startswith(last) for line in table), table
    assert "validation loss, " in done.stdout or name == "chats"
    for name in ("lora", "chats"):
        answers = [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
        assert len(answers) == 3
    assert (tmp_path / "out" / "merged" / "lit_model.pth").is_file()
