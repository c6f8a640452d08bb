"""JSON as data sets have it: texts that hold it, and values in which nulls and depth are not to be trusted."""

import json
import math
from collections import Counter
from functools import cache
from itertools import islice
from typing import Any

MOST_LEVELS = 64  # of objects and lists in definitions and arguments of tools: templates write them recursively


class Malformed(Exception):
    """Why a record becomes no conversation."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail


def read_json(text: str) -> Any:
    """The value of a JSON text; a ValueError that says what is wrong with it, a key that is there twice included."""
    try:
        return _decoder().decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def decoded(value: Any, what: str) -> Any:
    """The value that a text is JSON of; what is no text as it is. A `Malformed` that names `what` if it is no JSON."""
    if not isinstance(value, str):
        return value
    try:
        return read_json(value)
    except ValueError as e:
        raise Malformed("broken_json", f"{what} is no JSON: {str(e)[:80]}") from None


@cache
def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=_as_object)


def _as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {counts.most_common(1)[0][0][:40]!r} more than once in one object")
    return found


def kind_of(value: Any) -> str:
    """What a value is, as JSON names it, for a person."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    if value is None:
        return "null"
    return names.get(type(value), f"a {type(value).__name__}")


def plain_text(value: Any) -> str:
    """A value as filters are compared with it: 5 for 5.0, true for True."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float) else kind_of(value)


def listed(names: Any) -> str:
    """The first ten keys of an object."""
    keys = [str(name)[:40] for name in islice(names, 11)]
    return ", ".join(keys[:10]) + (", …" if len(keys) > 10 else "")


def is_text(text: str) -> bool:
    """Whether a text holds neither NUL nor half of a surrogate pair, which are no characters."""
    if "\0" in text:
        return False
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return True


def checked_text(text: str, what: str) -> str:
    """The text itself; a `Malformed` if it holds what is no character."""
    if is_text(text):
        return text
    if "\0" in text:
        raise Malformed("nul", f"{what} holds a NUL character")
    raise Malformed("not_utf8", f"{what} holds what is no valid Unicode")


def checked_value(value: Any, what: str, keep_null: tuple[str, ...] | None, level: int = 0) -> Any:
    """A copy of a JSON value without the nulls of its objects; a `Malformed` if a template could not write it.

    Args:
        keep_null: keys whose null has a meaning; None keeps all nulls.
    """
    if isinstance(value, str):
        return checked_text(value, what)
    if level > MOST_LEVELS:
        raise Malformed("too_deep", f"{what} is nested deeper than {MOST_LEVELS} levels")
    if isinstance(value, list):
        return [checked_value(item, what, keep_null, level + 1) for item in value]
    if isinstance(value, dict):
        copy = {}
        for key, item in value.items():
            if item is not None or keep_null is None or key in keep_null:
                copy[checked_text(str(key), what)] = checked_value(item, what, keep_null, level + 1)
        return copy
    if isinstance(value, float) and not math.isfinite(value):
        raise Malformed("wrong_type", f"{what} holds {value}, which JSON does not know")
    if value is None or isinstance(value, bool | int | float):
        return value
    raise Malformed("wrong_type", f"{what} holds a {type(value).__name__}, which JSON does not know")
