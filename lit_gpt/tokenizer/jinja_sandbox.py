"""Chat templates in Jinja's sandbox, with the names that transformers gives them and with limits on time and memory.

transformers would render the same text, but importing it costs 1.7 s a process, and it has no limits: a template comes
from whoever published a model. https://huggingface.co/docs/transformers/chat_templating lists the names.
"""

import json
import re
import time
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lit_gpt.tokenizer.jinja_limits import (
    CHECKED_FILTERS,
    MOST_CHARACTERS,
    BoundedFormatter,
    TooMuch,
    check_binop,
    check_json,
    check_method,
    checked,
    counted,
    deeply_within_bounds,
    require_small,
    within_bounds,
)

MARK_START, MARK_END = "\ufdd1", "\ufdd2"  # around what `{% generation %}` holds; no text has these, says Unicode
MOST_STEPS = 2_000_000  # turns of loops and calls: 10,000 messages take some 100,000
MOST_SECONDS = 4.0  # of the processor: 10,000 messages take about one
_STEPS_BETWEEN_LOOKS = 100  # at the clock
_DICT_ATTRIBUTES = frozenset(dir(dict))
_FORBIDDEN_METHODS = frozenset(("encode", "translate", "maketrans"))  # of texts: what they make can be very large
_NOT_THE_SAME_AGAIN = ("random",)  # filters whose text is another one each time


class CompiledTemplate:
    """A template's source, compiled. Raises whatever Jinja, and Python's compiler behind it, raise for a wrong one."""

    def __init__(self, source: str) -> None:
        self._environment = _Environment()
        self._template = self._environment.from_string(source)
        # one context for all texts: making one takes a third of the time of a text
        self._context = self._template.new_context()
        self._globals = dict(self._template.globals)
        self.has_marks = re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", source) is not None

    def render(self, values: dict[str, Any], now: Callable[[], datetime], with_marks: bool) -> str:
        """The text, perhaps with marks where the template has them; raises whatever its expressions raise."""
        self._environment.begin(now)
        self._environment.writes_marks = with_marks
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
        return f"{MARK_START}{caller()}{MARK_END}" if self.environment.writes_marks else caller()


class _Environment(ImmutableSandboxedEnvironment):
    # the operators whose result can be far larger than what they are given
    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension])
        self.filters |= {"tojson": _to_json, "_counted": counted, "_bounded": deeply_within_bounds}
        for name in CHECKED_FILTERS:
            self.filters[name] = checked(name, self.filters[name])
        for name in _NOT_THE_SAME_AGAIN:
            del self.filters[name]
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": self._strftime_now}
        self.writes_marks = False
        self.begin(datetime.now)

    def begin(self, now: Callable[[], datetime]) -> None:
        """Starts the counting for one text."""
        self._now = now
        self._steps, self._deadline = 0, time.thread_time() + MOST_SECONDS

    def step(self) -> None:
        self._steps += 1
        if self._steps % _STEPS_BETWEEN_LOOKS:
            return
        if self._steps >= MOST_STEPS or time.thread_time() > self._deadline:
            raise TooMuch(f"it does not come to an end: {self._steps:,} steps of its loops and calls")

    def _strftime_now(self, form: str) -> str:
        return self._now().strftime(form)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Lets every loop count its turns, and looks at the size of what is kept: what could grow by turns."""
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = _filtered(loop.iter, "_counted")
        for holder in list(tree.find_all((nodes.List, nodes.Tuple, nodes.With))):
            values = holder.values if isinstance(holder, nodes.With) else holder.items
            if getattr(holder, "ctx", "load") == "load":
                values[:] = map(_bounded, values)
        for call in list(tree.find_all(nodes.Call)):
            call.args = list(map(_bounded, call.args))
        for pair in list(tree.find_all((nodes.Pair, nodes.Keyword))):
            pair.value = _bounded(pair.value)
        for kept in list(tree.find_all(nodes.Assign)):
            kept.node = _filtered(kept.node, "_bounded")
        for kept in list(tree.find_all(nodes.AssignBlock)):
            kept.filter = _filtered(kept.filter, "_bounded")
        tree.set_environment(self)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _FORBIDDEN_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        text, is_map = str(value.__self__), value.__name__ == "format_map"

        def write(*args: Any, **kwargs: Any) -> str:
            return BoundedFormatter(self).vformat(text, () if is_map else args, args[0] if is_map else kwargs)

        return write

    def getattr(self, obj: Any, attribute: str) -> Any:
        # as Jinja does it, without an exception for each key that is no attribute: half of the time of a text
        if type(obj) is dict and attribute not in _DICT_ATTRIBUTES:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # named as in Jinja: a template's own arguments may have any other name
        __self.step()
        require_small(args if __obj is not __self.globals["range"] else ())
        require_small(kwargs.values())
        if isinstance(text := getattr(__obj, "__self__", None), str):
            if __obj.__name__ == "join" and args and not isinstance(args[0], (str, list, tuple, dict)):
                args = ([*counted(__context, args[0])],)
            check_method(text, __obj.__name__, [*args, *kwargs.values()])
        return within_bounds(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_binop(operator, left, right)
        return super().call_binop(context, operator, left, right)


def _filtered(node: nodes.Expr | None, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno if node else 1)


def _bounded(node: nodes.Expr) -> nodes.Expr:
    """What is in a list, or given to a call, with a look at its size."""
    return node if isinstance(node, nodes.Const) else _filtered(node, "_bounded")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own would escape what HTML escapes."""
    check_json(value, indent)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
