"""A converter of the user's own: `module:function`, or `path/to/file.py:function`.

It is called as function(record) and returns a list of messages, or an object with `messages` and perhaps `tools`; None
for a record that it does not want.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from lit_gpt.checksums import file_sha256
from lit_gpt.errors import UserError
from utils.prepare.chat.json_values import Malformed, checked_value, kind_of
from utils.prepare.chat.kinds import MessagesAndTools, Record
from utils.prepare.chat.messages import read_messages
from utils.prepare.chat.tool_calls import parameters_of, read_tools


def is_own(name: str) -> bool:
    return ":" in name


def load_own(name: str) -> Callable[[Any], Any]:
    """The function; a UserError if it cannot be found or its module cannot be imported."""
    module_name, _, function_name = name.rpartition(":")
    try:
        module = _import(module_name)
    except Exception as e:  # whatever the module does when it is imported
        raise UserError(f"the converter '{name}' cannot be imported: {describe(e)}") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"the converter '{name}': {module_name} has no function '{function_name}'")
    return function


def own_source(name: str) -> str:
    """The SHA-256 of the file of a converter, empty where it is an installed module's."""
    path = _file_of(name.rpartition(":")[0])
    return file_sha256(path) if path.is_file() else ""


def _file_of(module_name: str) -> Path:
    return Path(module_name) if module_name.endswith(".py") else Path(*module_name.split(".")).with_suffix(".py")


def _import(module_name: str) -> ModuleType:
    """A file of the current directory, or at the path; else an installed module."""
    path = _file_of(module_name).absolute()
    if not path.is_file():
        if module_name.endswith(".py"):
            raise FileNotFoundError(f"there is no file {module_name}")
        return importlib.import_module(module_name)
    # not by its name alone: `utils` and others are taken
    spec = importlib.util.spec_from_file_location(f"converter_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there for their module
    folders = [str(path.parent), str(Path.cwd())]  # for what it imports
    sys.path += [folder for folder in folders if folder not in sys.path]
    spec.loader.exec_module(module)
    return module


def convert_own(function: Callable[[Any], Any], record: Record) -> MessagesAndTools:
    """What the function makes of a record; a `Malformed` if it fails, returns None, or no conversation."""
    try:
        found = function(record.values)
    except Exception as e:  # whatever the user's code does
        raise Malformed("converter_failed", describe(e)) from None
    if found is None:
        raise Malformed("not_wanted", "the converter returned None")
    if not isinstance(found, dict):
        found = {"messages": found}
    found = checked_value(found, "what the converter returned", None)
    if not isinstance(found.get("messages"), list):
        what = kind_of(found.get("messages"))
        raise Malformed("wrong_type", f"the converter returned {what}, where a list of messages should be")
    tools = read_tools(found.get("tools"), "what the converter returned as tools")
    return read_messages(found["messages"], "what the converter returned", parameters_of(tools)), tools


def describe(error: Exception) -> str:
    """The kind of an error and what it says, in one short line."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
