"""The parts of an answer: what a model thinks, which tools it calls, and what it says.

Models write these between marks of their own, and the text comes in pieces. The parts become a message as OpenAI
writes it, so that the template writes them again as the model has learned.
"""

from typing import Any, NamedTuple

from lit_gpt.inference.generation import begun
from lit_gpt.tokenizer.chat_template import Message
from utils.prepare.chat.json_values import Malformed, read_json
from utils.prepare.chat.tool_calls import read_calls

SAID, THOUGHT, CALL = "", "reasoning", "tool call"
"""The kinds of parts, as they are shown."""


class Marks(NamedTuple):
    kind: str
    begin: str
    end: str


MARKS = (
    Marks(THOUGHT, "<think>", "</think>"),  # Qwen 3, DeepSeek R1, SmolLM 3
    Marks(THOUGHT, "[THINK]", "[/THINK]"),  # Magistral
    Marks(CALL, "<tool_call>", "</tool_call>"),  # Hermes, Qwen
    Marks(CALL, "<|tool_call|>", "<|/tool_call|>"),  # Phi 4 mini
    Marks(CALL, "[TOOL_CALLS]", ""),  # Mistral: to the answer's end
    Marks(CALL, "<|python_tag|>", ""),  # Llama 3.1, likewise
    Marks(CALL, "<|tool_call_start|>", "<|tool_call_end|>"),  # LFM 2
    Marks(CALL, "<|tool_call>", "<tool_call|>"),  # Gemma 4, as what follows
    Marks(THOUGHT, "<|channel>thought", "<channel|>"),
)


class Part(NamedTuple):
    text: str
    marks: Marks | None
    """None: what the model says."""

    @property
    def kind(self) -> str:
        return self.marks.kind if self.marks else SAID


class PartReader:
    """Tells the parts of an answer that comes in pieces; what may be a mark's beginning is held back.

    `prompt` is the text before the answer: some templates write the mark with which reasoning begins.
    """

    def __init__(self, prompt: str = "") -> None:
        self._held = ""
        self._open = next((marks for marks in MARKS if marks.end and prompt.rstrip().endswith(marks.begin)), None)

    def push(self, piece: str) -> list[Part]:
        """The parts that are decided now, in order."""
        self._held += piece
        found: list[Part] = []
        while places := [(self._held.find(mark), mark) for mark in self._marks() if mark in self._held]:
            at, mark = min(places)
            found += self._take(at)
            self._held = self._held[len(mark) :]
            self._open = None if self._open else next(marks for marks in MARKS if marks.begin == mark)
        kept = max((begun(self._held, mark) for mark in self._marks()), default=0)
        return found + self._take(len(self._held) - kept)

    def finish(self) -> list[Part]:
        return self._take(len(self._held))

    def _marks(self) -> list[str]:
        """The marks that would change the kind."""
        if self._open:
            return [self._open.end] if self._open.end else []
        return [marks.begin for marks in MARKS]

    def _take(self, count: int) -> list[Part]:
        text, self._held = self._held[:count], self._held[count:]
        return [Part(text, self._open)] if text else []


def is_in_mark(token: str) -> bool:
    """Whether a special token is a mark, or a part of one, so that its name is needed to tell parts apart."""
    return any(token in marks.begin or token in marks.end for marks in MARKS)


def parts_of(answer: str, prompt: str = "") -> list[Part]:
    """The parts of a whole answer."""
    reader = PartReader(prompt)
    parts, rest = reader.push(answer), reader.finish()
    if parts and rest and parts[-1].marks is rest[0].marks:  # cut within what might have been a mark
        return [*parts[:-1], Part(parts[-1].text + rest[0].text, rest[0].marks)]
    return parts + rest


def message_of(answer: str, prompt: str = "") -> Message:
    """An answer as the assistant's message: reasoning apart, and calls where all of them can be read."""
    parts = parts_of(answer, prompt)
    thought = "".join(part.text for part in parts if part.kind == THOUGHT).strip()
    calls = _calls([part.text for part in parts if part.kind == CALL])
    content = ""
    for part in parts:
        if part.kind == SAID:
            content += part.text
        elif part.marks and part.kind == CALL and not calls:
            content += part.marks.begin + part.text + part.marks.end
    message: Message = {"role": "assistant", "content": content.strip()}
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    return message


def _calls(texts: list[str]) -> list[dict[str, Any]]:
    """The calls in these texts, as OpenAI writes them; none if one of them cannot be read."""
    raw: list[Any] = []
    try:
        for text in texts:
            value = read_json(text.strip())
            raw += value if isinstance(value, list) else [value]
        return read_calls(raw, {}, 1)
    except (ValueError, Malformed):
        return []
