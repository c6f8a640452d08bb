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

import re
from bisect import bisect_left
from copy import copy
from functools import cached_property
from typing import NamedTuple

from lit_gpt.errors import UserError
from lit_gpt.tokenizer.chat_template import NO_CHARACTERS, ChatTemplate, strings_of
from lit_gpt.tokenizer.special_tokens import HIDDEN
from utils.data.parts import PARTS, TARGET
from utils.prepare.chat.answers import (
    OPENING,
    ends_open,
    is_closed,
    is_lost,
    own_text,
    short,
    texts_in,
    what_is_missing,
)
from utils.prepare.chat.conversation import ChatRecipe, Conversation, Message
from utils.prepare.chat.template_trial import closing_of, ends_otherwise, writes_twice

_PART_OF_ROLE = {role: PARTS.index(role) for role in ("system", "user", "tool")} | {"developer": PARTS.index("system")}
TEMPLATE, WEIGHT_0, EARLIER_ANSWER = (PARTS.index(name) for name in ("template", "weight_0", "earlier_answer"))
_PROBE = {"role": "user", "content": "?"}  # a message that may follow an answer
_WHOLE = re.compile(r"</?[^<>\s]{1,60}>|\[/?[^\[\]\s]{1,60}\]|\w+")  # what two texts do not have in common by half


class Unproven(Exception):
    """A conversation whose targets cannot be proven, and why: a word for counting, and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class Span(NamedTuple):
    begin: int  # its first character in the text
    end: int
    part: int
    open_to: int = 0  # where the answer's last words end, if nothing but white space closes it


class Sample(NamedTuple):
    text: str
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
        has_marks = self.guarded is not None or template.has_marks
        if has_marks and any(NO_CHARACTERS.search(text) for text in strings_of([self.messages, self.tools])):
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
        is_marked = self.guarded is not None or self.template.has_marks
        if is_marked and text.replace(HIDDEN, "") != self.template.render(self.messages, self.tools, False):
            if self.guarded is None:
                raise Unproven("marks", "the chat template changes the text that its marks hold")
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
    if problem := found_problem(chat, text):
        raise Unproven(*problem)
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
    return Sample(text, [span._replace(part=WEIGHT_0) for span in spans], [], TARGET, len(chat.messages))


def _run_in_history(chat: Chat, number: int, text: str) -> Span | None:
    """The run of an answer in the text of the whole conversation; None if the text has not what was generated."""
    prompt = chat.text(number, True)
    if not text.startswith(prompt):
        return None
    begin = len(prompt)
    is_last = number + 1 == len(chat.messages)
    whole = text if is_last else chat.text(number + 1, False)
    end = _end_when_last(chat, number, begin, whole) if is_last else _end_in_history(chat, number, whole, text)
    run = text[begin:end]
    if end < begin or what_is_missing(chat.messages[number], run, prompt):
        return None
    if not is_closed(chat.messages[number], run, whole[end:], closing_of(chat.template)):
        return None
    return _run(chat, number, text, begin, end)


def _end_in_history(chat: Chat, number: int, whole: str, text: str) -> int:
    """Where the run of an answer ends that is not the last message; `whole` is the text up to this answer."""
    end = _common(chat, whole, text)
    if not ends_otherwise(chat.template):
        return end
    try:  # the next message may begin as a text's end does
        return min(end, _common(chat, whole, chat.text(number + 1, False, _PROBE)))
    except Unproven:
        return end


def _run(chat: Chat, number: int, text: str, begin: int, end: int) -> Span:
    """The run of an answer."""
    run = text[begin:end]
    is_open = ends_open(chat.messages[number], run, closing_of(chat.template))
    return Span(begin, end, TARGET, begin + len(run.rstrip()) if is_open else 0)


def _last_answer(chat: Chat, number: int) -> Sample:
    """A sample in which one answer is the last message and alone a target."""
    text, prompt = chat.text(number + 1, False), chat.text(number, True)
    if not text.startswith(prompt):
        raise Unproven("prefix", _two_texts(text, prompt, _common(chat, text, prompt)))
    end = _end_when_last(chat, number, len(prompt), text)
    run = text[len(prompt) : end]
    if missing := what_is_missing(chat.messages[number], run, prompt):
        raise Unproven(*missing)
    return _sample(chat, text, {number: [_run(chat, number, text, len(prompt), end)]}, number + 1)


def found_problem(chat: Chat, text: str) -> tuple[str, str] | None:
    """What makes the whole text useless: a reason and a sentence; None if nothing does."""
    if writes_twice(chat.template):
        return "written_twice", "the chat template writes an answer more than once"
    position = 0
    for message in chat.messages:
        if message["role"] not in ("system", "developer", "user"):
            continue
        for content in map(str.strip, texts_in(message.get("content"))):
            begin = text.find(content, position)
            position = max(position, begin)
            if begin < 0 and content not in text and is_lost(content, text):
                detail = f"the chat template does not write {short(content)}, which the {message['role']} says"
                return "message_missing", detail
    return None


def _two_texts(text: str, prompt: str, at: int) -> str:
    there, asked = (repr(found[max(0, at - 20) : at + 40]) for found in (text, prompt))
    advice = ""
    if OPENING in prompt[at:] or OPENING in prompt[-20:]:
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
    if end < begin or what_is_missing(message, text[begin:end], text[:begin]):
        # the history is another one; what follows the content may be the same
        content = own_text(message)
        here, there = (found.rfind(content) + len(content) for found in (text, longer)) if content else (0, 0)
        if here < begin or longer.find(content) < 0:
            return len(text)
        end = here + _common(chat, text[here:], longer[there:])
    return end if is_closed(message, text[begin:end], text[end:], closing_of(chat.template)) else len(text)


def _marked_runs(chat: Chat, text: str, marks: list[tuple[int, int]], wanted: list[int]) -> dict[int, list[Span]]:
    """The runs that the template's marks give to the answers `wanted`; raises Unproven if an answer is in none."""
    left = [Span(begin, end, TARGET) for begin, end in marks if end > begin]
    _require_no_marks_of_others(chat, text, left)
    runs: dict[int, list[Span]] = {}
    before: list[Span] = []  # the runs of the answer before
    for number, message in enumerate(chat.messages):
        if not is_answer(message):
            continue
        missing: tuple[str, str] | None = ("marks", "the template has fewer marks than answers")
        while left and (missing := what_is_missing(message, text[left[0].begin : left[0].end])):
            # marks without a message, such as those around a text's end, belong to the answer before
            before.append(left.pop(0))
        if missing:
            raise Unproven(*missing)
        before = runs[number] = [left.pop(0)]
    before += left
    for number in wanted:
        begin, end = runs[number][0].begin, runs[number][-1].end
        is_open = ends_open(chat.messages[number], text[begin:end], closing_of(chat.template))
        if text[end:].strip() and is_open:
            detail = (
                f"the template's marks end with the answer {short(text[begin:end])}: a model would not learn to end"
            )
            raise Unproven("no_end", detail)
    return {number: found for number, found in runs.items() if number in wanted}


