"""pretrain.py --sample_prompts: what the prompts are gone on with, and that the training does not notice it."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.fabric import Fabric
from litgpt.config import Config
from torch import nn

import pretrain
from lit_gpt.model.building import build_model, empty_model, materialise
from lit_gpt.model.lora import LoRASettings, is_adapter
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import TINY_MODEL, TOKENIZER, assert_error, run, run_command
from utils.run.going_back import set_aside_after
from utils.run.samples_file import SAMPLES, SamplesFile, drop_samples_after, read_samples, readable_json
from utils.train.options import PretrainOptions
from utils.train.samples import Sample, SamplePlan, continue_prompts, told_samples

PROMPTS = ["le chat", "bonjour, vous m'entendez bien ?", "a", "oui " * 12, "la table de la cuisine"]
LONGEST = 9


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n\n".join(PROMPTS), encoding="utf-8")
    return path


# The continuations


def config_of(kind: str, vocabulary: int) -> Config:
    config = Config(**yaml.safe_load(TINY_MODEL), vocab_size=vocabulary, padded_vocab_size=vocabulary + 7)
    kinds = {
        "learned positions": {"rotary_percentage": 0.0},
        "windows and caps": {
            "sliding_window_size": 5,
            "sliding_window_indices": [1, 0],
            "final_logit_softcapping": 2.0,
            "attention_logit_softcapping": 0.5,
        },
    }
    return dataclasses.replace(config, **kinds.get(kind, {}))


def make_model(kind: str, config: Config) -> nn.Module:
    lora = LoRASettings(4, 8, 0.3, query=True, key=False, value=True, projection=True, mlp=True, head=True)
    if kind == "quantised":
        pytest.importorskip("bitsandbytes")
        weights = build_model(config, None, None, seed=1, dtype=torch.float32).state_dict()
        model = empty_model(config, lora, torch.float32, quantize="bnb.nf4")
        materialise(model, weights, 1, torch.device("cpu"))
    else:
        model = build_model(config, None, lora if kind == "lora" else None, seed=1, dtype=torch.float32)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        # random weights of this size give every token nearly the same logit
        if is_adapter(name) or parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def one_by_one(model: nn.Module, plan: SamplePlan, prompt: list[int]) -> Sample:
    """Greedy decoding as in a textbook, by litgpt's own forward pass."""
    model.eval()
    ids = list(prompt)
    for _ in range(min(plan.longest, plan.config.block_size - len(prompt))):
        token = int(model(torch.tensor([ids]))[0, -1, : plan.tokenizer.vocab_size].argmax())
        if token in plan.end_ids:
            return Sample(plan.tokenizer.decode(ids[len(prompt) :]), len(ids) - len(prompt), True)
        ids.append(token)
    return Sample(plan.tokenizer.decode(ids[len(prompt) :]), len(ids) - len(prompt), False)


@pytest.mark.parametrize("positions", [64, 4096])
@pytest.mark.parametrize("kind", ["full", "lora", "quantised", "learned positions", "windows and caps"])
def test_continuations_are_those_of_greedy_decoding_one_by_one(kind: str, positions: int) -> None:
    tokenizer = Tokenizer(TOKENIZER)
    config = config_of(kind, tokenizer.vocab_size)
    model = make_model(kind, config)
    ids = [tokenizer.encode(prompt) for prompt in PROMPTS]
    ids.append((ids[3] * 9)[: config.block_size - 3])  # there is room for three tokens
    plan = SamplePlan(PROMPTS, ids, tokenizer, set(), (), LONGEST, config, positions)
    expected = [one_by_one(model, plan, prompt) for prompt in ids]
    # a token that some texts have and others have not, as the end
    often = max(range(len(ids)), key=lambda number: len(set(expected[number].text)))
    end = int(tokenizer.encode(expected[often].text)[-1])
    plan = dataclasses.replace(plan, end_ids={end})
    expected = [one_by_one(model, plan, prompt) for prompt in ids]
    assert 0 < sum(sample.ended for sample in expected) < len(ids)
    fabric = Fabric(accelerator="cpu", devices=1)
    wrapped = fabric.setup(model.train())
    state = torch.random.get_rng_state()
    found = continue_prompts(fabric, wrapped, plan, lambda: False)
    assert [sample.tokens for sample in found] == [sample.tokens for sample in expected]
    assert [sample.ended for sample in found] == [sample.ended for sample in expected]
    assert [sample.text.strip() for sample in found] == [sample.text.strip() for sample in expected]
    assert model.training and all(module.training for module in model.modules())
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_text_may_end_by_a_text_and_logits_that_are_not_finite_end_it_too() -> None:
    tokenizer = Tokenizer(TOKENIZER)
    config = config_of("full", tokenizer.vocab_size)
    model, fabric = make_model("full", config), Fabric(accelerator="cpu", devices=1)
    ids = [tokenizer.encode(PROMPTS[1])]
    plan = SamplePlan(PROMPTS[1:2], ids, tokenizer, set(), (), LONGEST, config, 64)
    wrapped = fabric.setup(model)
    [whole] = continue_prompts(fabric, wrapped, plan, lambda: False)
    stop = whole.text[2:5]
    [found] = continue_prompts(fabric, wrapped, dataclasses.replace(plan, stop=(stop,)), lambda: False)
    assert found.ended and found.text == whole.text[: whole.text.index(stop)]
    nn.init.constant_(model.lm_head.weight, float("nan"))
    assert continue_prompts(fabric, wrapped, plan, lambda: False) == [Sample("", 0, False)]


