"""lit_gpt/generate/base.py and lit_gpt/inference.py: greedy text equals transformers', and text comes out whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_gpt import command
from lit_gpt.generate.base import Options, main
from lit_gpt.inference import TextModel, TextStream
from lit_gpt.tokenizer import Tokenizer
from tests.hf_models import make_litgpt

SCRIPT = Path(__file__).resolve().parents[1] / "lit_gpt" / "generate" / "base.py"
PROMPT = "[speaker001:] Bonjour,"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A litgpt directory and transformers' model of the same weights."""
    folder = tmp_path_factory.mktemp("litgpt")
    return folder, make_litgpt(folder)


def transformers_greedy(model, ids, count, eos):
    output = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
    )[0].tolist()
    return [token for token in output if token != eos]


def test_greedy_text_equals_transformers(checkpoint):
    folder, model = checkpoint
    text_model = TextModel(folder, accelerator="cpu")
    tokenizer = text_model.tokenizer
    ids = text_model.encode(PROMPT)
    assert ids[0] == tokenizer.bos_id and ids[1:] == tokenizer.encode(PROMPT)
    for prompt in (ids, ids[:1], ids + ids):  # a longer and a shorter one after it reuse the same cache
        expected = tokenizer.decode(transformers_greedy(model, prompt, 40, tokenizer.eos_id))
        pieces = list(text_model.stream(prompt, 40, temperature=0.0, top_k=None, top_p=1.0))
        assert tokenizer.decode(prompt) + "".join(pieces) == expected
        assert len(pieces) > 5, "nothing was streamed"


def test_script_prints_the_prompt_and_its_continuation(checkpoint):
    folder, model = checkpoint
    words = [sys.executable, str(SCRIPT), "--checkpoint_dir", str(folder), "--prompt", PROMPT]
    words += ["--temperature", "0", "--max_new_tokens", "12", "--accelerator", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    tokenizer = Tokenizer(folder)
    expected = transformers_greedy(model, [tokenizer.bos_id, *tokenizer.encode(PROMPT)], 12, tokenizer.eos_id)
    assert done.stdout == tokenizer.decode(expected) + "\n"


def test_seed_decides_and_samples_differ(checkpoint, capsys):
    def samples(seed):
        main(
            Options(checkpoint[0], PROMPT, num_samples=2, seed=seed, top_p=0.9, accelerator="cpu", precision="32-true")
        )
        return capsys.readouterr().out

    assert samples(1) == samples(1) != samples(2)
    tokens = [Tokenizer(checkpoint[0]).encode(line) for line in samples(1).split(PROMPT)[1:]]
    assert len(tokens) == 2 and tokens[0] != tokens[1]


def test_end_of_context_ends_the_text(checkpoint):
    text_model = TextModel(checkpoint[0], accelerator="cpu")
    ids = text_model.encode("a" * 90)
    assert len(ids) < 128
    tokens = []
    stream = TextStream.push
    try:
        TextStream.push = lambda self, token: tokens.append(token) or stream(self, token)
        list(text_model.stream(ids, 10_000, temperature=0.0, top_k=None, top_p=1.0))
    finally:
        TextStream.push = stream
    assert len(ids) + len(tokens) == 128


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a b c d " * 100], "the model's context 128"),
        (["--prompt", "a", "--temperature", "-1", "--top_p", "0"], "--temperature must be 0"),
        (["--prompt", "a", "--max_new_tokens", "0"], "--max_new_tokens must be 1"),
    ],
)
def test_wrong_use_is_one_line(checkpoint, capsys, words, message):
    assert command.run(Options, main, ["--checkpoint_dir", str(checkpoint[0]), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and "error: " in error


def test_weights_of_another_model_are_bad_data(checkpoint, tmp_path, capsys):
    for path in checkpoint[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = tmp_path / "model_config.yaml"
    config.write_text(config.read_text().replace("intermediate_size: 56", "intermediate_size: 64"))
    assert command.run(Options, main, ["--checkpoint_dir", str(tmp_path), "--prompt", "a"]) == 65
    assert "does not fit model_config.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["naïve 🙂🙂 你好, Łódź\n  x", "👩‍👩‍👧 ok", "\n\n a", "«\u202fici\u202f»"])
def test_characters_come_whole(checkpoint, text):
    tokenizer = Tokenizer(checkpoint[0])
    prompt = tokenizer.encode("Il dit 🙂:")
    ids = tokenizer.encode(" " + text)[1:]  # without the space that SentencePiece puts before any text
    stream = TextStream(tokenizer, prompt)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.rest() == tokenizer.decode(prompt + ids)[len(tokenizer.decode(prompt)) :]
    assert not any("\ufffd" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_not_lost(checkpoint):
    tokenizer = Tokenizer(checkpoint[0])
    ids = tokenizer.encode("ok 🙂")
    stream = TextStream(tokenizer, ids[:1])
    assert "".join(stream.push(token) for token in ids[1:-1]).endswith("k ")
    assert "\ufffd" in stream.rest() and stream.rest() == ""