def _require_no_marks_of_others(chat: Chat, text: str, marks: list[Span]) -> None:
    """Raises Unproven if a mark begins in what the template writes for a message that is no answer."""
    begins = [mark.begin for mark in marks]
    for number, message in enumerate(chat.messages):
        if is_answer(message):
            continue
        try:
            here = _common(chat, chat.text(number, False), text) if number else 0
            end = _common(chat, chat.text(number + 1, False), text)
        except Unproven:  # a template may refuse texts that end there
            continue
        if bisect_left(begins, here) < bisect_left(begins, end):
            raise Unproven("marks", f"the template's marks hold what is the {message['role']}'s, not an answer")


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
        for content in filter(None, map(str.strip, texts_in(message.get("content")))):
            begin = _find(text, content, position)
            if begin >= 0:
                position = begin + len(content)
                others.append(Span(begin, position, part))
    ordered = [run for number in sorted(runs) for run in runs[number]]
    return Sample(text, ordered, others, TEMPLATE, count)


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
        for pattern in (chat.template.special_names, _WHOLE):
            for name in pattern.finditer(text, max(0, low - 200), low + 200):
                if name.start() < low < name.end():
                    low = name.start()
    return low - (low > 0 and one[low - 1] == HIDDEN)


def _without_weight(message: Message) -> Message:
    return {key: value for key, value in message.items() if key != "weight"} if "weight" in message else message
