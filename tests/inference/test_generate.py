"""Generating: batched rows are the rows alone and transformers', samples are drawn as transformers draws, texts end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from lit_gpt.errors import DataError
from lit_gpt.formats.litgpt_directory import convert_hf_checkpoint, read_config, read_weights
from lit_gpt.generate.base import Options, main
from lit_gpt.inference import generation
from lit_gpt.inference.generation import Continuation, TextModel, TextStream
from lit_gpt.inference.sampling import Sampling, penalise, probabilities
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import run_command
from tests.formats.hf_models import make_hf, make_litgpt, make_tokenizer
from utils.run.merged_model import load_text_model
from utils.run.model_options import ModelOptions

SCRIPT = Path(__file__).resolve().parents[2] / "lit_gpt" / "generate" / "base.py"
PROMPT = "[speaker001:] Bonjour,"
GREEDY = Sampling(temperature=0.0, max_new_tokens=40)
FOUR_LAYERS = {"num_hidden_layers": 4, "head_dim": 16, "sliding_window": 24}
ATTENTION = {
    "grouped keys": ("Llama", {}),
    "learned positions": ("GPT2LMHeadModel", {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "sliding window": ("Mistral", {"sliding_window": 24}),
    "soft caps": ("Gemma2", FOUR_LAYERS),
    "two rotations": ("Gemma3ForCausalLM", {**FOUR_LAYERS, "sliding_window_pattern": 2}),
}


def load(folder, **options):
    return load_text_model(ModelOptions(checkpoint_dir=folder, accelerator="cpu", **options))


def texts_of(model, prompts, sampling, samples=range(1), **options):
    texts = [""] * (len(prompts) * len(samples))
    for row, piece in model.stream(prompts, sampling, samples, **options):
        texts[row] += piece
    return texts


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A litgpt directory and transformers' model of the same weights."""
    folder = tmp_path_factory.mktemp("litgpt")
    return folder, make_litgpt(folder)


@pytest.fixture(scope="module")
def text_model(checkpoint):
    return load(checkpoint[0])


@pytest.fixture(scope="module")
def prompts(text_model):
    """Of very different lengths."""
    return [text_model.encode(text) for text in (PROMPT, "", "Il était une fois, dans un village. " * 2, "the dog")]


def transformers_greedy(model, ids, count, eos):
    output = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
    )[0].tolist()
    return [token for token in output if token != eos]


# Batches


@pytest.mark.parametrize("kind", ATTENTION)
def test_logits_of_rows_in_a_batch_are_those_alone_and_transformers(kind, tmp_path, monkeypatch):
    """Rows of 1 to 90 tokens read in passes of 21, then continued for 12 tokens, one row given up in between."""
    architecture, settings = ATTENTION[kind]
    reference = make_hf(tmp_path, architecture, settings)
    make_tokenizer(tmp_path)
    convert_hf_checkpoint(tmp_path)
    batched, single = load(tmp_path), load(tmp_path)
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(3, 400, (length + 12,), generator=generator).tolist() for length in (30, 1, 90, 47)]
    lengths = [len(row) - 12 for row in rows]
    monkeypatch.setattr(generation, "_PREFILL", 4 * 21)
    found = [batched._prefill([row[:length] for row, length in zip(rows, lengths, strict=True)], 4, 102)]
    for step in range(12):
        if step == 6:
            batched._select([0, 2, 3])
            rows, lengths = [rows[0], *rows[2:]], [lengths[0], *lengths[2:]]
        positions = [length + step for length in lengths]
        tokens = [row[position] for row, position in zip(rows, positions, strict=True)]
        found.append(batched._decode(tokens, positions))
    monkeypatch.undo()
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        before, after = [0, 2, 3][index], index
        ours = torch.stack([step[before] for step in found[:7]] + [step[after] for step in found[7:]])
        alone = torch.cat([single._prefill([row[: length + count]], 1, 102) for count in range(13)])
        with torch.inference_mode():
            theirs = reference(torch.tensor([row])).logits[0, length - 1 :, : ours.size(-1)]
        size = theirs.abs().max().item()
        assert (ours - alone).abs().max().item() <= 1e-5 * max(1, size)
        assert (ours - theirs).abs().max().item() <= 1e-5 * max(1, size)


