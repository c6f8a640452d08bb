"""A tiny model, taught instructions by the programs themselves, does what it never was told before, and stops.

Its twin is taught by shards in which the ends of answers are masked, the most common mistake: it knows the answers as
well, and goes on and on.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.numpy
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_gpt.checksums import file_sha256
from lit_gpt.inference import generation
from lit_gpt.inference.generation import TextModel
from lit_gpt.inference.sampling_options import Sampling
from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.chats import make_chat_sentencepiece
from tests.conftest import LLAMA_CPP, TINY_MODEL, run
from tests.endpoint_server import load_endpoint
from utils.data.manifest import MANIFEST, TOKENIZER
from utils.data.parts import PARTS, TARGET, sums_between, to_runs
from utils.export.llama_cpp import LlamaCpp
from utils.run.csv_log import read_csv
from utils.run.merged_model import load_merged_model
from utils.run.samples_file import read_samples

MODEL = (  # heads of 32 learn to look so many tokens back in half the steps that heads of 16 take
    TINY_MODEL.replace("block_size: 64", "block_size: 128")
    .replace("n_embd: 32", "n_embd: 96")
    .replace("n_head: 4", "n_head: 3")
    .replace("n_query_groups: 2", "n_query_groups: 3")
    .replace("intermediate_size: 64", "intermediate_size: 192")
)
TASKS: dict[str, Callable[[str], str]] = {
    "Reverse": lambda digits: digits[::-1],
    "Repeat": lambda digits: digits,
    "First": lambda digits: digits[0],
    "Last": lambda digits: digits[-1],
}
TRAINED, HELD_OUT, SEED = 6000, 150, 5
PROMPTS = 12
LONGEST = 12  # tokens of an answer: the right ones have 1 or 4, and what ends them
TRAINING = ("--max_steps", 240, "--learning_rate", 2e-3, "--warmup_steps", 20, "--lr_schedule", "wsd")
TRAINING += ("--batch_size", 8, "--micro_batch_size", 8, "--precision", "32-true", "--interval_unit", "steps")
TRAINING += ("--log_interval", 50, "--save_interval", 10_000, "--eval_interval", 10_000, "--devices", 1)


class Figures(NamedTuple):
    exact: float  # share of the answers that are right, and end there
    begun: float  # that begin with what is right
    ended: float  # that end by themselves


def make_instructions(count: int) -> list[tuple[str, str]]:
    """Different instructions with what is right to answer."""
    rng, found = random.Random(SEED), {}
    while len(found) < count:
        task, digits = rng.choice(sorted(TASKS)), "".join(rng.choices("0123456789", k=4))
        found[f"{task} {digits}"] = TASKS[task](digits)
    return list(found.items())


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    return make_instructions(TRAINED + HELD_OUT)


@pytest.fixture(scope="module")
def place(instructions, tmp_path_factory) -> Path:
    """A folder with the tokenizer, the corpus, and data with the ends of answers and without."""
    folder = tmp_path_factory.mktemp("instructions")
    make_chat_sentencepiece(folder / "tokenizer")
    lines = [json.dumps({"instruction": asked, "output": right}) for asked, right in instructions[HELD_OUT:]]
    (folder / "corpus" / "tasks").mkdir(parents=True)
    (folder / "corpus" / "tasks" / "train.jsonl").write_text("\n".join(lines))
    lines = [json.dumps({"instruction": asked, "output": right}) for asked, right in instructions[:HELD_OUT]]
    (folder / "corpus" / "tasks" / "test.jsonl").write_text("\n".join(lines))
    source = ("--source_path", folder / "corpus", "--checkpoint_dir", folder / "tokenizer")
    words = ("--converter", "instruction", "--template", "chatml", "--max_length", 128, "--num_workers", 1)
    run("prepare_data.py", *source, *words, "--destination_path", folder / "right")
    shutil.copytree(folder / "right", folder / "masked")
    mask_ends(folder / "masked")
    (folder / "model.yaml").write_text(MODEL)
    (folder / "prompts.txt").write_text("\n".join(asked for asked, _ in instructions[:PROMPTS]))
    return folder


def mask_ends(data_dir: Path) -> None:
    """Makes what ends an answer no target, in a data folder that is valid otherwise."""
    end = Tokenizer(data_dir / TOKENIZER).token_id("<|im_end|>")
    values = json.loads((data_dir / MANIFEST).read_text())
    shards = [(entry, shard) for entry in values["splits"] for shard in entry["shards"]]
    for entry, shard in shards:
        path = data_dir / shard["file"]
        arrays = safetensors.numpy.load_file(path)
        used = sums_between(arrays["row_segments"], arrays["segment_lengths"])
        parts = np.zeros_like(arrays["tokens"], np.uint8)
        for row, bounds in enumerate(zip(arrays["row_runs"], arrays["row_runs"][1:], strict=False)):
            runs = slice(*bounds)
            parts[row, : used[row]] = np.repeat(arrays["run_parts"][runs], arrays["run_lengths"][runs])
        is_end = (arrays["tokens"] == end) & (parts == TARGET)
        is_end[:, 1:] |= is_end[:, :-1] & (parts[:, 1:] == TARGET)  # the line's end behind it
        parts[is_end] = PARTS.index("template")
        runs = to_runs(parts, used)
        arrays["row_runs"] = np.cumsum([0, *runs.counts], dtype=np.int64)
        arrays |= {"run_lengths": runs.lengths.astype(np.int32), "run_parts": runs.parts.astype(np.uint8)}
        safetensors.numpy.save_file(arrays, path)
        shard |= {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        entry["targets"] -= int(is_end.sum())
        entry["masked"]["template"] += int(is_end.sum())
    (data_dir / MANIFEST).write_text(json.dumps(values))


def train(place: Path, data: str) -> Path:
    model = ("--checkpoint_dir", place / "tokenizer", "--model_config", place / "model.yaml")
    prompts = ("--sample_prompts", place / "prompts.txt", "--sample_tokens", LONGEST)
    run("pretrain.py", "--data_dir", place / data, *model, "--out_dir", place / f"run_{data}", *TRAINING, *prompts)
    return place / f"run_{data}"


def figures(run_dir: Path, held_out: list[tuple[str, str]], monkeypatch) -> Figures:
    """By the template and the ends that the checkpoint has, as the chat does it."""
    trained = load_merged_model(run_dir)
    tokenizer = Tokenizer(trained.tokenizer_dir)
    model, template = (
        TextModel(trained.config, trained.state_dict, tokenizer, accelerator="cpu"),
        ChatTemplate(tokenizer),
    )
    prompts = [template.encode([{"role": "user", "content": asked}]) for asked, _ in held_out]
    ended = set()
    push = generation.Row.push

    def watch(row, token, ends):
        if token in ends:
            ended.add(row.number)
        return push(row, token, ends)

    monkeypatch.setattr(generation.Row, "push", watch)
    answers = [""] * len(held_out)
    for number, piece in model.stream(prompts, Sampling(max_new_tokens=LONGEST, temperature=0.0)):
        answers[number] += piece
    pairs = [(answer, right) for answer, (_, right) in zip(answers, held_out, strict=True)]
    exact = sum(answer == right and number in ended for number, (answer, right) in enumerate(pairs))
    begun = sum(answer.startswith(right) for answer, right in pairs)
    found = Figures(*(count / len(held_out) for count in (exact, begun, len(ended))))
    print(f"{run_dir.name}: {found}")
    return found


@pytest.fixture(scope="module")
def right_run(place) -> Path:
    return train(place, "right")


def test_held_out_instructions_are_done_and_answers_end(instructions, right_run, monkeypatch):
    found = figures(right_run, instructions[:HELD_OUT], monkeypatch)
    assert found.exact >= 0.9 and found.ended >= 0.95


@pytest.fixture(scope="module")
def published(right_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "model"
    run("convert_litgpt_to_transformers.py", "--input_path", right_run, "--output_dir", folder, "--verify", "none")
    return folder


def test_the_published_model_does_so_on_an_endpoint(instructions, published):
    endpoint, asked = load_endpoint(published), instructions[:10]
    done = []
    for question, right in asked:
        messages = [{"role": "user", "content": question}]
        (choice,) = endpoint({"messages": messages, "temperature": 0, "max_tokens": LONGEST})["choices"]
        done.append(choice["finish_reason"] == "stop" and choice["message"]["content"] == right)
    assert sum(done) >= 9


def ends(run_dir: Path, step: int, file: str = "metrics.csv") -> tuple[float, float]:
    """The probability of an end where the held-out answers end, and inside them, as the run's file has it."""
    rows = [row for row in read_csv(run_dir / file) if row["dataset"] == "all" and int(row["step"]) == step]
    return float(rows[-1]["end_at_ends"]), float(rows[-1]["end_inside"])