# As a user starts it


def lines_of(run_dir: Path) -> list[dict[str, str]]:
    """What metrics.csv says, without times and the continuations' column."""
    with (run_dir / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    measured = ("step", "split", "dataset", "loss", "targets", "grad_norm")
    return [{name: row[name] for name in measured} for row in rows]


def weights_of(run_dir: Path) -> dict[str, str]:
    text = (run_dir / "checkpoints" / "step-00000012" / "SHA256SUMS").read_text()
    sums = (line.split() for line in text.splitlines())
    return {name: found for found, name in sums if name.endswith(".distcp")}


@pytest.fixture(scope="module")
def sampled_run(lora_arguments: list[object], prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training of `lora_run`, with dropout, and continuations at its validations; do not change it."""
    folder = tmp_path_factory.mktemp("runs") / "sampled"
    words = ("--batch_size", 8, "--micro_batch_size", 4, "--sample_prompts", prompts, "--sample_tokens", LONGEST)
    run("pretrain.py", *lora_arguments, *words, "--out_dir", folder)
    return folder


def test_continuations_change_no_loss_and_no_weight(lora_run: Path, sampled_run: Path) -> None:
    assert lines_of(sampled_run) == lines_of(lora_run)
    assert weights_of(sampled_run) == weights_of(lora_run) and weights_of(lora_run)


def test_every_validation_has_a_line_for_each_prompt(sampled_run: Path) -> None:
    samples = read_samples(sampled_run)
    assert [sample["step"] for sample in samples] == [step for step in (0, 4, 8, 12) for _ in PROMPTS]
    assert [sample["asked"] for sample in samples] == [prompt.strip() for prompt in PROMPTS] * 4
    assert all(sample["ended"] or sample["tokens"] == LONGEST for sample in samples)
    with (sampled_run / "metrics.csv").open(encoding="utf-8") as file:
        shares = {int(row["step"]): float(row["samples_ended"]) for row in csv.DictReader(file) if row["samples_ended"]}
    for step in (0, 4, 8, 12):
        assert shares[step] == sum(sample["ended"] for sample in samples if sample["step"] == step) / len(PROMPTS)
    assert "step 12: sample 5 (" in (sampled_run / "training_log.out").read_text()


def test_steps_that_are_made_again_are_not_written_twice(
    lora_arguments: list[object], prompts: Path, sampled_run: Path, tmp_path: Path
) -> None:
    before = (sampled_run / SAMPLES).read_bytes()
    again = tmp_path / "again"
    shutil.copytree(sampled_run, again)
    shutil.rmtree(again / "checkpoints" / "step-00000012")
    words = ("--batch_size", 8, "--micro_batch_size", 4, "--sample_prompts", prompts, "--sample_tokens", LONGEST)
    run("pretrain.py", *lora_arguments, *words, "--out_dir", again)
    assert (again / SAMPLES).read_bytes() == before


def test_processes_divide_the_prompts_among_them_and_share_a_quantised_base(
    lora_arguments: list[object], prompts: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    found = []
    for processes in (1, 2):
        words = ("--quantize", "bnb.nf4", "--sample_prompts", prompts, "--sample_tokens", 3, "--eval_samples", 2)
        run_dir = tmp_path / f"{processes}"
        arguments = ("--batch_size", 2 // processes, "--max_steps", 1, "--save_interval", 99, "--out_dir", run_dir)
        run("pretrain.py", *lora_arguments, *words, *arguments, processes=processes)
        found.append(read_samples(run_dir))
    assert found[0][: len(PROMPTS)] == found[1][: len(PROMPTS)] and len(found[0]) == len(found[1]) == 2 * len(PROMPTS)


@pytest.fixture(scope="module")
def chat_words(model_config: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """A training on chats, of one step, with questions to go on with."""
    folder = tmp_path_factory.mktemp("chats")
    for split, count in (("train", 16), ("test", 9)):
        lines = []
        for number in range(count):
            asked = [{"role": "user", "content": f"Question {number} ?"}]
            lines.append(
                json.dumps({"messages": [*asked, {"role": "assistant", "content": "oui " * (number % 4 + 1)}]})
            )
        (folder / "corpus" / "chats").mkdir(parents=True, exist_ok=True)
        (folder / "corpus" / "chats" / f"{split}.jsonl").write_text("\n".join(lines))
    (folder / "prompts.jsonl").write_text('{"prompt": "Oui ?"}\n' + "\n".join(lines[:2]))
    words = ("--converter", "messages", "--template", "impruver", "--checkpoint_dir", TOKENIZER, "--max_length", 64)
    run("prepare_data.py", "--source_path", folder / "corpus", *words, "--destination_path", folder / "data")
    return [
        *("--data_dir", folder / "data", "--checkpoint_dir", TOKENIZER, "--model_config", model_config),
        *("--precision", "32-true", "--interval_unit", "steps", "--max_steps", 1, "--micro_batch_size", 2),
        *("--sample_prompts", folder / "prompts.jsonl", "--sample_tokens", 8),
    ]


def test_processes_that_share_out_rows_or_the_model_itself_find_the_same(
    chat_words: list[object], tmp_path: Path
) -> None:
    found = {}
    for name, processes, share in (("one", 1, 1), ("rows", 2, 1), ("model", 2, 2)):
        words = ("--batch_size", 8 // processes * share, "--tensor_parallel", share, "--out_dir", tmp_path / name)
        run("pretrain.py", *chat_words, *words, processes=processes)
        with (tmp_path / name / "metrics.csv").open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "valid" and row["dataset"] == "all"]
        measured = ("loss", "targets", "end_at_ends", "end_inside")
        found[name] = [[float(row[column]) for column in measured] for row in rows], read_samples(tmp_path / name)
    for name in ("rows", "model"):
        for own, expected in zip(found[name][0], found["one"][0], strict=True):
            assert own == pytest.approx(expected, rel=1e-5)
        assert found[name][1][:3] == found["one"][1][:3]  # before the first step
    assert [len(sample["asked"]) for sample in found["one"][1][:3]] == [1, 1, 1]


class StopsLater:
    """A request to stop that comes when it was looked at so many times."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    @property
    def received(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def test_a_signal_in_the_middle_of_the_continuations_leaves_that_validation_for_later(
    pretrain_arguments: list[object], prompts: Path, tmp_path: Path
) -> None:
    words = [*pretrain_arguments, "--batch_size", 4, "--micro_batch_size", 4, "--eval_samples", 4, "--devices", 1]
    words += ["--max_steps", 2, "--eval_interval", 2, "--sample_prompts", prompts, "--sample_tokens", LONGEST]

    def train(folder: str, looks: int) -> int:
        argv = [str(word) for word in (*words, "--out_dir", tmp_path / folder)]
        return run_command(PretrainOptions, partial(pretrain.main, stop=StopsLater(looks)), argv)

    def written(folder: str) -> tuple[list[dict], list[str]]:
        valid = [line["step"] for line in lines_of(tmp_path / folder) if line["split"] == "valid"]
        return read_samples(tmp_path / folder), valid

    assert train("whole", 10**9) == 0
    samples, valid = written("whole")
    batches = len(valid) // 2 - 1  # one of each dataset
    for looks in (batches + 4, 2 * batches + LONGEST + 6):  # at the start, and after the last step
        assert train("cut", looks) == 75
        cut = written("cut")
        assert len(cut[0]) in (0, len(PROMPTS)) and len(cut[0]) < len(samples) and len(cut[1]) < len(valid)
    assert len(cut[0]) == len(PROMPTS)  # so the second signal came after the first validation
    assert train("cut", 10**9) == 0
    assert written("cut") == (samples, valid)


def test_without_rows_to_validate_on_there_are_continuations_all_the_same(
    pretrain_arguments: list[object], prompts: Path, tmp_path: Path
) -> None:
    words = [*pretrain_arguments, "--batch_size", 4, "--enable_validation", "false", "--max_steps", 2, "--devices", 1]
    words += ["--sample_prompts", prompts, "--sample_tokens", 2, "--out_dir", tmp_path / "run", "--eval_interval", 1]
    stop = SimpleNamespace(received=False)
    assert run_command(PretrainOptions, partial(pretrain.main, stop=stop), [str(word) for word in words]) == 0
    assert {sample["step"] for sample in read_samples(tmp_path / "run")} == {0, 1, 2}
    assert "validation at step" not in (tmp_path / "run" / "training_log.out").read_text()


# Files


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("missing.txt", None, 2, ["--sample_prompts", "no file"]),
        ("empty.txt", b"\n  \n", 65, ["empty.txt", "no prompt"]),
        ("latin.txt", "é".encode("latin-1"), 65, ["latin.txt", "not UTF-8"]),
        ("broken.jsonl", b'{"prompt": "a"}\n{"prompt": ', 65, ["broken.jsonl, line 2", "JSON"]),
        ("deep.jsonl", b"[" * 100_000, 65, ["deep.jsonl, line 1", "JSON"]),
        ("other.jsonl", b'{"text": "a"}', 65, ["other.jsonl, line 1", "prompt"]),
        ("half.jsonl", b'{"prompt": "\\ud800"}', 2, ["half.jsonl, line 1", "UTF-8"]),
        ("long.txt", b"a\n" + b"bonjour " * 64, 2, ["long.txt, line 2", "the model's context 64"]),
        (
            "chat.jsonl",
            b'{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]}',
            2,
            ["chat.jsonl, line 1", "no chat template"],
        ),
    ],
)
def test_a_broken_file_of_prompts_is_one_line_before_training_begins(
    pretrain_arguments: list[object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    code: int,
    words: list[str],
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    argv = [*pretrain_arguments, "--out_dir", tmp_path / "run", "--sample_prompts", tmp_path / name]
    main = partial(pretrain.main, stop=SimpleNamespace(received=False))
    found = run_command(PretrainOptions, main, [str(word) for word in argv])
    assert_error(SimpleNamespace(returncode=found, stdout="", stderr=capsys.readouterr().err), code, *words)
    assert not (tmp_path / "run").exists()


def test_what_a_model_writes_cannot_act_on_a_terminal() -> None:
    text = 'é 你好 🙂 \u00a0"\x1b[2J\x9b5m\u202e\u2028\r\n\U000e0041'
    lines = told_samples([Sample(text, 7, True), Sample("b" * 1000, 8, False)])
    assert lines[0] == "1 of 2 samples ended by themselves" and len(lines[2]) < 400
    shown = lines[1].partition(": ")[2]
    assert json.loads(shown) == text and "é 你好 🙂 \u00a0" in shown
    assert not any(character in "".join(lines) for character in "\x1b\x9b\u202e\u2028\r\n\U000e0041")
    assert json.loads(readable_json({"a": [text]})) == {"a": [text]}


def test_a_long_file_of_prompts_does_not_fill_the_log() -> None:
    assert len(told_samples([Sample("a", 1, True)] * 500)) == 21


def test_a_file_of_samples_keeps_what_the_run_goes_on_from(tmp_path: Path) -> None:
    file = SamplesFile(tmp_path)
    for step in (0, 4, 8):
        rest = {"text": "é", "tokens": 1, "ended": True}
        file.write([{"step": step, "number": number} | rest for number in (1, 2)])
    file.close()
    path = tmp_path / SAMPLES
    path.write_bytes(path.read_bytes() + b"\0\0\n" + b'{"step": 8, "num')  # a lost node's, and a killed process's
    drop_samples_after(tmp_path, 4)
    assert [record["step"] for record in read_samples(tmp_path)] == [0, 0, 4, 4]
    drop_samples_after(tmp_path, 4, keep_validation=False)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[1:] == ['{"step": 0, "number": 2, "text": "é", "tokens": 1, "ended": true}'] and len(lines) == 2
    drop_samples_after(tmp_path / "elsewhere", 4)


def test_going_back_sets_a_copy_of_the_samples_aside(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.csv").write_text("step,split\n8,valid\n")
    (tmp_path / SAMPLES).write_text("what was written")
    set_aside_after(tmp_path, 4)
    assert (tmp_path / "set_aside" / "1" / SAMPLES).read_text() == "what was written"


@pytest.mark.parametrize("line", [b"[1]", b'{"stop": 4}', b"\xff", b'{"step": "4"}'])
def test_a_foreign_file_of_samples_is_refused(tmp_path: Path, line: bytes) -> None:
    (tmp_path / SAMPLES).write_bytes(line + b"\n")
    with pytest.raises(Exception, match="line 1 is no sample"):
        drop_samples_after(tmp_path, 4)
    assert (tmp_path / SAMPLES).read_bytes() == line + b"\n"
