"""The prompts of a file, each answered by itself."""

import json
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.tokenizer.chat_template import Message
from utils.chat.conversation import Conversation, record_of
from utils.chat.screen import show_answers
from utils.chat.speaker import Prompt, Speaker, Tools
from utils.files.atomic import write_atomically
from utils.prepare.chat.prompt_files import Asked
from utils.run.chat_options import ChatOptions


def answer_prompts(asked: list[Asked], speakers: list[Speaker], options: ChatOptions, tools: Tools | None) -> None:
    """Prints each question with its answers, and writes --answers.

    A UserError names a prompt that does not fit the context, before the first is answered.
    """
    asked = [_with_defaults(one, options.system, tools) for one in asked]
    prompts = [[_prompt(speaker, one) for speaker in speakers] for one in asked]
    ended = [0] * len(speakers)
    records = []
    for number, (one, own) in enumerate(zip(asked, prompts, strict=True)):
        conversations = [
            Conversation(speaker, options.sampling(speaker.own), one.messages[:-1], one.tools, number)
            for speaker in speakers
        ]
        for conversation, prompt in zip(conversations, own, strict=True):
            conversation.begin_with(one.messages[-1], prompt)
        print(f"[{number + 1}/{len(asked)}] {one.messages[-1]['content']}", flush=True)
        show_answers(conversations)
        for index, conversation in enumerate(conversations):
            ended[index] += conversation.speaker.by_itself
            records.append(_record(conversation))
        print(_ends(speakers) + "\n", flush=True)
    for speaker, count in zip(speakers, ended, strict=True):
        speaker.finish()
        who = f"{speaker.label}: " if len(speakers) > 1 else ""
        print(f"{who}{count} of {len(asked)} answers ended by themselves", flush=True)
    if options.answers is not None:
        write_answers(options.answers, records)


def _with_defaults(asked: Asked, system: str | None, tools: Tools | None) -> Asked:
    """The conversation with the system message and the tools of the options, where it has none of its own."""
    messages: list[Message] = asked.messages
    if system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return Asked(asked.where, messages, asked.tools or tools)


def _prompt(speaker: Speaker, asked: Asked) -> Prompt:
    prompt = speaker.prompt(asked.messages, asked.tools)
    if len(prompt) >= speaker.context:
        size = f"{len(prompt):,} tokens with what comes before it"
        raise UserError(f"{asked.where}: {size}, and {speaker.label} sees {speaker.context:,}")
    return prompt


def _ends(speakers: list[Speaker]) -> str:
    ends = ["ended by itself" if speaker.by_itself else "cut, did not end by itself" for speaker in speakers]
    if len(speakers) == 1:
        return f"({ends[0]})"
    return "(" + "; ".join(f"{speaker.label}: {end}" for speaker, end in zip(speakers, ends, strict=True)) + ")"


def _record(conversation: Conversation) -> dict[str, Any]:
    record = record_of(conversation.said, conversation.tools)
    return record | {"model": conversation.speaker.label, "ended_by_itself": conversation.speaker.by_itself}


def write_answers(path: Path, records: list[dict[str, Any]]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(lines))
