"""Whatever --model names answers as the model that it is: a run, a checkpoint, a folder, an adapter, a GGUF file."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lit_gpt.chat.base import main
from lit_gpt.formats.litgpt_directory import CONFIG, WEIGHTS
from lit_gpt.inference.sampling_options import Sampling
from tests.chat.known_answers import make_known_model
from tests.chats import END_OF_TURN
from tests.conftest import LLAMA_CPP, run_command
from tests.formats.hf_models import make_litgpt
from utils.chat.gguf import read_metadata
from utils.chat.models import distinct_labels, load_speakers
from utils.export.llama_cpp import LlamaCpp
from utils.run.chat_options import ChatOptions
from utils.run.checkpoint_folders import list_checkpoints

PROMPTS = ("Bonjour, ça va ?", "The quick dog")


def answers(folder: Path, *words: object, prompts: tuple[str, ...] = PROMPTS) -> list[tuple[str, bool]]:
    """Each answer, and whether it ended by itself."""
    file, found = folder / "prompts.txt", folder / "answers.jsonl"
    file.write_text("\n".join(prompts), encoding="utf-8")
    options = ("--once", file, "--answers", found, "--temperature", 0, "--accelerator", "cpu", *words)
    assert run_command(ChatOptions, main, ["--max_new_tokens", "16", *map(str, options)]) == 0
    rows = map(json.loads, found.read_text(encoding="utf-8").splitlines())
    return [(row["messages"][-1]["content"], row["ended_by_itself"]) for row in rows]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A litgpt directory beside a Hugging Face folder, and transformers' model of it."""
    folder = tmp_path_factory.mktemp("theirs")
    return folder, make_litgpt(folder)


@pytest.fixture(scope="module")
def hf_folder(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "model"
    return shutil.copytree(theirs[0], folder, ignore=shutil.ignore_patterns(WEIGHTS, CONFIG, "SHA256SUMS"))


def children() -> list[str]:
    """The numbers of this process's children that run llama.cpp."""
    found = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    # not its cmdline, which one that has ended and is not waited for has no more
    return [pid for pid in found if Path(f"/proc/{pid}/comm").read_text().startswith("llama-completio")]


def of_transformers(model, folder: Path) -> list[str]:
    from sentencepiece import SentencePieceProcessor

    tokenizer = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    found = []
    for prompt in PROMPTS:
        ids = [1, *tokenizer.encode(f"[speaker001:] {prompt}\n[speaker002:]")]
        made = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False, pad_token_id=0)
        found.append(tokenizer.decode(made[0, len(ids) :].tolist()).strip())
    return found


def test_a_hugging_face_folder_answers_as_transformers_does(theirs, hf_folder, tmp_path):
    before = sorted(path.name for path in hf_folder.iterdir())
    found = [answer for answer, _ in answers(tmp_path, "--model", hf_folder)]
    assert found == of_transformers(theirs[1], hf_folder) and all(found)
    assert sorted(path.name for path in hf_folder.iterdir()) == before
    assert [answer for answer, _ in answers(tmp_path, "--model", theirs[0])] == found
    assert [answer for answer, _ in answers(tmp_path, "--checkpoint_dir", theirs[0])] == found


def test_a_text_is_gone_on_with_as_transformers_does(theirs, tmp_path, capsys):
    """Blanks of the continuation are part of the text, and nothing is put around the prompt."""
    from sentencepiece import SentencePieceProcessor

    folder, model = theirs
    tokenizer = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    found = [answer for answer, _ in answers(tmp_path, "--model", folder, "--template", "text")]
    for prompt, answer in zip(PROMPTS, found, strict=True):
        ids = [1, *tokenizer.encode(prompt)]
        made = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False, pad_token_id=0)[0].tolist()
        assert prompt + answer == tokenizer.decode(made)
    assert run_command(ChatOptions, main, ["--model", str(folder), "--template", "text", "--system", "Be brief."]) == 2
    assert "--system needs a chat template" in capsys.readouterr().err


