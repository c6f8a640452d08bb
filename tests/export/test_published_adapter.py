"""An adapter on the Hub: sent by both commands, with a card that names its base and how it must be loaded."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import yaml

import convert_litgpt_to_transformers
from convert_litgpt_to_transformers import main
from lit_gpt.formats.hf_logits import probe_sequences
from tests.conftest import command_line
from tests.formats.hub_server import Hub
from utils.export.options import ConvertOptions


@pytest.fixture
def hub():
    server = Hub()
    yield server
    server.close()


def run_beside(hub, home, *words):
    environment = hub.environment(home)
    done = subprocess.run(command_line(*words), capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_adapter_is_published_by_both_commands(lora_run, hub, tmp_path):
    folder = tmp_path / "adapter"
    convert = ("convert_litgpt_to_transformers.py", "--input_path", lora_run, "--output_dir", folder)
    settings = ("--as_adapter", "true", "--repo_id", "org/adapter", "--base_model", "org/Base")
    printed = run_beside(hub, tmp_path / "home", *convert, *settings)
    assert "on the Hub: " in printed and "warning" not in printed
    here = {path.name: path.read_bytes() for path in folder.iterdir()}
    files = hub.files("org/adapter")
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= files.keys()
    assert here.items() <= files.items()
    card = files["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["base_model"], front["library_name"], front["tags"][-1]) == ("org/Base", "peft", "lora")
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/Base"
    assert 'from_pretrained("org/Base"' in card and 'PeftModel.from_pretrained(model, "org/adapter")' in card

    (folder / "training_args.bin").write_bytes(b"pickle")
    words = ("utils/hf_upload_model.py", "org/second", "--input_dir", folder)
    printed = run_beside(hub, tmp_path / "home", *words)
    assert "not sent: 1 files: training_args.bin" in printed
    second = hub.files("org/second")
    assert here.items() <= second.items() and "training_args.bin" not in second

    hub.add("org/second", {**second, "config.json": b"{}", "model.safetensors": b"of a merged model"})
    (folder / "README.md").write_text(card + "new")
    assert "earlier model: model.safetensors" in run_beside(hub, tmp_path / "home", *words)
    assert "model.safetensors" not in hub.files("org/second")


def test_base_that_the_hub_does_not_know_is_said(lora_run, foundation, tmp_path, capsys):
    main(ConvertOptions(lora_run, tmp_path / "out", as_adapter=True))
    assert (
        f"names its base {foundation.name}, which the Hub does not know: give --base_model" in capsys.readouterr().out
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model" not in yaml.safe_load(card.split("---")[1]) and f"pretraining of {foundation.name}" in card


LOADED = """
import json, sys, torch
from transformers import AutoModelForCausalLM
from peft import PeftModel
base, ids = sys.argv[1], torch.tensor([json.loads(sys.argv[2])])
for adapter in sys.argv[3:]:
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    by_transformers = AutoModelForCausalLM.from_pretrained(base)
    by_transformers.load_adapter(adapter)
    by_transformers.eval()
    with torch.inference_mode():
        print(float((by_peft(ids).logits - by_transformers(ids).logits).abs().max()))
"""


def test_card_warns_of_load_adapter_where_it_loses_the_head(lora_run, foundation, tmp_path, monkeypatch):
    real = convert_litgpt_to_transformers.load_merged_model

    def without_head(*arguments, **settings):
        model = real(*arguments, **settings)
        adapter = {name: tensor for name, tensor in model.adapter.items() if "lm_head" not in name}
        lora = dataclasses.replace(model.lora, head=False)
        merged = {**model.state_dict, "lm_head.weight": model.base["lm_head.weight"]}
        return dataclasses.replace(model, adapter=adapter, lora=lora, state_dict=merged)

    main(ConvertOptions(foundation / "lit_model.pth", tmp_path / "base", verify="none"))
    main(ConvertOptions(lora_run, tmp_path / "head", as_adapter=True))
    monkeypatch.setattr(convert_litgpt_to_transformers, "load_merged_model", without_head)
    main(ConvertOptions(lora_run, tmp_path / "no head", as_adapter=True))
    ids = json.dumps(probe_sequences(500, 40)[-1])
    words = [sys.executable, "-c", LOADED, tmp_path / "base", ids, tmp_path / "head", tmp_path / "no head"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lost, kept = map(float, done.stdout.splitlines()[-2:])
    assert lost > 1e-3 and kept < 1e-5
    for folder, warns in (("head", True), ("no head", False)):
        card = (tmp_path / folder / "README.md").read_text()
        assert ("`load_adapter` leaves the adapted output layer out" in card) == warns
