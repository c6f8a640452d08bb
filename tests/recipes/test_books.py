"""The small recipe for books, whole but in small sizes: from a catalogue to a GGUF file that goes on with a book."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import warm_start
from tests.books.gutendex_server import Gutendex
from tests.conftest import ROOT
from tests.export.test_modelfile import parse
from tests.stages.recipes import run_recipe, write_recipe
from utils.books.book_list import read_books
from utils.data.manifest import Manifest

SMALL = ROOT / "configs" / "books" / "small.yaml"
HEADER = """The Project Gutenberg EBook of {title}, by {author}

This eBook is for the use of anyone anywhere at no cost and with almost no restrictions whatsoever.

Title: {title}

Author: {author}

Language: English

*** START OF THE PROJECT GUTENBERG EBOOK {title} ***



"""
FOOTER = """

*** END OF THE PROJECT GUTENBERG EBOOK {title} ***

Updated editions will replace the previous one--the old editions will be renamed.
"""
BODIES = {
    "The Lamp": """\
The keeper of the lamp had seven brothers, and not one of them
would climb the tower after dark. They said that something walked
upon the stairs, which had no weight and no face.

He went up alone, with bread and oil, and counted the steps. There
were ninety on the way up. On the way down he counted ninety-one.

In the second winter he began to write the numbers upon the wall,
each night below the other, and in spring the wall was full. Then
he understood that it was he who had been counted, and by whom, and
that the last of the numbers was not far away any more.
""",
    "The Well": """\
Nobody in the village drew water from the old well, though it was
deep and cold and never dry. My grandmother covered it with boards.

When the boards were broken we heard singing below, in a voice like
hers, and she was sitting beside me at the time.
""",
    "The Guest": """\
Our guest came late, ate nothing, and asked to sleep in the room
that has no window. In the morning the bed had not been touched.

He left a coin of a king whom none of us had ever heard of, and in
the garden a line of footprints that began beneath the wall.
""",
}


def catalogue() -> Gutendex:
    """A catalogue of three horror books."""
    server = Gutendex()
    for number, (title, body) in enumerate(BODIES.items(), start=1):
        said = {"title": title.upper(), "author": "Mary Shelley"}
        text = HEADER.format_map(said) + body + FOOTER.format_map(said)
        server.add(number, title, text.replace("\n", "\r\n"))
    return server


@pytest.fixture
def server() -> Iterator[Gutendex]:
    server = catalogue()
    yield server
    server.close()


def in_folder(folder: Path, server: Gutendex) -> dict[str, Any]:
    """The recipe, which writes to `folder` and learns its books by heart within seconds."""
    content = yaml.safe_load(SMALL.read_text(encoding="utf-8").replace("out/books/small", str(folder / "out")))
    model = yaml.safe_load((SMALL.parent / "model.yaml").read_text(encoding="utf-8"))
    (folder / "model.yaml").write_text(yaml.safe_dump(model | {"n_layer": 2, "n_embd": 128, "intermediate_size": 256}))
    content["acquire"] |= {"server": server.address, "delay": 0, "ids": [1, 2, 3]}
    content["clean"]["num_workers"] = content["chunk"]["num_workers"] = content["prepare"]["num_workers"] = 1
    content["chunk"] |= {"chunk_target": 200, "chunk_min": 100}
    content["pretrain"] |= {
        "model_config": str(folder / "model.yaml"),
        "batch_size": 1,
        "micro_batch_size": 1,
        "max_steps": 80,
        "warmup_steps": 10,
        "learning_rate": 5e-3,
        "eval_interval": 1000,
        "save_interval": 1000,
        "sample_prompts": str(folder / "prompts.jsonl"),
        "sample_tokens": 20,
    }
    del content["plot"]  # tests/stages/test_quickstart.py draws
    content["convert"]["verify"] = "none"  # the GGUF file is compared
    (folder / "text").write_text("\n\n".join([*BODIES.values()] * 2))
    content["quantize"] |= {"methods": ["q8_0"], "text": str(folder / "text")}
    content["chat"] |= {"model": str(folder / "out" / "gguf" / "hf-q8_0.gguf"), "once": str(folder / "prompts.jsonl")}
    content["chat"] |= {"temperature": 0.0, "repetition_penalty": 1.0, "max_new_tokens": 40}
    return content


@pytest.mark.llama_cpp
def test_a_book_of_the_catalogue_becomes_a_file_that_goes_on_with_it(tmp_path: Path, server: Gutendex) -> None:
    prompts = [" ".join(body.split()[:8]) for body in BODIES.values()]
    lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in prompts]
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    content = in_folder(tmp_path, server)
    recipe = write_recipe(tmp_path / "small.yaml", content)
    done = warm_start.run(run_recipe, [str(recipe)])
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "out"
    books = {
        book.title: (out / "cleaned" / book.file).read_text(encoding="utf-8") for book in read_books(out / "cleaned")
    }
    assert books.keys() == BODIES.keys()
    for title, text in books.items():
        assert " ".join(text.split()) == " ".join(BODIES[title].split())

    entries = {entry.split: entry for entry in Manifest.load(out / "data").splits}
    trained = [fact["path"] for fact in entries["train"].sources]
    assert entries["train"].documents == 2 and entries["test"].documents == 1
    said = [json.loads(line) for line in (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    for (title, text), prompt, answer in zip(books.items(), prompts, said, strict=True):
        continuation = answer["messages"][-1]["content"]
        is_learned = len(continuation) > 60 and text.startswith(prompt + continuation)
        assert is_learned == any(title in path for path in trained), (title, continuation)
    card = (out / "hf" / "README.md").read_text(encoding="utf-8")
    assert re.search(
        rf"A prompt:\s+```\S*\n{re.escape(prompts[0])}\n```\s+Before training .*\s+At step 80 ", card, re.DOTALL
    )
    commands = parse((out / "gguf" / "Modelfile.q8_0").read_text(encoding="utf-8"))
    assert commands["TEMPLATE"] == ["{{ .Prompt }}"] and commands["PARAMETER stop"] == ["</s>"]
    assert commands["PARAMETER repeat_last_n"] == ["256"] and commands["PARAMETER num_ctx"] == ["512"]

    asked = len(server.requests)
    done = warm_start.run(run_recipe, [str(recipe)])
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout[done.stdout.rindex("stage ") :].splitlines() if line]
    assert [row[0] for row in rows if row[-1] == "skipped"] == list(content), done.stdout
    assert len(server.requests) == asked
