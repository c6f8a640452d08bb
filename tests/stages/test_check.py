"""What `recipes.py check` finds before anything is written, a line for each problem."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY_MODEL, TOKENIZER, run_command
from tests.stages.recipes import write_recipe
from tests.train.test_token_rows import head, make_foundation
from utils.recipe.sections import read_recipe
from utils.recipes import RecipesOptions, main
from utils.stages.records import expected_record, write_record

MODEL = TINY_MODEL.replace("block_size: 64", "block_size: 256")
CHAT = [{"role": "user", "content": "Is it open?"}, {"role": "assistant", "content": "Yes, until six."}]
CALL = {"type": "function", "function": {"name": "opening_hours", "arguments": {"day": "Monday"}}}
TOOLS = [{"type": "function", "function": {"name": "opening_hours", "parameters": {"type": "object"}}}]
# A template whose tools are written between tokens that the sample's tokenizer has not.
WITH_TOOLS = """\
{%- if tools %}<|tools|>{{ tools | tojson }}<|/tools|>{% endif %}
{%- for message in messages %}{{ message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}<|call|>{{ call.function | tojson }}{% endfor %}
{{- eos_token }}{% endfor %}{% if add_generation_prompt %}assistant{{ '\\n' }}{% endif %}"""

Content = dict[str, dict[str, Any]]


@pytest.fixture
def content(tmp_path: Path) -> Content:
    """A sound recipe of chats, from scratch."""
    (tmp_path / "model.yaml").write_text(MODEL)
    chats = [json.dumps({"messages": CHAT}) for _ in range(8)]
    (tmp_path / "chats.jsonl").write_text("\n".join(chats) + "\n")
    return {
        "prepare": {
            "checkpoint_dir": str(TOKENIZER),
            "destination_path": str(tmp_path / "out" / "data"),
            "max_length": 256,
            "template": "impruver",
            "datasets": [{"name": "EN/desk", "path": str(tmp_path / "chats.jsonl"), "converter": "messages"}],
        },
        "pretrain": {"model_config": str(tmp_path / "model.yaml"), "out_dir": str(tmp_path / "out" / "run")},
        "convert": {"output_dir": str(tmp_path / "out" / "hf")},
    }


def outcome(
    content: Content, tmp_path: Path, capsys: pytest.CaptureFixture, *words: str, action: str = "check"
) -> tuple[int, list[str], str]:
    """The exit code, the lines on stdout, and the one on stderr; nothing may have been written."""
    recipe = write_recipe(tmp_path / "recipe.yaml", content)
    code = run_command(RecipesOptions, main, [action, str(recipe), *words])
    captured = capsys.readouterr()
    errors = captured.err.splitlines()
    assert not (tmp_path / "out").exists()
    assert len(errors) == (code != 0), errors
    return code, captured.out.splitlines(), "".join(errors)


def test_a_sound_recipe_is_said_to_be_sound(content: Content, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code, lines, _ = outcome(content, tmp_path, capsys, "--gpu_memory", "8")
    assert code == 0 and "nothing that would fail" in lines[-1]
    assert any(line.startswith("memory of the training: ") and line.endswith("of 8") for line in lines)
    assert any(line.startswith("EN/desk train ") for line in lines)


def test_all_that_is_wrong_in_a_file_has_a_line(
    content: Content, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    content["pretrain"] |= {"max_step": 3, "batch_size": "many", "precision": "fp32"}
    content["valdate"] = {}
    del content["convert"]["output_dir"]
    code, lines, error = outcome(content, tmp_path, capsys)
    assert code == 2 and "5 problems" in error and "recipe.yaml" in error
    assert lines == [
        "unknown section valdate, the nearest is validate",
        "pretrain: unknown option max_step, the nearest is max_steps",
        "pretrain: batch_size: Expected a int. Got value: many",
        "pretrain: precision must be one of '32-true', 'bf16-mixed', 'bf16-true'",
        "convert: output_dir is missing",
    ]


def without_pretrain(content: Content) -> None:
    del content["pretrain"]


def without_convert(content: Content) -> None:
    del content["convert"]
    content["quantize"] = {"output_dir": "out/gguf"}


def with_values_that_do_not_fit(content: Content) -> None:
    content["pretrain"] |= {"quantize": "bnb.nf4", "min_learning_rate": 1.0}


def without_a_path(content: Content) -> None:
    content["prepare"]["datasets"][0]["path"] = "nowhere/*.jsonl"


def with_a_long_row(content: Content) -> None:
    content["prepare"]["max_length"] = 257


def with_a_batch_that_does_not_divide(content: Content) -> None:
    content["pretrain"] |= {"batch_size": 3, "micro_batch_size": 2}


def with_an_end_that_is_no_token(content: Content) -> None:
    content["prepare"]["template"] = "chatml"


def with_one_folder_for_two(content: Content) -> None:
    content["convert"]["output_dir"] = content["pretrain"]["out_dir"]


def with_a_file_for_a_folder(content: Content) -> None:
    content["pretrain"]["out_dir"] = content["prepare"]["datasets"][0]["path"]


def with_a_folder_below_a_file(content: Content) -> None:
    content["pretrain"]["out_dir"] = content["prepare"]["datasets"][0]["path"] + "/run"


def with_an_option_left_empty(content: Content) -> None:
    content["pretrain"] |= {"learning_rate": None, "seed": None}


def with_a_text_for_a_list(content: Content) -> None:
    content["chat"] = {"stop": "User:"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (with_a_folder_below_a_file, ["pretrain: "]),
        (with_an_option_left_empty, ["pretrain: learning_rate has no value: give it one", "pretrain: seed has no"]),
        (with_a_text_for_a_list, ["chat: stop must be a list of texts, such as [User:]"]),
        (with_one_folder_for_two, ["convert: "]),
        (with_a_file_for_a_folder, ["pretrain: out_dir "]),
        (without_pretrain, ["convert: input_path is missing, and so is the section pretrain to take it from"]),
        (without_convert, ["quantize: model_dir is missing, and so is the section convert to take it from"]),
        (with_values_that_do_not_fit, ["pretrain: min_learning_rate must not be above", "pretrain: quantize needs"]),
        (without_a_path, ["prepare: datasets, EN/desk nowhere/*.jsonl is not there, and no earlier stage makes it"]),
        (
            with_a_long_row,
            ["pretrain: the rows have 257 positions, the model 256; prepare with max_length 256"],
        ),
        (with_a_batch_that_does_not_divide, ["pretrain: --batch_size 3 is not a multiple of --micro_batch_size 2"]),
        (with_an_end_that_is_no_token, ["prepare: the template ends an answer with '<|im_end|>', which is no token"]),
    ],
)
@pytest.mark.parametrize("action", ["check", "run"])
def test_a_recipe_that_would_fail_is_refused(
    change: Callable[[Content], None],
    expected: list[str],
    action: str,
    content: Content,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    change(content)
    code, lines, error = outcome(content, tmp_path, capsys, action=action)
    assert code == 2 and expected[0] in error
    found = [
        line for line in lines if line.startswith(("prepare: ", "pretrain: ", "convert: ", "quantize: ", "chat: "))
    ]
    assert len(found) == len(expected)
    assert all(line.startswith(beginning) for line, beginning in zip(found, expected, strict=True)), found


def test_a_converter_that_raises_is_one_line(content: Content, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "mine.py").write_text("def convert(record):\n    return record['nothing']\n")
    content["prepare"]["datasets"][0]["converter"] = f"{tmp_path / 'mine.py'}:convert"
    code, _, error = outcome(content, tmp_path, capsys)
    assert code == 2 and "converter_failed" in error and "KeyError: 'nothing'" in error

    (tmp_path / "mine.py").write_text("raise RuntimeError('not today')\n")
    code, _, error = outcome(content, tmp_path, capsys)
    assert code == 2 and "cannot be imported: RuntimeError: not today" in error


def test_a_template_that_needs_tokens_for_tools_is_refused_where_there_are_tools(
    content: Content, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "tools.jinja").write_text(WITH_TOOLS)
    content["prepare"]["template"] = str(tmp_path / "tools.jinja")
    code, _, error = outcome(content, tmp_path, capsys)
    assert code == 0, error
    calling = [CHAT[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": calling, "tools": TOOLS}) + "\n")
    code, _, error = outcome(content, tmp_path, capsys)
    assert code == 2 and "the template writes <|/tools|>, <|call|>, <|tools|> for tools" in error
    content["prepare"]["add_tokens"] = ["<|tools|>", "<|/tools|>", "<|call|>"]
    assert outcome(content, tmp_path, capsys)[0] == 0


def test_a_template_without_calls_is_refused_where_the_data_have_them(
    content: Content, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    calling = [CHAT[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": calling, "tools": TOOLS}) + "\n")
    code, _, error = outcome(content, tmp_path, capsys)
    assert code == 2 and "and no tools" in error and "another --template may take it" in error


def test_a_model_that_does_not_fit_the_gpu_is_refused_with_what_would_make_it_fit(
    content: Content, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "model.yaml").write_text(
        MODEL.replace("n_embd: 32", "n_embd: 2048").replace("n_layer: 2", "n_layer: 8")
    )
    content["pretrain"] |= {"batch_size": 8, "micro_batch_size": 8, "precision": "32-true"}
    code, _, error = outcome(content, tmp_path, capsys, "--gpu_memory", "0.6")
    assert code == 2 and "do not fit a GPU of 0.6 GiB; it would with " in error and "--use_lora true" in error
    content["pretrain"]["gpu_memory"] = 0.6
    assert outcome(content, tmp_path, capsys, action="run")[0] == 2
    content["pretrain"]["gpu_memory"] = 16
    assert outcome(content, tmp_path, capsys)[0] == 0


def test_what_a_download_makes_is_no_error(content: Content, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    content["download"] = {"repo_id": "org/model", "checkpoint_dir": str(tmp_path / "models")}
    del content["prepare"]["checkpoint_dir"], content["pretrain"]["model_config"]
    code, lines, _ = outcome(content, tmp_path, capsys)
    assert code == 0 and any("models/org/model is not there yet" in line for line in lines)
    (tmp_path / "models" / "org" / "model").mkdir(parents=True)  # by a download that was killed
    (tmp_path / "models" / "org" / "model" / "config.json").write_text("{}")
    code, lines, error = outcome(content, tmp_path, capsys)
    assert code == 0 and any("models/org/model is not there yet" in line for line in lines), error


def test_a_folder_that_a_stage_would_not_replace_is_named(
    content: Content, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    content["convert"]["output_dir"] = str(tmp_path / "mine")
    code, _, error = outcome(content, tmp_path, capsys)
    assert code == 2 and "mine holds something else" in error


def test_a_lora_that_would_leave_untrained_what_has_to_be_learnt_is_refused(
    content: Content, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    foundation = make_foundation(tmp_path / "model", head)
    content["prepare"] |= {"checkpoint_dir": str(foundation), "template": "chatml", "max_length": 64}
    content["pretrain"] = {"out_dir": str(tmp_path / "out" / "run"), "use_lora": True}
    code, _, error = outcome(content, tmp_path, capsys)
    assert code == 2 and "<|im_end|>, whose row in the foundation's head looks untrained" in error
    content["prepare"]["add_tokens"] = ["<|note|>"]
    code, _, error = outcome(content, tmp_path, capsys)
    assert code == 2 and "(<|note|>); LoRA's adapters alone would never train their rows" in error
    content["pretrain"]["lora_train"] = "embeddings,head"
    code, lines, error = outcome(content, tmp_path, capsys)
    assert code == 0 and any(line.startswith("warning: tokens of the chat template") for line in lines), error


def test_a_run_that_may_be_another_is_named(content: Content, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text("")
    content["pretrain"]["out_dir"] = str(tmp_path / "run")
    code, lines, error = outcome(content, tmp_path, capsys)
    assert code == 0 and any("has a run already, and no recipe began it" in line for line in lines), error


def test_a_template_that_is_none_is_named_with_the_line(
    content: Content, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("{% for message in messages %}\n{{ message.content\n{% endfor %}")
    content["prepare"]["template"] = str(path)
    code, _, error = outcome(content, tmp_path, capsys)
    assert code == 2 and f"the chat template {path} cannot be read, line 3: " in error


def test_paths_are_taken_from_the_folder_one_is_in(
    content: Content, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content["prepare"]["checkpoint_dir"] = "data/sample/tokenizer"
    code, lines, _ = outcome(content, tmp_path, capsys)
    assert code == 2 and lines[0] == f"paths that do not begin with / are looked for in {tmp_path}"


def test_another_learning_rate_after_the_end_is_refused(
    content: Content, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    content["pretrain"] |= {"out_dir": str(tmp_path / "run"), "learning_rate": 1e-3, "eval_interval": 5}
    recipe = read_recipe(write_recipe(tmp_path / "recipe.yaml", content))
    assert recipe is not None
    write_record(recipe, replace(expected_record(recipe, "pretrain"), result="made"))
    content["pretrain"]["eval_interval"] = 7
    assert outcome(content, tmp_path, capsys)[0] == 0
    content["pretrain"]["learning_rate"] = 2e-3
    code, _, error = outcome(content, tmp_path, capsys)
    assert code == 2 and "learning_rate was 0.001, now 0.002, but the training in" in error
    content["pretrain"]["max_steps"] = 1000
    assert outcome(content, tmp_path, capsys)[0] == 0
