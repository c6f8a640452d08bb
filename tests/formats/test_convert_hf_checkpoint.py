"""lit_gpt/scripts/convert_hf_checkpoint.py: a real process, litgpt reads its result, nothing half-written."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from litgpt.config import Config
from litgpt.generate.base import main as litgpt_generate
from litgpt.model import GPT

from lit_gpt.errors import DataError
from lit_gpt.scripts.convert_hf_checkpoint import ConvertHFOptions, main
from tests.conftest import run_command
from tests.formats.hf_models import make_hf, make_litgpt, make_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "lit_gpt" / "scripts" / "convert_hf_checkpoint.py"
OUTPUT = {"lit_model.pth", "model_config.yaml", "SHA256SUMS"}


def run(*words, **settings):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, env=environment, **settings)


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_converted_directory_is_read_by_litgpt_generate(tmp_path, capsys):
    make_hf(tmp_path, "Mistral", {"sliding_window": 64}, max_shard_size="20KB")
    make_tokenizer(tmp_path)
    before = names(tmp_path)
    done = run(sys.executable, SCRIPT, "--checkpoint_dir", tmp_path, cwd=tmp_path.parent)
    assert done.returncode == 0, done.stderr
    assert "MistralForCausalLM" in done.stdout and "sliding window" in done.stdout
    assert names(tmp_path) == before | OUTPUT
    litgpt_generate(tmp_path, "The quick brown fox", max_new_tokens=5, precision="32-true")
    assert "The quick brown fox" in capsys.readouterr().out


def test_type_of_the_weights(tmp_path):
    make_litgpt(tmp_path, "Llama", {"tie_word_embeddings": True}, dtype=torch.bfloat16)

    def weights():
        loaded = torch.load(tmp_path / "lit_model.pth", mmap=True, weights_only=True)
        GPT(Config.from_file(tmp_path / "model_config.yaml")).load_state_dict(loaded)  # all keys, all shapes
        return loaded

    kept = weights()
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}
    head, embeddings = kept["lm_head.weight"], kept["transformer.wte.weight"]
    assert torch.equal(head, embeddings)
    assert head.data_ptr() != embeddings.data_ptr(), "trained as two tensors, they must not share their memory"
    main(ConvertHFOptions(checkpoint_dir=tmp_path, dtype="float32"))
    assert {tensor.dtype for tensor in weights().values()} == {torch.float32}


def test_damage_leaves_nothing_under_a_final_name(tmp_path):
    make_hf(tmp_path, max_shard_size="20KB")
    path = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    path.write_bytes(path.read_bytes()[:-10])
    before = names(tmp_path)
    done = run(sys.executable, SCRIPT, "--checkpoint_dir", tmp_path)
    assert done.returncode == 65
    assert done.stderr.startswith("error: ") and path.name in done.stderr and done.stderr.count("\n") == 1
    assert names(tmp_path) == before


def test_failed_conversion_keeps_the_earlier_one(tmp_path):
    make_litgpt(tmp_path)
    model = (tmp_path / "lit_model.pth").read_bytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError):
        main(ConvertHFOptions(checkpoint_dir=tmp_path))
    assert (tmp_path / "lit_model.pth").read_bytes() == model and not list(tmp_path.glob(".*"))


def test_full_disk_is_an_io_error(tmp_path):
    make_hf(tmp_path)
    before = names(tmp_path)

    def limit_file_size():  # a write beyond it fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = run(sys.executable, SCRIPT, "--checkpoint_dir", tmp_path, preexec_fn=limit_file_size)
    assert done.returncode == 74, done.stderr
    assert "lit_model.pth" in done.stderr and done.stderr.count("\n") == 1
    assert names(tmp_path) == before


def test_folder_that_is_no_checkpoint(tmp_path, capsys):
    assert run_command(ConvertHFOptions, main, ["--checkpoint_dir", str(tmp_path)]) == 2
    assert "config.json is missing" in capsys.readouterr().err