def test_greedy_texts_equal_transformers(checkpoint, text_model, prompts):
    tokenizer = text_model.tokenizer
    assert prompts[0][0] == tokenizer.bos_id and prompts[0][1:] == tokenizer.encode(PROMPT)
    texts = texts_of(text_model, prompts, GREEDY)
    for prompt, text in zip(prompts, texts, strict=True):
        expected = tokenizer.decode(transformers_greedy(checkpoint[1], prompt, 40, tokenizer.eos_id))
        assert tokenizer.decode(prompt) + text == expected
        pieces = [piece for _, piece in text_model.stream([prompt], GREEDY)]
        assert "".join(pieces) == text and len(pieces) > 5, "nothing was streamed"


def test_names_of_special_tokens_in_a_prompt_are_text_unless_asked_for(checkpoint, text_model, capsys):
    tokenizer, prompt = text_model.tokenizer, "le</s>chat"
    assert tokenizer.eos_id not in text_model.encode(prompt)
    assert text_model.encode(prompt, special_tokens_in_text=True).count(tokenizer.eos_id) == 1
    greedy = replace(GREEDY, max_new_tokens=9)
    for wanted in ("false", "true"):
        words = ["--checkpoint_dir", checkpoint[0], "--prompt", prompt, "--max_new_tokens", 9, "--temperature", 0]
        argv = [*map(str, words), "--accelerator", "cpu", "--special_tokens_in_text", wanted]
        assert run_command(Options, main, argv) == 0
        out = capsys.readouterr().out.removesuffix("\n")
        assert out == prompt + texts_of(text_model, [text_model.encode(prompt, wanted == "true")], greedy)[0]


