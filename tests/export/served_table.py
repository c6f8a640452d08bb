"""docs/served.md's table: which published chat templates are served as trained, and by whom.

`python -m tests.export.served_table` prints it; tests/export/test_served_chats.py compares it with the file.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.shipped_templates import missing_tokens
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import SHARED
from tests.export.go_templates import DATED, FORMS, real_templates
from utils.export.llama_cpp import FOLDER, LlamaCpp
from utils.export.served_chats import Case, Sent, battery_of, read_answers, render_ours, request_of, with_unset

# `</s>` is none of them: where there is Gemma 4's `<|tool_response>`, too, llama.cpp takes it for text
NO_TOKENS = {"bos_token", "eos_token", "</s>"}


class Row(NamedTuple):
    name: str
    rendered: int  # conversations of the battery that the template renders
    transformers: int  # of these, whose text and token ids transformers has too
    llama_cpp: int  # that llama.cpp has, by the template that a GGUF file of ours holds
    differing: list[str]  # the names of the others
    unset: list[str]  # names that the template in the GGUF file leaves unset
    ollama: str


def make_folder(folder: Path) -> Path:
    """GPT-2's tokenizer with the special tokens of all templates."""
    from transformers import AutoTokenizer

    shutil.copytree(SHARED / "tokenizers" / "gpt2", folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    found = Tokenizer(folder)
    names = set()
    for path in real_templates().values():
        names.update(missing_tokens(path.read_text(encoding="utf-8"), found))
    own = AutoTokenizer.from_pretrained(folder)
    own.add_special_tokens({"additional_special_tokens": sorted(names - NO_TOKENS), "bos_token": "<bos>"})
    own.save_pretrained(folder)
    return folder


def make_gguf(folder: Path, file: Path) -> Path:
    """A GGUF file of this vocabulary, and no weights; as the converter writes it."""
    sys.path.insert(0, str(FOLDER / "gguf-py"))
    import gguf  # llama.cpp's own, which is not installed

    tokenizer = Tokenizer(folder)
    special = set(tokenizer.control_tokens)
    types = [gguf.TokenType.CONTROL if name in special else gguf.TokenType.NORMAL for name in tokenizer.vocabulary]
    writer = gguf.GGUFWriter(file, "gpt2")
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_feed_forward_length):
        add(64)
    for add in (writer.add_block_count, writer.add_head_count):
        add(1)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokenizer.vocabulary)
    writer.add_token_types(types)
    writer.add_add_bos_token(False)
    gguf.SpecialVocab(folder, load_merges=True).add_to_gguf(writer, quiet=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file


def sent_by_transformers(own: Any, source: str, battery: list[Case]) -> list[Sent | None]:
    found: list[Sent | None] = []
    for case in battery:
        try:
            text = own.apply_chat_template(
                case.messages, tools=case.tools, chat_template=source, tokenize=False, add_generation_prompt=True
            )
            found.append(Sent(text, own(text, add_special_tokens=False)["input_ids"]))
        except Exception:  # what the template's expressions raise: TemplateError, TypeError and others
            found.append(None)
    return found


def sent_by_llama_cpp(file: Path, sources: dict[str, str], battery: list[Case]) -> dict[str, list[Sent | None]]:
    """All templates by one process."""
    requests = [request_of(case, source) for source in sources.values() for case in battery]
    answers = read_answers(LlamaCpp.find(FOLDER).chats(file, requests) or [])
    size = len(battery)
    return {name: answers[size * index : size * (index + 1)] for index, name in enumerate(sources)}


def read_rows(folder: Path, file: Path) -> list[Row]:
    from transformers import AutoTokenizer

    tokenizer, own = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    sources = {name: path.read_text(encoding="utf-8") for name, path in real_templates().items()}
    templates = {name: ChatTemplate(tokenizer, source) for name, source in sources.items()}
    battery = battery_of(templates["gemma"])
    ours = {name: render_ours(template, battery) for name, template in templates.items()}
    theirs = {name: sent_by_transformers(own, source, battery) for name, source in sources.items()}
    served = sent_by_llama_cpp(file, sources, battery)
    wrong = [name for name in sources if equal(ours[name], served[name]) < count(ours[name])]
    wrong = [name for name in wrong if with_unset(sources[name])[1]]
    changed = sent_by_llama_cpp(file, {name: with_unset(sources[name])[0] for name in wrong}, battery)
    rows = []
    for name, source in sources.items():
        unset = []
        if name in changed and equal(ours[name], changed[name]) > equal(ours[name], served[name]):
            served[name], unset = changed[name], with_unset(source)[1]
        pairs = zip(battery, ours[name], served[name], strict=True)
        others = [case.name for case, sent, other in pairs if sent and sent != other]
        ollama = "exact" if name in FORMS else "no: a date" if name in DATED else "no"
        same = equal(ours[name], theirs[name])
        assert [sent is None for sent in ours[name]] == [sent is None for sent in theirs[name]], name
        llama_cpp = equal(ours[name], served[name])
        rows.append(Row(name, count(ours[name]), same, llama_cpp, others, unset, ollama))
    return rows


def count(sent: list[Sent | None]) -> int:
    return sum(one is not None for one in sent)


def equal(ours: list[Sent | None], theirs: list[Sent | None]) -> int:
    return sum(sent is not None and sent == other for sent, other in zip(ours, theirs, strict=True))


def markdown(rows: list[Row]) -> str:
    lines = ["| template | transformers | llama.cpp | Ollama's language |", "|---|---|---|---|"]
    for row in rows:
        llama_cpp = f"{row.llama_cpp} of {row.rendered}"
        if row.unset:
            llama_cpp += f", {' and '.join(row.unset)} left unset"
        if row.differing:
            llama_cpp += f"; not: {', '.join(row.differing)}"
        lines.append(f"| {row.name} | {row.transformers} of {row.rendered} | {llama_cpp} | {row.ollama} |")
    exact = [
        sum(row.transformers == row.rendered for row in rows),
        sum(row.llama_cpp == row.rendered for row in rows),
        sum(row.ollama == "exact" for row in rows),
    ]
    return "\n".join([*lines, f"| **exact, of {len(rows)}** | {' | '.join(map(str, exact))} |"]) + "\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        place = make_folder(Path(scratch) / "hf")
        print(markdown(read_rows(place, make_gguf(place, Path(scratch) / "vocabulary.gguf"))), end="")
