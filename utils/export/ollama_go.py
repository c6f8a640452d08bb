"""Ollama's templates as Go renders them, by the program ollama_render.go, where a Go compiler is installed."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_gpt.errors import DataError
from utils.export.turns import Turns

SOURCE = Path(__file__).parent / "ollama_render.go"


class Go:
    """The program, compiled into `folder` in a second."""

    def __init__(self, folder: Path) -> None:
        self._program = folder / "render"
        subprocess.run(["go", "build", "-o", self._program, SOURCE], check=True, timeout=300)

    def answers(self, template: str, chats: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, str]]:
        """For each conversation `text`, or `error`."""
        asked = "\n".join(json.dumps({"template": template, "messages": messages}) for messages in chats)
        done = subprocess.run(
            [self._program], input=asked, capture_output=True, encoding="utf-8", check=True, timeout=300
        )
        answers = [json.loads(line) for line in done.stdout.split("\n") if line]
        assert len(answers) == len(chats)
        return answers

    def render(self, template: str, messages: Sequence[dict[str, Any]]) -> str:
        (answer,) = self.answers(template, [messages])
        assert "error" not in answer, answer
        return answer["text"]


def check_by_go(turns: Turns, chats: Sequence[Sequence[dict[str, Any]]], scratch: Path) -> str:
    """Says how many conversations Go renders from a Modelfile's template as `turns` says them, or refuses as `turns`.

    A DataError for one that comes out otherwise.
    """
    if shutil.which("go") is None:
        return "Ollama's template was not rendered by Go, which is not installed: its form was compared by this program"
    try:
        go = Go(scratch)
    except subprocess.SubprocessError as e:  # or it takes minutes
        return f"Ollama's template was not rendered by Go, which does not compile: {e}"
    answers = go.answers(turns.go(), chats)
    for messages, answer in zip(chats, answers, strict=True):
        if answer.get("text") != turns.render(messages) and not ("error" in answer and turns.render(messages) is None):
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(f"Go renders the Modelfile's template otherwise than the training: a chat of {roles}")
    return f"Ollama's template: {len(chats)} conversations rendered by Go as in the training, or refused"
