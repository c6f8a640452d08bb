"""A person talks with a model, or with two at once."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lit_gpt.errors import UserError
from lit_gpt.tokenizer.chat_template import Message
from utils.chat.conversation import Conversation, add_to_file
from utils.chat.reading import is_conversation, read_question
from utils.chat.screen import note, show_answers
from utils.chat.speaker import Speaker, Tools
from utils.run.chat_options import ChatOptions


class Command(NamedTuple):
    help: str
    run: Callable[["Talk", str], None]


class Talk:
    """Reads questions and prints the answers, until a question is empty."""

    def __init__(self, speakers: Sequence[Speaker], options: ChatOptions, tools: Tools | None) -> None:
        system: list[Message] = [] if options.system is None else [{"role": "system", "content": options.system}]
        self.conversations = [
            Conversation(speaker, options.sampling(speaker.own), system, tools) for speaker in speakers
        ]
        self._speakers = speakers
        self._answered = False

    def run(self) -> None:
        prompt = self._speakers[0].form.names[0]
        if is_conversation():
            note("/help lists what can be said; Ctrl-C ends an answer, an empty line the conversation")
        while True:
            try:
                question = read_question(prompt)
                if not question:
                    break
                self._take(question)
            except UserError as e:
                if not is_conversation():
                    raise
                note(f"error: {e}")
            except KeyboardInterrupt:  # beside an answer: what was typed is not sent
                if not is_conversation():
                    raise
                print()
                note("an empty line or Ctrl-D ends the conversation")
        if self._answered:
            for speaker in self._speakers:
                speaker.finish()

    def _take(self, question: str) -> None:
        word, _, rest = question.partition(" ")
        if "\n" in question or not (word.startswith("/") and word[1:].isalpha()):
            self.ask({"role": "user", "content": question.strip()})
        elif command := COMMANDS.get(word):
            command.run(self, rest.strip())
        else:
            note(f"there is no {word}, and it was not sent; /help lists what there is (a space before it sends it)")

    def ask(self, question: Message) -> None:
        """Asks every model and shows the answers; a question that is too long for one is told to none."""
        forgotten = [conversation.forgotten for conversation in self.conversations]
        for conversation in self.conversations:
            if not conversation.begin(question):
                size = conversation.speaker.context
                print(f"too long for a context of {size} tokens; say it shorter", file=sys.stderr)
                for one, before in zip(self.conversations, forgotten, strict=True):
                    one.forgotten = before
                return
        for conversation, before in zip(self.conversations, forgotten, strict=True):
            if conversation.forgotten > before:
                oldest = "turn is" if conversation.forgotten == 1 else f"{conversation.forgotten} turns are"
                note(f"{self._who(conversation)}the context is full: the oldest {oldest} forgotten")
        self._answered = True
        stopped = False
        try:
            show_answers(self.conversations)
        except KeyboardInterrupt:  # ends the answer, not the conversation
            stopped = True
        if not all(conversation.has_answer for conversation in self.conversations):
            note("nothing was said; the question is not kept")
            return
        for conversation in self.conversations:
            conversation.keep()
            if is_conversation():
                note(self._who(conversation) + usage(conversation, stopped))

    def _who(self, conversation: Conversation) -> str:
        return f"{conversation.speaker.label}: " if len(self.conversations) > 1 else ""


def usage(conversation: Conversation, stopped: bool) -> str:
    """How full the context is, and why an answer that had not ended goes on no further."""
    text = f"{conversation.used():,} of {conversation.speaker.context:,} tokens"
    if conversation.speaker.by_itself:
        return text
    return text + ("; stopped" if stopped else "; cut, as it did not end by itself")


def reset(talk: Talk, _: str) -> None:
    for conversation in talk.conversations:
        conversation.reset()
    note("a new conversation")


def undo(talk: Talk, _: str) -> None:
    question = _take_back(talk)
    note(f"taken back: {_beginning(question['content'])}" if question else "there is nothing to take back")


def _take_back(talk: Talk) -> Message | None:
    """Takes the last turn back from every model; returns its question, None if there is none."""
    taken = [conversation.undo() for conversation in talk.conversations]
    return next(filter(None, taken), None)


def retry(talk: Talk, _: str) -> None:
    question = _take_back(talk)
    if question is None:
        note("there is no question to answer anew")
    else:
        talk.ask(question)


def system(talk: Talk, text: str) -> None:
    """Shows or sets the system message; a text that the template refuses is not set."""
    if text:
        before = [conversation.messages for conversation in talk.conversations]
        try:
            for conversation in talk.conversations:
                conversation.set_system(text)
                conversation.encode([*conversation.messages, {"role": "user", "content": "?"}])
        except UserError:
            for conversation, messages in zip(talk.conversations, before, strict=True):
                conversation.messages = messages
            raise
    said = talk.conversations[0].system
    note(f"system message: {said[0]['content']}" if said else "there is no system message but the template's own")


def tool(talk: Talk, text: str) -> None:
    if not text:
        note("/tool TEXT says what the tool gave")
        return
    talk.ask({"role": "tool", "content": text})


def save(talk: Talk, name: str) -> None:
    path = Path(name).expanduser()
    if not name or path.suffix != ".jsonl":
        note("/save FILE.jsonl adds the conversation to that file")
        return
    if not any(conversation.messages[len(conversation.system) :] for conversation in talk.conversations):
        note("there is nothing to save")
        return
    try:
        for conversation in talk.conversations:
            label = conversation.speaker.label if len(talk.conversations) > 1 else None
            add_to_file(path, conversation, label)
    except OSError as e:
        note(f"not saved: {e.strerror}: {path}")
        return
    note(f"added to {path}")


def show_help(_: Talk, __: str) -> None:
    for name, command in COMMANDS.items():
        note(f"{name:8} {command.help}")
    note(_KEYS)


def _beginning(text: str) -> str:
    first = text.partition("\n")[0]
    return first if len(first) <= 60 and first == text else first[:60] + "…"


_KEYS = "A backslash at a line's end goes on in the next one; pasted lines stay together."
COMMANDS = {
    "/reset": Command("begins anew; the system message stays", reset),
    "/undo": Command("takes the last question back, with its answer", undo),
    "/retry": Command("answers the last question anew", retry),
    "/system": Command("TEXT sets the system message for what follows; alone it shows it", system),
    "/tool": Command("TEXT says what a tool gave that the model called", tool),
    "/save": Command("FILE.jsonl adds the conversation to a file that prepare_data.py reads", save),
    "/help": Command("shows this", show_help),
}
