"""A conversation as the text that a model was trained on, by the Jinja template among its tokenizer's files.

transformers renders it in Jinja's sandbox (https://huggingface.co/docs/transformers/chat_templating).
"""

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_gpt.errors import DataError, UserError
from lit_gpt.tokenizer.hf_tokenizer import Encode, encoder_of_hidden_names, encoder_of_special_tokens
from lit_gpt.tokenizer.special_tokens import HIDDEN, any_of
from lit_gpt.tokenizer.tokenizer import CHAT_TEMPLATE, Tokenizer, require_utf8

_MARK = "\ufdd0"  # for use within a program only, says Unicode
Message = dict[str, str]  # `role` (system, user or assistant) and `content`


class ChatTemplate:
    """The chat template of a tokenizer's directory: a UserError if it has none, a DataError if it cannot be used."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        source = find_template(tokenizer.directory, tokenizer.config)
        if source is None:
            raise UserError(f"{tokenizer.directory} has no chat template (chat_template in tokenizer_config.json)")
        # 1.7 s, paid by who renders a template, not by who only looks for one
        from transformers.utils.chat_template_utils import _compile_jinja_template

        try:
            self._template = _compile_jinja_template(source)
        except Exception as e:  # beside Jinja's own, what compiling its Python raises: SyntaxError, RecursionError, …
            raise DataError(f"the chat template of {tokenizer.directory} cannot be read: {e}") from None
        self._special = {}
        for key, value in tokenizer.config.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                self._special[key] = text
        self._tokenizer = tokenizer

    def render(self, messages: list[Message], add_generation_prompt: bool = True) -> str:
        """The conversation's text, up to the assistant's answer; a UserError if the template refuses it."""
        values = {"messages": messages, "tools": None, "documents": None, **self._special}
        try:
            return self._template.render(**values, add_generation_prompt=add_generation_prompt)
        except Exception as e:  # what the template's expressions raise: TypeError, OverflowError and others
            raise UserError(f"the chat template of {self._tokenizer.directory} refuses the conversation: {e}") from None

    def encode(self, messages: list[Message]) -> list[int]:
        """Token ids of `render`: special tokens that the template writes are tokens, those named in a message text."""
        names = self._control_names
        if names is None or not any(names.search(message["content"]) for message in messages):
            text = self.render(messages)
            require_utf8(text)
            return self._encode([text])[0]
        # the template sees a number in place of each name; what it writes itself is then hidden before these come back
        named: list[str] = []

        def put_number(found: re.Match[str]) -> str:
            named.append(found[0])
            return f"{_MARK}{len(named) - 1}{_MARK}"

        numbered = []
        for message in messages:
            if HIDDEN in message["content"] or _MARK in message["content"]:
                raise UserError("a message holds NUL or U+FDD0, which are no characters")
            numbered.append({**message, "content": names.sub(put_number, message["content"])})
        text = self.render(numbered)
        require_utf8(text)
        text = names.sub(rf"{HIDDEN}\g<0>", text)
        text = re.sub(f"{_MARK}([0-9]+){_MARK}", lambda found: named[int(found[1])], text)
        if text.replace(HIDDEN, "") != self.render(messages):
            where = f"the chat template of {self._tokenizer.directory}"
            raise UserError(f"{where} does not write {named[0]!r} in a message as it is there")
        return self._encode_hidden([text])[0]

    @cached_property
    def end_of_turn(self) -> int | None:
        """The special token after an answer, or None: generation_config.json does not always name `<|im_end|>`."""
        answer = "An answer."
        text = self.render([{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}], False)
        rest = text.rpartition(answer)[2].lstrip()
        following = [token for token in self._tokenizer.special_tokens if token.strip() and rest.startswith(token)]
        return self._tokenizer.token_id(max(following, key=len)) if following else None

    @cached_property
    def _control_names(self) -> re.Pattern[str] | None:
        names = self._tokenizer.control_tokens
        return re.compile(any_of(names)) if names else None

    @cached_property
    def _encode(self) -> Encode:
        return encoder_of_special_tokens(self._tokenizer)

    @cached_property
    def _encode_hidden(self) -> Encode:
        return encoder_of_hidden_names(self._tokenizer)


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
