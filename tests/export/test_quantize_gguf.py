"""utils/quantize_gguf.py: from a training to GGUF files that say what the model says; what is wrong gets no name."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_gpt.scripts import convert_hf_checkpoint
from tests.conftest import LLAMA_CPP, SAMPLE, SHARED, as_users_start_it, assert_error, run, run_command
from tests.formats.hf_models import make_hf
from utils import quantize_gguf
from utils.export import gguf_source, hf_probabilities, hf_probabilities_process
from utils.export.gguf_files import TABLE, equal_tokens, keep_earlier, write_table
from utils.export.hf_probabilities import choose_windows
from utils.export.llama_cpp import FOLDER, LlamaCpp
from utils.export.options import DEFAULT_TYPES, GGUF_TYPES, QuantizeOptions
from utils.files.staged_folder import staged
from utils.quantize_gguf import main

pytestmark = pytest.mark.llama_cpp

# name: transformers' class, tokenizer, its configuration, options of the training
FOUNDATIONS = {
    "GPT-2": (
        "GPT2LMHeadModel",
        "gpt2",
        # rows of 256 weights, the k-methods' block
        {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 50256, "eos_token_id": 50256},
        ["--use_lora", "true", "--lora_mlp", "true"],
    ),
    "Falcon": (
        "FalconForCausalLM",
        "falcon",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 11, "eos_token_id": 11},
        [],
    ),
}


def make_foundation(folder: Path, name: str) -> None:
    """A litgpt directory with random weights, as small as transformers makes them, and the real tokenizer."""
    import transformers

    architecture, tokenizer, settings, _ = FOUNDATIONS[name]
    shutil.copytree(SHARED / "tokenizers" / tokenizer, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    model_class = getattr(transformers, architecture)
    vocabulary = {"gpt2": 50257, "falcon": 65024}[tokenizer]
    torch.manual_seed(0)
    model_class(model_class.config_class(vocab_size=vocabulary, **settings)).save_pretrained(folder)
    convert_hf_checkpoint.main(convert_hf_checkpoint.ConvertHFOptions(checkpoint_dir=folder, verify="none"))


def train(name: str, folder: Path) -> Path:
    """The run folder of a few steps on real plays, validated."""
    make_foundation(folder / "model", name)
    (folder / "corpus").mkdir()
    for split in ("train", "test"):
        plays = (SHARED / "data" / "claire" / "FR" / "TheatreMoliere" / f"{split}.txt").read_text(encoding="utf-8")
        (folder / "corpus" / f"{split}.txt").write_text(plays[:20_000].rsplit("\n\n", 1)[0])
    data = ("--checkpoint_dir", folder / "model", "--destination_path", folder / "data", "--max_length", 64)
    run("prepare_data.py", "--source_path", folder / "corpus", *data, "--num_workers", 1)
    arguments = ["--data_dir", folder / "data", "--checkpoint_dir", folder / "model", "--out_dir", folder / "run"]
    arguments += ["--max_steps", 4, "--batch_size", 8, "--micro_batch_size", 8, "--precision", "32-true"]
    arguments += ["--warmup_steps", 1, "--learning_rate", 3e-3, "--eval_samples", 8, *FOUNDATIONS[name][3]]
    assert "could not be exported" not in run("pretrain.py", *arguments).stdout
    return folder / "run"


@pytest.fixture(scope="module", params=["GPT-2", "Falcon", "Llama"])
def exported(request, tmp_path_factory) -> tuple[Path, Path, str]:
    """A trained model as a Hugging Face folder, the folder with its GGUF files, and what the program printed."""
    folder = tmp_path_factory.mktemp("gguf")
    if request.param == "Llama":
        trained = request.getfixturevalue("lora_run")
    elif SHARED.is_dir():
        trained = train(request.param, folder)
    else:
        pytest.skip("needs the real tokenizers in ../shared")
    run("validate_pretrain.py", "--out_dir", trained, "--batch_size", 8, "--max_batches", 1)
    words = ["--input_path", trained, "--output_dir", folder / "hf", "--verify", "tensors"]  # GGUF's own check is next
    run("convert_litgpt_to_transformers.py", *words)
    words = ["--model_dir", folder / "hf", "--output_dir", folder / "gguf", "--methods", *DEFAULT_TYPES]
    with as_users_start_it() if request.param == "Llama" else nullcontext():
        return folder / "hf", folder / "gguf", run("utils/quantize_gguf.py", *words).stdout


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / TABLE).open(encoding="utf-8") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def test_seven_files_say_what_the_model_says(exported):
    hf, gguf, printed = exported
    rows = rows_of(gguf)
    assert tuple(rows) == DEFAULT_TYPES and "token ids equal" in printed
    assert sorted(path.name for path in gguf.iterdir()) == sorted(
        [TABLE, *(row["file"] for row in rows.values()), *(f"Modelfile.{method}" for method in rows)]
    )
    for method, row in rows.items():
        content = (gguf / row["file"]).read_bytes()
        assert content[:4] == b"GGUF" and len(content) == int(row["bytes"])
        change = math.log(float(row["perplexity"]) / float(row["perplexity_hf"]))
        assert abs(change) <= GGUF_TYPES[method].bound and float(row["divergence"]) <= GGUF_TYPES[method].bound
        assert f"FROM ./{row['file']}\n" in (gguf / f"Modelfile.{method}").read_text()
    assert float(rows["f16"]["same_top_percent"]) > 98
    sizes = [int(rows[method]["bytes"]) for method in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "f16")]
    assert sizes == sorted(sizes)
    rows_divide = json.loads((hf / "config.json").read_text()).get("n_embd") == 256
    assert (int(rows["q4_k_m"]["fallback_tensors"]) == 0) == rows_divide == ("in a larger type" not in printed)
    assert not [path for path in gguf.parent.iterdir() if path.name.startswith(".")]


def test_perplexities_are_those_of_transformers_and_of_llama_perplexity(exported, tmp_path):
    """Another way on both sides: losses by transformers' own formula, and a run that tokenizes the text by itself."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf, gguf, _ = exported
    row, text = rows_of(gguf)["f16"], quantize_gguf.read_text(None)
    tokenizer, model = AutoTokenizer.from_pretrained(hf), AutoModelForCausalLM.from_pretrained(hf)
    ids = tokenizer(text).input_ids
    begins = ids[0] == tokenizer.bos_token_id and tokenizer("a").input_ids[0] == tokenizer.bos_token_id

    def perplexity(starts: list[int], length: int) -> float:
        windows = torch.tensor([ids[start : start + length] for start in starts])
        if begins:
            windows[:, 0] = tokenizer.bos_token_id
        labels = windows.clone()
        labels[:, : length // 2 + 1] = -100
        return math.exp(model(windows, labels=labels).loss.item())

    config = json.loads((hf / "config.json").read_text())
    context = config.get("max_position_embeddings", config.get("n_positions"))
    length, starts = choose_windows(len(ids), context, 8)
    assert perplexity(starts, length) == pytest.approx(float(row["perplexity_hf"]), rel=1e-4)
    (tmp_path / "text").write_text(text)
    options = ["-m", gguf / row["file"], "-f", tmp_path / "text", "-c", length, "-b", length, "--chunks", 8]
    program = [LLAMA_CPP / "bin" / "llama-perplexity", *options]
    done = subprocess.run([str(word) for word in program], capture_output=True, text=True)
    said = float(re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr)[1])
    assert said == pytest.approx(perplexity([chunk * length for chunk in range(8)], length), rel=1e-3)


