"""What was trained on chats is spoken to by their template, and ends its answers, wherever it goes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml

from lit_gpt.chat.base import main as chat
from lit_gpt.inference.generation import TextModel
from lit_gpt.tokenizer.chat_files import with_default_system
from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.tokenizer import TOKENIZER_FILES, Tokenizer
from tests.chats import END_OF_TEXT, END_OF_TURN, make_chat_tokenizer
from tests.conftest import TINY_MODEL, assert_error, run
from tests.export.test_modelfile import CHATML, parse
from utils.data.manifest import Manifest
from utils.data.parts import TARGET
from utils.data.shards import RowReader
from utils.export.modelfile import form_of, modelfile
from utils.run.chat_options import ChatOptions
from utils.run.checkpoint_folders import list_checkpoints

SYSTEM = 'Ты — "Сайга".\nBe {{kind}} {% and } brief\\.'
OTHER = CHATML.replace("<|im_start|>", "<|im_start|>role: ")
SMALL = ("--precision", "32-true", "--interval_unit", "steps", "--max_steps", 2, "--warmup_steps", 1, "--batch_size", 2)
LORA = ("--use_lora", "true", "--learning_rate", 0.1)
ASK = """
import json, sys
from transformers import AutoTokenizer, GenerationConfig
chats, *folders = map(json.loads, sys.argv[1:])
for folder in folders:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]
    print(json.dumps([ids, GenerationConfig.from_pretrained(folder).eos_token_id]))
