"""Chat templates in Jinja's sandbox, with the names that transformers gives them and with limits on time and memory.

transformers would render the same text, but importing it costs 1.7 s a process, and it has no limits: a template comes
from whoever published a model. https://huggingface.co/docs/transformers/chat_templating lists the names.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import MAX_RANGE, ImmutableSandboxedEnvironment

MARK_START, MARK_END = "\ufdd1", "\ufdd2"  # around what `{% generation %}` holds; no text has these, says Unicode
MOST_STEPS = 3_000_000  # turns of loops and calls: 10,000 messages take some 100,000
MOST_SECONDS = 20.0  # 10,000 messages take about one
MOST_CHARACTERS = 200_000_000
_STEPS_BETWEEN_LOOKS = 1_000  # at the clock
_WIDTH = re.compile(r"[%:][^\s%{}]*\d{6}")  # in a format: `%1000000d`, `{:>1000000}`
_DICT_ATTRIBUTES = frozenset(dir(dict))


class TooMuch(jinja2.TemplateError):
    """A template takes more time or memory than a conversation needs."""


class CompiledTemplate:
    """A template's source, compiled. Raises whatever Jinja, and Python's compiler behind it, raise for a wrong one."""

    def __init__(self, source: str) -> None:
        self._environment = _Environment()
        self._template = self._environment.from_string(source)
        # one context for all texts: making one takes a third of the time of a text
        self._context = self._template.new_context()
        self._globals = dict(self._template.globals)
        self.has_marks = re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", source) is not None

    def render(self, values: dict[str, Any], now: Callable[[], datetime]) -> str:
        """The text, with marks where the template has them; raises whatever the template's expressions raise."""
        self._environment.begin(now)
        context = self._context
        context.parent, context.vars = {**self._globals, **values}, {}
        context.exported_vars.clear()
        pieces = []
        left = MOST_CHARACTERS
        for piece in self._template.root_render_func(context):
            pieces.append(piece)
            left -= len(piece)
            if left < 0:
                raise TooMuch(f"it writes more than {MOST_CHARACTERS:,} characters")
        return "".join(pieces)


@lru_cache(maxsize=16)
def compile_template(source: str) -> CompiledTemplate:
    return CompiledTemplate(source)


def parse(source: str) -> nodes.Template:
    """A template's syntax tree; a TemplateSyntaxError if it has none."""
    return _Environment().parse(source)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`, around what a model writes: a mark before and after it."""

    tags = {"generation"}  # noqa: RUF012  Jinja's own way

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Macro) -> str:
        return f"{MARK_START}{caller()}{MARK_END}"


class _Environment(ImmutableSandboxedEnvironment):
    # the operators whose result can be far larger than what they are given
    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension])
        self.filters |= {"tojson": _to_json, "_counted": _counted, "_bounded": _bounded}
        for name in (
            "center",
            "indent",
            "wordwrap",
            "batch",
            "slice",
            "truncate",
            "format",
            "replace",
            "join",
            "tojson",
        ):
            self.filters[name] = _checked(name, self.filters[name])
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": self._strftime_now}
        self.begin(datetime.now)

    def begin(self, now: Callable[[], datetime]) -> None:
        """Starts the counting for one text."""
        self._now = now
        self._steps, self._deadline = 0, time.monotonic() + MOST_SECONDS

    def step(self) -> None:
        self._steps += 1
        if self._steps % _STEPS_BETWEEN_LOOKS:
            return
        if self._steps >= MOST_STEPS or time.monotonic() > self._deadline:
            raise TooMuch(f"it does not come to an end: {self._steps:,} steps of its loops and calls")

    def _strftime_now(self, form: str) -> str:
        return self._now().strftime(form)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Lets every loop count its turns, and every `set` look at the size of what it keeps."""
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        for kept in list(tree.find_all(nodes.Assign)):
            kept.node = nodes.Filter(kept.node, "_bounded", [], [], None, None, lineno=kept.lineno)
        tree.set_environment(self)
        return tree

    def getattr(self, obj: Any, attribute: str) -> Any:
        # as Jinja does it, without an exception for each key that is no attribute: half of the time of a text
        if type(obj) is dict and attribute not in _DICT_ATTRIBUTES:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _require_narrow(value.__self__)
        return wrapped

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # named as in Jinja: a template's own arguments may have any other name
        __self.step()
        _require_small(args if __obj is not __self.globals["range"] else ())
        _require_small(kwargs.values())
        if type(getattr(__obj, "__self__", None)) is str and __obj.__name__ in ("replace", "join"):
            _require_short_result(__obj.__name__, [__obj.__self__, *args])
        return _within_bounds(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            sizes = [len(value) if isinstance(value, (str, list, tuple)) else value for value in (left, right)]
            if any(size > MOST_CHARACTERS for size in (*sizes, sizes[0] * sizes[1])):
                raise TooMuch("it multiplies to something too large")
        if operator == "**" and (abs(left) > MAX_RANGE or right > 64):
            raise TooMuch("it raises to a power that is too large")
        if operator == "%" and isinstance(left, str):
            _require_narrow(left)
            _require_small([right])
        return super().call_binop(context, operator, left, right)


@jinja2.pass_context
def _counted(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    step = context.environment.step
    for value in values:
        step()
        yield value


@jinja2.pass_context
def _bounded(context: Context, value: Any) -> Any:
    return _within_bounds(value)


def _within_bounds(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)) and len(value) > MOST_CHARACTERS:
        raise TooMuch(f"it makes something of {len(value):,} characters or items")
    return value


def _require_small(values: Iterable[Any]) -> None:
    for value in values:
        if type(value) is int and abs(value) > MAX_RANGE:
            raise TooMuch(f"it asks for {value:,} of something")
        if type(value) is tuple:  # what a format with `%` is given
            _require_small(value)


def _require_narrow(form: str) -> None:
    if _WIDTH.search(form):
        raise TooMuch(f"it asks for a text of the width {form[:40]!r}")


def _require_short_result(name: str, values: list[Any]) -> None:
    """Looks at what `replace` and `join` would make of texts before they do it."""
    size = 0
    if name == "replace" and len(values) > 2 and all(type(value) is str for value in values[:3]):
        text, old, new = values[:3]
        size = len(text) + text.count(old) * len(new)
    if name == "join":
        joined = next((value for value in values if isinstance(value, (list, tuple))), ())
        size = sum(len(value) for value in joined if type(value) is str)
    if size > MOST_CHARACTERS:
        raise TooMuch(f"it makes a text of {size:,} characters")


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that refuses large numbers, such as widths, and long results."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        _require_small([*args, *kwargs.values()])
        if name == "format" and args and type(args[0]) is str:
            _require_narrow(args[0])
        _require_short_result(name, [value for value in args if isinstance(value, (str, list, tuple))])
        return function(*args, **kwargs)

    for attribute in ("jinja_pass_arg", "jinja_async_variant"):
        if hasattr(function, attribute):
            setattr(checked, attribute, getattr(function, attribute))
    return checked


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own would escape what HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
