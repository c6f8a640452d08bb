"""Whoever answers: a model and how it is spoken to, by its chat template or in `[speaker001:]` turns."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from lit_gpt.errors import DataError, UserError
from lit_gpt.inference.generation import TextModel
from lit_gpt.inference.sampling_options import Sampling
from lit_gpt.json_files import read_json_if_there
from lit_gpt.tokenizer.chat_template import ChatTemplate, Message, find_template
from lit_gpt.tokenizer.tokenizer import GENERATION_CONFIG
from utils.chat.parts import is_in_mark
from utils.run.chat_options import ChatOptions

Tools = list[dict[str, Any]]


@dataclass(frozen=True)
class Prompt:
    """A conversation up to where the model's answer begins; its length is in tokens."""

    text: str
    ids: list[int]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Form:
    """How a conversation is written for a model."""

    render: Callable[[list[Message], Tools | None], str]
    stop: tuple[str, ...] = ()
    """Texts that end an answer, beside the end tokens."""
    names: tuple[str, str] = ("> ", "")
    """What is shown before a question and before an answer."""
    template: ChatTemplate | None = None
    """None: turns of a dialogue, or a text to go on with."""
    keeps_blanks: bool = False
    """Whether the blanks around an answer are part of it, as where it goes on with a text."""


class Speaker(Protocol):
    """A model that answers."""

    label: str
    context: int
    """How many tokens it sees."""
    form: Form
    own: dict[str, float | int]
    """How its files say that it is sampled, by the options' names."""
    by_itself: bool
    """Whether the last answer ended by itself; others were cut, by a limit or by Ctrl-C."""

    def prompt(self, messages: list[Message], tools: Tools | None) -> Prompt:
        """A UserError if the conversation cannot be written."""

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[str]:
        """The pieces of an answer; no piece ends within a character."""

    def used(self, prompt: Prompt, answer: str) -> int:
        """How many tokens the last prompt and its answer, as far as it came, take of the context."""

    def finish(self) -> None:
        """Raises a DataError if the files turn out to be damaged: an answer that was interrupted has not asked."""


class LitgptSpeaker:
    """A model that is computed here."""

    def __init__(self, label: str, model: TextModel, form: Form) -> None:
        self.label, self.form = label, form
        self.context = model.config.block_size
        path = model.tokenizer.directory / GENERATION_CONFIG
        names = [name for name in model.tokenizer.control_tokens if name and form.template and is_in_mark(name)]
        self._shown = {model.tokenizer.token_id(name): name for name in names}
        self.own = own_sampling(read_json_if_there(path), path)
        self.by_itself = False
        self._model = model

    def prompt(self, messages: list[Message], tools: Tools | None) -> Prompt:
        text = self.form.render(messages, tools)  # first: it says best what is wrong
        template = self.form.template
        return Prompt(text, template.encode(messages, tools) if template else self._model.encode(text))

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[str]:
        self.by_itself = False
        sampling = replace(sampling, stop=(*self.form.stop, *sampling.stop))
        end_ids = self.form.template.end_ids if self.form.template else ()
        for _, piece in self._model.stream([prompt.ids], sampling, end_ids=end_ids, shown=self._shown):
            yield piece
        self.by_itself = self._model.continued[0].by_itself

    def used(self, prompt: Prompt, answer: str) -> int:
        return self._model.continued[0].length

    def finish(self) -> None:
        self._model.require_undamaged()


def own_sampling(values: Mapping[str, Any], path: Path) -> dict[str, float | int]:
    """How a generation_config.json says that answers are sampled; nothing where it only names tokens.

    A DataError if it says what cannot be.
    """
    found = {name: values[name] for name in ("max_new_tokens", "repetition_penalty") if name in values}
    if values.get("do_sample"):
        found |= {name: values[name] for name in ("temperature", "top_k", "top_p") if name in values}
    elif "do_sample" in values:
        found["temperature"] = 0.0
    found = {name: value for name, value in found.items() if value is not None and (name, value) != ("top_k", 0)}
    try:
        Sampling(**found)
    except (UserError, TypeError) as e:
        raise DataError(f"{path} cannot be followed: {e}; give the options yourself, or take it out there") from None
    return found


def template_form(template: ChatTemplate) -> Form:
    """The form by a chat template, with the text that it ends an answer with."""

    def render(messages: list[Message], tools: Tools | None) -> str:
        try:
            text = template.render(messages, tools)
        except UserError as e:
            if tools is None and template.needs_tools(messages):
                raise UserError(f"the chat template needs tools, and there are none: give --tools ({e})") from None
            raise
        if tools and not any(tool["function"]["name"] in text for tool in tools):
            raise UserError("the chat template does not tell the model of tools: leave --tools (or the key tools) out")
        return text

    return Form(render, template.stop, template=template)


def dialogue_form(user_name: str, bot_name: str) -> Form:
    """The form of texts of turns, as the original corpora have them."""
    user, bot = f"[{user_name}:]", f"[{bot_name}:]"
    return Form(lambda messages, _: dialogue(messages, user, bot), (f"\n{user}",), (f"{user} ", bot))


def dialogue(messages: list[Message], user: str, bot: str) -> str:
    """The conversation as a text of turns, up to where the model's begins."""
    text = ""
    for message in messages:
        if message["role"] not in ("user", "assistant"):
            raise UserError(f"a message of the {message['role']} needs a chat template, and this conversation has none")
        speaker = user if message["role"] == "user" else bot
        text += f"{speaker} {message['content']}\n"
    return text + bot


def text_form() -> Form:
    """The form of a text, which each answer goes on with, and whoever asks after it."""

    def render(messages: list[Message], _: Tools | None) -> str:
        if any(message["role"] not in ("user", "assistant") for message in messages):
            raise UserError("--template text goes on with a text, which has no messages but the user's and the answers")
        return "".join(message["content"] for message in messages)

    return Form(render, keeps_blanks=True)


def choose_form(options: ChatOptions, has_template: bool, make_template: Callable[[], ChatTemplate]) -> Form:
    """The form that --template asks for; a UserError for options that it has no use for."""
    if options.template == "chat" or (options.template == "auto" and has_template):
        return template_form(make_template())
    for name in ("system", "tools"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name} needs a chat template, and this conversation has none")
    if options.template == "text":
        return text_form()
    return dialogue_form(options.user_name, options.bot_name)


def litgpt_speaker(label: str, model: TextModel, options: ChatOptions) -> LitgptSpeaker:
    tokenizer = model.tokenizer
    has_template = find_template(tokenizer.directory, tokenizer.config) is not None
    return LitgptSpeaker(label, model, choose_form(options, has_template, lambda: ChatTemplate(tokenizer)))
