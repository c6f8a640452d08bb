"""A chat's text as what stands between its messages: learned from a model's own chat template, written for Ollama.

What stands between two messages depends on their roles alone in most templates: headers, ends of turns, a default
system message before a first user's. `learn` renders marked messages and keeps what is between the marks; whether that
is all that the template does, a battery of conversations has to show (utils/export/template_battery.py). `Turns.render`
and the Go of `Turns.go` say the same: tests/export/test_templates.py has Go render what is rendered here.

Ollama runs Go's text/template (https://pkg.go.dev/text/template), after it has joined neighbours of one role. Go's
`index`, `slice` and `len` are all there is to take a text apart: blanks are trimmed by a template that calls itself.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from utils.export.template_battery import (
    CHATS,
    OTHERS,
    ROLES,
    Message,
    Renderer,
    conversations,
    is_led,
    with_contents,
)

ANSWERED = "assistant"
# Go's error names a template that is not there; Ollama answers with it.
REFUSED = "the model's chat template has no place for this message here"


@dataclass(frozen=True)
class Turns:
    """What stands between messages, by the roles before and after; "" is the conversation's begin and its answer."""

    between: dict[tuple[str, str], str]
    trimmed: frozenset[str]  # roles whose messages lose white space at both ends
    skips_empty_system: bool  # a conversation that begins with one is as without it

    def render(self, messages: Sequence[Message]) -> str | None:
        """The text after which the model answers, or goes on with a last message of its own. None: refused.

        Ollama drops messages from the front where the context is full; an answer that is then the first, or follows the
        system message, is left out where the model's template refuses it.
        """
        text, before = "", ""
        for message in messages:
            role, content = message["role"], message["content"]
            is_skipped = self.skips_empty_system and not before and role == "system" and not content
            if is_skipped or self.leaves_out(before, role):
                continue
            joint = self.between.get((before, role))
            if joint is None or message.get("tool_calls"):
                return None
            text += joint + (content.strip() if role in self.trimmed else content)
            before = role
        end = self.between.get((before, ""))
        return None if end is None else text + end

    def leaves_out(self, before: str, role: str) -> bool:
        return role == ANSWERED and before in ("", "system") and (before, role) not in self.between

    def with_system(self, system: str) -> "Turns":
        """The same with this system message in conversations that begin with none."""
        written = self.between["", "system"] + (system.strip() if "system" in self.trimmed else system)
        after = {role: text for (before, role), text in self.between.items() if before == "system"}
        led = {("", role): written + text for role, text in after.items() if role}
        return replace(self, between={**self.between, **led})

    def go(self) -> str:
        """The same as a Go template. White space outside of quotes is trimmed by `{{-`, so that lines can be broken."""
        lines = [trim_template()] if self.trimmed else []
        lines += ['{{- $before := "" }}', "{{- range .Messages }}"]
        for index, role in enumerate(ROLES.values()):
            lines.append(f'{{{{- {"else if" if index else "if"} eq .Role "{role}" }}}}')
            lines += self._go_message(role)
        lines += ["{{- else }}", _REFUSE, "{{- end }}", "{{- end }}"]
        ends = {before: text for (before, role), text in self.between.items() if role == ""}
        lines += _choose(ends)
        return "\n".join(lines)

    def _go_message(self, role: str) -> list[str]:
        content = '{{- template "trim" .Content }}' if role in self.trimmed else "{{- .Content }}"
        joints = {before: text for (before, after), text in self.between.items() if after == role}
        if not joints:
            return [f"  {_REFUSE}"]
        body = _choose(joints)
        if role == ANSWERED:
            body = ["{{- if .ToolCalls }}", f"  {_REFUSE}", "{{- end }}", *body]
        body += [content, "{{- $before = .Role }}"]
        conditions = []
        if role == "system" and self.skips_empty_system:
            conditions.append("or .Content $before")
        skipped = [before for before in ("", "system") if self.leaves_out(before, role)]
        if skipped:
            conditions.append(f"not (eq $before {_quoted(skipped)})")
        for condition in reversed(conditions):
            body = [f"{{{{- if {condition} }}}}", *_indented(body), "{{- end }}"]
        return _indented(body)


def learn(render: Renderer) -> Turns | None:
    """What stands between the messages of the template that `render` renders; None if that depends on more than roles.

    Of conversations that the template refuses nothing is learned. What it does with a message of a role is asked with
    one that has white space around it.
    """
    between: dict[tuple[str, str], str] = {}
    for roles in CHATS:
        found = _joints(render, roles)
        if any(between.get(pair, text) != text for pair, text in found.items()):
            return None
        between |= found
    if ("", "user") not in between or ("user", "") not in between:
        return None
    turns = Turns(between, frozenset(), False)
    empty = with_contents("su", ["", _mark(1)])
    if ("", "system") in between and render(empty) == render(empty[1:]):
        turns = replace(turns, skips_empty_system=turns.render(empty) != render(empty))
    turns = replace(turns, trimmed=frozenset(ROLES[role] for role in "sua" if _is_trimmed(render, turns, role)))
    for group in OTHERS:
        turns = _with_group(render, turns, group)
    return turns


