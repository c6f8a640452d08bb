"""A conversation's text as transformers writes it for a Hugging Face folder, and as Ollama has to say it.

It takes seconds to import, and is for those only who compare with a model's own chat template.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from transformers import AutoTokenizer

from lit_gpt.formats.hf_logits_process import FROM_FOLDER
from utils.export.template_battery import CHATS, CONTENTS, Message, with_contents


class HFChat:
    """The chat template of `folder`."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, **FROM_FOLDER)
        self._begin = self._added_begin()
        first = self._render(with_contents("u", CONTENTS[:1]), datetime.now())
        self.lacks_begin = bool(first is not None and self._begin and not first.startswith(self._begin))

    @property
    def begin(self) -> str:
        """The token that llama.cpp puts before every text, as the tokenizer does, or ""."""
        return self._begin

    def render(self, messages: Sequence[Message]) -> str | None:
        """The text after which the model answers, or goes on with a last message of its own, without the token that is
        put before every text; None if the template refuses the conversation."""
        text = self._render(messages, datetime.now())
        return text if text is None or self.lacks_begin else text.removeprefix(self._begin)

    def token_ids(self, messages: Sequence[Message]) -> list[int]:
        """Those that the model is sent by transformers; the template must not refuse the conversation."""
        return self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True)["input_ids"]

    @property
    def has_date(self) -> bool:
        """Whether a text would be another one on another day."""
        days = datetime(2001, 2, 3, 4, 5, 6), datetime(2019, 10, 27, 18, 29, 30)
        chats = [with_contents(roles, CONTENTS[: len(roles)]) for roles in CHATS]
        return any(self._render(messages, days[0]) != self._render(messages, days[1]) for messages in chats)

    def stops(self, joint: str) -> tuple[str, ...]:
        """What to stop at, of what stands between an answer and the user's next message.

        Its tokens; else what is written behind the last answer too, which is all that was trained; else all of it.
        """
        added = {str(token) for token in self._tokenizer.added_tokens_decoder.values()}
        tokens = [token for token in added if token.strip() and token in joint]
        end = self._behind_last_answer()
        text = end if end and joint.lstrip().startswith(end) else joint
        return tuple(sorted(tokens, key=joint.index) or ([text] if text.strip() else []))

    def _behind_last_answer(self) -> str:
        answer = "An answer."
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        text = self._render(messages, datetime.now(), goes_on=False) or ""
        return text.rpartition(answer)[2].strip() if answer in text else ""

    def _render(self, messages: Sequence[Message], day: datetime, goes_on: bool = True) -> str | None:
        is_begun = goes_on and messages[-1]["role"] == "assistant"
        try:
            return self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=goes_on and not is_begun,
                continue_final_message=is_begun,
                strftime_now=day.strftime,
            )
        except Exception:  # what the template's expressions raise is its refusal: TemplateError, TypeError and others
            return None

    def _added_begin(self) -> str:
        ids = self._tokenizer.encode("x")
        alone = self._tokenizer.encode("x", add_special_tokens=False)
        begin = self._tokenizer.bos_token_id
        is_added = begin is not None and ids[:1] == [begin] and alone[:1] != [begin]
        return self._tokenizer.bos_token if is_added else ""
