"""A Hugging Face folder → GGUF files for llama.cpp and Ollama, in several types, each measured against the original.

1. llama.cpp's converter writes one file in the model's own type, and llama-quantize makes every other from it.
2. transformers, in a fresh process, computes in float32 what the model makes of a text.
3. Token ids, perplexity, most probable tokens and greedy continuation are compared. If one file is outside its bound,
   none is published.
"""

import errno
import shutil
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this file's folder

from utils import cli
from utils.export.options import GGUF_TYPES, QuantizeOptions

if __name__ == "__main__":
    OPTIONS = cli.parse_or_exit(QuantizeOptions)  # --help and mistakes are answered before the imports below

from lit_gpt.errors import UserError
from lit_gpt.repository import REPOSITORY
from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.export.gguf_files import TABLE, keep_earlier, make_gguf, read_table, report_line, write_table
from utils.export.gguf_source import SourceModel, make_source, read_model
from utils.export.hf_probabilities import WINDOW, Reference
from utils.export.llama_cpp import LlamaCpp
from utils.export.modelfile import (
    PUT_FIRST,
    Form,
    form_of,
    is_chat,
    modelfile,
    served_context,
    with_answers,
    with_tokens_compared,
)
from utils.export.ollama_go import check_by_go
from utils.export.served_chats import BEGIN, Case, battery_of, compare_chats
from utils.files.staged_folder import check_replaceable, recover, staged

TEXTS = ("data/sample/french/FR/Marche/test.txt", "data/sample/english/EN/Station/test.txt")


def main(options: QuantizeOptions) -> None:
    llama = LlamaCpp.find(options.llama_cpp_dir)
    check_output_dir(options)
    text = read_text(options.text)
    model = read_model(options.model_dir)
    check_space(model, options)
    context = served_context(model.folder, model.context)
    folder = options.output_dir
    with staged(folder) as stage, model.check:
        scratch = stage / "scratch"
        scratch.mkdir()
        template = ChatTemplate(Tokenizer(model.folder)) if is_chat(model.folder) else None
        battery = battery_of(template) if template else []
        chats = [{"messages": case.messages, "tools": case.tools} for case in battery]
        source, reference = make_source(llama, model, text, options.windows, scratch, chats)
        form, flags = find_form(llama, model, options, source, reference, template, battery)
        print("\n".join(("Modelfile: " + form.description, *form.notes)), flush=True)
        rows = []
        for gguf_type in options.methods:
            row = make_gguf(llama, model, gguf_type, source, reference, stage)
            for name in flags:  # not before: it was measured on text
                llama.set_flag(stage / row["file"], name, False)
            lines = modelfile(row["file"], form, context, model.end_token)
            (stage / f"Modelfile.{gguf_type}").write_text(lines, encoding="utf-8")
            rows.append(row)
            print(report_line(row), flush=True)
        shutil.rmtree(scratch)
        write_table(stage / TABLE, [*keep_earlier(folder, stage, rows), *rows])
    print(f"wrote {len(rows)} GGUF files, each with a Modelfile, and {TABLE} to {options.output_dir}")


def find_form(
    llama: LlamaCpp,
    model: SourceModel,
    options: QuantizeOptions,
    source: Path,
    reference: Reference,
    template: ChatTemplate | None,
    battery: list[Case],
) -> tuple[Form, tuple[str, ...]]:
    """The Modelfile's form, with what a user has to know of who serves a chat; and the flags of `Served`."""
    answers = (options.system, options.stop, options.sampling(), options.repetition_window)
    form = with_answers(form_of(model.folder), *answers)
    if template is None:
        return form, ()
    served = compare_chats(llama, source, template, battery, reference.chats)
    form = with_tokens_compared(form, model.folder, llama, source)
    for name in served.flags:
        llama.set_flag(source, name, True)
    if BEGIN in served.flags:
        form = form._replace(notes=tuple(note for note in form.notes if PUT_FIRST not in note))
    if form.turns:
        print(check_by_go(form.turns, [case.messages for case in battery if not case.tools], source.parent), flush=True)
    return form._replace(notes=(*form.notes, *served.notes)), served.flags


def check_output_dir(options: QuantizeOptions) -> None:
    """Raises a UserError if the folder holds something that is not an earlier result, or what is to be read."""
    folder = options.output_dir
    check_replaceable(folder)
    recover(folder)  # before it is looked into
    for name, path in (("--model_dir", options.model_dir), ("--text", options.text)):
        if path and path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{name} {path} lies in --output_dir {folder}, which is replaced; give another folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / TABLE).is_file():
        raise UserError(f"--output_dir {folder} holds something else; give a folder that is new or empty")
    read_table(folder)


def read_text(path: Path | None) -> str:
    """The text to measure on, without white space around it; a UserError if there is none."""
    if path and not path.is_file():
        raise UserError(f"--text {path} is {'a folder' if path.is_dir() else 'missing'}; give a file of UTF-8 text")
    paths = [path] if path else [REPOSITORY / name for name in TEXTS]
    try:
        # a few thousand tokens, spread over the text, are measured: a million characters are enough
        texts = [path.read_text(encoding="utf-8")[:1_000_000].strip() for path in paths]
    except UnicodeDecodeError as e:
        raise UserError(f"--text {path} is not UTF-8 text: {e}") from None
    if not any(texts):
        raise UserError(f"--text {path} has no text in it")
    return "\n\n".join(texts)


def check_space(model: SourceModel, options: QuantizeOptions) -> None:
    """Raises an OSError unless the disk has room for all files at once, and what is compared."""
    bits = sum(GGUF_TYPES[gguf_type].bits for gguf_type in [*options.methods, model.gguf_type])
    probabilities = options.windows * WINDOW * model.hf["vocab_size"]  # 2 bytes each, of half a window's tokens
    needed = model.parameters * bits / 8 + probabilities
    parent = next(path for path in options.output_dir.resolve().parents if path.is_dir())
    if (free := shutil.disk_usage(parent).free) < needed:
        raise OSError(errno.ENOSPC, f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free", str(parent))


if __name__ == "__main__":
    sys.exit(cli.run(main, OPTIONS))
