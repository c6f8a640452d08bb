"""A conversation as the text that a model was trained on, by a Jinja template: its tokenizer's own or another.

https://huggingface.co/docs/transformers/chat_templating says what a template is given.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.errors import DataError, UserError
from lit_gpt.tokenizer.hf_tokenizer import Encode, encoder_of_hidden_names, encoder_of_special_tokens
from lit_gpt.tokenizer.jinja_sandbox import MARK_END, MARK_START, TooMuch, compile_template
from lit_gpt.tokenizer.special_tokens import HIDDEN, any_of
from lit_gpt.tokenizer.tokenizer import CHAT_TEMPLATE, Tokenizer, require_utf8

_NAME = "\ufdd0"  # for use within a program only, says Unicode
_MARKS = re.compile(f"([{MARK_START}{MARK_END}])")
NO_CHARACTERS = re.compile(f"[{HIDDEN}{_NAME}{MARK_START}{MARK_END}]")
Message = dict[str, Any]
"""`role` and `content`; where there are any, `tool_calls`, `reasoning_content` and what else a template looks for."""


_PARAMETERS = {"type": "object", "properties": {"name": {"type": "string", "description": "What to find."}}}
_FUNCTION = {"name": "find", "description": "Finds something.", "parameters": _PARAMETERS}
A_TOOL = [{"type": "function", "function": _FUNCTION}]
"""What a template is tried with that may want tools."""


class Guarded(NamedTuple):
    """Messages in which numbers stand for the names of control tokens, so that these can be told from a template's."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    names: list[str]  # by number


