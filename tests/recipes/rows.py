"""Rows of the shape that each dataset of the shipped recipes has on the Hub, with contents of the tests' own.

Every answer is the same, of words that every tokenizer here has, so that a tiny model learns it within seconds; no two
questions are nearly equal.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

ANSWER = "Oui, bien sûr."
NAMES = """
море лес город река книга стол окно дверь снег дождь ветер песня поезд вокзал утро вечер хлеб соль чашка сад кошка
собака птица рыба гора поле мост дорога письмо врач учитель музей театр картина краска цвет звук
"""
WORDS = NAMES.split()


def question(seed: str) -> str:
    return " ".join(random.Random(seed).sample(WORDS, 6)).capitalize() + "?"


def columns(roles: tuple[str, str], seed: str, turns: int = 2) -> dict[str, list[str]]:
    texts = [text for turn in range(turns) for text in (question(f"{seed}, {turn}"), ANSWER)]
    return {"role": [*roles] * turns, "content": texts}


def alpaca(seed: str) -> dict[str, Any]:
    return {
        "instruction": question(seed),
        "input": "",
        "output": "Нет.",
        "alternative_output": ANSWER,
        "label": "ok",
        "all_labels": ["ok"],
    }


def instruction(seed: str) -> dict[str, Any]:
    return {"instruction": question(seed), "input": "", "output": ANSWER}


def dialogue(seed: str) -> dict[str, Any]:
    return {"messages": columns(("user", "bot"), seed), "source": "twin"}


def conversations(seed: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question(seed)}, {"from": "gpt", "value": ANSWER}]}


def character(seed: str) -> dict[str, Any]:
    chat = [{"role": "operator", "content": question(seed)}, {"role": "char", "content": ANSWER}]
    return {
        "name": question(seed).split()[0],
        "context": question(f"{seed}, context"),
        "greeting": "Привет!",
        "example_dialogue": [{"role": "user", "content": "Кто ты?"}, {"role": "char", "content": ANSWER}],
        "topics": ["погода"],
        "dialogues": [{"chat": chat, "model_name": "gpt-4", "topic": "погода"}],
    }


FUNCTION = {"name": "weather", "description": "Погода", "parameters": {"type": "object", "properties": {}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
ASSISTANT = {"role": "system", "content": "Ты помощник."}


def function_call(seed: str) -> dict[str, Any]:
    """`messages` and `functions` are texts, of JSON."""
    messages = [
        ASSISTANT,
        {"role": "user", "content": question(seed)},
        {"role": "function_call", "content": json.dumps({"name": "weather", "arguments": {}})},
        {"role": "function_response", "content": json.dumps({"degrees": 7})},
        {"role": "assistant", "content": ANSWER},
    ]
    return {"messages": json.dumps(messages, ensure_ascii=False), "functions": json.dumps([FUNCTION])}


def asked_with_tools(seed: str) -> dict[str, Any]:
    """A question that is answered by a call."""
    tools = [{"type": "function", "function": FUNCTION}]
    return {"messages": [ASSISTANT, {"role": "user", "content": question(seed)}], "tools": tools}


def fields(question_name: str, *answer_names: str, system: str = "") -> Callable[[str], dict[str, Any]]:
    def row(seed: str) -> dict[str, Any]:
        values = {question_name: question(seed), **dict.fromkeys(answer_names, ANSWER)}
        return {**values, **({system: "Отвечай кратко."} if system else {})}

    return row


ROWS: dict[str, Callable[[str], dict[str, Any]]] = {
    "IlyaGusev/ru_turbo_alpaca": alpaca,
    "IlyaGusev/ru_turbo_alpaca_evol_instruct": fields("instruction", "output"),
    "IlyaGusev/ru_turbo_saiga": dialogue,
    "IlyaGusev/ru_sharegpt_cleaned": dialogue,
    "IlyaGusev/oasst1_ru_main_branch": dialogue,
    "IlyaGusev/oasst2_ru_main_branch": dialogue,
    "lksy/ru_instruct_gpt4": lambda seed: {**instruction(seed), "full_output": ANSWER},
    "IlyaGusev/gpt_roleplay_realm": character,
    "korotkov/glaive-function-calling-v2-ru-parsed": function_call,
    "evilfreelancer/ru-chain-of-thought-sharegpt": conversations,
    "AiCloser/sharegpt_cot_dataset": conversations,
    "MexIvanov/Vezora-Tested-22k-Python-Alpaca-ru": instruction,
    "MexIvanov/CodeExercise-Python-27k-ru": instruction,
    "zelkame/ru-stackoverflow-py": fields("вопрос", "ответ"),
    "Egor-AI/Russian_thinking_dataset": fields("prompt", "response", system="system"),
    "mizinovmv/ru_example_DeepSeek-R1-Distill-Qwen-32B": fields("ru_query", "response"),
    "lightblue/reasoning-multilingual-R1-Llama-70B-train": fields("translated_prompt", "response"),
    "Pinkstack/thinking-multilingual-30-23-full-690": fields("instruction", "output"),
    "Vikhrmodels/reasoning-0.01-ru": fields("instruction", "reasoning", "output"),
    "Vikhrmodels/russian_math": fields("task", "solution", "short answer"),
    "kristaller486/Nebo-T1-Russian": fields("prompt", "think", "answer"),
    "evilfreelancer/toxicator-ru": fields("input", "output", system="instruction"),
}