def _with_group(render: Renderer, turns: Turns, group: tuple[str, ...]) -> Turns:
    """`turns` with what the conversations of `group` show, if that is one thing for each pair of roles."""
    between = dict(turns.between)
    for roles in group:
        for pair, text in _joints(render, roles).items():
            if between.setdefault(pair, text) != text:
                return turns
    wider = replace(turns, between=between)
    if "t" in group[0] and _is_trimmed(render, wider, "t"):
        wider = replace(wider, trimmed=wider.trimmed | {"tool"})
    for roles in group:
        for messages in conversations(roles):
            expected = render(messages)
            is_left_out = expected is None and is_led(roles)
            if not is_left_out and wider.render(messages) != expected:
                return turns
    return wider


def _joints(render: Renderer, roles: str) -> dict[tuple[str, str], str]:
    """What stands between marked messages of these roles; nothing if a mark is not there once, or in another order."""
    marks = [_mark(index) for index in range(len(roles))]
    text = render(with_contents(roles, marks))
    found = re.fullmatch("(.*?)".join(["", *map(re.escape, marks), ""]), text or "", re.DOTALL)
    if found is None or any(text.count(mark) != 1 for mark in marks):
        return {}
    names = [ROLES[letter] for letter in roles]
    return dict(zip(zip(["", *names], [*names, ""], strict=True), found.groups(), strict=True))


def _is_trimmed(render: Renderer, turns: Turns, role: str) -> bool:
    """Whether the template takes white space from a message of `role`."""
    roles = {"s": "su", "u": "u", "a": "uau", "t": "uat"}[role]
    contents = [_mark(index) for index in range(len(roles))]
    place = roles.index(role)
    contents[place] = f" \n {contents[place]}\t \n"
    messages = with_contents(roles, contents)
    expected = render(messages)
    trimming = replace(turns, trimmed=frozenset({ROLES[role]}))
    return turns.render(messages) != expected and trimming.render(messages) == expected


def _mark(index: int) -> str:
    return f"message-{index}-of-many"


# `slice . 0 1` is a string's first byte, and `slice . (len (slice . 1))` its last. White space as Python's str.strip
# has it, by the number of bytes that UTF-8 takes.
_SPACES = {
    1: "\t\n\v\f\r\x1c\x1d\x1e\x1f ",
    2: "\x85\xa0",
    3: "\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000",
}
_REFUSE = f'{{{{- template "{REFUSED}" . }}}}'


def trim_template() -> str:
    """A Go template that writes a text without the white space at its ends, one character a call."""
    lines = ['{{- define "trim" }}']
    condition = "if"
    for size, spaces in _SPACES.items():
        among = _quoted(spaces)
        first, last = f"(slice . 0 {size})", f"(slice . (len (slice . {size})))"
        for piece, rest in ((first, f"(slice . {size})"), (last, f"(slice . 0 (len (slice . {size})))")):
            lines.append(f"  {{{{- {condition} and (ge (len .) {size}) (eq {piece} {among}) }}}}")
            lines.append(f'    {{{{- template "trim" {rest} }}}}')
            condition = "else if"
    return "\n".join([*lines, "  {{- else }}{{ . }}", "  {{- end }}", "{{- end }}"])


def _choose(texts: dict[str, str]) -> list[str]:
    """Lines that write the text of the role before, and refuse another."""
    befores: dict[str, list[str]] = {}
    for before, text in texts.items():
        befores.setdefault(text, []).append(before)
    lines = []
    for text, names in befores.items():
        written = f"{{{{ {_go_string(text)} }}}}" if text else ""
        lines.append(f"{{{{- {'else if' if lines else 'if'} eq $before {_quoted(names)} }}}}{written}")
    return [*lines, "{{- else }}", f"  {_REFUSE}", "{{- end }}"]


def _quoted(texts: Iterable[str]) -> str:
    return " ".join(map(_go_string, texts))


def _go_string(text: str) -> str:
    """`text` as a string of Go. Ollama drops from a Modelfile every character that is not printable."""
    written = ""
    for character in text:
        if character in '"\\':
            written += "\\" + character
        elif character.isprintable():
            written += character
        else:
            written += {"\n": "\\n", "\t": "\\t"}.get(character, f"\\U{ord(character):08x}")
    return f'"{written}"'


def _indented(lines: list[str]) -> list[str]:
    return ["  " + line for line in lines]
