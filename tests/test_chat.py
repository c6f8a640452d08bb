"""lit_gpt/chat/base.py: turns, the user's next turn as the end of an answer, old turns dropped, a pipe as keyboard."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_gpt.chat.base import Options, answer_pieces, fit, main, until
from lit_gpt.inference import TextModel
from tests.hf_models import make_litgpt

SCRIPT = Path(__file__).resolve().parents[1] / "lit_gpt" / "chat" / "base.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("litgpt")
    make_litgpt(folder)
    return folder


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["Bien", ".\n", "[speaker", "001:", "] Et"], "Bien."),
        (["Bien.\n[speaker001:] Et", " toi"], "Bien."),
        (["Bien.\n", "[speaker002:] Et", " toi"], "Bien.\n[speaker002:] Et toi"),
        (["Bien.\n", "\n[speaker001:]"], "Bien.\n"),
        (["Bien", ".\n[spea"], "Bien.\n[spea"),
        (["Bien", ".\n"], "Bien."),
    ],
)
def test_answer_ends_at_the_users_turn(pieces, expected):
    assert "".join(until(pieces, "\n[speaker001:]")) == expected


def test_answer_streams_what_is_decided():
    def pieces():
        yield from ("a", "b", "\n", "c")
        raise AssertionError("asked for more than needed")

    stream = until(pieces(), "\n[x:]")
    assert [next(stream) for _ in range(3)] == ["a", "b", "\nc"]


def test_oldest_turns_are_dropped():
    turns = ["aaaa", "bbb", "cc"]
    assert fit(turns, list, block_size=100, max_new_tokens=10) == (turns, list("aaaabbbcc"))
    assert fit(turns, list, block_size=15, max_new_tokens=10)[0] == ["bbb", "cc"]  # the answer gets 7 at most
    assert fit(turns, list, block_size=5, max_new_tokens=1)[0] == ["cc"]
    assert fit(turns, list, block_size=2, max_new_tokens=1) == ([], [])


def test_conversation_through_a_pipe(folder):
    words = [sys.executable, str(SCRIPT), "--checkpoint_dir", str(folder), "--max_new_tokens", "8"]
    words += ["--accelerator", "cpu", "--bot_name", "Zoé"]
    too_long = "x" * 400
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    typed = f"Bonjour, ça va ?\n{too_long}\nEt toi ?\n\nnot read\n"
    done = subprocess.run(words, input=typed, capture_output=True, env=environment, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[Zoé:]") == 2
    assert "too long for a context of 128 tokens" in done.stderr


def test_conversation_is_kept(folder, monkeypatch, capsys):
    """The second question is asked with the first one and its answer before it."""
    lines = iter(["Bonjour", "Et toi ?", ""])
    monkeypatch.setattr("lit_gpt.chat.base.read_line", lambda _: next(lines))
    asked = []
    real = TextModel.encode

    def encode(self, text):
        asked.append(text)
        return real(self, text)

    monkeypatch.setattr(TextModel, "encode", encode)
    options = Options(folder, max_new_tokens=6, temperature=0.0, accelerator="cpu")
    main(options)
    first, second = asked
    assert first == "[speaker001:] Bonjour\n[speaker002:]"
    answer = "".join(answer_pieces(TextModel(folder, accelerator="cpu"), real(TextModel(folder), first), options))
    assert second == f"{first}{answer}\n[speaker001:] Et toi ?\n[speaker002:]"
    assert f"[speaker002:]{answer}\n" in capsys.readouterr().out
