"""litgpt's own streaming keeps the spaces of directories made here, and transformers reads them as before."""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
from pathlib import Path

import litgpt.tokenizer
import pytest
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from convert_litgpt_to_transformers import main as export
from lit_gpt.formats.families import ARCHITECTURES
from lit_gpt.formats.hf_logits import PROBE_TEXT
from lit_gpt.formats.litgpt_directory import read_config, read_weights, write_litgpt_directory
from lit_gpt.scripts.convert_hf_checkpoint import ConvertHFOptions
from lit_gpt.scripts.convert_hf_checkpoint import main as convert
from lit_gpt.tokenizer.hf_tokenizer import export_tokenizer
from lit_gpt.tokenizer.tokenizer import Tokenizer
from lit_gpt.tokenizer.tokenizer_config import keep_spaces_in_litgpt
from tests.conftest import SHARED
from tests.export.test_convert_litgpt_to_transformers import KINDS, TEXTS
from tests.formats.hf_models import TEXT, make_litgpt, make_tokenizer
from utils.export.options import ConvertOptions

SPOKEN = [*dict.fromkeys(TEXT), "a dog  and the  cat", "Il \n était"]


def streamed(folder):
    """What litgpt streams, and decodes as a whole, of each of `SPOKEN`."""
    tokenizer = litgpt.tokenizer.Tokenizer(folder)
    found = []
    for text in SPOKEN:
        ids = tokenizer.encode(text, bos=False)
        found.append(("".join(tokenizer.decode_stream(iter(ids))), tokenizer.processor.decode(ids.tolist())))
    return found


def export_from(source, folder):
    """Writes into `folder` the tokenizer files of an exported model whose foundation is `source`."""
    folder.mkdir(exist_ok=True)
    assert export_tokenizer(Tokenizer(source), folder, PROBE_TEXT) is None
    return folder


def make_exported(folder, **settings):
    """A SentencePiece tokenizer, exported; its source is in the folder `source`."""
    (folder / "source").mkdir(parents=True)
    make_tokenizer(folder / "source", **settings)
    return export_from(folder / "source", folder)


def make_byte_level(folder):
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = HFTokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "a", "bos_token": "a"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def of_transformers(folder):
    """The class that transformers takes, and all that it makes of `TEXTS`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text).input_ids for text in TEXTS]
    return type(tokenizer), ids, [tokenizer.decode(one) for one in ids], [tokenizer.decode(one[-1:]) for one in ids]


def test_every_kind_of_tokenizer_keeps_its_spaces(tmp_path):
    folders = []
    for name, settings in KINDS.items():
        folder = make_exported(tmp_path / name, **settings)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        before = of_transformers(folder)
        lines = keep_spaces_in_litgpt(folder)
        # without a space before every text, the decoder takes none away
        assert len(lines) == ("add_dummy_prefix" not in settings)
        assert not keep_spaces_in_litgpt(folder) and of_transformers(folder) == before
        folders.append(folder)
    folders.append(tmp_path / "bytes")
    folders[-1].mkdir()
    make_byte_level(folders[-1])
    config = (folders[-1] / "tokenizer_config.json").read_bytes()
    assert not keep_spaces_in_litgpt(folders[-1]) and (folders[-1] / "tokenizer_config.json").read_bytes() == config
    for folder in folders:
        for by_token, whole in streamed(folder):
            assert by_token.removeprefix(" ") == whole.removeprefix(" ") and " " in whole, folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_reads_the_folder_of_every_family_as_before(architecture, tmp_path):
    make_exported(tmp_path)
    model_type = getattr(transformers, architecture).config_class.model_type
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "architectures": [architecture]}))
    for kind in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        path = tmp_path / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": kind}))
        before = of_transformers(tmp_path)
        assert "tokenizer_class was" in keep_spaces_in_litgpt(tmp_path)[0]
        assert of_transformers(tmp_path) == before


@pytest.mark.shared
@pytest.mark.parametrize("name", ["mistral-7b-v0.1", "gpt2", "falcon"])
def test_real_tokenizers_keep_their_spaces(name, tmp_path):
    export_from(SHARED / "tokenizers" / name, tmp_path)
    assert bool(keep_spaces_in_litgpt(tmp_path)) == name.startswith("mistral")
    for by_token, whole in streamed(tmp_path):
        # a character in several tokens is litgpt's loss: byte-level tokens of a half are no text
        assert by_token.count(" ") - by_token.startswith(" ") == whole.count(" ") - whole.startswith(" ") > 1


def test_litgpts_own_chat_on_an_exported_model(tmp_path):
    """From the foundation over the published folder to a litgpt directory, and a directory made of it."""
    (tmp_path / "foundation").mkdir()
    make_litgpt(tmp_path / "foundation")
    export(ConvertOptions(tmp_path / "foundation", tmp_path / "exported", verify="none"))
    kind = json.loads((tmp_path / "exported" / "tokenizer_config.json").read_text())["tokenizer_class"]
    assert kind == "PreTrainedTokenizerFast", "what is published is for transformers 4 too"
    shutil.copytree(tmp_path / "exported", tmp_path / "plain")
    convert(ConvertHFOptions(checkpoint_dir=tmp_path / "exported"))
    again, names = tmp_path / "again", ("tokenizer.json", "tokenizer_config.json", "config.json")
    companions = [tmp_path / "plain" / name for name in names]
    exported = tmp_path / "exported"
    write_litgpt_directory(again, read_config(exported), read_weights(exported), companions)
    assert (again / "tokenizer_config.json").read_bytes() == (exported / "tokenizer_config.json").read_bytes()
    assert all(by_token.removeprefix(" ") == whole for by_token, whole in streamed(again))

    settings = ("--precision", "32-true", "--top_k", "1", "--max_new_tokens", "60")
    words = [str(Path(sysconfig.get_path("scripts"), "litgpt")), "chat", str(exported), *settings]
    done = subprocess.run(words, input="Il était une fois\n\n", capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    reply = done.stdout.partition(">> Reply: ")[2].partition(">> Prompt")[0]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    inputs = tokenizer("Il était une fois", return_tensors="pt")
    new = model.generate(**inputs, max_new_tokens=60, do_sample=False)[0, inputs.input_ids.shape[1] :]
    expected = sum(token.count("▁") for token in tokenizer.convert_ids_to_tokens(new))
    assert reply.count(" ") == expected > 5, reply


def test_a_class_that_cannot_be_changed_is_said(tmp_path):
    make_exported(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "T5Tokenizer"}))
    before = path.read_bytes()
    assert keep_spaces_in_litgpt(tmp_path) == [
        "litgpt's own chat will leave spaces out: it does not know the tokenizer_class T5Tokenizer"
    ]
    assert path.read_bytes() == before