def test_the_modelfile_is_that_of_the_training(exported):
    hf, gguf, _ = exported
    text = (gguf / "Modelfile.q4_0").read_text()
    provenance = json.loads((hf / "training_provenance.json").read_text())
    assert provenance["turns"] > 0
    assert "[speaker001:]" in text and 'PARAMETER stop "\n["\n' in text
    assert f"PARAMETER num_ctx {provenance['schedule']['window'] - 1}\n" in text
    end = json.loads((hf / "tokenizer_config.json").read_text())["eos_token"]
    assert f'PARAMETER stop "{end}"\n' in text


# ------------------------------------------------------------------------------------------------------ what is refused


def make_tiny(folder: Path, padding: int = 0, **save: object) -> Path:
    """A Llama with large random weights and a SentencePiece tokenizer."""
    from lit_gpt.tokenizer.hf_tokenizer import export_tokenizer
    from lit_gpt.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer(SAMPLE / "tokenizer")
    make_hf(folder, "Llama", {"vocab_size": tokenizer.vocab_size + padding}, **save)
    export_tokenizer(tokenizer, folder, "[speaker001:] Bonjour")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def copied(tiny, tmp_path) -> Path:
    return shutil.copytree(tiny, tmp_path / "model")


def refused(capsys, tmp_path: Path, exit_code: int, words: list[str], *arguments: object) -> None:
    """The program, in this process, says one line with `words`, and leaves nothing in `tmp_path`/out or beside it."""
    capsys.readouterr()
    before = set(tmp_path.iterdir())
    line = ["--output_dir", str(tmp_path / "out"), *map(str, arguments)]
    assert run_command(QuantizeOptions, main, line) == exit_code
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: "), errors
    for word in words:
        assert word in errors[0], errors[0]
    assert set(tmp_path.iterdir()) == before