class ChatTemplate:
    """A chat template with its tokenizer: a UserError if there is none, a DataError if it cannot be used.

    `source` is the template's text if it is not the tokenizer's own. `now` is the date for templates that write one.
    """

    def __init__(
        self, tokenizer: Tokenizer, source: str | None = None, now: Callable[[], datetime] = datetime.now
    ) -> None:
        self._whose = "the chat template" if source is not None else f"the chat template of {tokenizer.directory}"
        if source is None:
            source = find_template(tokenizer.directory, tokenizer.config)
        if source is None:
            raise UserError(f"{tokenizer.directory} has no chat template (chat_template in tokenizer_config.json)")
        try:
            self._compiled = compile_template(source)
        except Exception as e:  # beside Jinja's own, what compiling its Python raises: SyntaxError, RecursionError, …
            raise DataError(f"{self._whose} cannot be read: {e}") from None
        self.source = source
        self.tokenizer = tokenizer
        self._now = now
        self._values: dict[str, Any] = {"documents": None}
        for key, value in tokenizer.config.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                self._values[key] = text

    @property
    def has_marks(self) -> bool:
        """Whether the template says by `{% generation %}` what a model writes."""
        return self._compiled.has_marks

    def render(
        self, messages: list[Message], tools: list[dict[str, Any]] | None = None, add_generation_prompt: bool = True
    ) -> str:
        """The conversation's text, up to the assistant's answer; a UserError if the template refuses it.

        A DataError for a template that does not come to an end, or writes without an end.
        """
        return self._render(messages, tools, add_generation_prompt, with_marks=False)

    def render_marked(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
        names: list[str] | None = None,
    ) -> tuple[str, list[tuple[int, int]]]:
        """Likewise, with the first and last + 1 character of what the template's own marks hold.

        With `names`, those of guarded messages, the text is what `put_names_back` makes of it.
        """
        text = self._render(messages, tools, add_generation_prompt, with_marks=True)
        if names is not None:
            text = self.put_names_back(text, names)
        return _without_marks(text) if self._compiled.has_marks else (text, [])

    def _render(
        self, messages: list[Message], tools: list[dict[str, Any]] | None, add_generation_prompt: bool, with_marks: bool
    ) -> str:
        values = {**self._values, "messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        try:
            return self._compiled.render(values, self._now, with_marks)
        except (TooMuch, MemoryError) as e:
            raise DataError(f"{self._whose} cannot be used: {e or 'it takes more memory than there is'}") from None
        except Exception as e:  # what the template's expressions raise: TypeError, OverflowError and others
            raise UserError(f"{self._whose} refuses the conversation: {_first_line(e)}") from None

    def needs_tools(self, messages: list[Message]) -> bool:
        """Whether the template takes a conversation that it refuses, if there is a tool."""
        try:
            self.render(messages, A_TOOL)
        except UserError:
            return False
        return True

    def encode(self, messages: list[Message], tools: list[dict[str, Any]] | None = None) -> list[int]:
        """Token ids of `render`: special tokens that the template writes are tokens, those named in a message text."""
        guarded = self.guard(messages, tools)
        if guarded is None:
            text = self.render(messages, tools)
            require_utf8(text)
            return self._encode([text])[0]
        if any(NO_CHARACTERS.search(text) for text in strings_of([messages, tools])):
            raise UserError("a message holds NUL or U+FDD0, which are no characters")
        text, _ = self.render_marked(guarded.messages, guarded.tools, True, guarded.names)
        require_utf8(text)
        if text.replace(HIDDEN, "") != self.render(messages, tools):
            raise UserError(f"{self._whose} does not write {guarded.names[0]!r} in a message as it is there")
        return self._encode_hidden([text])[0]

    def guard(self, messages: list[Message], tools: list[dict[str, Any]] | None) -> Guarded | None:
        """The same messages with numbers for control tokens' names; None if they hold none.

        What a template makes of them is to be given to `put_names_back`, as `render_marked` does.
        """
        pattern = self._control_names
        if pattern is None or not any(map(self.names_in, strings_of([messages, tools]))):
            return None
        names: list[str] = []

        def put_number(found: re.Match[str]) -> str:
            names.append(found[0])
            return f"{_NAME}{len(names) - 1}{_NAME}"

        return Guarded(*_replaced([messages, tools], lambda text: pattern.sub(put_number, text)), names)

    def put_names_back(self, text: str, names: list[str]) -> str:
        """A text of guarded messages with their names again, and NUL before the names that the template wrote."""
        assert self._control_names is not None
        text = self._control_names.sub(rf"{HIDDEN}\g<0>", text)
        return re.sub(f"{_NAME}([0-9]+){_NAME}", lambda found: names[int(found[1])], text)

    def names_in(self, text: str) -> list[str]:
        """Every name of a control token in the text."""
        # most texts have none of the characters with which a name begins, and these are found much faster
        for first in self._first_characters:
            if first in text:
                return self._control_names.findall(text) if self._control_names else []
        return []

    @cached_property
    def _first_characters(self) -> list[str]:
        return sorted({name[0] for name in self.tokenizer.chat_control_tokens if name})

    @cached_property
    def end_of_turn(self) -> int | None:
        """The special token after an answer, or None: generation_config.json does not always name `<|im_end|>`."""
        rest = self._behind_answer
        following = [token for token in self.tokenizer.special_tokens if token.strip() and rest.startswith(token)]
        return self.tokenizer.token_id(max(following, key=len)) if following else None

    @cached_property
    def end_of_calls(self) -> int | None:
        """The special token after calls of tools, which some templates end otherwise; None if there is none."""
        call = {"type": "function", "id": "call00001", "function": {"name": "f", "arguments": {"a": "1"}}}
        question = {"role": "user", "content": "?"}
        calls = {"role": "assistant", "content": "", "tool_calls": [call, call]}
        try:
            begin, text = self.render([question]), self.render([question, calls], add_generation_prompt=False)
        except UserError:  # no tools, or not in this form
            return None
        answer = text.removeprefix(begin).rstrip()
        ending = [token for token in self.tokenizer.special_tokens if token.strip() and answer.endswith(token)]
        # what closes each of the calls, as `</tool_call>` does, ends none of the answers
        ends = [token for token in ending if answer.count(token) == 1]
        return self.tokenizer.token_id(max(ends, key=len)) if ends and answer != text.rstrip() else None

    @property
    def end_ids(self) -> set[int]:
        """The tokens that end an answer: those that end any text, and the template's own."""
        return self.tokenizer.end_ids | ({self.end_of_turn} - {None})

    @property
    def stop(self) -> tuple[str, ...]:
        """The text that ends an answer, where no token does."""
        return (self.end_text,) if self.end_text else ()

    @property
    def end_text(self) -> str:
        """What is written after an answer, where that is no special token; empty if nothing is."""
        return self._behind_answer.rstrip() if self.end_of_turn is None else ""

    @cached_property
    def _behind_answer(self) -> str:
        answer = "An answer."
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        try:
            text = self.render(messages, add_generation_prompt=False)
        except UserError:
            if not self.needs_tools(messages):
                raise
            text = self.render(messages, A_TOOL, False)
        return text.rpartition(answer)[2].lstrip() if answer in text else ""

    @cached_property
    def _control_names(self) -> re.Pattern[str] | None:
        names = self.tokenizer.chat_control_tokens
        return re.compile(any_of(names)) if names else None

    @cached_property
    def special_names(self) -> re.Pattern[str]:
        """Finds the names of special tokens, those that are text too included."""
        names = [name for name in self.tokenizer.special_tokens if name]
        return re.compile(any_of(names) if names else r"(?!)")

    @cached_property
    def _encode(self) -> Encode:
        return encoder_of_special_tokens(self.tokenizer)

    @cached_property
    def _encode_hidden(self) -> Encode:
        return encoder_of_hidden_names(self.tokenizer)


def find_template(directory: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The source of the chat template: chat_template.jinja, else what tokenizer_config.json has; None if neither."""
    path = directory / CHAT_TEMPLATE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{path} is not UTF-8 text") from None
    found = tokenizer_config.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = [entry for entry in found if isinstance(entry, dict) and entry.get("name") == "default"]
        found = named[0].get("template") if named else None
    return found if isinstance(found, str) else None


def strings_of(value: Any) -> Iterator[str]:
    """Every text in messages or tools, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from (key, inner) if type(inner) is str else (key, *strings_of(inner))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from strings_of(inner)


def _replaced(value: Any, replace: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return replace(value)
    if isinstance(value, dict):
        return {
            replace(key) if isinstance(key, str) else key: _replaced(inner, replace) for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_replaced(inner, replace) for inner in value]
    return value


def _without_marks(text: str) -> tuple[str, list[tuple[int, int]]]:
    pieces, spans = [], []
    size = start = 0
    for piece in _MARKS.split(text):
        if piece == MARK_START:
            start = size
        elif piece == MARK_END:
            spans.append((start, size))
        else:
            pieces.append(piece)
            size += len(piece)
    return "".join(pieces), spans


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