def test_a_sample_does_not_depend_on_its_company(text_model, prompts):
    sampling = Sampling(max_new_tokens=30, temperature=1.2, top_p=0.95, repetition_penalty=1.1, stop=("e",), seed=7)
    together = texts_of(text_model, prompts, sampling, range(3))
    assert len({*together[:3]}) == 3
    assert together[5] == texts_of(text_model, prompts, replace(sampling, seed=9))[1]
    for number, text in enumerate(together):
        alone = texts_of(text_model, [prompts[number // 3]], replace(sampling, seed=7 + number % 3))
        assert alone == [text]


def test_a_prompt_is_read_from_where_it_differs_from_the_last(checkpoint, prompts):
    fresh, kept = load(checkpoint[0]), load(checkpoint[0])
    read = []
    kept.model.register_forward_pre_hook(lambda _module, args: read.append(args[0].numel()))
    begin = prompts[0]
    first = texts_of(kept, [begin], GREEDY)
    for ids, unknown in ((begin + begin, len(begin)), (begin[:4], 1), (prompts[2], len(prompts[2]) - 1)):
        read.clear()
        again = texts_of(kept, [ids], GREEDY)
        assert again == texts_of(fresh, [ids], GREEDY) and again != first
        assert read[0] <= unknown + 1
        fresh._cached = []


def test_ids_without_text_are_never_chosen(checkpoint, text_model, tmp_path):
    """A vocabulary is often padded to a multiple of 64."""
    weights = {name: tensor.clone() for name, tensor in text_model.model.state_dict().items()}
    for name in ("lm_head.weight", "transformer.wte.weight"):
        weights[name] = torch.cat([weights[name], 100 * torch.ones(64, weights[name].size(1))])
    config = replace(text_model.config, padded_vocab_size=text_model.config.padded_vocab_size + 64)
    padded = TextModel(config, MappingProxyType(weights), text_model.tokenizer, accelerator="cpu")
    assert texts_of(padded, [[1, 5, 6]], GREEDY) == texts_of(text_model, [[1, 5, 6]], GREEDY)


def test_a_long_context_takes_memory_for_its_keys_only(text_model):
    config = replace(text_model.config, block_size=1 << 16)
    model = TextModel(config, text_model.model.state_dict(), text_model.tokenizer, accelerator="cpu")
    assert texts_of(model, [[1, 5, 6]], replace(GREEDY, max_new_tokens=4)) != [""]
    model._reserve(1, 1 << 16)
    tensors = [*model.model.buffers(), model.model.mask_cache]
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) < 40e6


def test_in_bf16_too(checkpoint, prompts):
    model = load(checkpoint[0], precision="bf16-true")
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.model.parameters())
    assert model.model.cos.dtype == torch.float32
    logits = model._prefill(prompts, 4, 100)
    exact = load(checkpoint[0])._prefill(prompts, 4, 100)
    assert (logits - exact).abs().max() < 0.1 * exact.abs().max()
    assert all(texts_of(model, prompts, GREEDY))


# Sampling


def random_logits():
    return torch.randn(5, 300, generator=torch.Generator().manual_seed(3)) * 4


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.7, 20, 1.0), (1.3, None, 0.8), (1.0, 50, 0.5)])
def test_probabilities_are_those_of_transformers(temperature, top_k, top_p):
    from transformers.generation import logits_process

    scores = random_logits()
    scores[0, 10:40] = scores[0].max()  # ties
    expected = logits_process.TemperatureLogitsWarper(temperature)(None, scores)
    expected = expected if top_k is None else logits_process.TopKLogitsWarper(top_k)(None, expected)
    expected = logits_process.TopPLogitsWarper(top_p)(None, expected) if top_p < 1 else expected
    ours = probabilities(scores, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    torch.testing.assert_close(ours, expected.softmax(-1), atol=1e-6, rtol=1e-5)
    assert torch.equal(ours > 0, expected.isfinite())


def test_the_penalty_is_that_of_transformers(text_model, checkpoint, prompts):
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    scores = random_logits()
    before = torch.randint(0, 300, (5, 40), generator=torch.Generator().manual_seed(4))
    seen = torch.zeros(5, 300, dtype=torch.bool).scatter_(1, before, True)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(before, scores)
    torch.testing.assert_close(penalise(scores, seen, 1.7), expected)
    texts = texts_of(text_model, prompts, replace(GREEDY, repetition_penalty=1.5))
    for ids, text in zip(prompts, texts, strict=True):
        options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": 2, "repetition_penalty": 1.5}
        theirs = checkpoint[1].generate(torch.tensor([ids]), max_new_tokens=40, **options)[0].tolist()
        assert text_model.tokenizer.decode(theirs) == text_model.tokenizer.decode(ids) + text


def test_a_window_bounds_the_penalty(text_model, checkpoint, prompts):
    """To the last tokens of prompt and continuation, as transformers' own penalty on these alone says."""
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    penalty = RepetitionPenaltyLogitsProcessor(1.5)
    windowed = replace(GREEDY, repetition_penalty=1.5, repetition_window=4)
    texts = texts_of(text_model, prompts, windowed)
    assert texts != texts_of(text_model, prompts, replace(windowed, repetition_window=None))
    for ids, text in zip(prompts, texts, strict=True):
        options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": 2, "max_new_tokens": 40}
        options["logits_processor"] = [lambda seen, scores: penalty(seen[:, -4:], scores)]
        theirs = checkpoint[1].generate(torch.tensor([ids]), **options)[0].tolist()
        assert text_model.tokenizer.decode(theirs) == text_model.tokenizer.decode(ids) + text


def test_draws_follow_the_probabilities():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    generator = torch.Generator().manual_seed(1)
    sampling = Sampling(temperature=1.0, top_k=3)
    drawn = [generation.choose(logits, None, sampling, [generator])[0] for _ in range(4000)]
    shares = torch.bincount(torch.tensor(drawn), minlength=4) / 4000
    assert shares[3] == 0
    torch.testing.assert_close(shares, probabilities(logits, sampling)[0], atol=0.03, rtol=0)


@pytest.mark.parametrize("temperature", [0.0, 1e-6])
def test_without_warmth_the_likeliest_is_certain(temperature):
    scores = random_logits()
    chances = probabilities(scores, Sampling(temperature=temperature, top_p=0.9))
    assert torch.equal(chances.argmax(-1), scores.argmax(-1)) and chances.sum() == 5


# Ends


def test_a_text_ends_at_the_first_stop(text_model, prompts):
    """Wherever it begins and ends within tokens."""
    ids = prompts[0]
    whole = texts_of(text_model, [ids], GREEDY)[0]
    words = {whole[start : start + size] for start in range(0, len(whole), 7) for size in (1, 4, 9)}
    for stop in sorted(words):
        assert texts_of(text_model, [ids], replace(GREEDY, stop=("absent", stop))) == [whole[: whole.index(stop)]]
    first, second = whole[20:25], whole[9:12]
    earliest = min(whole.index(first), whole.index(second))
    assert texts_of(text_model, [ids], replace(GREEDY, stop=(first, second))) == [whole[:earliest]]


class Letters:
    """A tokenizer whose tokens are characters."""

    @staticmethod
    def decode(ids):
        return "".join(map(chr, ids))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("ab\nc", ["a", "b", "\nc", ""]),
        ("a\n[x:] b", ["a"]),
        ("\n\n[x:]", ["\n"]),
        ("a\n[x", ["a", "\n[x"]),
        ("a!b", ["a"]),
    ],
)
def test_what_may_become_a_stop_is_held_back(text, pieces):
    continuation, shown = Continuation(Letters, [], ("\n[x:]", "!")), []
    for token in map(ord, text):
        if piece := continuation.push(token):
            shown.append(piece)
        if continuation.ended:
            break
    else:
        shown.append(continuation.finish())
    assert shown == pieces