def test_what_is_no_use_is_said_before_anything_is_written(tiny, copied, tmp_path, capsys):
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import models, pre_tokenizers, trainers

    refused(capsys, tmp_path, 2, ["llama.cpp is not in", "install_llama_cpp.py"], "--model_dir", copied,
            "--llama_cpp_dir", tmp_path)  # fmt: skip
    refused(capsys, tmp_path, 2, ["--methods q3_x", "q4_k_m"], "--model_dir", copied, "--methods", "q4_0", "q3_x")
    refused(capsys, tmp_path, 2, ["config.json is missing"], "--model_dir", tmp_path)
    (tmp_path / "short.txt").write_text("Bonjour")
    refused(capsys, tmp_path, 2, ["too few", "--text"], "--model_dir", copied, "--text", tmp_path / "short.txt")
    (tmp_path / "blank.txt").write_text(" \n\n")
    for name, words in (("blank.txt", ["no text"]), ("model", ["a folder"]), ("nowhere.txt", ["missing"])):
        refused(capsys, tmp_path, 2, ["--text", *words], "--model_dir", copied, "--text", tmp_path / name)
    for words in (["--model_dir", str(copied)], ["--model_dir", str(tiny), "--text", str(copied / "config.json")]):
        assert run_command(QuantizeOptions, main, [*words, "--output_dir", str(tmp_path / "model")]) == 2
        assert f"{words[-2]} {words[-1]} lies in --output_dir" in capsys.readouterr().err
    assert run_command(QuantizeOptions, main, ["--model_dir", str(copied), "--output_dir", "/proc"]) == 2
    assert "/proc is a mount point" in capsys.readouterr().err
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    refused(capsys, tmp_path, 2, ["BertModel"], "--model_dir", copied)
    incomplete = {key: value for key, value in config.items() if key != "hidden_size"}
    (copied / "config.json").write_text(json.dumps(incomplete))
    refused(capsys, tmp_path, 65, ["hidden_size"], "--model_dir", copied)
    (copied / "config.json").write_text(json.dumps(config))

    own = HFTokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own.train_from_iterator(["Bonjour, ça va ?"], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    (copied / "tokenizer.model").unlink()
    own.save(str(copied / "tokenizer.json"))
    refused(capsys, tmp_path, 2, ["cannot read", "pre-tokenizer"], "--model_dir", copied)


@pytest.mark.go
@pytest.mark.parametrize("is_equal", [pytest.param(True, marks=pytest.mark.shared), False])
def test_what_ollama_sends_is_tokenized_as_transformers_does(request, tmp_path, capsys, go, is_equal):
    """As with GPT-2's tokenizer. With a SentencePiece model llama.cpp puts a space after the begin token, where the
    tokenizer that was exported has none if the token stands in the text: the GGUF file says that it must not."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    if is_equal:
        folder = tmp_path / "model"
        shutil.copytree(SHARED / "tokenizers" / "gpt2", folder, copy_function=shutil.copyfile)
        folder.chmod(0o755)
        GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64)).save_pretrained(folder)
    else:
        folder = request.getfixturevalue("copied")
    turn = "{{ '[' + m.role + '] ' + m.content + '\\n' }}"
    begin = "" if is_equal else "{{ bos_token }}"
    end = "{% if add_generation_prompt %}[assistant]{% endif %}"
    (folder / "chat_template.jinja").write_text(begin + "{% for m in messages %}" + turn + "{% endfor %}" + end)
    main(QuantizeOptions(model_dir=folder, output_dir=tmp_path / "out", methods=["f32"]))
    text = (tmp_path / "out" / "Modelfile.f32").read_text()
    chat = [{"role": "system", "content": "Sois bref."}, {"role": "user", "content": " Ça va ?\n"}]
    (tmp_path / "chat").write_text(go.render(text.split('"""')[1], chat))
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    ids = LlamaCpp.find(FOLDER).token_ids(tmp_path / "out" / "model-f32.gguf", tmp_path / "chat")
    assert ids == theirs
    said = capsys.readouterr().out
    others = [line for line in text.splitlines() if "other tokens" in line]  # where the text names control tokens
    assert others == [] if is_equal else all("in 1 of 6" in line or ": special tokens." in line for line in others)
    assert "rendered by Go as in the training" in said
    assert ("puts no space before a text" in text) == ("puts no space before a text" in said) == (not is_equal)


def test_a_truncated_weights_file(copied, tmp_path):
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    words = ["--model_dir", copied, "--output_dir", tmp_path / "out"]
    assert_error(run("utils/quantize_gguf.py", *words, check=False), 65, "model.safetensors", "cannot be read")
    assert not list(tmp_path.glob("*out*"))


def test_somebody_elses_folder_stays(tiny, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    refused(capsys, tmp_path, 2, ["holds something else"], "--model_dir", tiny)
    assert (tmp_path / "out" / "letter.txt").read_text() == "mine"


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kilobytes", [300, 900, 1700])
def test_a_disk_that_fills_half_way(tiny, tmp_path, capsys, monkeypatch, kilobytes):
    """Full while the converter writes, while log-probabilities are, while llama-quantize does."""
    with small_disk(tmp_path / "disk", kilobytes):
        arguments = ["--model_dir", str(tiny), "--output_dir", str(tmp_path / "disk" / "out")]
        monkeypatch.setattr(quantize_gguf, "check_space", lambda *_: None)
        assert run_command(QuantizeOptions, main, arguments) == 74
        assert "error: No space left on device" in capsys.readouterr().err
        assert not list((tmp_path / "disk").iterdir())


def test_a_disk_that_is_too_small_is_found_before(tiny, tmp_path, capsys):
    with small_disk(tmp_path / "disk", 300):
        arguments = ["--model_dir", str(tiny), "--output_dir", str(tmp_path / "disk" / "out")]
        assert run_command(QuantizeOptions, main, arguments) == 74
        assert "GB are needed" in capsys.readouterr().err


def test_other_weights_are_another_model(tiny, tmp_path, capsys, monkeypatch):
    """One matrix of one layer a tenth larger, behind the converter's back; in the q8_0 file, which was made first."""
    view = gguf_source.converter_view

    def spoilt(model, scratch):
        folder = view(model, scratch)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.down_proj.weight"] *= 1.1
        (folder / "model.safetensors").unlink()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    monkeypatch.setattr(gguf_source, "converter_view", spoilt)
    for method in ("q8_0", "f16"):
        words = [f"model-{method}.gguf is another model", "perplexity"]
        refused(capsys, tmp_path, 65, words, "--model_dir", tiny, "--methods", method)


def test_a_models_own_code_is_not_run(copied, tmp_path, capsys):
    """Neither by the converter, whose Llama trusts a tokenizer of this class, nor by transformers."""
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass HybridDNATokenizer: ...\n"
    (copied / "evil.py").write_text(code)
    for name, entries in (
        ("config.json", {"auto_map": {"AutoConfig": "somebody/evil--evil.Config"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.HybridDNATokenizer", None]}}),
        ("tokenizer_config.json", {"tokenizer_class": "HybridDNATokenizer"}),
    ):
        (copied / name).write_text(json.dumps(json.loads((copied / name).read_text()) | entries))
    refused(capsys, tmp_path, 65, ["transformers does not load"], "--model_dir", copied, "--methods", "q8_0")
    (tmp_path / "scratch").mkdir()
    view = gguf_source.converter_view(gguf_source.read_model(copied), tmp_path / "scratch")
    shown = {path.name: path.read_bytes() for path in view.iterdir()}
    assert "model.safetensors" in shown and "evil.py" not in shown
    assert not [name for name, content in shown.items() if b"auto_map" in content or b"HybridDNA" in content]
    assert not (tmp_path / "ran").exists()


@pytest.mark.shared
def test_another_pre_tokenizer_is_found(tmp_path, capsys, monkeypatch):
    """Falcon's rules for GPT-2's vocabulary: digits and punctuation are split otherwise."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "model"
    shutil.copytree(SHARED / "tokenizers" / "gpt2", folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64)).save_pretrained(folder)
    convert = LlamaCpp.convert

    def swapped(self, model_dir, file, dtype, _):
        convert(self, model_dir, file.with_name("right.gguf"), dtype)
        script = FOLDER / "gguf-py" / "gguf" / "scripts" / "gguf_new_metadata.py"
        environment = {**os.environ, "PYTHONPATH": str(FOLDER / "gguf-py")}
        line = [sys.executable, script, "--pre-tokenizer", "falcon", file.with_name("right.gguf"), file]
        subprocess.run([str(word) for word in line], env=environment, check=True, capture_output=True)

    monkeypatch.setattr(LlamaCpp, "convert", swapped)
    refused(capsys, tmp_path, 65, ["tokenizes otherwise"], "--model_dir", folder, "--methods", "f16")


def test_a_second_export_keeps_the_first(tmp_path, capsys):
    """Of a bfloat16 model whose vocabulary is padded beyond the tokenizer's; on a text full of backslashes."""
    model, out = make_tiny(tmp_path / "model", padding=24, dtype=torch.bfloat16), tmp_path / "out"
    text = tmp_path / "text"
    text.write_text(quantize_gguf.read_text(None).replace(" ", r" \new\t\\\" "))
    for method in ("bf16", "f16"):
        main(QuantizeOptions(model_dir=model, output_dir=out, methods=[method], text=text))
        (out / "mine").mkdir(exist_ok=True)
        (out / "mine" / "letter.txt").write_text("mine")
    made = {
        f"{name}{method}{end}" for method in rows_of(out) for name, end in (("Modelfile.", ""), ("model-", ".gguf"))
    }
    assert list(rows_of(out)) == ["bf16", "f16"] and int(rows_of(out)["f16"]["greedy_equal"]) > 0
    assert {path.name for path in out.iterdir()} == made | {TABLE, "mine"} and "not kept" not in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out", "text"]

    row = {**rows_of(out)["f16"], "perplexity_hf": 1.01 * float(rows_of(out)["f16"]["perplexity_hf"])}  # another model
    with staged(out) as stage:
        assert keep_earlier(out, stage, [row]) == []
        write_table(stage / TABLE, [row])
    said = capsys.readouterr().out
    assert "not kept" in said and all(name in said for name in made)
    assert {path.name for path in out.iterdir()} == {TABLE, "mine"}
    assert (out / "mine" / "letter.txt").read_text() == "mine"
    (out / TABLE).write_text("a,b\n1,2\n")
    assert run_command(QuantizeOptions, main, ["--model_dir", str(model), "--output_dir", str(out)]) == 2
    assert "was not written by this program" in capsys.readouterr().err


def test_what_is_compared_of_a_continuation():
    """Two bytes of é, a letter, a byte that begins nothing, a letter: by a model that says this and nothing else."""
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import decoders, models
    from transformers import PreTrainedTokenizerFast

    said = ["<0xC3>", "<0xA9>", "a", "<0xFF>", "b"]
    own = HFTokenizer(models.BPE({name: i for i, name in enumerate([*said, "<end>", "x"])}, [], byte_fallback=True))
    own.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own)

    def continued(end: int | None = None, context: int = 64) -> tuple[str, str, list[int], int]:
        order = [0, 1, 2, 3, 4] if end is None else [*range(end), 5]

        def model(ids: torch.Tensor) -> SimpleNamespace:
            logits = torch.zeros(1, ids.shape[1], 7)
            logits[0, -1, order[min(ids.shape[1] - 2, len(order) - 1)]] = 9.0
            return SimpleNamespace(logits=logits)

        return hf_probabilities_process.continue_text(model, tokenizer, [6, 6], {5}, context)

    assert continued() == ("xx", "éa", [1, 1, 2], 3)
    assert continued(end=2) == ("xx", "é", [1, 1], 2)
    assert continued(context=4)[2] == []  # half a character
    reference = hf_probabilities.Reference([], 64, 1.0, 1, *continued())
    assert [equal_tokens(text, reference) for text in ("éab", "éb", "e", "")] == [3, 2, 0, 0]
