"""What a chat template does with a conversation of which all is known."""

from functools import lru_cache

from lit_gpt.errors import UserError
from lit_gpt.tokenizer.chat_template import ChatTemplate

_ANSWER = "Wkjq answers that"  # no template's own text
_MESSAGES = [{"role": "user", "content": "Zxqv asks?"}, {"role": "assistant", "content": _ANSWER}]
_NEXT = {"role": "user", "content": "Vbgw?"}


@lru_cache(maxsize=16)
def writes_twice(template: ChatTemplate) -> bool:
    """Whether an answer is in the text more than once."""
    text = _text(template, 2)
    return text is not None and text.count(_ANSWER) > 1


@lru_cache(maxsize=16)
def ends_otherwise(template: ChatTemplate) -> bool:
    """Whether a text that ends with an answer has there what a text that goes on has not; also if that is unknown."""
    ended, longer = _text(template, 2), _text(template, 3)
    return ended is None or longer is None or not longer.startswith(ended)


@lru_cache(maxsize=16)
def closing_of(template: ChatTemplate) -> str:
    """What follows an answer whatever comes then, without white space around it: `<|im_end|>`, or nothing."""
    ended, longer = _text(template, 2) or "", _text(template, 3) or ""
    rests = [text.partition(_ANSWER)[2] for text in (ended, longer)]
    pairs = enumerate(zip(*rests, strict=False))
    size = next((at for at, (one, other) in pairs if one != other), min(map(len, rests)))
    for rest in rests:
        for name in template.special_names.finditer(rest):
            if name.start() < size < name.end():
                size = name.start()
    return rests[0][:size].strip()


def _text(template: ChatTemplate, count: int) -> str | None:
    try:
        return template.render([*_MESSAGES, _NEXT][:count], None, False)
    except UserError:
        return None
