"""Converters on the shapes of the data that they are for, and on anything else: each record is accounted for."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gpt.errors import DataError, UserError
from tests.prepare.test_records import conversations, write_rows
from tests.work_counts import ComparedText, assert_linear
from utils.prepare.chat.conversation import Conversation, Converter, LeftOut
from utils.prepare.chat.converters import convert_records, fields_of, make_converter
from utils.prepare.chat.kinds import KINDS

USER, ANSWER = {"role": "user", "content": "Привет!"}, {"role": "assistant", "content": "Здравствуйте."}
COLUMNS = {"role": ["user", "bot"], "content": ["Привет!", "Здравствуйте."]}


def convert(name: str, record: object, **settings: object) -> Conversation | LeftOut:
    (found,) = make_converter(Converter(name, **settings))(record, 7)
    assert found.at == 7
    return found


def messages(name: str, record: object, **settings: object) -> list[dict]:
    found = convert(name, record, **settings)
    assert isinstance(found, Conversation), found
    return found.messages


def reason(name: str, record: object, **settings: object) -> str:
    found = convert(name, record, **settings)
    assert isinstance(found, LeftOut) and found.detail and "\n" not in found.detail + found.text
    return found.reason


def told(*turns: tuple[str, str]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in turns]


# --- the shapes of the data of Saiga and Impruver


@pytest.mark.parametrize(
    "raw",
    [
        [USER, ANSWER],
        [USER | {"id": 3, "parent": None}, ANSWER | {"role": "bot"}],
        json.dumps([USER, ANSWER]),
        COLUMNS,
        json.dumps(COLUMNS),
        [{"role": "Human", "content": [{"type": "text", "text": "Привет!"}]}, ANSWER | {"role": " GPT "}],
    ],
)
def test_messages_are_a_list_its_json_or_columns(raw):
    assert messages("messages", {"messages": raw, "source": "saiga"}) == [USER, ANSWER]


def test_instructions_and_their_input_are_one_message():
    record = {"instruction": "Сложи.", "input": "2 и 2", "output": "4", "alternative_output": "Четыре"}
    assert messages("instruction", record) == told(("user", "Сложи.\n2 и 2"), ("assistant", "4"))
    assert messages("instruction", record | {"input": " "}) == told(("user", "Сложи."), ("assistant", "4"))
    assert messages("instruction", record | {"system": "S"})[0] == {"role": "system", "content": "S"}
    first = (("output", "alternative_output"), ("output", "output"))
    assert messages("instruction", record, mapping=first)[-1]["content"] == "Четыре"
    assert messages("instruction", record | {"alternative_output": ""}, mapping=first)[-1]["content"] == "4"
    assert messages("instruction", record | {"alternative_output": None}, mapping=first)[-1]["content"] == "4"
    nested = {"task": {"instruction": "Сложи."}, "output": "4", "a.b": "x"}
    mapping = (("instruction", "task.instruction"), ("input", "a.b"))
    assert messages("instruction", nested, mapping=mapping)[0]["content"] == "Сложи.\nx"


def test_sharegpt():
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "chatgpt", "value": "c"}]
    expected = told(("user", "a"), ("assistant", "b"), ("assistant", "c"))
    assert messages("conversations", {"conversations": turns}) == expected
    with_system = told(("system", "S")) + expected
    assert messages("conversations", {"conversations": turns, "system": "S"}) == with_system
    own = [{"from": "system", "value": "S"}, *turns]
    assert messages("conversations", {"conversations": own}) == with_system
    assert messages("conversations", {"conversations": own, "system": "S"}) == with_system
    assert reason("conversations", {"conversations": own, "system": "another"}) == "two_systems"
    columns = {"from": ["human", "bot"], "value": ["a", "b"]}
    assert messages("conversations", {"conversations": columns}) == expected[:2]


def test_answers_within_a_prompt_are_not_trained():
    assert messages("prompt_completion", {"prompt": "a", "completion": "b"}) == told(("user", "a"), ("assistant", "b"))
    record = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}
    assert messages("prompt_completion", record) == [USER, ANSWER | {"weight": 0}, USER, ANSWER]
    assert reason("prompt_completion", {"prompt": [USER, ANSWER], "completion": [USER]}) == "no_answer"
    for text in ("[1]", "[]", "[{}]", "[USER]: a", '[{"role": "user"'):  # no messages, but text
        assert messages("prompt_completion", {"prompt": text, "completion": "b"})[0] == {
            "role": "user",
            "content": text,
        }


def test_reasoning():
    record = {"instruction": "Сложи.", "reasoning": "2+2", "output": "4"}
    found = messages("reasoning", record)
    assert found == [
        {"role": "user", "content": "Сложи."},
        {"role": "assistant", "content": "4", "reasoning_content": "2+2"},
    ]
    # as Impruver writes it
    as_text = told(("user", "Сложи."), ("assistant", "<think>\n2+2\n</think>\n\n4"))
    assert messages("reasoning_as_text", record) == as_text
    for name in ("reasoning", "reasoning_as_text"):
        assert messages(name, record | {"reasoning": ""}) == told(("user", "Сложи."), ("assistant", "4"))


CHARACTER = {
    "name": "Мышь",
    "context": "Ты живёшь в норе.",
    "greeting": "Пи!",
    "example_dialogue": [{"role": "user", "content": "Кто ты?"}, {"role": "char", "content": "Мышь."}],
    "topics": ["сыр"],
}


def character(number: int, dialogues: int = 1) -> dict:
    chats = [
        {
            "chat": [{"role": "operator", "content": f"Вопрос {number} {n}"}, {"role": "char", "content": "Пи."}],
            "topic": "сыр",
        }
        for n in range(dialogues)
    ]
    return CHARACTER | {"dialogues": chats}


def test_each_dialogue_of_a_character_is_a_conversation_and_a_fifth_shows_more():
    make = make_converter(Converter("roleplay"))
    found = [conversation for number in range(200) for conversation in make(character(number, 5), number)]
    assert len(found) == 1000
    greeted = ["\nПриветствие: Пи!" in one.messages[0]["content"] for one in found]
    shown = [
        one.messages[0]["content"].endswith("\nПример диалога:\nПользователь: Кто ты?\nПерсонаж: Мышь.")
        for one in found
    ]
    # of 1,000 with a chance of 0.2: 200 ± 38 (three standard deviations); of both 40 ± 19
    assert 162 <= sum(greeted) <= 238 and 162 <= sum(shown) <= 238
    assert 21 <= sum(a and b for a, b in zip(greeted, shown, strict=True)) <= 59
    for conversation, is_greeted in zip(found, greeted, strict=True):
        roles = [message["role"] for message in conversation.messages]
        assert roles == ["system", *(["assistant"] if is_greeted else []), "user", "assistant"]
        assert conversation.messages[0]["content"].startswith("Ты Мышь. Ты живёшь в норе.")
    # neither the place nor the order matters
    again = [conversation for number in reversed(range(200)) for conversation in make(character(number, 5), 0)]
    assert Counter(json.dumps(one.messages) for one in again) == Counter(json.dumps(one.messages) for one in found)


def test_a_dialogue_that_is_malformed_costs_itself_alone():
    record = character(0, 3)
    record["dialogues"][1]["chat"][0]["role"] = "narrator"
    found = make_converter(Converter("roleplay"))(record, 3)
    assert [type(one) for one in found] == [Conversation, LeftOut, Conversation]
    columns = character(0, 3) | {
        "dialogues": {"chat": [one["chat"] for one in record["dialogues"]], "topic": ["a"] * 3}
    }
    assert make_converter(Converter("roleplay"))(columns, 3)[0] == found[0]
    assert reason("roleplay", CHARACTER | {"dialogues": []}) == "no_answer"
    english = character(0) | {"name": "Mouse", "context": "You live in a hole."}
    assert messages("roleplay", english)[0]["content"].startswith("You are Mouse. You live in a hole.")


WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Париж"}}}


@pytest.mark.parametrize("arguments", [{"city": "Париж"}, '{"city": "Париж"}'])
@pytest.mark.parametrize("as_text", [True, False])
def test_function_calls_of_glaive(arguments, as_text):
    content = {"name": "weather", "arguments": arguments}
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Погода?"},
        {"role": "function_call", "content": json.dumps(content) if as_text else content},
        {"role": "function_response", "content": '{"t": 20}' if as_text else {"t": 20}},
        {"role": "assistant", "content": "20 градусов."},
    ]
    functions = json.dumps([WEATHER if as_text else json.dumps(WEATHER)])
    found = convert("function_calls", {"messages": json.dumps(turns), "functions": functions})
    assert found == Conversation(
        [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "Погода?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": '{"t": 20}'},
            {"role": "assistant", "content": "20 градусов."},
        ],
        [{"type": "function", "function": WEATHER}],
        7,
    )
    for none in ("", "[]", None):
        assert convert("function_calls", {"messages": [USER, ANSWER], "functions": none}).tools is None


def test_text_beside_a_call_survives_and_calls_beside_each_other_are_one_message():
    call = {"role": "function_call", "content": {"name": "weather", "arguments": {"city": "Париж"}}}
    beside = {"role": "assistant", "content": "Смотрю."}
    found = messages("messages", {"messages": [USER, beside, call, call, ANSWER]})
    assert found == [USER, beside | {"tool_calls": [CALL, CALL]}, ANSWER]
    found = messages("messages", {"messages": [USER, beside | {"tool_calls": [CALL]}]})
    assert found == [USER, beside | {"tool_calls": [CALL]}]
    found = messages(
        "messages", {"messages": [USER, {"role": "assistant", "content": None, "function_call": CALL["function"]}]}
    )
    assert found == [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}]


def test_ids_of_calls_and_answers():
    def ids(call_ids: list, answer_ids: list) -> object:
        calls = [CALL | ({"id": id_} if id_ else {}) for id_ in call_ids]
        answers = [{"role": "tool", "content": "x", "tool_call_id": id_} for id_ in answer_ids]
        record = {"messages": [USER, {"role": "assistant", "tool_calls": calls}, *answers, ANSWER]}
        found = convert("messages", record)
        if isinstance(found, LeftOut):
            return found.reason
        return [message.get("tool_call_id") for message in found.messages[2:-1]]

    assert ids(["a"], ["a"]) == ["a"]
    assert ids(["a"], [None]) == ["a"]  # it can answer no other
    assert ids(["a", "b"], ["b", "a"]) == ["b", "a"]
    assert ids(["a", "b"], [None, None]) == [None, None]
    assert ids([None], [None]) == [None]
    assert ids(["a"], ["c"]) == "unknown_call"


SHAPES = {
    "messages": {"messages": COLUMNS},
    "instruction": {"instruction": "Сложи.", "input": "2 и 2", "output": "4", "system": "S"},
    "conversations": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "S"},
    "prompt_completion": {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]},
    "reasoning": {"instruction": "Сложи.", "reasoning": "2+2", "output": "4"},
    "roleplay": character(0, 40),
    "function_calls": {
        "messages": json.dumps([USER, {"role": "function_call", "content": json.dumps(CALL["function"])}]),
        "functions": json.dumps([WEATHER]),
    },
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "saved", "feather.arrow"])
@pytest.mark.parametrize("kind", SHAPES)
def test_each_shape_in_each_format(tmp_path, kind, name):
    expected = make_converter(Converter(kind))(SHAPES[kind], 0)
    found, left_out = conversations(write_rows(tmp_path / name, [SHAPES[kind]]), Converter(kind))
    assert not left_out and found == expected


# --- tools with different arguments in one file

TOOLS = [
    WEATHER,
    {
        "name": "convert",
        "description": "Converts.",
        "parameters": {
            "type": "object",
            "properties": {"amount": {"type": "number"}, "rates": {"type": "array", "items": {"type": "number"}}},
            "required": ["amount"],
        },
    },
    {"name": "time", "parameters": {"type": "object", "properties": {}}},
]
ARGUMENTS = [{"city": "Париж"}, {"amount": 2.5, "rates": [1.5, 2.5]}, {}]


def tool_rows() -> list[dict]:
    rows = []
    for number, arguments in enumerate(ARGUMENTS):
        call = {
            "id": f"call{number}",
            "type": "function",
            "function": {"name": TOOLS[number]["name"], "arguments": arguments},
        }
        turns = [
            {"role": "user", "content": f"Вопрос {number}"},
            {"role": "assistant", "content": "Смотрю." if number else "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"call{number}", "content": "x"},
            {"role": "assistant", "content": "Готово.", "weight": number % 2, "reasoning_content": "Так."},
        ]
        tools = [{"type": "function", "function": tool} for tool in TOOLS[: number + 1]]
        rows.append({"messages": turns, "tools": tools})
    rows[0]["messages"][-1]["weight"] = rows[2]["messages"][-1]["weight"] = 1
    rows.append({"messages": [USER, ANSWER], "tools": None})
    return rows


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "saved", "feather.arrow"])
def test_tools_with_different_arguments_in_one_file_get_no_nulls(tmp_path, name):
    rows = tool_rows()
    found, left_out = conversations(write_rows(tmp_path / name, rows), Converter("messages"))
    assert not left_out
    assert [(one.messages, one.tools) for one in found] == [(row["messages"], row["tools"]) for row in rows]
    rendered = json.dumps([[one.messages, one.tools] for one in found[:3]])
    assert "null" not in rendered


@pytest.mark.parametrize(("name", "kind"), [("a.jsonl", "json"), ("a.parquet", "parquet"), ("a.csv", "csv")])
def test_the_library_datasets_reads_the_same_conversations(tmp_path, name, kind):
    rows = [{"messages": [USER, {"role": "assistant", "content": f"Ответ {number}\n"}]} for number in range(50)]
    path = write_rows(tmp_path / name, rows)
    loaded = datasets.load_dataset(kind, data_files=str(path), cache_dir=str(tmp_path / "cache"), split="train")
    twin = [json.loads(row["messages"]) if kind == "csv" else row["messages"] for row in loaded]
    found, left_out = conversations(path, Converter("messages"))
    assert not left_out and [one.messages for one in found] == twin


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)
ANY_ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "city": TEXTS,
        "amount": st.integers(-9, 9),
        "rates": st.lists(st.floats(-1, 1), max_size=2),
        "where": st.fixed_dictionaries({}, optional={"x": st.integers(0, 9), "y": TEXTS}),
    },
)
ANY_ANSWER = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": TEXTS.filter(str.strip)},
    optional={
        "reasoning_content": TEXTS,
        "weight": st.sampled_from([0, 1]),
        "tool_calls": st.lists(
            ANY_ARGUMENTS.map(lambda given: {"type": "function", "function": {"name": "f", "arguments": given}}),
            min_size=1,
            max_size=2,
        ),
    },
)
# so that the table has every field, and a struct is never without any
FULL = {
    "role": "assistant",
    "content": "a",
    "reasoning_content": "b",
    "weight": 1,
    "tool_calls": [
        {
            "type": "function",
            "function": {
                "name": "f",
                "arguments": {"city": "a", "amount": 1, "rates": [0.5], "where": {"x": 1, "y": "b"}},
            },
        }
    ],
}


@settings(max_examples=40, deadline=None)
@given(answers=st.lists(st.lists(ANY_ANSWER, min_size=1, max_size=3), min_size=1, max_size=4))
def test_what_tables_unite_comes_apart_again(folder, answers):
    rows = [{"messages": [USER, *turns, FULL]} for turns in answers]
    for name in ("a.jsonl", "a.parquet", "a.arrow"):
        found, left_out = conversations(write_rows(folder / name, rows, arrow=True), Converter("messages"))
        assert not left_out and [one.messages for one in found] == [row["messages"] for row in rows]


def test_nulls_of_arguments_in_json():
    def call(arguments: object, tools: object = None) -> object:
        function = {"name": "weather", "arguments": arguments}
        record = {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": function}]}], "tools": tools}
        found = convert("messages", record)
        return (
            found.reason if isinstance(found, LeftOut) else found.messages[1]["tool_calls"][0]["function"]["arguments"]
        )

    # another tool's
    assert call({"city": "Рим", "amount": None}, [WEATHER]) == {"city": "Рим"}
    # its own
    assert call({"city": None}, [WEATHER]) == {"city": None}
    # nobody says whose it is
    assert call({"city": None}) == "null_arguments"
    assert call(None) == call("") == call("null") == call(None, [WEATHER]) == "null_arguments"
    assert call(None, [{"name": "weather"}]) == {}
    assert call('{"city": ') == "broken_json"
    assert call([1]) == call(3) == "wrong_type"
    assert call({"city": float("nan")}) == "wrong_type"
    # a schema without nulls but where they have a meaning
    schema = {"type": "object", "properties": {"city": {"type": "string", "default": None, "enum": None}, "x": None}}
    found = convert("messages", {"messages": [USER, ANSWER], "tools": [{"name": "weather", "parameters": schema}]})
    assert found.tools[0]["function"]["parameters"] == {
        "type": "object",
        "properties": {"city": {"type": "string", "default": None}},
    }


# --- what is left out, and why


@pytest.mark.parametrize(
    ("expected", "raw"),
    [
        ("unknown_role", [{"role": "narrator", "content": "a"}, ANSWER]),
        ("empty_turn", [{"role": "user", "content": " \n"}, ANSWER]),
        ("empty_turn", [USER, {"role": "assistant", "content": ""}]),
        ("empty_turn", [USER, {"role": "assistant", "content": None}]),
        ("empty_turn", [USER, {"role": "assistant", "content": "", "tool_calls": []}]),
        ("empty_turn", [USER, {"role": "assistant", "content": "", "reasoning_content": "a"}]),
        ("empty_turn", [USER, {"role": "function_call", "content": ""}]),
        ("unequal_columns", {"role": ["user", "bot"], "content": ["a"]}),
        ("no_answer", [USER]),
        ("no_answer", []),
        ("no_answer", [USER, ANSWER | {"weight": 0}]),
        ("wrong_type", [USER, ANSWER | {"weight": 0.5}]),
        ("wrong_type", [USER, ANSWER | {"weight": "1"}]),
        ("wrong_type", [USER, ANSWER | {"weight": 1, "train": False}]),
        ("no_answer", [USER, ANSWER | {"train": False}]),
        ("wrong_type", {"role": "user", "content": "a"}),
        ("wrong_type", [USER, {"role": "assistant", "content": 4}]),
        ("wrong_type", [USER, {"role": "assistant", "content": {"text": "a"}}]),
        ("wrong_type", [USER, ["assistant", "a"]]),
        ("wrong_type", [{"role": ["user"], "content": "a"}, ANSWER]),
        ("wrong_type", "3"),
        ("wrong_type", json.dumps(json.dumps([USER, ANSWER]))),
        ("wrong_type", 3),
        ("wrong_type", [USER | {"tool_calls": [CALL]}, ANSWER]),
        ("no_field", [{"from": "human", "value": "a"}]),
        ("no_field", [{"role": "user", "text": "a"}]),
        ("no_field", None),
        ("broken_json", '[{"role": "user"'),
        ("broken_json", '[{"role": "user", "role": "assistant", "content": "a"}]'),
        ("broken_json", "[" * 100_000 + "]" * 100_000),
        ("broken_json", ""),
        ("not_utf8", [USER, {"role": "assistant", "content": "\ud800"}]),
        ("nul", [USER, {"role": "assistant", "content": "a\0"}]),
        ("not_text", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ANSWER]),
        ("not_text", [USER | {"images": ["a.png"]}, ANSWER]),
        ("wrong_type", [USER, {"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": {}}}]}]),
        ("broken_json", [USER, {"role": "function_call", "content": "weather(Париж)"}]),
    ],
)
def test_what_is_malformed_has_a_reason(expected, raw):
    assert reason("messages", {"messages": raw}) == expected


def test_what_is_malformed_is_named_for_a_person():
    found = convert("messages", {"id": 3, "messages": [USER, {"role": "narrator\n\ud800", "content": "a"}]})
    assert found == LeftOut("unknown_role", 7, "message 2 has the role 'narrator\\n\\ud800'", "Привет!")
    found = convert("messages", {"id": "x", "dialog": [USER, ANSWER]})
    assert found.detail == "no field 'messages' among id, dialog"
    found = convert("instruction", {"instruction": "a", "answer": 4}, mapping=(("output", "answer"),))
    assert found.detail == "the field 'answer' is a number, no text" and found.text == "a"
    found = convert("messages", {"messages": [{"from": "human", "value": "a"}]})
    assert found.detail == "message 1 has no 'role' among from, value"
    found = convert("messages", {"messages": COLUMNS | {"content": ["a"]}})
    assert found.detail == "the columns of the field 'messages' have unequal lengths: role 2, content 1"
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "a.png"}}]
    found = convert("messages", {"messages": [{"role": "user", "content": parts}, ANSWER]})
    assert (found.reason, found.text) == ("not_text", "What is it?")


def test_what_is_empty_but_no_turn_stays():
    turns = [{"role": "system", "content": ""}, USER, {"role": "assistant", "tool_calls": [CALL]}]
    turns += [{"role": "tool", "content": ""}, {"role": "assistant", "content": "  Да"}]
    found = messages("messages", {"messages": turns})
    assert [message["content"] for message in found] == ["", "Привет!", "", "", "  Да"]


def test_filters_and_unwanted_texts():
    record = {"messages": [USER, ANSWER], "lang": "ru", "stars": 5.0, "good": True, "meta": {"model": "x"}}
    for field, value in {"lang": "ru", "stars": "5", "good": "true", "meta.model": "x"}.items():
        assert messages("messages", record, keep=((field, ("other", value)),)) == [USER, ANSWER]
        assert reason("messages", record, keep=((field, ("other",)),)) == "filtered"
    assert reason("messages", record, keep=(("year", ("1",)),)) == "no_field"
    assert reason("messages", record, without=("здравствуй",)) == "unwanted_text"
    assert messages("messages", record, without=("привет",)) == [USER, ANSWER]  # which is the user's


def test_fields_that_are_read():
    assert fields_of(Converter("messages")) == (("messages",), ("tools",))
    assert fields_of(Converter("instruction")) == (("instruction", "output"), ("input", "system"))
    mapping = (("input", "context"), ("output", "a"), ("output", "b"))
    found = fields_of(Converter("instruction", mapping, keep=(("lang", ("ru",)),)))
    assert found == (("lang", "instruction", "context"), ("a", "b", "system"))


@pytest.mark.parametrize(
    ("converter", "words"),
    [
        (Converter("mesages"), "there is no converter 'mesages' but messages, instruction, .*module:function"),
        (Converter("messages", (("text", "a"),)), "the converter 'messages' reads messages, tools, not 'text'"),
        (Converter("nowhere:f"), "'nowhere:f' cannot be imported: ModuleNotFoundError"),
        (Converter("nowhere.py:f"), "there is no file nowhere.py"),
        (Converter("json:nothing"), "json has no function 'nothing'"),
        (Converter("json:loads", (("a", "b"),)), "gets the whole record"),
    ],
)
def test_converters_that_there_are_not(converter, words):
    with pytest.raises(UserError, match=words):
        make_converter(converter)


# --- converters of the user's own

OWN = """
from beside import ANSWER
def convert(record):
    n = record["n"]
    if n == 1:
        return None
    if n == 2:
        raise KeyError("two")
    if n == 3:
        return 3
    if n == 4:
        return [("user", "a")]
    if n == 5:
        return {"messages": [{"role": "assistant", "content": object()}]}
    if n == 6:
        loop = []
        loop.append(loop)
        return loop
    messages = [{"role": "user", "content": str(n)}, ANSWER]
    return {"messages": messages, "tools": [{"name": "f"}]} if n == 7 else messages
