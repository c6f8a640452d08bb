"""Tokens of a chat template that a foundation model does not know are named, and a LoRA that cannot stop is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from lit_gpt.formats.litgpt_directory import config_values
from lit_gpt.formats.tensor_files import write_lit_model
from lit_gpt.model.building import build_model
from lit_gpt.tokenizer.shipped_templates import written_tokens
from lit_gpt.tokenizer.tokenizer import Tokenizer
from pretrain import main
from tests.chats import make_chat_tokenizer
from tests.conftest import TINY_MODEL, run, run_command
from utils.cluster.stop_request import StopRequest
from utils.train.options import PretrainOptions
from utils.train.token_rows import untrained_rows


def vocabulary(entries: int = 4000, untrained: int = 0, spread: float = 0.17) -> torch.Tensor:
    """Rows whose norms are spread as those of a trained model, the last of them as GPT-2's begin."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(entries, 64, generator=generator)
    rows *= (torch.randn(entries, 1, generator=generator) * spread).exp() / rows.norm(dim=1, keepdim=True)
    rows[entries - untrained :] = torch.randn(untrained, 64, generator=generator) * 0.02
    return rows


def test_rows_that_training_has_moved_are_never_named() -> None:
    for spread in (0.0, 0.05, 0.17, 0.3):  # 0: all of one norm, as some models keep theirs
        assert untrained_rows(vocabulary(spread=spread), range(4000), 4000) == {}


@pytest.mark.parametrize("untrained", [1, 200, 1000])
def test_rows_as_they_begin_are_named_however_many_there_are(untrained: int) -> None:
    found = untrained_rows(vocabulary(untrained=untrained), range(4000), 4000)
    assert set(found) == set(range(4000 - untrained, 4000))
    assert found[3999].reason.startswith("of norm 0.1") and not found[3999].is_large


def test_zero_equal_and_large_rows_are_named_with_their_reason() -> None:
    rows = vocabulary()
    rows[7], rows[8], rows[9] = 0, rows[2000], rows[9] * 4
    found = untrained_rows(rows.bfloat16(), [6, 7, 8, 9, 10, 2000], 4000)
    assert (found[7].reason, found[8].reason) == ("zero", "equal to that of token 2000")
    assert found.keys() == {7, 8, 9, 2000} and found[9].is_large
    assert untrained_rows(torch.zeros(4, 8), [1], 4)[1].reason == "zero"
    # rows behind the vocabulary, which fill a matrix up, are no others
    assert untrained_rows(torch.cat([rows, torch.zeros(90_000, 64)]), [10], 4000) == {}


def test_the_tokens_that_a_template_writes_are_those_of_its_text_and_of_its_names(tmp_path: Path) -> None:
    tokenizer = Tokenizer(make_chat_tokenizer(tmp_path, bos_token="<|im_start|>"))
    source = "{{ bos_token }}{% if x %}{{ 'a<|im_end|>b' }}{% endif %}{# <|endoftext|> #} user"
    assert written_tokens(source, tokenizer) == ["<|im_end|>", "<|im_start|>"]
    assert written_tokens("{{ eos_token + pad_token }}", tokenizer) == ["<|endoftext|>"]


END = 2  # <|im_end|>


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chats by a tokenizer that has all of their template's tokens, which lies beside them."""
    folder = tmp_path_factory.mktemp("chats")
    tokenizer = make_chat_tokenizer(folder / "tokenizer")
    rows = [json.dumps({"instruction": f"Reverse {number}", "output": str(number)[::-1]}) for number in range(20)]
    (folder / "chats.jsonl").write_text("\n".join(rows))
    source = ("--source_path", folder / "chats.jsonl", "--converter", "instruction", "--template", "chatml")
    words = (*source, "--checkpoint_dir", tokenizer, "--destination_path", folder / "data")
    run("prepare_data.py", *words, "--max_length", 64, "--num_workers", 1)
    return folder / "data"


def make_foundation(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    from lit_gpt.formats.litgpt_directory import read_config

    make_chat_tokenizer(folder)
    (folder / "tiny.yaml").write_text(TINY_MODEL)
    config = read_config(folder / "tiny.yaml", Tokenizer(folder).vocab_size)
    weights = {
        name: tensor.detach().clone()
        for name, tensor in build_model(config, None, None, 0, torch.float32).state_dict().items()
    }
    weights["lm_head.weight"] = weights["lm_head.weight"] * 3
    change(weights)
    write_lit_model(folder / "lit_model.pth", weights.items())
    (folder / "model_config.yaml").write_text(yaml.safe_dump(config_values(config)))
    return folder


def embeddings(weights: dict[str, torch.Tensor]) -> None:
    weights["transformer.wte.weight"][END] = 0


def head(weights: dict[str, torch.Tensor]) -> None:
    weights["lm_head.weight"][END] *= 0.1


def tied(weights: dict[str, torch.Tensor]) -> None:
    weights["transformer.wte.weight"][END] = weights["transformer.wte.weight"][5]
    weights["lm_head.weight"] = weights["transformer.wte.weight"]


LORA = ("--use_lora", "true")
CASES = [  # what is wrong, options, whether it is refused, what is said
    (
        embeddings,
        LORA,
        False,
        ["embeddings look untrained: <|im_end|> (zero); --lora_train embeddings,head trains them"],
    ),
    (embeddings, (*LORA, "--lora_train", "embeddings"), False, ["<|im_end|> (zero)\n"]),
    (head, LORA, True, ["ends with <|im_end|>", "of norm 0.035, where", "give --lora_train embeddings,head"]),
    (head, (*LORA, "--lora_head", "true"), False, ["rows in the head look untrained: <|im_end|> (of norm"]),
    (head, (*LORA, "--lora_train", "embeddings"), True, ["give --lora_train embeddings,head"]),
    (head, (*LORA, "--lora_train", "head"), False, ["rows in the head look untrained: <|im_end|> (of norm"]),
    (head, (), False, ["rows in the head look untrained: <|im_end|> (of norm"]),
    (tied, LORA, True, ["(equal to that of token 5)", "give --lora_train embeddings,head"]),
    (tied, (*LORA, "--lora_train", "embeddings,head"), False, ["in the embeddings", "in the head"]),
]


@pytest.mark.parametrize("change, options, is_refused, said", CASES)
def test_an_end_that_the_model_does_not_know_is_named_or_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change, options, is_refused, said
) -> None:
    folder = make_foundation(tmp_path / "base", change)
    words = ["--data_dir", data, "--checkpoint_dir", folder, "--out_dir", tmp_path / "run", "--devices", 1, *options]
    command = partial(main, stop=StopRequest())
    code = run_command(PretrainOptions, command, [*map(str, words), "--dry_run", "true"])
    printed = capsys.readouterr()
    assert code == (2 if is_refused else 0), printed.err
    text = printed.err if is_refused else printed.out
    assert all(part in text for part in said), text
    if "--lora_train" in options or not options or "--lora_head" in options:
        assert is_refused or "trains them" not in text or change is embeddings
    assert not (tmp_path / "run").exists()
