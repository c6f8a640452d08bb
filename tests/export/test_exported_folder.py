"""What an exported folder says of its model, and who may read it: nothing of the foundation's that is not true."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import transformers

from convert_litgpt_to_transformers import main
from lit_gpt.formats.config_keys import describing_keys
from lit_gpt.formats.families import ARCHITECTURES
from tests.conftest import ROOT
from tests.formats.hf_models import VOCABULARY, make_litgpt
from tests.test_layers import MODULES
from utils.export.hf_folder import with_sampling
from utils.export.options import ConvertOptions

CONTEXT = 128


def edit(path, **values):
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**found, **values}))


def make_foundation(folder, architecture="Llama", config=None, **tokenizer):
    """A foundation with all that other programs and repositories leave in its files."""
    folder.mkdir(parents=True)
    make_litgpt(folder, architecture, config)
    others = {"auto_map": {"AutoModelForCausalLM": "org/code--modeling.Model"}, "_name_or_path": "/home/someone/base"}
    edit(folder / "config.json", **others, quantization_config=None, task_specific_params={"x": 1}, use_cache=False)
    edit(folder / "generation_config.json", _from_model_config=True, eos_token_id=2, temperature=0.5, do_sample=True)
    edit(folder / "tokenizer_config.json", **others, tokenizer_file="/home/someone/x.json", **tokenizer)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tokenizer = {"model_max_length": 10**30, "add_eos_token": True, "max_length": 5, "pad_token": "[PAD]"}
    foundation = make_foundation(folder / "foundation", **tokenizer)
    (foundation / "special_tokens_map.json").write_text('{"pad_token": "[PAD]", "eos_token": "</s>"}')
    main(ConvertOptions(foundation, folder / "exported"))
    return folder / "exported"


def values(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_nothing_of_the_foundation_that_does_not_describe_the_model(tmp_path, capsys):
    foundation = make_foundation(tmp_path / "foundation")
    main(ConvertOptions(foundation, tmp_path / "out", verify="tensors"))
    printed = capsys.readouterr().out
    for name in ("config", "generation_config", "tokenizer_config"):
        gone = {*values(foundation, name)} - {*values(tmp_path / "out", name)} - {"dtype"}
        (line,) = re.findall(rf"^{name}.json: left out what does not describe this model: (.*)", printed, re.MULTILINE)
        assert gone == {*line.split(", ")} and len(gone) > 1
    everything = "".join(path.read_text() for path in (tmp_path / "out").glob("*config.json"))
    assert not re.search("auto_map|_name_or_path|quantization|someone|task_specific|_from_model_config", everything)
    kept = values(tmp_path / "out", "config")
    assert kept["use_cache"] is False and kept["torch_dtype"] == "float32" and kept["rms_norm_eps"] == 1e-6
    kept = values(tmp_path / "out", "generation_config")
    assert (kept["temperature"], kept["eos_token_id"]) == (0.5, 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kept_keys_are_those_of_transformers_class(architecture):
    config_class = getattr(transformers, architecture).config_class
    of_all = transformers.PretrainedConfig().to_dict().keys()
    known = config_class().to_dict().keys() - of_all - {"ignore_keys_at_rope_validation"}
    described = {"architectures": [architecture], "model_type": 1, "torch_dtype": 1, **dict.fromkeys(known, 1)}
    kept, left_out = describing_keys({**described, **dict.fromkeys(of_all - described.keys(), 1), "auto_map": {}})
    assert kept == described and "auto_map" in left_out and "_name_or_path" in left_out


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_left_out_changes_no_model(architecture):
    family = ARCHITECTURES[architecture]
    found = {**getattr(transformers, architecture).config_class().to_dict(), "architectures": [architecture]}
    found = {**family.defaults, **found, "max_position_embeddings": 77, "bias": True}
    kept, left_out = describing_keys(found)
    assert left_out and family.config(found) == family.config({**family.defaults, **kept})


def test_every_key_that_a_family_reads_is_kept_of_some():
    source = (ROOT / "lit_gpt" / "formats" / "families.py").read_text(encoding="utf-8")
    read = {*re.findall(r'\bhf(?:\.get\(|\[)"(\w+)"', source)}
    every = {
        key for name in ARCHITECTURES for key in describing_keys({**dict.fromkeys(read), "architectures": [name]})[0]
    }
    assert len(read) > 40 and not read - every


PIPELINE = """
import sys, json
from transformers import AutoTokenizer, pipeline
folder, texts = sys.argv[1], ["Bonjour, ça va ?", "Il était une fois, dans un village au bord de la mer"]
write = pipeline("text-generation", model=folder)
settings = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
alone = [write(text, **settings)[0]["generated_text"] for text in texts]
together = [one[0]["generated_text"] for one in write(texts, batch_size=2, **settings)]
tokenizer = AutoTokenizer.from_pretrained(folder)
long = "Bonjour, ça va ? " * 50
cut = tokenizer(long, truncation=True).input_ids
answer = write(long, truncation=True, **settings)[0]["generated_text"]
batch = tokenizer(texts, padding=True, return_tensors="pt")
model = write.model
by_hand = tokenizer.batch_decode(
    model.generate(**batch, max_new_tokens=6, do_sample=False)[:, batch.input_ids.shape[1]:], skip_special_tokens=True)
