"""A conversation with a model, or with two, in `[speaker001:] …` turns or by its chat template."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # the repository, not this file's folder

from utils import cli
from utils.run.chat_options import ChatOptions

if __name__ == "__main__":
    OPTIONS = cli.parse_or_exit(ChatOptions)  # --help and mistakes are answered before the imports below

from utils.chat.models import load_speakers
from utils.chat.once import answer_prompts
from utils.chat.talking import Talk
from utils.chat.tools_file import read_tools_file
from utils.prepare.chat.prompt_files import read_prompts


def main(options: ChatOptions) -> None:
    tools = read_tools_file(options.tools) if options.tools else None
    asked = read_prompts(options.once) if options.once else []  # before a model is loaded, which may take minutes
    speakers = load_speakers(options)
    for speaker in speakers:
        if values := {name: value for name, value in speaker.own.items() if getattr(options, name) is None}:
            listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
            print(f"{speaker.label}: by its own files {listed}", file=sys.stderr)
    if options.once:
        answer_prompts(asked, speakers, options, tools)
    else:
        Talk(speakers, options, tools).run()


if __name__ == "__main__":
    sys.exit(cli.run(main, OPTIONS))
