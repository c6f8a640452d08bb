"""pretrain.py --dry_run: what it prints comes from the real manifest and model config, and nothing is made."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import TOKENIZER, run

LLAMA_13B = """
name: thirteen
block_size: 4096
n_layer: 40
n_embd: 5120
n_head: 40
rotary_percentage: 1.0
parallel_residual: false
bias: false
norm_class_name: RMSNorm
mlp_class_name: LLaMAMLP
intermediate_size: 13824
padded_vocab_size: 32000
vocab_size: 32000
"""


def test_thirteen_billion_parameters_on_64_gpus(data_dir: Path, tmp_path: Path) -> None:
    config = tmp_path / "model.yaml"
    config.write_text(LLAMA_13B)
    arguments = ["--data_dir", data_dir, "--checkpoint_dir", TOKENIZER, "--model_config", config]
    arguments += ["--out_dir", tmp_path / "run", "--devices", 4, "--num_nodes", 16, "--dry_run", "true"]
    out = run("pretrain.py", *arguments, "--batch_size", 4, "--gpu_memory", 80, "--precision", "bf16-true").stdout
    assert "13,015,864,320 parameters" in out  # Llama 2 13B's, as its authors' files have it
    manifest = json.loads((data_dir / "manifest.json").read_text())
    rows = sum(split["rows"] for split in manifest["splits"] if split["split"] == "train")
    assert f"256 rows, {256 * (manifest['window'] - 1):,} positions" in out
    assert f"{rows / 256:,.0f} steps" in out
    assert "fits a GPU of 80 GiB" in out
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_said_with_what_would(data_dir: Path, tmp_path: Path) -> None:
    config = tmp_path / "model.yaml"
    config.write_text(LLAMA_13B)
    arguments = ["--data_dir", data_dir, "--checkpoint_dir", TOKENIZER, "--model_config", config]
    arguments += ["--out_dir", tmp_path / "run", "--dry_run", "true", "--gpu_memory", 80]
    out = run("pretrain.py", *arguments).stdout
    assert "does NOT fit" in out
    assert "--quantize bnb.nf4" in out.partition("it would with")[2]


def test_no_weights_are_needed(foundation: Path, other_data_dir: Path, tmp_path: Path) -> None:
    """A model's config and tokenizer are enough, on a machine that could not hold it."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in foundation.iterdir():
        if path.name != "lit_model.pth":
            (folder / path.name).write_bytes(path.read_bytes())
    arguments = ["--data_dir", other_data_dir, "--checkpoint_dir", folder, "--out_dir", tmp_path / "run"]
    out = run("pretrain.py", *arguments, "--use_lora", "true", "--quantize", "bnb.int8", "--dry_run", "true").stdout
    assert "LoRA trains" in out and "bnb.int8" in out
