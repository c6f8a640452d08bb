"""Templates of Ollama, rendered by Go itself, and folders with real chat templates."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "go" / "render.go"
TOKENS = (  # of the templates that are rendered here, some
    *("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|end|>", "<|user|>", "<|assistant|>"),
)


class Go:
    """The program render.go, which renders as Ollama does."""

    def __init__(self, folder: Path) -> None:
        self._program = folder / "render"
        subprocess.run(["go", "build", "-o", self._program, SOURCE], check=True, timeout=300)

    def answers(self, template: str, chats: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, str]]:
        """For each conversation `text`, or `error`."""
        asked = "\n".join(json.dumps({"template": template, "messages": messages}) for messages in chats)
        done = subprocess.run([self._program], input=asked, capture_output=True, text=True, check=True, timeout=300)
        answers = [json.loads(line) for line in done.stdout.split("\n") if line]
        assert len(answers) == len(chats)
        return answers

    def render(self, template: str, messages: Sequence[dict[str, Any]]) -> str:
        (answer,) = self.answers(template, [messages])
        assert "error" not in answer, answer
        return answer["text"]


def real_templates() -> dict[str, Path]:
    """Chat templates of published models, as the package trl carries them, by name."""
    package = importlib.util.find_spec("trl")
    assert package and package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0]) / "chat_templates"
    return {path.stem: path for path in sorted(folder.glob("*.jinja")) if not path.stem.endswith("_training")}


def tokenizer_folder(folder: Path, template: str | None, adds_begin: bool = False) -> Path:
    """A folder with a tokenizer of no words, as transformers saves one, and this chat template."""
    from tokenizers import AddedToken, Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer(models.BPE({"x": 0}, []))
    own.add_special_tokens([AddedToken(token, special=True) for token in ("<bos>", "</s>", *TOKENS)])
    if adds_begin:
        begin = ("<bos>", own.token_to_id("<bos>"))
        own.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A $B", [begin])
    made = PreTrainedTokenizerFast(
        tokenizer_object=own, chat_template=template, bos_token="<bos>", eos_token="</s>", unk_token="</s>"
    )
    made.save_pretrained(folder)
    return folder