"""


class Place(NamedTuple):
    sources: Path
    data: Path  # by CHATML, with a default system message
    run: Path  # of all weights, from random ones
    published: Path  # its Hugging Face folder, and litgpt directory
    other: Path  # data by `OTHER`
    lora: Path  # a run on them, from that directory
    adapter: Path  # of that run, for peft


def question(*contents, system=None):
    messages = [] if system is None else [{"role": "system", "content": system}]
    for number, content in enumerate(contents):
        messages.append({"role": ("user", "assistant")[number % 2], "content": content})
    return messages


CHATS = (question("Ça va ?"), question(" a\n", "b ", "c", system="Be brief."), question("a", "b", "c"))


def prepare(sources: Path, checkpoint_dir: Path, folder: Path, template: str, *others: object) -> Path:
    """Data of chats and, so that a folder has both, of text."""
    file = folder.with_suffix(".jinja")
    file.write_text(template)
    chats = {"name": "chats", "path": str(sources / "chats.jsonl"), "converter": "instruction"}
    entries = json.dumps([chats, {"name": "text", "path": str(sources / "text.jsonl")}])
    words = ("--datasets", entries, "--checkpoint_dir", checkpoint_dir, "--destination_path", folder)
    run("prepare_data.py", *words, "--template", file, "--max_length", 256, "--num_workers", 1, *others)
    return folder


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """All by the programs themselves."""
    folder = tmp_path_factory.mktemp("chats")
    model_config = folder / "tiny.yaml"
    model_config.write_text(TINY_MODEL.replace("block_size: 64", "block_size: 256"))
    tokenizer = make_chat_tokenizer(folder / "tokenizer")
    sources = folder / "sources"
    sources.mkdir()
    chats = [json.dumps({"instruction": f"Reverse {number}", "output": str(number)[::-1]}) for number in range(200)]
    (sources / "chats.jsonl").write_text("\n".join(chats))
    (sources / "text.jsonl").write_text("\n".join(json.dumps({"text": f"Text {number}."}) for number in range(200)))
    data = prepare(sources, tokenizer, folder / "data", CHATML, "--system", SYSTEM)
    scratch = ("--checkpoint_dir", tokenizer, "--model_config", model_config, "--out_dir", folder / "run")
    run("pretrain.py", "--data_dir", data, *scratch, *SMALL)
    published = folder / "published"
    sections = {"pretrain": {"out_dir": str(folder / "run")}, "convert": {"output_dir": str(published)}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**sections, "chat": {"temperature": 0.2, "top_p": 0.9}}))
    run("convert_litgpt_to_transformers.py", "--config", folder / "recipe.yaml")
    run("lit_gpt/scripts/convert_hf_checkpoint.py", "--checkpoint_dir", published, "--verify", "none")
    other = prepare(sources, published, folder / "other", OTHER)
    lora = ("--checkpoint_dir", published, "--out_dir", folder / "lora", *LORA)
    run("pretrain.py", "--data_dir", other, *lora, *SMALL)
    words = ("--input_path", folder / "lora", "--output_dir", folder / "adapter", "--as_adapter", "true")
    run("convert_litgpt_to_transformers.py", *words, "--base_model", "org/Base")
    return Place(sources, data, folder / "run", published, other, folder / "lora", folder / "adapter")


@pytest.fixture(scope="module")
def asked(place) -> dict[Path, tuple[list[list[int]], list[int]]]:
    """What transformers, in a fresh process, sends for `CHATS`, and where it stops, by the folder that it reads."""
    folders = (place.published, place.adapter)
    words = [sys.executable, "-c", ASK, json.dumps(CHATS), *(json.dumps(str(folder)) for folder in folders)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return dict(zip(folders, map(json.loads, done.stdout.splitlines()), strict=True))


def names_of_ends(folder: Path) -> list[str]:
    tokenizer = Tokenizer(folder)
    return sorted(tokenizer.vocabulary[index] for index in tokenizer.end_ids)


def test_the_default_system_message_is_said_where_there_is_none(tmp_path):
    tokenizer = Tokenizer(make_chat_tokenizer(tmp_path))
    plain, ours = (ChatTemplate(tokenizer, source) for source in (CHATML, with_default_system(CHATML, SYSTEM)))
    for messages in CHATS:
        had_one = messages[0]["role"] == "system"
        expected = messages if had_one else [{"role": "system", "content": SYSTEM}, *messages]
        assert ours.render(messages) == plain.render(expected)
    # white space at the template's beginning means what it meant
    for start in ("\n\n  {% if true %} a{% endif %}", "  \n", "{{- 'a' }}", "\t{%- if true %} a{% endif %}"):
        assert ChatTemplate(tokenizer, with_default_system(start + CHATML, SYSTEM)).render(
            question("b", system="c")
        ) == ChatTemplate(tokenizer, start + CHATML).render(question("b", system="c")), start


def test_a_checkpoint_has_the_datas_template_and_the_end_of_its_turns(place):
    for run_dir, data, template in (
        (place.run, place.data, with_default_system(CHATML, SYSTEM)),
        (place.lora, place.other, OTHER),
    ):
        (checkpoint,) = list_checkpoints(run_dir)
        assert (checkpoint / "chat_template.jinja").read_text() == template
        assert names_of_ends(checkpoint) == sorted([END_OF_TEXT, END_OF_TURN])
        identity = yaml.safe_load((checkpoint / "run.yaml").read_text())["identity"]
        assert identity["template"] == sha256(template) == Manifest.load(data).template
        assert Tokenizer(checkpoint).fingerprint == Manifest.load(data).tokenizer


def test_what_is_served_is_what_was_trained(place):
    """The rows hold the ids that a checkpoint's template gives for each question, and then the answer, all targets."""
    for run_dir, data in ((place.run, place.data), (place.lora, place.other)):
        (entry,) = (entry for entry in Manifest.load(data).splits if entry.dataset == "chats")
        rows = [RowReader(data, entry).read(number) for number in range(entry.rows)]
        samples = set()
        for row in rows:
            ends = np.cumsum(row.segment_lengths)
            for end, length in zip(ends, row.segment_lengths, strict=True):
                targets = row.parts[end - length : end] == TARGET
                samples.add((bytes(row.tokens[end - length : end]), bytes(targets)))
        tokenizer = Tokenizer(list_checkpoints(run_dir)[0])
        template = ChatTemplate(tokenizer)
        for number in range(200):
            asked = template.encode(question(f"Reverse {number}"))
            answer = tokenizer.encode(str(number)[::-1])
            answer += [tokenizer.token_id(END_OF_TURN), *tokenizer.encode("\n")]
            tokens = np.array(asked + answer, rows[0].tokens.dtype)
            assert (bytes(tokens), bytes(np.arange(len(tokens)) >= len(asked))) in samples, number
        assert len(samples) == 200


def test_transformers_sends_what_was_trained(place, asked):
    (checkpoint,) = list_checkpoints(place.run)
    ids, ends = asked[place.published]
    template = ChatTemplate(Tokenizer(checkpoint))
    assert ids == [template.encode(messages) for messages in CHATS]
    tokenizer = Tokenizer(checkpoint)
    assert ends == [tokenizer.token_id(END_OF_TEXT), tokenizer.token_id(END_OF_TURN)]
    written = json.loads((place.published / "generation_config.json").read_text())
    assert written["do_sample"] and written["temperature"] == 0.2 and written["top_p"] == 0.9
    assert SYSTEM in tokenizer._hf.decode(ids[0], skip_special_tokens=False)
    provenance = json.loads((place.published / "training_provenance.json").read_text())
    assert provenance["template"] == Manifest.load(place.data).template
    assert "4 chats by its template" in provenance["conversion"]["verification"]
    card = (place.published / "README.md").read_text()
    assert "apply_chat_template" in card and END_OF_TURN in card and "base model: it" not in card