def test_an_adapter_of_peft_answers_merged_on_its_base(theirs, tmp_path):
    folder, model = theirs
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 32, generator=generator), torch.randn(32, 2, generator=generator)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    described = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "layers_to_transform": [0]}
    (adapter / "adapter_config.json").write_text(json.dumps({**described, "task_type": "CAUSAL_LM", "bias": "none"}))
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, adapter / "adapter_model.safetensors")
    base = of_transformers(model, folder)
    with torch.no_grad():
        weight = model.model.layers[0].self_attn.q_proj.weight
        kept = weight.clone()
        weight += 2 * b @ a
        merged = of_transformers(model, folder)
        weight.copy_(kept)
    found = answers(tmp_path, "--compare", folder, adapter, "--checkpoint_dir", folder)
    assert [answer for answer, _ in found] == [base[0], merged[0], base[1], merged[1]] and base != merged


def test_a_run_answers_by_its_best_checkpoint_and_a_checkpoint_by_itself(trained_run, lora_run, foundation, tmp_path):
    of_run = answers(tmp_path, "--model", trained_run)
    assert of_run == answers(tmp_path, "--model", foundation)  # made of the run
    newest = answers(tmp_path, "--model", list_checkpoints(trained_run)[0])
    assert len(newest) == len(PROMPTS)
    adapted = answers(tmp_path, "--model", lora_run)
    assert adapted == answers(tmp_path, "--lora_path", lora_run) != of_run


@pytest.mark.llama_cpp
def test_a_gguf_file_answers_as_the_folder_it_was_made_of(theirs, hf_folder, tmp_path, capsys):
    gguf = tmp_path / "model.gguf"
    LlamaCpp.find(LLAMA_CPP).convert(hf_folder, gguf, "f32")
    words = ("--compare", gguf, hf_folder, "--llama_cpp_dir", LLAMA_CPP)
    found = answers(tmp_path, *words, "--repetition_penalty", 1.3)
    assert found[0::2] == found[1::2] and all(answer for answer, _ in found)
    windowed = ("--template", "text", "--repetition_penalty", 1.5, "--repetition_window", 2)
    # of bytes that are no text llama.cpp's program and our decoding show more or fewer signs
    texts = [re.sub("\ufffd+", "\ufffd", answer) for answer, _ in answers(tmp_path, *words, *windowed)]
    assert texts[0::2] == texts[1::2]
    (tmp_path / "SHA256SUMS").touch()  # as a folder of quantised files has it
    assert (
        answers(tmp_path, "--model", tmp_path, "--llama_cpp_dir", LLAMA_CPP, "--repetition_penalty", 1.3) == found[0::2]
    )
    (tmp_path / "empty").mkdir()
    assert run_command(ChatOptions, main, ["--model", str(gguf), "--llama_cpp_dir", str(tmp_path / "empty")]) == 2
    assert "llama.cpp is not in" in capsys.readouterr().err


@pytest.mark.llama_cpp
def test_a_gguf_file_is_spoken_to_by_its_own_template(tmp_path, capsys):
    """Its answers end where they did, characters that are several tokens are whole, and text is no token."""
    folder = make_known_model(tmp_path / "known")
    gguf = tmp_path / "known.gguf"
    LlamaCpp.find(LLAMA_CPP).convert(folder, gguf, "f32", "gpt-2")
    words = ("--compare", folder, gguf, "--llama_cpp_dir", LLAMA_CPP)
    asked = ("Hello?", "Go!")
    assert answers(tmp_path, *words, prompts=asked) == [("世界🙂", True)] * 2 + [("ab" * 8, False)] * 2
    assert answers(tmp_path, *words, "--stop", "界", prompts=asked[:1]) == [("世", True)] * 2
    (speaker,) = load_speakers(ChatOptions(model=gguf, llama_cpp_dir=LLAMA_CPP))
    prompt = speaker.prompt([{"role": "user", "content": "Go!"}], None)
    stream = speaker.stream(prompt, Sampling(max_new_tokens=200, temperature=0.0))
    (child,) = [process for _ in [next(stream)] for process in children()]
    stream.close()  # as Ctrl-C does
    assert child not in children() and speaker.used(prompt, "ab") == len(prompt) + 2

    # as where llama.cpp does not know that the template's end of a turn ends a text
    speaker._ends = [END_OF_TURN]
    hello = speaker.prompt([{"role": "user", "content": "Hello?"}], None)
    assert "".join(speaker.stream(hello, Sampling(temperature=0.0))) == "世界🙂" and speaker.by_itself

    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf.read_bytes()[:-1000])
    once = ("--llama_cpp_dir", str(LLAMA_CPP), "--once", str(tmp_path / "prompts.txt"))
    assert run_command(ChatOptions, main, ["--model", str(cut), *once]) == 65
    assert "error: llama-tokenize failed" in capsys.readouterr().err  # it may end before it has printed the reason
    assert run_command(ChatOptions, main, ["--model", str(gguf), *once, "--system", "<|im_end|>"]) == 2
    assert "a message holds '<|im_end|>', which llama.cpp would take for that token" in capsys.readouterr().err


