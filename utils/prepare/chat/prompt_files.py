"""Files of prompts: questions, or conversations up to one."""

from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.errors import DataError, UserError
from utils.prepare.chat.conversation import Message
from utils.prepare.chat.json_values import Malformed, read_json
from utils.prepare.chat.messages import read_messages
from utils.prepare.chat.tool_calls import parameters_of, read_tools


class Asked(NamedTuple):
    """A conversation up to a question, and where it stands."""

    where: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None


def read_prompts(path: Path) -> list[Asked]:
    """The questions of a file, a line each; in *.jsonl objects with "prompt" or "messages". A DataError if there are
    none, or one cannot be read; a UserError if there is no such file."""
    if not path.exists():  # a pipe is none, and may be read
        raise UserError(f"the file of prompts, {path}, is not there")
    found = []
    for where, line in prompt_lines(path):
        if path.suffix == ".jsonl":
            found.append(_of_json(line, where))
        else:
            found.append(Asked(where, [{"role": "user", "content": line.strip()}], None))
    return found


def prompt_lines(path: Path) -> list[tuple[str, str]]:
    """A file's lines that are not blank, each with where it stands; a DataError if there are none, or no text."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is not UTF-8 text: {e.reason} at byte {e.start}") from None
    found = [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(f"{path} holds no prompt")
    return found


def _of_json(line: str, where: str) -> Asked:
    try:
        value = read_json(line)
        if isinstance(value, dict) and isinstance(value.get("prompt"), str) and value["prompt"].strip():
            return Asked(where, [{"role": "user", "content": value["prompt"]}], None)
        if not isinstance(value, dict) or "messages" not in value:
            raise DataError(f'{where} is no object with a text under "prompt" or a list under "messages"')
        tools = read_tools(value.get("tools"), "the field 'tools'")
        messages = read_messages(value["messages"], "the field 'messages'", parameters_of(tools))
    except ValueError as e:
        raise DataError(f"{where} is not valid JSON: {e}") from None
    except Malformed as problem:
        raise DataError(f"{where}: {problem.detail}") from None
    while messages and messages[-1]["role"] not in ("user", "tool"):
        messages.pop()
    if not messages:
        raise DataError(f"{where} holds no question")
    return Asked(where, messages, tools)