def test_the_probability_of_an_end_is_logged_and_is_what_transformers_says(instructions, right_run, published):
    """The twin knows nothing of shards and rows: it renders each conversation, and its prompt, by itself."""
    tokenizer, model = AutoTokenizer.from_pretrained(published), AutoModelForCausalLM.from_pretrained(published)
    at_ends, inside = [], []
    for asked, right in instructions[:HELD_OUT]:
        messages = [{"role": "user", "content": asked}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        messages.append({"role": "assistant", "content": right})
        answer = tokenizer.apply_chat_template(messages, return_dict=False)[len(prompt) : -2]  # without <|im_end|>, \n
        with torch.no_grad():
            chances = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 :].double().softmax(-1)
        of_end = chances[:, model.generation_config.eos_token_id].sum(-1).tolist()
        at_ends.append(of_end.pop())
        inside += of_end
    found = ends(right_run, 240)
    assert found == pytest.approx((np.mean(at_ends), np.mean(inside)), rel=1e-4)
    assert found[0] > 0.95 and found[1] < 0.02
    assert all(chance < 0.01 for chance in ends(right_run, 0))
    log = (right_run / "training_log.out").read_text()
    assert f"answers end with a probability of {found[0]:.4f} at their ends, {found[1]:.2g} inside" in log


