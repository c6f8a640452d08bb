"""Which characters of a conversation's text are targets, found by rendering its beginnings and proven.

An answer's run begins where the prompt ends that asks for it (`add_generation_prompt`), and ends where the template has
written the message and what closes it. Both are read from texts that the template itself wrote:

1. The whole conversation's text begins with the prompt: what is trained follows what will be served.
2. The text that ends with the answer and the text that goes on begin alike: so far reaches what belongs to the answer.
   What only a text's end has, such as an end-of-text token, does not.
3. The run holds the message: its content, its reasoning, its calls.

Where a template writes an earlier answer otherwise than when it was the last (thinking removed, another end), each
answer is a sample of its own, in which it is the last. A template's own `{% generation %}` marks decide instead.
"""

import json
from collections.abc import Iterator
from copy import copy
from functools import cached_property
from typing import Any, NamedTuple

from lit_gpt.errors import UserError
from lit_gpt.tokenizer.chat_template import NO_CHARACTERS, ChatTemplate, strings_of
from lit_gpt.tokenizer.special_tokens import HIDDEN
from utils.data.parts import PARTS, TARGET
from utils.prepare.chat.conversation import ChatRecipe, Conversation, Message

_PART_OF_ROLE = {role: PARTS.index(role) for role in ("system", "user", "tool")} | {"developer": PARTS.index("system")}
TEMPLATE, WEIGHT_0, EARLIER_ANSWER = (PARTS.index(name) for name in ("template", "weight_0", "earlier_answer"))
_PROBE = {"role": "user", "content": "?"}  # a message that may follow an answer
_OPENING = "<think>"
_REASONING = ("reasoning_content", "reasoning", "thinking")


class Unproven(Exception):
    """A conversation whose targets cannot be proven, and why: a word for counting, and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class Span(NamedTuple):
    begin: int  # its first character in the text
    end: int
    part: int


class Sample(NamedTuple):
    text: str
    hidden: bool  # a NUL stands before each name of a control token that the template wrote
    runs: list[Span]  # proven answers, ascending: the targets, or with the policy `all` what is none
    others: list[Span]  # of other messages
    rest: int  # the part of all other tokens
    count: int  # its messages are the conversation's first ones


class Chat:
    """A conversation and the texts that a template makes of its beginnings."""

    def __init__(self, template: ChatTemplate, conversation: Conversation, recipe: ChatRecipe) -> None:
        given = conversation.messages
        # as the template will do where it is served: lit_gpt/tokenizer/chat_files.py
        if recipe.system is not None and not (given and given[0]["role"] in ("system", "developer")):
            given = [{"role": "system", "content": recipe.system}, *given]
        self.template, self.policy = template, recipe.targets
        self.messages = [_without_weight(message) for message in given]
        self.tools = conversation.tools
        self._weights = [message.get("weight", 1) for message in given]
        self.guarded = template.guard(self.messages, self.tools)
        if self.guarded and any(NO_CHARACTERS.search(text) for text in strings_of([self.messages, self.tools])):
            raise Unproven("no_character", "a message holds NUL or U+FDD0 to U+FDD2, which are no characters")

    @property
    def hidden(self) -> bool:
        """Whether a NUL stands before each name of a control token that the template wrote: the messages have some."""
        return self.guarded is not None

    def answers(self, weight: int) -> list[int]:
        """The numbers of the assistant's messages that have this weight."""
        numbers = enumerate(self.messages)
        return [number for number, message in numbers if is_answer(message) and self._weights[number] == weight]

    @cached_property
    def trained(self) -> list[int]:
        found = self.answers(1)
        return found[-1:] if self.policy == "last" else found

    def ends_of_answers(self) -> list[int]:
        """The numbers of messages with which the conversation could end, having an answer to train."""
        first = next(iter(self.answers(1)), len(self.messages))
        return [number + 1 for number in range(first, len(self.messages)) if is_answer(self.messages[number])]

    def names(self) -> list[str]:
        """Every name of a control token in the messages."""
        found = []
        for text in strings_of([self.messages, self.tools]) if self.guarded else ():
            found += self.template.names_in(text)
        return found

    def text(self, count: int, prompt: bool, then: Message | None = None) -> str:
        """The first `count` messages as text, with `then` after them, or with the prompt for an answer."""
        return self._render(count, prompt, then)[0]

    def _render(self, count: int, prompt: bool, then: Message | None) -> tuple[str, list[tuple[int, int]]]:
        messages, tools, names = self.guarded or (self.messages, self.tools, None)
        messages = messages[:count] if then is None else [*messages[:count], then]
        try:
            return self.template.render_marked(messages, tools, prompt, names)
        except UserError as e:
            raise Unproven("template_refuses", str(e)) from None

    @cached_property
    def whole(self) -> tuple[str, list[tuple[int, int]]]:
        """The text of all messages, and what its own marks hold."""
        text, spans = self._render(len(self.messages), False, None)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Unproven("not_utf8", "half a surrogate pair, which is no character") from None
        if self.guarded and text.replace(HIDDEN, "") != self.template.render(self.messages, self.tools, False):
            name = self.guarded.names[0]
            raise Unproven("control_name", f"the chat template does not write {name!r} in a message as it is there")
        return text, spans

    def beginning(self, count: int) -> "Chat":
        """The same conversation, ended after `count` messages."""
        if count == len(self.messages):
            return self
        part = copy(self)
        for name in ("whole", "trained"):
            part.__dict__.pop(name, None)
        part.messages = self.messages[:count]
        if self.guarded:
            part.guarded = self.guarded._replace(messages=self.guarded.messages[:count])
        return part


