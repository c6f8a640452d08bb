"""How large the results of a template's filters, methods and operators would be, looked at before they are made."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2.runtime import Context
from jinja2.sandbox import MAX_RANGE, SandboxedEnvironment, SandboxedFormatter

MOST_CHARACTERS = 50_000_000  # a record has at most 32 MiB
MOST_ITEMS = 1_000_000  # of a list, with what is in its items
_MOST_REPEATED = 1_000_000  # characters or items that `*` makes
_MOST_INDENT = 100
_MOST_BITS = 256  # of a number
_NUMBER = re.compile(r"\d+")
_LIST_FILTERS = ("list", "batch", "slice", "sort", "unique", "reverse", "groupby")
_LAZY_FILTERS = ("map", "select", "reject", "selectattr", "rejectattr")
_SLOW_FILTERS = ("wordwrap", "urlize", "striptags", "title", "xmlattr", "pprint", "wordcount")
CHECKED_FILTERS = (
    "center",
    "format",
    "indent",
    "join",
    "replace",
    "sum",
    "truncate",
    *_LIST_FILTERS,
    *_LAZY_FILTERS,
    *_SLOW_FILTERS,
)


class TooMuch(jinja2.TemplateError):
    """A template takes more time or memory than a conversation needs."""


def within_bounds(value: Any) -> Any:
    """The value itself, if it is neither a long text nor a long list."""
    if isinstance(value, str):
        _require_characters(len(value))
    elif isinstance(value, (list, tuple)) and len(value) > MOST_ITEMS:
        raise TooMuch(f"it makes something of {len(value):,} items")
    return value


def deeply_within_bounds(value: Any) -> Any:
    """Likewise, if what is in its items is not much either: a list may hold another one many times."""
    if isinstance(value, (list, tuple, dict)):
        _require_characters(_size(value))
    return within_bounds(value)


def require_small(values: Iterable[Any]) -> None:
    for value in values:
        if type(value) is int and abs(value) > MAX_RANGE:
            raise TooMuch(f"it asks for {value:,} of something")


def check_filter(name: str, values: list[Any], options: Mapping[str, Any]) -> None:
    """Looks at what a filter is given; the first of `values` is what it is applied to."""
    require_small([*values[1:], *options.values()])
    value, others = values[0], [*values[1:], *options.values()]
    if name == "format":
        check_percent(value, tuple(others))
    elif name == "replace":
        check_method(str(value), name, others)
    elif name == "join":
        check_method(_first_text(others), name, [value])
    elif name == "indent":
        width = options.get("width", others[0] if others else 4)
        _require_characters(str(value).count("\n") * (len(width) if isinstance(width, str) else int(width)))
    elif name == "sum":
        if any(isinstance(other, (list, tuple)) for other in others):
            raise TooMuch("it adds lists with `sum`")
    elif isinstance(value, (str, list, tuple)) and len(value) > MOST_ITEMS:
        raise TooMuch(f"it gives {len(value):,} characters or items to `{name}`")


def check_method(text: str, name: str, values: list[Any]) -> None:
    """Looks at what a method of a text would make."""
    size = 0
    if name == "replace" and len(values) > 1 and all(isinstance(value, str) for value in values[:2]):
        size = len(text) + text.count(values[0]) * len(values[1])
    elif name == "join" and values and isinstance(values[0], (list, tuple)):
        size = _size(values[0]) + len(values[0]) * len(text)
    elif name == "expandtabs":
        size = text.count("\t") * (values[0] if values and type(values[0]) is int else 8)
    elif name in ("split", "rsplit", "splitlines") and len(text) > MOST_ITEMS:
        separator = values[0] if values and isinstance(values[0], str) else ""
        pieces = text.count(separator) if separator else text.count(" ") + text.count("\n")
        if pieces > MOST_ITEMS:
            raise TooMuch(f"it splits a text into {pieces:,} pieces")
    _require_characters(size)


def check_binop(operator: str, left: Any, right: Any) -> None:
    """Looks at the operands of `*`, `**` and `%`."""
    if operator == "*":
        for value, times in ((left, right), (right, left)):
            is_repeated = isinstance(value, (str, list, tuple)) and type(times) is int
            if is_repeated and max(_size(value), len(value)) * times > _MOST_REPEATED:
                raise TooMuch("it multiplies to something too large")
    if operator in ("*", "**") and type(left) is int and type(right) is int:
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > _MOST_BITS:
            raise TooMuch("it calculates with a number that is too large")
    if operator == "%" and isinstance(left, str):
        check_percent(left, right)


def check_percent(form: Any, values: Any) -> None:
    """Looks at the widths in a format with `%`, and at how often it writes what."""
    if not isinstance(form, str):
        return
    if "%*" in form or ".*" in form:
        raise TooMuch("its format takes a width from its arguments")
    form = form.replace("%%", "")
    largest = max(map(_size, _items(values)), default=0)
    _require_characters(_widths(form) + form.count("%") * largest)


def _widths(form: str) -> int:
    """The sum of all numbers in a format."""
    return sum(int(digits[:9]) for digits in _NUMBER.findall(form))


def _items(values: Any) -> Iterable[Any]:
    if isinstance(values, Mapping):
        return values.values()
    return values if isinstance(values, tuple) else [values]


class BoundedFormatter(SandboxedFormatter):
    """`str.format` that looks at each width, and counts what it has written."""

    def __init__(self, environment: SandboxedEnvironment) -> None:
        super().__init__(environment)
        self._written = 0

    def format_field(self, value: Any, format_spec: str) -> Any:
        self._written += _widths(format_spec) + _size(value)
        _require_characters(self._written)
        return super().format_field(value, format_spec)


def check_json(value: Any, indent: Any) -> None:
    """Looks at what `tojson` is given."""
    if indent is not None and (len(indent) if isinstance(indent, str) else indent) > _MOST_INDENT:
        raise TooMuch("it indents JSON by more than 100 characters")
    deeply_within_bounds(value)


@jinja2.pass_context
def counted(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    """The same values, each a step of the environment's."""
    step = context.environment.step
    for value in values:
        step()
        yield value


def checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that looks at what it is given before it begins."""
    has_context = hasattr(function, "jinja_pass_arg")

    def look_and_call(*args: Any, **kwargs: Any) -> Any:
        values = list(args[1:] if has_context else args)
        if name in ("join", "list") and not isinstance(values[0], (str, list, tuple, dict, jinja2.Undefined)):
            values[0] = _listed(values[0])
        if name in _LAZY_FILTERS and not isinstance(values[0], jinja2.Undefined):
            values[0] = counted(args[0], values[0])
        check_filter(name, values, kwargs)
        return function(*args[: len(args) - len(values)], *values, **kwargs)

    for attribute in ("jinja_pass_arg", "jinja_async_variant"):
        if hasattr(function, attribute):
            setattr(look_and_call, attribute, getattr(function, attribute))
    return look_and_call


def _listed(values: Iterable[Any]) -> list[Any]:
    """The items of a filter that makes them one after the other."""
    found, size = [], 0
    for value in values:
        found.append(value)
        size += _size(value) if isinstance(value, str) else 1
        _require_characters(size)
        within_bounds(found)
    return found


def _first_text(values: list[Any]) -> str:
    return next((value for value in values if isinstance(value, str)), "")


def _size(value: Any) -> int:
    """Characters in a text, and in all texts in lists and objects; a TooMuch where there are too many of them."""
    if isinstance(value, str):
        return len(value)
    size, waiting, seen = 0, [value], 0
    while waiting:
        item = waiting.pop()
        seen += 1
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, (list, tuple)):
            waiting.extend(item)
        elif isinstance(item, dict):
            waiting.extend(item.values())
            size += sum(len(key) for key in item if isinstance(key, str))
        else:
            size += 4
        if seen + len(waiting) > MOST_ITEMS // 2 or size > MOST_CHARACTERS:
            raise TooMuch("it makes something of too many items")
    return size


def _require_characters(size: int) -> None:
    if size > MOST_CHARACTERS:
        raise TooMuch(f"it makes a text of {size:,} characters")