whole = len(tokenizer(long).input_ids)
print(json.dumps({"alone": alone, "together": together, "cut": len(cut), "whole": whole, "by_hand": by_hand,
    "vocabulary": len(tokenizer), "pad": tokenizer.pad_token, "names": [*batch],
    "ids": tokenizer("Bonjour").input_ids}))
"""


def in_a_fresh_process(code, *arguments):
    words = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_pipeline_takes_a_batch_of_two_and_cuts_at_the_context(exported):
    found = in_a_fresh_process(PIPELINE, exported)
    assert found["alone"] == found["together"] == found["by_hand"]
    assert found["whole"] > found["cut"] == CONTEXT
    assert found["pad"] == "</s>", "[PAD] is not in the vocabulary"
    assert (
        found["names"] == ["input_ids", "attention_mask"] == values(exported, "tokenizer_config")["model_input_names"]
    )
    assert found["vocabulary"] <= VOCABULARY and found["ids"][0] == 1 and found["ids"][-1] != 2


def test_a_padding_token_that_the_model_has_stays(tmp_path):
    foundation = make_foundation(tmp_path / "foundation", pad_token={"content": "<unk>"})
    main(ConvertOptions(foundation, tmp_path / "out", verify="none"))
    kept = values(tmp_path / "out", "tokenizer_config")
    assert (kept["pad_token"], kept["model_max_length"]) == ("<unk>", CONTEXT)
    assert values(tmp_path / "out", "generation_config")["pad_token_id"] == 0
    pad_of_model = values(tmp_path / "out", "config").get("pad_token_id")
    assert pad_of_model is None, "transformers would not train its embedding any more"


def test_tokenizer_json_asks_for_no_cut_and_no_filling(exported, tmp_path):
    from tokenizers import Tokenizer as HFTokenizer

    foundation = make_foundation(tmp_path / "foundation")
    made = HFTokenizer.from_file(str(exported / "tokenizer.json"))
    made.enable_truncation(3)
    made.enable_padding(length=9)
    made.save(str(foundation / "tokenizer.json"))
    main(ConvertOptions(foundation, tmp_path / "out"))
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (exported / "tokenizer.json").read_bytes()


def modes(folder):
    return {path: path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}


def test_files_have_the_mode_of_the_umask(data_dir, trained_run, lora_run, tmp_path):
    """Data, run, checkpoints, exports and adapters: nothing that only its writer may read, and nothing executable."""
    umask = os.umask(0o027)
    try:
        main(ConvertOptions(lora_run, tmp_path / "adapter", as_adapter=True))
        main(ConvertOptions(lora_run, tmp_path / "exported", verify="none"))
    finally:
        os.umask(umask)
    written = modes(tmp_path)
    assert any(path.name == "adapter_model.safetensors" for path in written) and len(written) > 12
    assert set(written.values()) == {0o640}, written
    for folder in (data_dir, trained_run, lora_run):
        assert set(modes(folder).values()) == {0o666 & ~umask}, folder


def test_one_writer_of_safetensors():
    """The library's own makes files of mode 0600."""
    others = [path for path in MODULES if re.search(r"\bsave_file\b", (ROOT / path).read_text(encoding="utf-8"))]
    assert not others


def test_a_temperature_of_zero_is_no_sampling():
    found = with_sampling({"eos_token_id": 2, "do_sample": True, "top_k": 20}, {"temperature": 0.0, "top_p": 0.5})
    assert found == {"eos_token_id": 2, "do_sample": False}
    assert with_sampling({"eos_token_id": 2}, {}) == {"eos_token_id": 2}
    assert with_sampling({"top_k": 20}, {"max_new_tokens": 9}) == {"top_k": 20, "max_new_tokens": 9}
