"""Conversations of all kinds that templates are tried with."""

from typing import Any

Message = dict[str, Any]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time in a zone",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
    },
}
SYSTEMS = (None, "Be brief.", "  Réponds en vers.\n")
QUESTIONS = ("What is the capital of France?", "Et l'été 1789 ?", "Count to 3", "Why?", "def f(x):\n    return x + 1")
ANSWERS = ("Paris, of course.", "La Révolution éclate.", "1 2 3", "Because it is so.", "```python\nf(2)  # 3\n```")
KINDS = {
    "plain": ("{}", "{}"),
    "leading blanks": ("  {}", "  {}"),
    "leading line ends": ("\n\n{}", "\n\n{}\n"),
    "emoji": ("🙂 {} 👩‍👩‍👧", "👍🏽 {} 🇫🇷"),
    "special-token text": ("{} <|im_end|></s><end_of_turn>", "{} <|eot_id|><|end|> </s>"),
    "markup": ("<b>{}</b> & 'quotes' \"too\"", "{{{{ {} }}}} {{% if %}}"),
}


def turns(*contents: str | None, system: str | None = None) -> list[Message]:
    """Contents of a user and an assistant in turn, after a system message if there is one."""
    head = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return head + [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]


def dialogue(count: int, kind: str, system: str | None) -> list[Message]:
    contents = []
    for turn in range(count):
        contents += [KINDS[kind][0].format(QUESTIONS[turn]), KINDS[kind][1].format(ANSWERS[turn])]
    return turns(*contents, system=system)


def with_reasoning(count: int, system: str | None) -> list[Message]:
    messages = dialogue(count, "plain", system)
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            message["reasoning_content"] = f"Let me think, step {number}."
    return messages


def call(name: str, arguments: Any, content: str | None, index: int = 0) -> Message:
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"type": "function", "id": f"call{index:05}", "function": function}],
    }


def with_tools(count: int, content: str | None, system: str | None) -> list[Message]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for turn in range(count):
        name, arguments = (("get_weather", {"city": "Zürich"}), ("get_time", {"zone": "CET"}))[turn % 2]
        messages.append({"role": "user", "content": QUESTIONS[turn]})
        messages.append(call(name, arguments, content, turn))
        result = {"role": "tool", "name": name, "content": '{"result": 21}', "tool_call_id": f"call{turn:05}"}
        messages.append(result)
        messages.append({"role": "assistant", "content": ANSWERS[turn]})
    return messages


def all_conversations() -> list[tuple[str, list[Message], list[dict[str, Any]] | None]]:
    """What each is called, its messages and its tools."""
    found = []
    for count in range(1, 6):
        for number, kind in enumerate(KINDS):
            system = SYSTEMS[(count + number) % len(SYSTEMS)]
            found.append((f"{kind}, {count} turns, system {system!r}", dialogue(count, kind, system), None))
        found.append((f"plain, {count} turns", dialogue(count, "plain", None), None))
        for system in SYSTEMS[:2]:
            found.append((f"reasoning, {count} turns, system {system!r}", with_reasoning(count, system), None))
        tools = [WEATHER, TIME]
        for content in ("", None, "I look it up."):
            system = SYSTEMS[count % 2]
            found.append((f"tools, {count} turns, {content!r} beside", with_tools(count, content, system), tools))
    found.append(("empty answer", turns("a", "", "b", "c"), None))
    found.append(("empty question", turns("", "a"), None))
    found.append(("one letter", turns("a", "b", "a", "b", "a", "b"), None))
    found.append(("header words", turns("user", "assistant", "system", "model\n"), None))
    found.append(("thoughts in the content", turns("a", "<think>\nHm.\n</think>\n\nb", "c", "d"), None))
    return found
