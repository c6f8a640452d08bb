"""Every kind of adapter that peft can save: merged it is peft's own model, or it is refused by name.

peft makes the adapters in one process and loads them in another; neither shares anything with this one.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import convert_litgpt_to_transformers
from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.hf_logits import TOLERANCE, litgpt_logits
from lit_gpt.formats.peft_logits import ask_peft
from tests.conftest import as_users_start_it, run_command
from tests.formats.hf_models import make_litgpt
from tests.formats.peft_zoo import IDS, LORA
from utils import merge_lora
from utils.export.options import ConvertOptions, MergeOptions
from utils.run import merge_check
from utils.run.merged_model import load_merged_model

ROOT = Path(__file__).resolve().parents[2]
CHANGES_BASE = "init_lora_weights {} changes the base model"
# of kinds that are not merged: what the error names
REFUSED = {
    "pissa with a head": "lm_head.base_layer.weight is stored beside the adapter, whose init_lora_weights pissa",
    "pissa_niter_4": CHANGES_BASE.format("pissa_niter_4"),
    "corda": CHANGES_BASE.format("corda"),
    "lora_ga": CHANGES_BASE.format("lora_ga"),
    "loftq": CHANGES_BASE.format("loftq"),
    "dora": "has use_dora;",
    "bias all": "has bias all;",
    "bias lora_only": "has bias lora_only;",
    "lora_bias": "has lora_bias;",
    "modules_to_save, others": "has modules_to_save norm, of which only model.embed_tokens and lm_head can be read;",
    "trainable_token_indices": "has trainable_token_indices;",
    "embedding": "lora_embedding_A is no part of a LoRA adapter of linear layers",
    "target_parameters": "has target_parameters;",
    "layer_replication": "has layer_replication;",
    "alora": "has alora_invocation_tokens;",
    "velora": "has velora_config;",
    "kasa": "has kasa_config;",
    "monteclora": "has monteclora_config;",
    "bdlora": "has use_bdlora;",
    "ensure_weight_tying": "has ensure_weight_tying;",
}


def ask(action: str, base: Path, out: Path) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.formats.peft_zoo", action, str(base), str(out)],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The base model, the adapters' folders, and peft's logits: of what was trained, and of what it loads."""
    folder = tmp_path_factory.mktemp("zoo")
    base, out = folder / "base", folder / "adapters"
    base.mkdir()
    out.mkdir()
    make_litgpt(base)
    not_made, not_loaded = ask("make", base, out), ask("load", base, out)
    with np.load(out / "made.npz") as made, np.load(out / "loaded.npz") as loaded:
        return SimpleNamespace(base=base, out=out, not_made=not_made, not_loaded=not_loaded, **_both(made, loaded))


def _both(made: np.lib.npyio.NpzFile, loaded: np.lib.npyio.NpzFile) -> dict[str, dict[str, np.ndarray]]:
    return {"made": dict(made), "loaded": dict(loaded)}


@pytest.mark.parametrize("name", [name for name in LORA if name not in REFUSED])
def test_what_is_merged_is_what_peft_trained_and_what_it_loads(zoo: SimpleNamespace, name: str) -> None:
    model = load_merged_model(zoo.out / name, zoo.base)
    ours = litgpt_logits(model.config, model.state_dict, IDS)[0]
    for theirs in (zoo.made[name], zoo.loaded[name]):
        assert np.abs(ours - theirs).max() <= TOLERANCE * max(1, np.abs(theirs).max())
    without = litgpt_logits(model.config, model.base, IDS)[0]
    assert np.abs(ours - without).max() > 1, "the adapter does nothing"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_merged_is_refused_by_name(zoo: SimpleNamespace, name: str) -> None:
    with pytest.raises((UserError, DataError)) as error:
        load_merged_model(zoo.out / name, zoo.base)
    assert REFUSED[name] in str(error.value) and "\n" not in str(error.value)


def test_every_other_kind_of_adapter_is_refused_by_name(zoo: SimpleNamespace) -> None:
    from peft import PeftType

    kinds = {kind.value for kind in PeftType} - {"LORA"}
    assert len(kinds) > 40 and len(kinds & zoo.made.keys()) > 30, zoo.not_made
    for kind in kinds:
        with pytest.raises(UserError, match=rf"has peft_type {kind};"):
            load_merged_model(zoo.out / kind, zoo.base)