def test_any_of_several_end_tokens_ends_a_text(checkpoint, text_model, prompts, tmp_path):
    ids = prompts[0]
    tokens = transformers_greedy(checkpoint[1], ids, 12, 2)[len(ids) :]
    expected = text_model.tokenizer.decode(ids + tokens[: tokens.index(tokens[6])])
    begin = text_model.tokenizer.decode(ids)
    assert begin + texts_of(text_model, [ids], GREEDY, end_ids=[tokens[6]])[0] == expected
    shutil.copytree(checkpoint[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, tokens[6]]}))
    assert begin + texts_of(load(tmp_path), [ids], GREEDY)[0] == expected


def test_end_of_context_ends_the_text(text_model, monkeypatch):
    ids, short = text_model.encode("a" * 90), text_model.encode("a")
    assert len(ids) < 128
    counts = [0, 0]
    push = generation.Row.push

    def counted(row, token, ends):
        counts[row.number] += 1
        return push(row, token, ends)

    monkeypatch.setattr(generation.Row, "push", counted)
    texts_of(text_model, [ids, short], replace(GREEDY, max_new_tokens=10_000))
    assert [len(ids) + counts[0], len(short) + counts[1]] == [128, 128]


# Adapters


def test_an_adapter_on_its_base_is_the_unmerged_model(lora_run, foundation):
    """Against litgpt's own LoRA model."""
    import litgpt.lora

    from lit_gpt.model.lora import LoRASettings
    from utils.run.checkpoint_reader import read_model_tensors
    from utils.run.merged_model import find_input
    from utils.run.record import RunRecord

    settings = LoRASettings(**RunRecord.load(lora_run).identity.lora)
    reference = litgpt.lora.GPT(settings.extend(read_config(foundation))).eval()
    reference.load_state_dict(read_weights(foundation), strict=False)
    reference.load_state_dict(read_model_tensors(find_input(lora_run)), strict=False)
    model = load_text_model(ModelOptions(lora_path=lora_run, accelerator="cpu"))
    ids = model.encode("[speaker001:] Good morning")
    with torch.inference_mode():
        theirs = reference(torch.tensor([ids]))[:, -1, : model.tokenizer.vocab_size]
    torch.testing.assert_close(model._prefill([ids], 1, 40), theirs, atol=1e-4, rtol=0)
    base = load(foundation)._prefill([ids], 1, 40)
    assert (base - theirs).abs().max() > 1e-2


def test_an_adapter_of_peft_is_what_peft_computes(checkpoint, prompts, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(checkpoint[0], dtype=torch.float32)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)
    theirs = get_peft_model(base, lora).eval()
    theirs.save_pretrained(tmp_path)
    ours = load(checkpoint[0], lora_path=tmp_path)
    for ids, text in zip(prompts, texts_of(ours, prompts, GREEDY), strict=True):
        expected = ours.tokenizer.decode(transformers_greedy(theirs, ids, 40, 2))
        assert ours.tokenizer.decode(ids) + text == expected