def test_continuations_at_a_validation_are_those_of_transformers(instructions, right_run, published):
    tokenizer, model = AutoTokenizer.from_pretrained(published), AutoModelForCausalLM.from_pretrained(published)
    samples = [sample for sample in read_samples(right_run) if sample["step"] == 240]
    for sample, (asked, _) in zip(samples, instructions[:PROMPTS], strict=True):
        assert sample["asked"] == [{"role": "user", "content": asked}]
        prompt = tokenizer.apply_chat_template(sample["asked"], add_generation_prompt=True, return_tensors="pt")
        words = {"max_new_tokens": LONGEST, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
        answer = model.generate(**prompt, **words)[0, prompt["input_ids"].shape[1] :]
        assert tokenizer.decode(answer, skip_special_tokens=True) == sample["text"]
        assert sample["ended"] == (int(answer[-1]) in model.generation_config.eos_token_id)
        assert sample["tokens"] == len(answer) - sample["ended"]
    ended = [sum(sample["ended"] for sample in read_samples(right_run) if sample["step"] == step) for step in (0, 240)]
    assert share_that_ended(right_run) == [count / PROMPTS for count in ended] and ended[1] >= 0.95 * PROMPTS
    log = (right_run / "training_log.out").read_text()
    assert f"step 240: {ended[1]} of {PROMPTS} samples ended by themselves" in log
    assert f'sample 1 (ended after {samples[0]["tokens"]} tokens): "{samples[0]["text"]}"' in log


def test_the_card_has_both_before_and_after(right_run, published):
    evaluation = (published / "README.md").read_text(encoding="utf-8").split("## Evaluation\n")[1].split("\n## ")[0]
    before, after = ends(right_run, 0), ends(right_run, 240)
    assert f"| Probability of an end where answers end | {before[0]:.2%} | {after[0]:.2%} |" in evaluation
    assert f"| Probability of an end inside answers | {before[1]:.3%} | {after[1]:.3%} |" in evaluation
    shares = share_that_ended(right_run)
    assert f"| Sampled continuations that ended by themselves | {shares[0]:.0%} | {shares[1]:.0%} |" in evaluation
    first, last = (next(sample for sample in read_samples(right_run) if sample["step"] == step) for step in (0, 240))
    assert f"```text\n[user] {first['asked'][0]['content']}\n```" in evaluation
    assert f"At step 240 (ended by itself after {last['tokens']} token" in evaluation
    assert f"```text\n{last['text']}\n```" in evaluation
    provenance = json.loads((published / "training_provenance.json").read_text(encoding="utf-8"))
    for found, name in ((before, "validation_before_training"), (after, "validation")):
        assert (provenance[name]["end_at_ends"], provenance[name]["end_inside"]) == found


def share_that_ended(run_dir: Path) -> list[float]:
    return [float(row["samples_ended"]) for row in read_csv(run_dir / "metrics.csv") if row["samples_ended"]]


def test_offline_validation_on_two_processes_finds_the_same(right_run):
    run("validate_pretrain.py", "--out_dir", right_run, "--batch_size", 3, processes=2)
    assert ends(right_run, 240, "validation.csv") == pytest.approx(ends(right_run, 240), rel=1e-5)


GENERATE = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, questions, longest = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
ends, answers = model.generation_config.eos_token_id, []
for question in questions:
    chat = [{"role": "user", "content": question}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    (ids,) = model.generate(**asked, max_new_tokens=longest, do_sample=False)
    new = ids[asked["input_ids"].shape[1]:].tolist()
    answers.append([tokenizer.decode(new, skip_special_tokens=True), new[-1] in ends])
print(json.dumps(answers))
"""


def measured(answers: list[tuple[str, bool]], held_out: list[tuple[str, str]]) -> Figures:
    """Of answers and whether they ended by themselves."""
    pairs = list(zip(answers, held_out, strict=True))
    exact = sum(text == right and ended for (text, ended), (_, right) in pairs)
    begun = sum(text.startswith(right) for (text, _), (_, right) in pairs)
    found = Figures(*(count / len(pairs) for count in (exact, begun, sum(ended for _, ended in answers))))
    return found


def test_transformers_answers_alike_and_stops(instructions, right_run, published, monkeypatch):
    """In a fresh process that is told nothing: the folder says where an answer ends."""
    held_out = instructions[:HELD_OUT]
    words = [sys.executable, "-c", GENERATE, published, json.dumps([asked for asked, _ in held_out]), str(LONGEST)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    answers = [(text, ended) for text, ended in json.loads(done.stdout)]
    assert_alike(measured(answers, held_out), figures(right_run, held_out, monkeypatch))


@pytest.mark.llama_cpp
def test_llama_cpp_answers_alike_and_stops(instructions, right_run, published, monkeypatch, tmp_path):
    """By its own rendering of the GGUF file's template, in half and in a quarter of the bytes."""
    held_out, llama, out = instructions[:HELD_OUT], LlamaCpp.find(LLAMA_CPP), tmp_path / "gguf"
    made = run("utils/quantize_gguf.py", "--model_dir", published, "--output_dir", out, "--methods", "f16", "q8_0")
    assert "conversations have the token ids of the training" in made.stdout
    expected = figures(right_run, held_out, monkeypatch)
    requests = [{"messages": [{"role": "user", "content": asked}]} for asked, _ in held_out]
    for method in ("f16", "q8_0"):
        file, prompt, answers = tmp_path / f"{method}.gguf", tmp_path / "prompt", []
        file.symlink_to(out / f"{published.name}-{method}.gguf")
        for found in llama.chats(file, requests):
            prompt.write_text(found["text"] + "\n")  # llama.cpp takes the last line's end away
            text, end, _ = llama.complete(file, prompt, LONGEST, 128).partition(" [end of text]")
            answers.append((text if end else text.rstrip("\n"), bool(end)))
        assert_alike(measured(answers, held_out), expected)


def assert_alike(found: Figures, expected: Figures) -> None:
    """Within two points of what the chat does."""
    assert abs(found.exact - expected.exact) <= 0.02 and abs(found.ended - expected.ended) <= 0.02, found


def test_without_the_end_among_the_targets_no_answer_ends(instructions, place, monkeypatch):
    """The same measure of a model that knows all but where to stop: so the test above can fail."""
    run_dir = train(place, "masked")
    found = figures(run_dir, instructions[:HELD_OUT], monkeypatch)
    assert found.begun >= 0.9
    assert found.exact <= 0.1 and found.ended <= 0.1
    assert max(ends(run_dir, 240)) < 0.01
    assert share_that_ended(run_dir)[-1] <= 0.1