def test_a_recipe_names_the_model_and_the_prompts(trained_run, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("Bonjour")
    chat = {"once": tmp_path / "prompts.txt", "answers": tmp_path / "answers.jsonl", "max_new_tokens": 5, "seed": 7}
    lines = [f"  {name}: {value}" for name, value in chat.items()]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("\n".join(["pretrain:", f"  out_dir: {trained_run}", "chat:", *lines]))
    assert run_command(ChatOptions, main, ["--config", str(recipe), "--accelerator", "cpu"]) == 0
    out, (row,) = capsys.readouterr().out, (tmp_path / "answers.jsonl").read_text().splitlines()
    assert "[1/1] Bonjour\n[speaker002:]" in out and json.loads(row)["model"] == str(trained_run)
    words = ["--config", str(recipe), "--compare", str(trained_run), str(trained_run), "--accelerator", "cpu"]
    assert run_command(ChatOptions, main, words) == 0
    assert f"{trained_run.name} (2): " in capsys.readouterr().out


def test_what_is_no_model_is_one_line(theirs, trained_run, tmp_path, capsys):
    def refused(code: int, message: str, *words: object) -> None:
        assert run_command(ChatOptions, main, [*map(str, words), "--accelerator", "cpu"]) == code
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error, error

    several = tmp_path / "several"
    several.mkdir()
    for name in ("a", "b"):
        (several / f"{name}.gguf").touch()
    refused(2, "there is no", "--model", tmp_path / "none")
    refused(2, "is no model: neither a run folder", "--model", tmp_path)
    refused(2, "has 2 GGUF files (a.gguf, b.gguf)", "--model", several)
    refused(2, "is neither a run folder", "--model", Path(__file__))
    for content in (b"", b"GGUF", b"GGUF" + struct.pack("<IQQ", 3, 0, 9) + b"\xff" * 40):
        (tmp_path / "a.gguf").write_bytes(content)
        refused(65, "a.gguf is", "--model", tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    refused(65, "of version 1", "--model", tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    if (LLAMA_CPP / "bin").is_dir():
        refused(65, "is no language model", "--model", tmp_path / "a.gguf", "--llama_cpp_dir", LLAMA_CPP)
    refused(2, "is required")
    refused(2, "takes two models, not 1", "--compare", theirs[0])
    refused(2, "beside --model", "--model", theirs[0], "--lora_path", trained_run)
    refused(2, "--answers is written with --once", "--model", theirs[0], "--answers", tmp_path / "a.jsonl")


def test_metadata_of_every_type_is_read(tmp_path):
    """By the format's description: types 0 to 12, one after the other."""
    numbers = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    keys = [
        struct.pack("<Q", 2) + f"k{kind:x}".encode() + struct.pack("<I", kind) + struct.pack(f"<{code}", 1)
        for kind, code in numbers.items()
    ]
    keys.append(struct.pack("<Q2sIQ", 2, b"k8", 8, 5) + "été".encode())
    keys.append(struct.pack("<Q2sIIQ", 2, b"k9", 9, 5, 3) + struct.pack("<3i", 1, -2, 3))
    keys.append(struct.pack("<Q2sIIQ", 2, b"kk", 9, 8, 2) + struct.pack("<Q1sQ", 1, b"a", 0))
    (tmp_path / "all.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + b"".join(keys))
    found = read_metadata(tmp_path / "all.gguf")
    assert {key: value for key, value in found.items() if key not in ("k8", "k9", "kk")} == {
        f"k{kind:x}": 1 for kind in numbers
    }
    assert found["k8"] == "été" and found["k9"].tolist() == [1, -2, 3] and found["kk"] == ["a", ""]


def test_labels_tell_paths_apart():
    assert distinct_labels(Path("/a/b"), Path("/a/c")) == ("b", "c")
    assert distinct_labels(Path("/a/run"), Path("/b/run")) == ("a/run", "b/run")
    assert distinct_labels(Path("/a/run"), Path("/a/run")) == ("run (1)", "run (2)")
