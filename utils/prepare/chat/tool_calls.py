"""Definitions and calls of tools as data sets write them → as OpenAI writes them, without nulls of other tools.

A file whose tools have different arguments, made one table, has every argument in every call, null where it is another
tool's. A template would write these nulls, and the model would learn to call so.
"""

from collections.abc import Mapping
from typing import Any

from utils.prepare.chat.json_values import Malformed, checked_text, checked_value, decoded, kind_of

Parameters = frozenset[str]  # the names of a tool's parameters
_NULL_HAS_MEANING = ("default", "const")  # of a JSON schema


def read_tools(raw: Any, what: str) -> list[dict[str, Any]] | None:
    """The tools of a conversation, None if it has none; a list, or JSON of one, of objects or of JSON of these."""
    tools = _from_json(raw, what)
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list):
        raise Malformed("wrong_type", f"{what} is {kind_of(tools)}, no list of tools")
    return [_tool(tool, what) for tool in tools]


def _tool(raw: Any, what: str) -> dict[str, Any]:
    tool = checked_value(_from_json(raw, what), what, _NULL_HAS_MEANING)
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise Malformed("wrong_type", f"{what} holds what is no function with a name")
    return {"type": "function", **tool} if "function" in tool else {"type": "function", "function": tool}


def parameters_of(tools: list[dict[str, Any]] | None) -> dict[str, Parameters]:
    """The names of the parameters of each tool whose definition says them."""
    found = {}
    for tool in tools or []:
        function = tool["function"]
        schema = function.get("parameters", {})
        if not isinstance(schema, dict):
            continue
        properties = schema.get("properties")
        if isinstance(properties, dict):
            found[function["name"]] = frozenset(properties)
        elif schema.keys() <= {"type", "required"}:
            found[function["name"]] = frozenset()
    return found


def read_calls(raw: Any, parameters: Mapping[str, Parameters], number: int) -> list[dict[str, Any]]:
    """The calls of message `number`: an object, a list of objects, or JSON of these; none of null or an empty text."""
    what = f"the call in message {number}"
    calls = _from_json(raw, what)
    if calls is None:
        return []
    return [_call(call, parameters, what) for call in (calls if isinstance(calls, list) else [calls])]


def _call(raw: Any, parameters: Mapping[str, Parameters], what: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise Malformed("wrong_type", f"{what} is no object with the name of a function and its arguments")
    function = raw.get("function") or raw
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name or raw.get("type") not in (None, "function"):
        raise Malformed("wrong_type", f"{what} does not name a function")
    arguments = _arguments(function.get("arguments"), name, parameters.get(name), what)
    call = {"type": "function", "function": {"name": checked_text(name, what), "arguments": arguments}}
    if isinstance(raw.get("id"), str):
        call["id"] = checked_text(raw["id"], what)
    return call


def _arguments(raw: Any, name: str, known: Parameters | None, what: str) -> dict[str, Any]:
    """A call's arguments without those nulls that its function has no parameter for."""
    arguments = _from_json(raw, what)
    if arguments is None:
        if known is not None and not known:
            return {}
        raise Malformed("null_arguments", f"{what}, of {name[:40]}, has no arguments")
    if not isinstance(arguments, dict):
        raise Malformed("wrong_type", f"the arguments of {what}, of {name[:40]}, are no object")
    nulls = [key for key, value in arguments.items() if value is None]
    if nulls and known is None:
        detail = f"the argument {nulls[0][:40]!r} is null, and no tool says whether {name[:40]} has it"
        raise Malformed("null_arguments", f"{what}: {detail}")
    own = {key: value for key, value in arguments.items() if value is not None or key in (known or ())}
    return checked_value(own, what, None)


def _from_json(raw: Any, what: str) -> Any:
    """As `decoded`; None for an empty text."""
    return None if isinstance(raw, str) and not raw.strip() else decoded(raw, what)
