"""A conversation with a model or an adapter on it, in `[speaker001:] …` turns or by its chat template."""

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # the repository, not this file's folder

from lit_gpt.errors import UserError
from utils import cli
from utils.run.model_options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """Talk with a model. Ctrl-C ends an answer; an empty line or the end of the input (Ctrl-D) the conversation."""

    SECTION = "chat"

    template: Literal["auto", "dialogue", "chat"] = "auto"
    """dialogue: turns as [speaker001:]; chat: the tokenizer's chat template; auto: the template if there is one."""
    user_name: str = "speaker001"
    """How your turns begin: [speaker001:]"""
    bot_name: str = "speaker002"
    """How the model's turns begin: [speaker002:]"""
    system: str | None = None
    """What a chat template gets as system message."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""


if __name__ == "__main__":
    OPTIONS = cli.parse_or_exit(Options)  # --help and mistakes are answered before the imports below

from lit_gpt.inference.generation import TextModel
from lit_gpt.tokenizer.chat_template import ChatTemplate, Message, find_template
from utils.run.merged_model import load_text_model


def main(options: Options) -> None:
    model = load_text_model(options)
    tokenizer = model.tokenizer
    by_template = options.template == "chat"
    if options.template == "auto":
        by_template = find_template(tokenizer.directory, tokenizer.config) is not None
    if by_template:
        template = ChatTemplate(tokenizer)
        ends = [] if template.end_of_turn is None else [template.end_of_turn]
        if template.end_text:
            options = replace(options, stop=(template.end_text, *options.stop))
        talk(model, options, template.encode, ends, ("> ", ""))
        return
    if options.system is not None:
        raise UserError("--system needs a chat template, and this conversation has none")
    user, bot = f"[{options.user_name}:]", f"[{options.bot_name}:]"
    options = replace(options, stop=(f"\n{user}", *options.stop))
    talk(model, options, lambda messages: model.encode(dialogue(messages, user, bot)), [], (f"{user} ", bot))


def dialogue(messages: list[Message], user: str, bot: str) -> str:
    """The conversation as a text of turns, up to where the model's begins."""
    text = ""
    for message in messages:
        speaker = user if message["role"] == "user" else bot
        text += f"{speaker} {message['content']}\n"
    return text + bot


def talk(
    model: TextModel,
    options: Options,
    encode: Callable[[list[Message]], list[int]],
    end_ids: list[int],
    names: tuple[str, str],
) -> None:
    """Reads questions and prints the model's answers, until a question is empty.

    `encode` gives the ids of a conversation up to the answer; `names` are shown before a question and an answer.
    """
    messages: list[Message] = [] if options.system is None else [{"role": "system", "content": options.system}]
    answers = 0
    while question := read_line(names[0]):
        asked = [*messages, {"role": "user", "content": question}]
        kept, ids = fit(asked, encode, model.config.block_size, options.max_new_tokens)
        if not kept:
            print(f"too long for a context of {model.config.block_size} tokens; say it shorter", file=sys.stderr)
            continue
        print(names[1], end="", flush=True)
        answer = ""
        with suppress(KeyboardInterrupt):  # ends the answer, not the conversation
            for _, piece in model.stream([ids], replace(options, seed=options.seed + answers), end_ids=end_ids):
                answer += piece
                print(piece, end="", flush=True)
        print(end="" if answer.endswith("\n") else "\n", flush=True)
        messages = [*kept, {"role": "assistant", "content": answer.strip()}]
        answers += 1
    if answers:
        model.require_undamaged()  # an answer that Ctrl-C ended has not asked for it


def read_line(prompt: str) -> str:
    """A line from the keyboard, where it can be edited, or from a pipe; empty at the end of the input."""
    try:
        if not sys.stdin.isatty():
            return sys.stdin.readline().strip()
        import readline  # noqa: F401  for a terminal alone: its import gives input() a line editor and a history

        return input(prompt).strip()
    except EOFError:
        print()
        return ""
    except UnicodeDecodeError:
        raise UserError("the input is not UTF-8 text") from None


def fit(
    messages: list[Message], encode: Callable[[list[Message]], list[int]], block_size: int, max_new_tokens: int
) -> tuple[list[Message], list[int]]:
    """As much of the newest of a conversation as leaves room for an answer (at most half of the context), and its ids.

    Questions are dropped with their answers, a system message never. Nothing is left if the last question is too long.
    """
    room = block_size - min(max_new_tokens, block_size // 2)
    first = int(messages[0]["role"] == "system")
    for oldest in range(first, len(messages), 2):
        kept = messages[:first] + messages[oldest:]
        ids = encode(kept)
        if len(ids) <= room:
            return kept, ids
    return [], []


if __name__ == "__main__":
    sys.exit(cli.run(main, OPTIONS))