def test_a_merge_is_verified_by_peft_itself(
    zoo: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = "verified: each matrix, and the logits of peft's base + adapter"
    answers: dict[str, Any] = {}  # one fresh process serves all

    def ask_once(folder: Path, base: Path, sequences: list[list[int]]) -> Any:
        if "answer" not in answers:
            with as_users_start_it():
                answers["answer"] = ask_peft(folder, base, sequences)
        return answers["answer"]

    monkeypatch.setattr(merge_check, "ask_peft", ask_once)
    base = ["--checkpoint_dir", str(zoo.base)]
    merge = ["--lora_path", str(zoo.out / "head"), *base, "--save_path"]
    assert run_command(MergeOptions, merge_lora.main, [*merge, str(tmp_path / "merged")]) == 0
    said = capsys.readouterr().out
    assert verified in said and f"by its own words for {zoo.base}" in said
    convert = ["--input_path", str(zoo.out / "head"), *base, "--as_adapter", "true", "--output_dir"]
    assert run_command(ConvertOptions, convert_litgpt_to_transformers.main, [*convert, str(tmp_path / "again")]) == 0
    assert verified in capsys.readouterr().out
    # what is read wrongly agrees with itself; peft reads it by itself
    monkeypatch.setattr("lit_gpt.formats.peft_config.PeftConfig.scale", lambda self, module: 1.99)
    assert run_command(MergeOptions, merge_lora.main, [*merge, str(tmp_path / "other")]) == 65
    said = capsys.readouterr()
    assert "verified" not in said.out and "differs from peft's base + adapter by 0.00" in said.err
    assert "allowed 0.001" in said.err and not (tmp_path / "other").exists()


def test_a_limit_and_its_message_name_the_same_figures(zoo: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large random weights make rounding larger than the limit for two models, but no part of such an effect."""
    model = replace(load_merged_model(zoo.out / "head", zoo.base), peft_dir=None)
    monkeypatch.setattr(merge_check, "TOLERANCE", 1e-9)
    assert "verified" in merge_check.compare_merged(model, model.state_dict)
    monkeypatch.setattr(merge_check, "MOST_LOST_IN_FP32", 1e-8)
    with pytest.raises(DataError, match=r"by \S+e-07 of .*, allowed 1e-08, and by \S+e-0[67] of .*, allowed 1e-09"):
        merge_check.compare_merged(model, model.state_dict)


def test_where_the_memory_does_not_suffice_for_peft_the_merge_stays_and_is_not_called_verified(
    zoo: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = ["--lora_path", str(zoo.out / "default"), "--checkpoint_dir", str(zoo.base), "--save_path"]
    with monkeypatch.context() as patch:
        patch.setattr("lit_gpt.formats.hf_logits.free_memory", lambda: 10**9)
        assert run_command(MergeOptions, merge_lora.main, [*merge, str(tmp_path / "small")]) == 0
    assert "not verified by peft (it needs about 1.0 GB of memory, 1.0 GB are free)" in capsys.readouterr().out

    def is_killed(*_: object) -> None:
        raise OSError(errno.ENOMEM, "peft was killed by signal 9, probably out of memory")

    monkeypatch.setattr(merge_check, "ask_peft", is_killed)
    assert run_command(MergeOptions, merge_lora.main, [*merge, str(tmp_path / "killed")]) == 0
    assert "not verified by peft (peft was killed by signal 9" in capsys.readouterr().out
    assert (tmp_path / "killed" / "lit_model.pth").is_file() and (tmp_path / "small" / "lit_model.pth").is_file()


def test_without_peft_nothing_is_called_verified(
    zoo: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else name)
    merge = ["--lora_path", str(zoo.out / "default"), "--checkpoint_dir", str(zoo.base)]
    merge += ["--save_path", str(tmp_path / "merged")]
    assert run_command(MergeOptions, merge_lora.main, merge) == 2
    assert "pip install peft" in (error := capsys.readouterr().err) and "--verify none" in error
    assert not list(tmp_path.iterdir())
    assert run_command(MergeOptions, merge_lora.main, [*merge, "--verify", "none"]) == 0
    assert "not verified" in capsys.readouterr().out
    shutil.copytree(zoo.out / "default", tmp_path / "merged", dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"holds an adapter \(adapter_config.json\) and lit_model.pth"):
        load_merged_model(tmp_path / "merged", zoo.base)