def is_answer(message: Message) -> bool:
    return message["role"] == "assistant"


def find_samples(chat: Chat) -> list[Sample]:
    """The conversation as one sample, or as one per trained answer; raises Unproven."""
    if not chat.trained:
        raise Unproven("no_answer", "no message of the assistant is to be trained")
    text, marks = chat.whole
    if chat.policy == "all":
        return [_all_but_weight_0(chat, text, marks)]
    if chat.template.has_marks:
        return [_sample(chat, text, _marked_runs(chat, text, marks, chat.trained), len(chat.messages))]
    runs = {}
    for number in chat.trained:
        run = _run_in_history(chat, number, text)
        if run is None:
            return [_last_answer(chat, answer) for answer in chat.trained]
        runs[number] = [run]
    return [_sample(chat, text, runs, len(chat.messages))]


def _all_but_weight_0(chat: Chat, text: str, marks: list[tuple[int, int]]) -> Sample:
    weightless, spans = chat.answers(0), []
    if weightless and chat.template.has_marks:
        found = _marked_runs(chat, text, marks, weightless)
        spans = [span for number in weightless for span in found[number]]
    elif weightless:
        spans = [_run_in_history(chat, number, text) for number in weightless]
    if None in spans:
        raise Unproven("prefix", "an answer with the weight 0 is not in the text as it was generated")
    return Sample(text, chat.hidden, [span._replace(part=WEIGHT_0) for span in spans], [], TARGET, len(chat.messages))


def _run_in_history(chat: Chat, number: int, text: str) -> Span | None:
    """The run of an answer in the text of the whole conversation; None if the text has not what was generated."""
    begin = len(prompt) if text.startswith(prompt := chat.text(number, True)) else None
    if begin is None:
        return None
    is_last = number + 1 == len(chat.messages)
    whole = text if is_last else chat.text(number + 1, False)
    end = _end_when_last(chat, number, begin, whole) if is_last else _common(chat, whole, text)
    run = text[begin:end]
    if end < begin or _what_is_missing(chat.messages[number], run, prompt):
        return None
    return Span(begin, end, TARGET) if _is_closed(chat.messages[number], run, whole[end:]) else None


def _last_answer(chat: Chat, number: int) -> Sample:
    """A sample in which one answer is the last message and alone a target."""
    text, prompt = chat.text(number + 1, False), chat.text(number, True)
    if not text.startswith(prompt):
        raise Unproven("prefix", _two_texts(text, prompt, _common(chat, text, prompt)))
    end = _end_when_last(chat, number, len(prompt), text)
    run = text[len(prompt) : end]
    if missing := _what_is_missing(chat.messages[number], run, prompt):
        raise Unproven(*missing)
    return _sample(chat, text, {number: [Span(len(prompt), end, TARGET)]}, number + 1)


def _two_texts(text: str, prompt: str, at: int) -> str:
    there, asked = (repr(found[max(0, at - 20) : at + 40]) for found in (text, prompt))
    advice = ""
    if _OPENING in prompt[at:] or _OPENING in prompt[-20:]:
        advice = (
            ": a copy of the template that begins with {% set enable_thinking = false %} may ask for such an answer"
        )
    return f"the text has {there} where the prompt for the answer has {asked}{advice}"


def _end_when_last(chat: Chat, number: int, begin: int, text: str) -> int:
    """Where the run of a text's last answer ends: before what the text would not have there if it went on."""
    try:
        longer = chat.text(number + 1, False, _PROBE)
    except Unproven:
        return len(text)
    message = chat.messages[number]
    end = _common(chat, text, longer)
    if end < begin or _what_is_missing(message, text[begin:end], text[:begin]):
        # the history is another one; what follows the content may be the same
        content = _own_text(message)
        here, there = (found.rfind(content) + len(content) for found in (text, longer)) if content else (0, 0)
        if here < begin or longer.find(content) < 0:
            return len(text)
        end = here + _common(chat, text[here:], longer[there:])
    return end if _is_closed(message, text[begin:end], text[end:]) else len(text)


def _is_closed(message: Message, run: str, rest: str) -> bool:
    """Whether something in the run follows the message's last words, or nothing follows them in the text either."""
    content = _own_text(message)
    return not rest.strip() or (content != "" and not run.rstrip().endswith(content))


