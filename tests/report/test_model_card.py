"""utils/report/model_card.py: the card says what the run's own files say, and its example runs."""

from __future__ import annotations

import csv
import platform
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from lit_gpt.tokenizer.chat_files import chat_files
from lit_gpt.tokenizer.shipped_templates import template_source
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import ROOT, run
from utils.export.provenance import foundation_facts, publishable
from utils.report.figures import draw_for_card
from utils.report.markdown import fenced
from utils.report.model_card import cell, end_of_answers, evaluation_table, fill_card, table
from utils.run.record import RunRecord


@pytest.fixture(scope="module")
def published(lora_run, tmp_path_factory):
    """A Hugging Face folder of the LoRA run, as a person makes it."""
    folder = tmp_path_factory.mktemp("published") / "model"
    arguments = ("--input_path", lora_run, "--output_dir", folder, "--verify", "tensors", "--license", "cc-by-4.0")
    run("convert_litgpt_to_transformers.py", *arguments)
    return folder


def read(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def section(card, title):
    return card.split(f"## {title}\n")[1].split("\n## ")[0]


def test_front_matter(published, foundation):
    card = (published / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert (
        front["license"] == "cc-by-4.0" and front["language"] == ["en"] and front["pipeline_tag"] == "text-generation"
    )
    assert "base_model" not in front and f"continuing the pretraining of {foundation.name} (LoRA" in card
    assert "`cc-by-4.0`" in section(card, "Licence")


def test_data_table_is_the_mixtures(published, lora_run):
    lines = section((published / "README.md").read_text(encoding="utf-8"), "Training data").splitlines()
    rows = read(lora_run / "mixture.csv")
    assert len(rows) == 3
    for row in rows:
        numbers = " | ".join(f"{int(row[name]):,}" for name in ("documents", "words", "tokens"))
        share = f"{float(row['achieved_share']):.2%}"
        assert f"| {row['dataset']} | {row['language']} | {numbers} | {share} | {float(row['passes']):.2f} |" in lines
    assert any(
        line.startswith("| all |  | ") and f"{sum(int(row['tokens']) for row in rows):,}" in line for line in lines
    )
    assert RunRecord.load(lora_run).identity.data in "".join(lines)


def test_evaluation_and_hyperparameters_are_the_runs(published, lora_run):
    card = (published / "README.md").read_text(encoding="utf-8")
    step = int(re.search(r"at step ([\d,]+)\.", card)[1].replace(",", ""))
    losses = {
        (row["dataset"], int(row["step"])): float(row["loss"])
        for row in read(lora_run / "metrics.csv")
        if row["split"] == "valid"
    }
    evaluation = section(card, "Evaluation")
    assert step and len({dataset for dataset, _ in losses}) == 4
    for dataset in {dataset for dataset, _ in losses}:
        assert f"| {dataset} | {losses[dataset, 0]:.4f} | {losses[dataset, step]:.4f} |" in evaluation
    parameters = section(card, "Hyper-parameters")
    for words in (
        f"| {step} of 12 planned |",
        "| 8 of 65 tokens |",
        "0.01 at most, cosine schedule, 2 steps of warm-up",
    ):
        assert words in parameters
    assert "| LoRA | rank 8, alpha 16, dropout 0.1; on query, value, mlp, head |" in parameters


def test_curves_are_a_picture_beside_the_card(published):
    card = (published / "README.md").read_text(encoding="utf-8")
    assert "](convergence.png)" in section(card, "Convergence")
    picture = (published / "convergence.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000


def test_nothing_of_the_machine_is_published(published, lora_run):
    for name in ("README.md", "training_provenance.json"):
        text = (published / name).read_text(encoding="utf-8")
        assert platform.node() not in text and str(lora_run.parent) not in text and str(ROOT) not in text
        assert "$" not in text


def test_the_example_runs(published):
    run_example((published / "README.md").read_text(encoding="utf-8"), published.parent)


def run_example(card, folder):
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("max_new_tokens=100", "max_new_tokens=5")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once upon a time")


def test_an_adapters_example_runs_on_its_base(lora_run, foundation, tmp_path):
    convert = "convert_litgpt_to_transformers.py"
    run(convert, "--input_path", lora_run, "--output_dir", tmp_path / "mine", "--as_adapter", True, "--license", "mit")
    base = ("--input_path", foundation / "lit_model.pth", "--output_dir", tmp_path / foundation.name)
    run(convert, *base, "--verify", "none")
    card = (tmp_path / "mine" / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert (front["license"], front["library_name"]) == ("mit", "peft")
    assert "A LoRA adapter of a causal language model" in card and "(LoRA, not merged into its weights)" in card
    assert "](convergence.png)" in card and "handler.py" not in card and "$" not in card
    run_example(card, tmp_path)


# Its parts


@pytest.mark.parametrize(
    ("template", "ends"), [("impruver", "`</s>`"), ("chatml", "the text `<|im_end|>`, which is no token: `generate(")]
)
def test_the_card_says_what_ends_an_answer(tmp_path, template, ends):
    shutil.copytree(ROOT / "data/sample/tokenizer", tmp_path, dirs_exist_ok=True)
    source = template_source(template, Tokenizer(tmp_path))
    for name, content in chat_files(Tokenizer(tmp_path), source).items():
        (tmp_path / name).write_bytes(content)
    assert end_of_answers(Tokenizer(tmp_path)).startswith(ends)


def test_card_without_values_has_no_holes():
    template = (ROOT / "hf_files" / "README.md").read_text()
    card = fill_card(template, {"front_matter": "library_name: transformers", "name": "x", "model_id": '"x"'})
    assert "$" not in card and "## Use" in card
    for title in ("Training data", "Hyper-parameters", "Convergence", "Evaluation", "Licence"):
        assert title not in card
    assert yaml.safe_load(card.split("---")[1]) == {"library_name": "transformers"}


def test_hostile_values_stay_values():
    assert cell("a|b\n## c <script>`x`") == "a\\|b ## c &lt;script>'x'"
    assert fill_card("x $name y", {"name": "$other"}) == "x $other y\n"
    assert table(("A", "B", "C"), [("x", "", 1)]) == "| A | C |\n| --- | --- |\n| x | 1 |"
    assert table(("A",), []) is None


@pytest.mark.parametrize(
    "text", ["a\n## b\n\n\n\nc", "```\n# x", "````text", '<b>$name</b> | \\n \\"', "", "\x1b[2J\u202e\t"]
)
def test_what_a_model_wrote_is_shown_as_it_is_and_ends_no_block(text):
    card = fill_card("# t\n\n## Evaluation\n\n$sample\n\n## Licence\n\n$none\n", {"sample": fenced(text), "name": "N"})
    (block,) = re.findall(r"(?ms)^(`{3,})text\n(.*)\n\1$", card)
    shown = block[1].replace("\\u001b", "\x1b").replace("\\u202e", "\u202e").replace("\\t", "\t")
    assert shown == text and block[0] not in block[1]
    assert card.startswith("# t\n\n## Evaluation\n\n```") and card.endswith(block[0] + "\n")


def test_publishable_names_no_place():
    value = {"a": "/home/me/run", "b": [{"host": "node1", "c": "x/y"}], "d": 3}
    assert publishable(value) == {"a": "run", "b": [{"c": "x/y"}], "d": 3}


@pytest.mark.parametrize("card", ["", "no metadata", "---\n- a\n---\n", "---\nlicense: [\n---\n", "---\n\ufffd\n---\n"])
def test_base_with_an_odd_card(tmp_path, card):
    (tmp_path / "README.md").write_text(card)
    assert foundation_facts(tmp_path) == (tmp_path.name, {})


def test_run_without_losses(tmp_path):
    assert evaluation_table(tmp_path, 3) is None and draw_for_card(tmp_path, 3) is None


def test_losses_of_an_offline_validation(tmp_path):
    (tmp_path / "metrics.csv").write_text("split,step,dataset,loss,targets\nvalid,0,all,5.0,10\n")
    (tmp_path / "validation.csv").write_text("step,dataset,loss,targets\n3,FR/A,2.0,7\n3,all,2.0,7\n3,FR/A,1.0,10\n")
    assert evaluation_table(tmp_path, 3).splitlines()[2:] == ["| FR/A | 1.0000 | 2.72 | 10 |"]