@pytest.mark.go
def test_ollama_sends_what_was_trained(place, go):
    form = form_of(place.published)
    assert form.description.startswith("chat, as the model's own chat template writes it")
    commands = parse(modelfile("m.gguf", form, 64, END_OF_TEXT))
    (checkpoint,) = list_checkpoints(place.run)
    for messages in CHATS:
        assert go.render(commands["TEMPLATE"][0], messages) == ChatTemplate(Tokenizer(checkpoint)).render(messages)
    assert END_OF_TURN in commands["PARAMETER stop"]


def test_an_adapter_brings_its_template_along(place, asked, tmp_path):
    ids, ends = asked[place.adapter]
    template = ChatTemplate(Tokenizer(place.other / "tokenizer"))
    assert ids == [template.encode(messages) for messages in CHATS] and len(ends) == 2
    card = (place.adapter / "README.md").read_text()
    assert 'AutoTokenizer.from_pretrained("adapter")' in card and 'GenerationConfig.from_pretrained("adapter")' in card
    merged = tmp_path / "merged"
    run("utils/merge_lora.py", "--lora_path", place.lora, "--save_path", merged, "--verify", "none")
    again = ("--lora_path", place.adapter, "--checkpoint_dir", place.published, "--verify", "none")
    run("utils/merge_lora.py", *again, "--save_path", tmp_path / "again")
    for folder in (merged, tmp_path / "again"):
        assert (folder / "chat_template.jinja").read_text() == OTHER
        assert names_of_ends(folder) == sorted([END_OF_TEXT, END_OF_TURN])


def test_the_chat_asks_by_the_template_and_stops_at_the_end_of_a_turn(place, monkeypatch, capsys):
    end = Tokenizer(place.published).token_id(END_OF_TURN)
    for options, data, has_system in (
        (ChatOptions(lora_path=place.lora, accelerator="cpu"), place.other, False),
        (ChatOptions(checkpoint_dir=place.published, accelerator="cpu"), place.data, True),
    ):
        lines, read, real = iter(["Ça va ?", ""]), [], TextModel.stream

        def stream(self, prompts, *rest, read=read, real=real, **options):
            read.append(list(prompts[0]))
            return real(self, prompts, *rest, **options)

        with monkeypatch.context() as patch:
            patch.setattr("utils.chat.reading.read_line", lambda _, lines=lines: next(lines))
            patch.setattr(TextModel, "stream", stream)
            patch.setattr("lit_gpt.inference.generation.choose", lambda *_: [end])
            chat(options)
        expected = ChatTemplate(Tokenizer(data / "tokenizer")).encode(CHATS[0])
        assert read == [expected] and capsys.readouterr().out == "\n"
        assert (SYSTEM in Tokenizer(data / "tokenizer")._hf.decode(expected, False)) == has_system


def test_another_template_is_refused_in_one_run(place, tmp_path):
    """Also where it gives the same tokens."""
    copy = shutil.copytree(place.other, tmp_path / "data")
    words = ("--data_dir", copy, "--checkpoint_dir", place.published, "--out_dir", place.lora, *LORA, *SMALL)
    prepare(place.sources, place.published, copy, OTHER + "{# the same #}")
    assert Manifest.load(copy).splits == Manifest.load(place.other).splits
    done = run("pretrain.py", *words, check=False)
    assert_error(done, 2, f"holds another run (template was {sha256(OTHER)[:57]}..., now ", "another --out_dir")
    done = run("validate_pretrain.py", "--out_dir", place.lora, "--data_dir", copy, check=False)
    assert_error(done, 65, "made with another chat template than the run in")
    template = copy / "tokenizer" / "chat_template.jinja"
    template.write_text(OTHER)
    assert_error(run("pretrain.py", *words, check=False), 65, "is not the template that the shards were made with")
    template.unlink()
    assert_error(run("pretrain.py", *words, check=False), 65, "the chat template of the shards, is missing")


def test_plain_text_leaves_the_foundations_template(place, tmp_path):
    """It was not trained by it: what the model does with text is to go on."""
    source = ("--source_path", place.sources / "text.jsonl", "--checkpoint_dir", place.published)
    run("prepare_data.py", *source, "--destination_path", tmp_path / "data", "--max_length", 256, "--num_workers", 1)
    assert Manifest.load(tmp_path / "data").template == ""
    words = ("--data_dir", tmp_path / "data", "--checkpoint_dir", place.published, "--out_dir", tmp_path / "run")
    run("pretrain.py", *words, *SMALL)
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    for name in TOKENIZER_FILES:
        if (place.published / name).is_file():
            assert (checkpoint / name).read_bytes() == (place.published / name).read_bytes()
    words = ("--input_path", tmp_path / "run", "--output_dir", tmp_path / "hf", "--verify", "none")
    run("convert_litgpt_to_transformers.py", *words)
    assert form_of(tmp_path / "hf").description == "completion of text"
    assert "It is a base model: it goes on with a text" in (tmp_path / "hf" / "README.md").read_text()