def _own_text(message: Message) -> str:
    """The last words of a message that can be looked for: of its content, or the name of what it calls."""
    texts = [*_texts(message.get("content"))]
    for call in message.get("tool_calls") or []:
        texts.append(str(call.get("function", call).get("name", "")))
    return next((text.strip() for text in reversed(texts) if text.strip()), "")


def _marked_runs(chat: Chat, text: str, marks: list[tuple[int, int]], wanted: list[int]) -> dict[int, list[Span]]:
    """The runs that the template's marks give to the answers `wanted`; raises Unproven if an answer is in none."""
    left = [Span(begin, end, TARGET) for begin, end in marks if end > begin]
    runs: dict[int, list[Span]] = {}
    before: list[Span] = []  # the runs of the answer before
    for number, message in enumerate(chat.messages):
        if not is_answer(message):
            continue
        missing: tuple[str, str] | None = ("marks", "the template has fewer marks than answers")
        while left and (missing := _what_is_missing(message, text[left[0].begin : left[0].end])):
            # marks without a message, such as those around a text's end, belong to the answer before
            before.append(left.pop(0))
        if missing:
            raise Unproven(*missing)
        before = runs[number] = [left.pop(0)]
    before += left
    return {number: found for number, found in runs.items() if number in wanted}


def _what_is_missing(message: Message, run: str, prompt: str = "") -> tuple[str, str] | None:
    """What of an answer is not in its run: a reason and a sentence; None if all is there.

    The prompt may have opened the thoughts with which the content begins.
    """
    squeezed = None
    for reason, wanted in _wanted(message):
        if wanted in run:
            continue
        if squeezed is None:
            opening = _OPENING if prompt.rstrip().endswith(_OPENING) else ""
            squeezed = "".join((opening + run).split())
        if "".join(wanted.split()) not in squeezed:
            return reason, f"the chat template writes {short(run)} for an answer with {short(wanted)}"
    if message.get("content") is None and run.lstrip().startswith("None"):
        return "content_missing", "the chat template writes None for an answer without text"
    return None


def _wanted(message: Message) -> Iterator[tuple[str, str]]:
    for text in _texts(message.get("content")):
        yield "content_missing", text.strip()
    for key in _REASONING:
        if isinstance(text := message.get(key), str):
            yield "reasoning_missing", text.strip()
    for call in message.get("tool_calls") or []:
        function = call.get("function", call)
        yield "tool_calls_missing", str(function.get("name", ""))
        if isinstance(arguments := function.get("arguments"), dict):
            for text in strings_of(arguments):
                yield "tool_calls_missing", json.dumps(text, ensure_ascii=False)[1:-1] if '"' in text else text


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        yield from (part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))


def _sample(chat: Chat, text: str, runs: dict[int, list[Span]], count: int) -> Sample:
    """With the spans of the messages that are no targets, looked for in their order between the runs."""
    others: list[Span] = []
    position, weightless = 0, chat.answers(0)
    for number, message in enumerate(chat.messages[:count]):
        if own := runs.get(number):
            position = own[-1].end
            continue
        part = _PART_OF_ROLE.get(message["role"], TEMPLATE)
        if is_answer(message):
            part = WEIGHT_0 if number in weightless else EARLIER_ANSWER
        for content in filter(None, map(str.strip, _texts(message.get("content")))):
            begin = _find(text, content, position)
            if begin >= 0:
                position = begin + len(content)
                others.append(Span(begin, position, part))
    ordered = [run for number in sorted(runs) for run in runs[number]]
    return Sample(text, chat.hidden, ordered, others, TEMPLATE, count)


def _find(text: str, content: str, position: int) -> int:
    """Where the content is in the text from `position` on, and not a part of a header's word; -1 if nowhere."""
    begin = text.find(content, position)
    while begin > 0:
        end = begin + len(content)
        is_part = (text[begin - 1].isalnum() and content[0].isalnum()) or (
            text[end : end + 1].isalnum() and content[-1].isalnum()
        )
        if not is_part:
            break
        begin = text.find(content, begin + 1)
    return begin


def _common(chat: Chat, one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning, without a special token's name in part."""
    if other.startswith(one):
        return len(one)
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one.startswith(other[:middle]) else (low, middle - 1)
    for text in (one, other):
        for name in chat.template.special_names.finditer(text, max(0, low - 200), low + 200):
            if name.start() < low < name.end():
                low = name.start()
    return low - (low > 0 and one[low - 1] == HIDDEN)


def _without_weight(message: Message) -> Message:
    return {key: value for key, value in message.items() if key != "weight"} if "weight" in message else message


def short(text: str) -> str:
    """A text for a message of one line, cut in its middle."""
    return repr(text if len(text) <= 60 else f"{text[:40]}…{text[-15:]}")