def test_what_is_no_adapter_is_refused(trained_run, lora_run, foundation, checkpoint, capsys):
    def fail(*words):
        code = run_command(Options, main, [*map(str, words), "--prompt", "a"])
        return code, capsys.readouterr().err

    assert fail() == (2, "error: --checkpoint_dir (or --lora_path) is required; see --help\n")
    code, message = fail("--lora_path", trained_run)
    assert code == 2 and "holds all weights, not an adapter" in message
    code, message = fail("--lora_path", foundation)
    assert code == 2 and "holds all weights, not an adapter" in message
    code, message = fail("--lora_path", lora_run, "--checkpoint_dir", checkpoint[0])
    assert code == 65 and "not the model" in message


# The command


def test_script_prints_the_prompt_and_its_continuation(checkpoint):
    folder, model = checkpoint
    words = [sys.executable, str(SCRIPT), "--checkpoint_dir", str(folder), "--prompt", PROMPT]
    words += ["--temperature", "0", "--max_new_tokens", "12", "--accelerator", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    tokenizer = Tokenizer(folder)
    expected = transformers_greedy(model, [tokenizer.bos_id, *tokenizer.encode(PROMPT)], 12, tokenizer.eos_id)
    assert done.stdout == tokenizer.decode(expected) + "\n"


def test_seed_decides_and_samples_differ(checkpoint, capsys):
    def samples(seed, **options):
        values = {"checkpoint_dir": checkpoint[0], "prompt": PROMPT, "top_p": 0.9, "accelerator": "cpu", **options}
        main(Options(num_samples=3, seed=seed, max_new_tokens=20, **values))
        return capsys.readouterr().out

    assert samples(1) == samples(1, batch_size=2) == samples(1, batch_size=1) != samples(2)
    texts = samples(1).split(PROMPT)
    assert texts[0] == "" and len({*texts[1:]}) == 3


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_prompts_of_a_file(checkpoint, text_model, tmp_path, capsys, suffix):
    prompts = ["[speaker001:] Bonjour,", "Il était", "the dog\u2028 and" if suffix == ".txt" else "[x:] a\n[y:]"]
    lines = [json.dumps({"prompt": prompt}) if suffix == ".jsonl" else prompt for prompt in prompts]
    path = tmp_path / f"prompts{suffix}"
    path.write_text("\n".join([*lines[:2], "", lines[2]]) + "\n", encoding="utf-8")
    values = {"checkpoint_dir": checkpoint[0], "accelerator": "cpu", "max_new_tokens": 10}
    main(Options(prompt_file=path, num_samples=2, batch_size=4, **values))
    found = [json.loads(line) for line in capsys.readouterr().out[:-1].split("\n")]
    assert [(line["prompt"], line["sample"]) for line in found] == [(p, i) for p in prompts for i in (0, 1)]
    for line in found:
        sampling = Sampling(max_new_tokens=10, seed=1234 + line["sample"])
        assert [line["text"]] == texts_of(text_model, [text_model.encode(line["prompt"])], sampling)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"caf\xe9\n", "not UTF-8"), (b"\n\n", "no prompt"), (b'{"prompt": 1}\n', "line 1"), (b'"a\n', "line 1")],
)
def test_a_bad_prompt_file_is_one_line(checkpoint, tmp_path, capsys, content, message):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    assert run_command(Options, main, ["--checkpoint_dir", str(checkpoint[0]), "--prompt_file", str(path)]) == 65
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_prompt_that_is_too_long_is_named_before_the_first_is_continued(checkpoint, tmp_path, capsys):
    path = tmp_path / "prompts"
    path.write_text("a\nb\n" + "a b c d " * 100 + "\nc\n")
    words = ["--checkpoint_dir", str(checkpoint[0]), "--prompt_file", str(path), "--batch_size", "1"]
    assert run_command(Options, main, words) == 2
    shown = capsys.readouterr()
    assert "prompt 3 has" in shown.err and not shown.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a b c d " * 100], "the model's context 128"),
        (["--prompt", "a", "--temperature", "-1", "--top_p", "0"], "--temperature must be 0"),
        (["--prompt", "a", "--temperature", ".nan"], "--temperature must be 0"),
        (["--prompt", "a", "--temperature", "1e-46"], "--temperature must be 0"),
        (["--prompt", "a", "--repetition_penalty", ".nan"], "--repetition_penalty must be above 0"),
        (["--prompt", "a", "--seed", "18446744073709551616"], "--seed must be 0"),
        (["--prompt", "a", "--max_new_tokens", "0"], "--max_new_tokens must be 1"),
        (["--prompt", "a", "--repetition_penalty", "0"], "--repetition_penalty must be above 0"),
        (["--prompt", "a", "--stop", "b", ""], "--stop: an empty text"),
        (["--prompt", "a", "--num_samples", "0"], "--num_samples must be 1"),
        (["--prompt", "a\udcff"], "not UTF-8"),
        (["--prompt", "a", "--prompt_file", "b"], "either --prompt or --prompt_file"),
        ([], "either --prompt or --prompt_file"),
    ],
)
def test_wrong_use_is_one_line(checkpoint, capsys, words, message):
    assert run_command(Options, main, ["--checkpoint_dir", str(checkpoint[0]), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and "error: " in error


def test_an_empty_prompt_needs_a_token_to_begin_with(checkpoint, tmp_path, capsys):
    shutil.copytree(checkpoint[0], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": False}))
    assert run_command(Options, main, ["--checkpoint_dir", str(tmp_path), "--prompt", ""]) == 2
    assert "the prompt is empty" in capsys.readouterr().err


def test_weights_of_another_model_are_bad_data(checkpoint, tmp_path, capsys):
    for path in checkpoint[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = tmp_path / "model_config.yaml"
    whole = config.read_text()
    config.write_text(whole.replace("intermediate_size: 56", "intermediate_size: 64"))
    (tmp_path / "SHA256SUMS").unlink(missing_ok=True)  # which would name the config as changed
    assert run_command(Options, main, ["--checkpoint_dir", str(tmp_path), "--prompt", "a"]) == 65
    assert "the weights are not of the model" in capsys.readouterr().err


def test_a_tokenizer_of_another_model_is_bad_data(text_model, capsys):
    small = replace(text_model.config, padded_vocab_size=10, vocab_size=10)
    weights = dict(text_model.model.state_dict())
    for name in ("lm_head.weight", "transformer.wte.weight"):
        weights[name] = weights[name][:10]
    model = TextModel(small, weights, text_model.tokenizer, accelerator="cpu")
    with pytest.raises(DataError, match="another model"):
        list(model.stream([text_model.encode(PROMPT)], GREEDY))


def test_weights_that_are_no_numbers_are_bad_data(text_model):
    weights = {name: tensor.clone() for name, tensor in text_model.model.state_dict().items()}
    weights["transformer.ln_f.weight"][3] = torch.nan
    model = TextModel(text_model.config, weights, text_model.tokenizer, accelerator="cpu")
    for temperature in (0.0, 1.0):
        with pytest.raises(DataError, match="not finite"):
            list(model.stream([[1, 5]], Sampling(temperature=temperature)))


# Text


@pytest.mark.parametrize("text", ["naïve 🙂🙂 你好, Łódź\n  x", "👩‍👩‍👧 ok", "\n\n a", "«\u202fici\u202f»"])
def test_characters_come_whole(checkpoint, text):
    tokenizer = Tokenizer(checkpoint[0])
    prompt = tokenizer.encode("Il dit 🙂:")
    ids = tokenizer.encode(" " + text)[1:]  # without the space that SentencePiece puts before any text
    stream = TextStream(tokenizer, prompt)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.rest() == tokenizer.decode(prompt + ids)[len(tokenizer.decode(prompt)) :]
    assert not any("\ufffd" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_not_lost(checkpoint):
    tokenizer = Tokenizer(checkpoint[0])
    ids = tokenizer.encode("ok 🙂")
    stream = TextStream(tokenizer, ids[:1])
    assert "".join(stream.push(token) for token in ids[1:-1]).endswith("k ")
    assert "\ufffd" in stream.rest() and stream.rest() == ""
