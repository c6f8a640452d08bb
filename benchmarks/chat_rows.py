"""Synthetic conversations for benchmarks/chat.py: the same lines for the same count and seed.

A conversation has one to five turns, three in ten begin with a system message. Questions are short and answers long, as
in instruction sets; what they say is cut from varied copies of the plays of ../shared (benchmarks/prepare.py), so that
the vocabulary grows as natural text's does. Six in ten are in Latin letters, one in four in Cyrillic, the rest in
Chinese characters; one answer in ten has lines of code, one message in twenty an emoji. Two in a hundred repeat an
earlier conversation, half of them but for a word. No message holds the name of a special token, and none is longer than
2,048 of GPT-2's tokens, so that every way to prepare them has the same work.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path[0] = str(Path(__file__).resolve().parents[1])
from benchmarks.prepare import iter_copies, read_plays

BATCH = 1000  # conversations that are drawn together
TURNS = (0.4, 0.25, 0.15, 0.1, 0.1)  # shares of conversations with 1 to 5 turns
SYSTEM = 0.3
LATIN, CYRILLIC, CHINESE = range(3)
SCRIPTS = (0.6, 0.25, 0.15)
QUESTION, ANSWER = 100, 450  # the median length of a message in characters; the lengths are log-normal
SPREAD = 0.8
MOST = {LATIN: 3_600, CYRILLIC: 1_200, CHINESE: 500}  # characters of a conversation's text
CODED, WITH_EMOJI, REPEATED = 0.1, 0.05, 0.02
LETTERS = str.maketrans("abcdefghijklmnopqrstuvwxyzéèêàùç", "абцдефгхийклмнопкрстувшьызэеёауч")
EMOJI = ("🙂", "👍🏽", "🎉", "👩‍💻", "❤️")
SYSTEMS = (
    "You are a helpful assistant.",
    "Tu es un assistant qui répond brièvement et poliment.",
    "Ты — русскоязычный автоматический ассистент. Ты разговариваешь с людьми и помогаешь им.",
    "你是一个有用的助手。",
)


def make_rows(folder: Path, source: Path, count: int, seed: int) -> Path:
    """The JSON lines of `count` conversations below `folder`; an earlier call's are kept."""
    path = folder / f"chats-{count}-{seed}" / "EN" / "Chats" / "train.jsonl"
    if path.is_file():
        return path
    began = time.monotonic()
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(".tmp")
    with staged.open("w", encoding="utf-8") as file:
        for messages in iter_conversations(source, count, seed):
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    staged.rename(path)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB in {time.monotonic() - began:.1f} s", flush=True)
    return path


def iter_conversations(source: Path, count: int, seed: int) -> Iterator[list[dict[str, str]]]:
    texts = iter_texts(source, seed)
    earlier: list[list[dict[str, str]]] = []
    for first in range(0, count, BATCH):
        rng = np.random.default_rng((seed, first))
        size = min(BATCH, count - first)
        repeats = rng.random(BATCH) < REPEATED
        for number in range(size):
            if repeats[number] and earlier:
                yield repeat(earlier[int(rng.integers(len(earlier)))], rng)
                continue
            made = make_conversation(texts, rng)
            yield made
            if number < 20:
                earlier.append(made)


def repeat(messages: list[dict[str, str]], rng: np.random.Generator) -> list[dict[str, str]]:
    """The conversation as it is, or its last answer without the last word."""
    if rng.random() < 0.5:
        return messages
    last = messages[-1]
    return [*messages[:-1], {**last, "content": last["content"].rpartition(" ")[0] or last["content"]}]


def make_conversation(texts: Iterator[Any], rng: np.random.Generator) -> list[dict[str, str]]:
    script = int(rng.choice(3, p=SCRIPTS))
    turns = 1 + int(rng.choice(5, p=TURNS))
    lengths = np.exp(rng.normal(0, SPREAD, (turns, 2))) * (QUESTION, ANSWER)
    if script == CHINESE:
        lengths /= 4  # a character says as much as three or four letters
    lengths *= min(1.0, MOST[script] / lengths.sum())
    messages = []
    if rng.random() < SYSTEM:
        messages.append({"role": "system", "content": SYSTEMS[int(rng.integers(len(SYSTEMS)))]})
    for question, answer in lengths.tolist():
        messages.append({"role": "user", "content": make_text(texts, script, question, rng)})
        content = make_text(texts, script, answer, rng)
        if rng.random() < CODED:
            content += make_code(rng)
        messages.append({"role": "assistant", "content": content})
    return messages


def make_text(texts: Iterator[Any], script: int, length: float, rng: np.random.Generator) -> str:
    text = texts.send((script, max(8, int(length))))
    if rng.random() < WITH_EMOJI:
        text += f" {EMOJI[int(rng.integers(len(EMOJI)))]}"
    return text


def make_code(rng: np.random.Generator) -> str:
    lines = [f"    value_{number} += {draw} * x[{number}]" for number, draw in enumerate(rng.integers(0, 10_000, 4))]
    return "\n\n```python\ndef add(x):\n" + "\n".join(lines) + "\n    return value_0\n```"


def iter_texts(source: Path, seed: int) -> Any:
    """A generator that is sent (script, characters) and gives the next words of the plays, about so many."""
    texts = _texts(source, seed)
    next(texts)
    return texts


def _texts(source: Path, seed: int) -> Any:
    plays = [read_plays(file) for file in sorted(source.rglob("train.txt"))]
    wanted = yield ""
    for copy in iter_copies(plays, seed):
        copy = re.sub(r"^\[[^\]]*\] *", "", copy, flags=re.MULTILINE)  # who speaks
        place = 0
        while place + 20_000 < len(copy):
            script, length = wanted
            letters = length * 3 if script == CHINESE else length
            end = copy.find(" ", place + letters)
            text = copy[place:end].strip()
            place = end
            if script == CYRILLIC:
                text = text.lower().translate(LETTERS)
            elif script == CHINESE:
                text = chinese(text)
            wanted = yield text or "?"


def chinese(text: str) -> str:
    """A character for every three letters, one of 3,000 that depends on all of them, and punctuation as it is there."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    codes = codes[: len(codes) // 3 * 3].reshape(-1, 3).astype(np.int64)
    characters = 0x4E00 + (codes @ np.array([131, 31, 7])) % 3000
    characters[(codes == ord(".")).any(1)] = ord("。")
    characters[(codes == ord(",")).any(1)] = ord("，")
    return "".join(map(chr, characters.tolist()))
