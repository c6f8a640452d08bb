"""One conversation with one model: its messages, what is asked next, and what no longer fits."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from lit_gpt.inference.sampling_options import Sampling
from lit_gpt.tokenizer.chat_template import Message
from utils.chat.parts import Part, PartReader, message_of
from utils.chat.speaker import Prompt, Speaker, Tools

PromptT = TypeVar("PromptT", bound=Sequence | Prompt)


class Conversation:
    """Messages, the first of which may be the system's; a turn is a message of the user and what follows it.

    `begin`, `parts` and `keep` are called in turn. An answer that is interrupted is kept as far as it came.
    """

    def __init__(
        self,
        speaker: Speaker,
        sampling: Sampling,
        messages: list[Message],
        tools: Tools | None = None,
        number: int = 0,
    ) -> None:
        """`number` is that of the first answer, which its seed follows from."""
        self.speaker, self.messages, self.tools = speaker, messages, tools
        self._sampling = sampling
        self._answers = number
        self._asked: list[Message] = []
        self._answer = ""
        self._prompt = Prompt("", [])
        self.forgotten = 0
        """How many of the oldest turns the model is not told any more."""

    @property
    def system(self) -> list[Message]:
        return self.messages[:1] if self.messages and self.messages[0]["role"] == "system" else []

    def set_system(self, text: str) -> None:
        """Sets the system message for what follows; an empty text takes it away."""
        rest = self.messages[len(self.system) :]
        self.messages = ([{"role": "system", "content": text}] if text else []) + rest

    def reset(self) -> None:
        self.messages, self.forgotten = self.system, 0

    def undo(self) -> Message | None:
        """Takes the last turn back; returns its question, None if there is none."""
        for at in range(len(self.messages) - 1, -1, -1):
            if self.messages[at]["role"] == "user":
                question = self.messages[at]
                self.messages = self.messages[:at]
                self.forgotten = min(self.forgotten, len(turns_of(self.messages[len(self.system) :])))
                return question
        return None

    def begin(self, question: Message) -> bool:
        """Asks, forgetting the oldest turns where that is needed; False if the question alone is too long."""
        turns = turns_of([*self.messages[len(self.system) :], question])
        told = [*self.system, *(message for turn in turns[self.forgotten :] for message in turn)]
        kept, prompt = fit(told, self.encode, self.speaker.context, self._sampling.max_new_tokens)
        if prompt is None:
            return False
        self.forgotten = len(turns) - len(turns_of(kept[len(self.system) :]))
        self.begin_with(question, prompt)
        return True

    def begin_with(self, question: Message, prompt: Prompt) -> None:
        """Asks by a prompt that is known to fit."""
        self._asked, self._prompt, self._answer = [question], prompt, ""

    def encode(self, messages: list[Message]) -> Prompt:
        return self.speaker.prompt(messages, self.tools)

    def parts(self) -> Iterator[Part]:
        """The parts of the answer as they come."""
        sampling = replace(self._sampling, seed=self._sampling.seed + self._answers)
        self._answers += 1
        reader = PartReader(self._prompt.text) if self.speaker.form.template else None
        for piece in self.speaker.stream(self._prompt, sampling):
            self._answer += piece
            yield from reader.push(piece) if reader else [Part(piece, None)]
        if reader:
            yield from reader.finish()

    @property
    def said(self) -> list[Message]:
        """All messages with the last question and its answer, as far as it came."""
        form = self.speaker.form
        answer: Message = {"role": "assistant", "content": self._answer if form.keeps_blanks else self._answer.strip()}
        if form.template:
            answer = message_of(self._answer, self._prompt.text)
        return [*self.messages, *self._asked, answer]

    @property
    def has_answer(self) -> bool:
        return bool(self._answer.strip())

    def keep(self) -> None:
        """Adds the question and its answer to the messages."""
        self.messages = self.said

    def used(self) -> int:
        """How many tokens of the context the last question and its answer take, with all that came before."""
        return self.speaker.used(self._prompt, self._answer)


def turns_of(messages: list[Message]) -> list[list[Message]]:
    """The turns of messages without a system's: each begins with a message of the user."""
    turns: list[list[Message]] = []
    for message in messages:
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return turns


def fit(
    messages: list[Message],
    encode: Callable[[list[Message]], PromptT],
    block_size: int,
    max_new_tokens: int,
) -> tuple[list[Message], PromptT | None]:
    """As much of the newest of a conversation as leaves room for an answer (at most half of the context), encoded.

    Whole turns are dropped, a system message never. Nothing is left if the last turn is too long.
    """
    room = block_size - min(max_new_tokens, block_size // 2)
    first = int(messages[0]["role"] == "system")
    turns = turns_of(messages[first:])
    for oldest in range(len(turns)):
        kept = messages[:first] + [message for turn in turns[oldest:] for message in turn]
        prompt = encode(kept)
        if len(prompt) <= room:
            return kept, prompt
    return [], None


def record_of(messages: list[Message], tools: Tools | None) -> dict[str, Any]:
    """A conversation as the converter `messages` reads it."""
    return {"messages": messages, "tools": tools} if tools else {"messages": messages}


def add_to_file(path: Path, conversation: Conversation, model: str | None = None) -> None:
    """Adds a conversation to a file, one JSON object a line, as the converter `messages` reads it."""
    record = record_of(conversation.messages, conversation.tools)
    record |= {"model": model} if model is not None else {}
    with path.open("ab+") as file:
        file.seek(0, 2)
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