def fail(record):
    raise ValueError(f"no {record['n']}\\nat all")
"""


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    (tmp_path / "beside.py").write_text("ANSWER = {'role': 'assistant', 'content': 'b'}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return path


def test_a_converter_of_ones_own(own):
    records = [({"n": number}, number) for number in range(9)]
    for name in ("mine:convert", "mine.py:convert", f"{own}:convert"):
        found, left_out = convert_records(make_converter(Converter(name)), records, "a.jsonl")
        assert [(one.at, one.messages[0]["content"], one.tools) for one in found] == [
            (0, "0", None),
            (7, "7", [{"type": "function", "function": {"name": "f"}}]),
            (8, "8", None),
        ]
        reasons = ["not_wanted", "converter_failed", "wrong_type", "wrong_type", "wrong_type", "too_deep"]
        assert [(one.at, one.reason) for one in left_out] == list(enumerate(reasons, start=1))
        assert left_out[1].detail == "KeyError: 'two'"
    assert fields_of(Converter("mine:convert")) == ((), None)


def test_a_converter_that_fails_on_every_record_stops_the_run(own):
    make = make_converter(Converter("mine:fail"))
    records = [({"n": number}, number) for number in range(100)]
    with pytest.raises(DataError, match=r"a.jsonl: the converter fails on 20 records, .*: ValueError: no 19 at all"):
        convert_records(make, records, "a.jsonl")
    assert len(convert_records(make, records[:19], "a.jsonl")[1]) == 19


def test_a_module_that_cannot_be_imported(own):
    own.write_text("import nowhere")
    with pytest.raises(UserError, match="'mine:convert' cannot be imported: ModuleNotFoundError: No module"):
        make_converter(Converter("mine:convert"))
    own.write_text("def convert(:")
    with pytest.raises(UserError, match="cannot be imported: SyntaxError") as error:
        make_converter(Converter("mine:convert"))
    assert "\n" not in str(error.value)


# --- hostile input

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["user", "gpt", "[]"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "chat", "tool_calls", "function", "name", "arguments"])
            | st.text(max_size=3),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)
NAMES = sorted({name for kind in KINDS.values() for name in kind.required + kind.optional})
RECORDS = st.dictionaries(st.sampled_from(NAMES), JSON, min_size=1, max_size=len(NAMES)) | JSON


@settings(max_examples=100, deadline=None)
@given(records=st.lists(RECORDS, max_size=3))
def test_whatever_a_record_is_it_is_accounted_for(records):
    for name in KINDS:
        make = make_converter(Converter(name))
        found, left_out = convert_records(make, [(record, at) for at, record in enumerate(records)], "a")
        places = Counter(one.at for one in [*found, *left_out])
        assert set(places) == set(range(len(records)))
        assert name == "roleplay" or set(places.values()) <= {1}
        for one in found:
            assert all(isinstance(message["content"], str) for message in one.messages)
            json.dumps([one.messages, one.tools], allow_nan=False, ensure_ascii=False).encode()
        for one in left_out:
            f"{one.detail}{one.text}".encode()


@pytest.mark.parametrize("name", ["messages", "conversations", "roleplay", "function_calls", "prompt_completion"])
def test_values_nested_deeply_are_named(name):
    deep: object = "a"
    for _ in range(900):
        deep = {"content": [deep]}
    fields = dict.fromkeys(NAMES, deep) | {"name": "a", "context": "b"}
    assert reason(name, fields) in ("wrong_type", "too_deep")
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": deep}}}]}
    assert reason("messages", {"messages": [USER, call]}) == "too_deep"


TOOL = {"role": "tool", "content": "x"}


@pytest.mark.parametrize(
    "make",
    [
        lambda half: [USER, ANSWER | {"tool_calls": [CALL | {"id": "a"}]}] * half,
        lambda half: [USER] + [{"role": "function_call", "content": CALL["function"]}] * (2 * half),
        lambda half: (
            [USER, ANSWER | {"tool_calls": [CALL | {"id": ComparedText(n)} for n in range(half)]}]
            + [TOOL | {"tool_call_id": ComparedText(n)} for n in range(half)]
        ),
    ],
)
def test_the_work_of_a_conversation_grows_with_its_turns_and_no_faster(make, monkeypatch):
    records = {half: {"messages": make(half)} for half in (64, 128, 256)}
    assert_linear(lambda half: messages("messages", records[half]), 64)
    monkeypatch.setattr(ComparedText, "comparisons", 0)
    messages("messages", records[256])
    assert ComparedText.comparisons <= 256
