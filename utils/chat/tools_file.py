"""Files of tools."""

from pathlib import Path

from lit_gpt.errors import DataError
from utils.chat.speaker import Tools
from utils.prepare.chat.json_values import Malformed, read_json
from utils.prepare.chat.tool_calls import read_tools


def read_tools_file(path: Path) -> Tools | None:
    """The tools of a JSON file; a DataError if it holds none."""
    try:
        tools = read_tools(read_json(path.read_text(encoding="utf-8")), "the list")
    except ValueError as e:  # not UTF-8, or no JSON
        raise DataError(f"--tools {path} is not JSON: {e}") from None
    except Malformed as problem:
        raise DataError(f"--tools {path}: {problem.detail}") from None
    if tools is None:
        raise DataError(f"--tools {path} holds no tools")
    return tools
