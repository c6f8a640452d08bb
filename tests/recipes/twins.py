"""A shipped recipe with its model swapped for a tiny one of the same architecture, and its data for a few rows alike.

What the recipe says of data and method stays: converters, mappings, template, targets, adapters, base, optimiser.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer

from tests.conftest import ROOT, TOKENIZER
from tests.recipes.rows import ANSWER, CALL, ROWS, WORDS, asked_with_tools, question
from tests.recipes.shapes import SHAPES
from tests.recipes.shipped import read

POSITIONS = 512
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # Gemma's is larger than its width allows
    "max_position_embeddings": POSITIONS,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": POSITIONS,
}
"""Sizes of config.json, of which a model has those that its shape names."""
SCRATCH = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_query_groups": 4, "intermediate_size": 256, "block_size": 256}

_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'assistant' %}
{{ '<|assistant|>\n' + message['content'] + eos_token }}
{% else %}
{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""


def make_byte_level(folder: Path, names: list[str], split: str = "", config: dict[str, Any] | None = None) -> None:
    """A byte-level BPE of the rows' words; GPT-2's rules, or those that `split` texts by a pattern."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    made = HFTokenizer(models.BPE(ignore_merges="{1,3}" in split))
    made.pre_tokenizer = byte_level
    if split:
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), byte_level])
        if not made.model.ignore_merges:
            made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=names, initial_alphabet=alphabet, vocab_size=800, show_progress=False)
    made.train_from_iterator([" ".join(WORDS), ANSWER, "system user assistant bot tools", CALL] * 2, trainer)
    made.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, **(config or {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def copy_sentencepiece(folder: Path, template: str = "") -> None:
    for path in TOKENIZER.iterdir():
        shutil.copyfile(path, folder / path.name)
    if template:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))


def make_sentencepiece(folder: Path) -> None:
    """Gemma's kind: no space is put in front of a text, and the special tokens have numbers and names of their own."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS), ANSWER] * 8),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=800,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        **{"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "eos_piece": "<eos>", "bos_piece": "<bos>"},
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "GemmaTokenizer", **names, "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def template_of_trl(name: str) -> str:
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def make_tokenizer(folder: Path, repo_id: str) -> None:
    """A tokenizer of the kind that the model has, small: with its rules, its special tokens and its template."""
    if repo_id.startswith("ai-forever/"):
        names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        make_byte_level(folder, ["<pad>", "<s>", "</s>", "<unk>", "<mask>"], config=names)
    elif repo_id == "tiiuae/falcon-7b":
        make_byte_level(folder, [">>TITLE<<", "<|endoftext|>"], config={"eos_token": "<|endoftext|>"})
    elif repo_id == "t-tech/T-lite-it-1.0":
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": template_of_trl("qwen2_5")}
        make_byte_level(
            folder, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], rf"{_WORD}|\p{{N}}|{_REST}", config=names
        )
    elif repo_id == "meta-llama/Meta-Llama-3-8B":
        specials = ["<|begin_of_text|>", "<|end_of_text|>"]
        names = {"bos_token": specials[0], "eos_token": specials[1], "add_bos_token": True}
        make_byte_level(folder, specials, rf"{_WORD}|\p{{N}}{{1,3}}|{_REST}", config=names)
    elif repo_id == "google/gemma-7b":
        make_sentencepiece(folder)
    elif repo_id == "Vikhrmodels/Vikhr-Llama-3.2-1B-Instruct":
        specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        names = {"bos_token": specials[0], "eos_token": specials[-1], "chat_template": template_of_trl("llama3")}
        make_byte_level(folder, specials, rf"{_WORD}|\p{{N}}{{1,3}}|{_REST}", config=names)
    else:
        copy_sentencepiece(folder, ZEPHYR if "zephyr" in repo_id else "")


def make_model(folder: Path, repo_id: str, is_frozen: bool) -> None:
    """The same architecture in small sizes, with random weights, as a Hugging Face folder.

    A frozen output layer of 64 inputs with weights of 0.02 gives no token a logit above 1.3: nothing could be learned.
    """
    import torch
    import transformers

    shape = SHAPES[repo_id]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    values = {**shape, **{name: size for name, size in SMALL.items() if name in shape}, "vocab_size": len(tokenizer)}
    values |= {"sliding_window": 128} if "sliding_window" in shape else {}
    values |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model_class = getattr(transformers, shape["architectures"][0])
    values |= {"initializer_range": 0.2} if is_frozen else {}
    torch.manual_seed(0)
    model_class(model_class.config_class(**values)).save_pretrained(folder)


def write_corpus(folder: Path) -> dict[str, Any]:
    """Conversations in Claire's layout; returns what names them in `prepare`."""
    for split, count in (("train", 24), ("test", 4)):
        path = folder / "corpus" / "FR" / "Twin" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        chats = []
        for number in range(count):
            turns = [(question(f"{split}, {number}, {turn}"), ANSWER) for turn in range(3)]
            lines = [f"[speaker001:] {asked}\n[speaker002:] {answer}" for asked, answer in turns]
            chats.append("\n".join(lines))
        path.write_text("\n\n".join(chats) + "\n")
    (folder / "groups.json").write_text(json.dumps({"FR/Twin": "FR/Group"}))
    (folder / "metadata.csv").write_text("dataset,language,dialogue,spontaneous\nFR/Twin,fr,True,False\n")
    return {
        "source_path": str(folder / "corpus"),
        "group_datasets_by_genre": str(folder / "groups.json"),
        "metadata": str(folder / "metadata.csv"),
    }


def write_books(folder: Path) -> None:
    """Texts in files of their own, each of which ends as every answer does."""
    folder.mkdir()
    for number in range(1, 25):
        (folder / f"{number} - A - B.txt").write_text(f"{question(str(number))} {ANSWER}", encoding="utf-8")


def write_rows(folder: Path, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Files with rows of the datasets' shapes, and the entries with them instead of the Hub's."""
    count = max(6, 24 // len(entries))
    local = []
    for entry in entries:
        split = entry.get("split", "train")
        path = folder / entry["name"] / "data" / f"{split}-00000-of-00001.jsonl"
        path.parent.mkdir(parents=True)
        rows = [ROWS[entry["hub"]](f"{entry['name']}, {number}") for number in range(count)]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        local.append(
            {**{key: value for key, value in entry.items() if key != "hub"}, "path": str(folder / entry["name"])}
        )
    return local


SWAPPED = {
    "prepare": ("destination_path", "max_length", "validation_share"),
    "pretrain": (
        *("out_dir", "devices", "precision", "learning_rate", "warmup_steps", "lora_dropout", "batch_size"),
        *("micro_batch_size", "max_steps", "num_epochs", "interval_unit", "eval_interval", "save_interval"),
        *("max_checkpoints", "early_stopping", "gpu_memory", "weight_decay", "beta2"),
    ),
}
"""What a twin has a value of its own for, and numbers that no path through the program depends on."""


def kind_of(path: Path) -> str:
    """All that a twin keeps of its recipe. Recipes of one kind have the same twin, which is run once."""
    sections = read(path).sections
    repo_id = sections["download"]["repo_id"]
    # rugpt3small, -medium and -large differ in sizes alone, as do ruGPT-3.5 and mGPT
    model = repo_id.split("/")[0] if repo_id.startswith("ai-forever/") else repo_id
    kept: dict[str, Any] = {"model": model, "validate": "validate" in sections}
    for section, swapped in SWAPPED.items():
        kept[section] = {key: value for key, value in sections[section].items() if key not in swapped}
    return yaml.safe_dump(kept, allow_unicode=True)


def served_by(path: Path) -> tuple[str, str, bool]:
    """What a GGUF file of the twin depends on: architecture with tokenizer, template, and whether its model is new."""
    sections = read(path).sections
    repo_id = sections["download"]["repo_id"]
    model = repo_id.split("/")[0] if repo_id.startswith("ai-forever/") else repo_id
    return model, sections["prepare"].get("template", ""), "model_config" in sections["pretrain"]


def write_twin(path: Path, folder: Path) -> Path:
    """The twin of a recipe, with all that it reads, in a folder."""
    sections = {section: dict(values) for section, values in read(path).sections.items()}
    repo_id = sections.pop("download")["repo_id"]
    is_books = sections.pop("clean", None) is not None
    for other in ("acquire", "chunk"):  # of books: tests/recipes/test_books.py has them
        sections.pop(other, None)
    model = folder / "model"
    model.mkdir()
    make_tokenizer(model, repo_id)
    prepare, pretrain = sections["prepare"], sections["pretrain"]
    is_scratch = "model_config" in pretrain
    if is_scratch:
        shape = yaml.safe_load((ROOT / pretrain["model_config"]).read_text())
        small = {key: size for key, size in SCRATCH.items() if key in shape}
        (folder / "model.yaml").write_text(yaml.safe_dump({**shape, **small}))
        pretrain["model_config"] = str(folder / "model.yaml")
    else:
        make_model(model, repo_id, pretrain.get("use_lora", False))
        sections = {"convert_hf": {"checkpoint_dir": str(model), "verify": "none"}, **sections}
    prepare |= {
        "checkpoint_dir": str(model),
        "destination_path": str(folder / "data"),
        "max_length": POSITIONS // 2,
        "num_workers": 1,
    }
    if "datasets" in prepare:
        prepare |= {"validation_share": 0.3, "datasets": write_rows(folder / "rows", prepare["datasets"])}
    elif is_books:
        write_books(folder / "books")
        prepare |= {"validation_share": 0.3, "source_path": str(folder / "books")}
    else:
        prepare |= write_corpus(folder)
    pretrain |= {
        "out_dir": str(folder / "run"),
        "devices": 1,
        "precision": "32-true",  # on a CPU LayerNorm takes no weights in bf16 beside activations in fp32
        "learning_rate": 2e-2 if pretrain.get("optimizer") == "adafactor" else 5e-3,
        "warmup_steps": 4,
        "lora_dropout": 0.0,
        "batch_size": 4,
        "micro_batch_size": 2,
        "max_steps": 120 if pretrain.get("use_lora") else 60,
        "interval_unit": "steps",
        "eval_interval": 1000,
        "save_interval": 1000,
        "max_checkpoints": None,
        "early_stopping": None,
        "log_interval": 30,
    }
    if "tools" in prepare.get("template", "") and pretrain.get("use_lora"):  # a call is an answer of many tokens
        pretrain["max_steps"] = 240
    if is_books:
        pretrain |= {"max_steps": 40, "learning_rate": 1e-2, "sample_tokens": 4}
    if repo_id.startswith("yandex/"):  # its adapters are small, and leave keys and feed-forward matrices alone
        pretrain |= {"learning_rate": 1e-2, "max_steps": 240}
    del sections["plot"]
    sections["convert"] |= {
        "output_dir": str(folder / "hf"),
        "verify": "tensors",
    }  # the GGUF file is compared by logits
    # A tiny model of chats knows nothing of plain text: at a perplexity of 45,000 rounding to f16 shows.
    sections["quantize"] |= {"output_dir": str(folder / "gguf"), "methods": ["f32"]}
    sections["chat"] |= {"temperature": 0.0, "max_new_tokens": 120, "accelerator": "cpu", "repetition_penalty": 1.0}
    sections["chat"].pop("model", None)  # a GGUF file, which not every twin makes
    prompts = folder / "prompts.txt"
    prompts.write_text(question("asked") + "\n")
    if "tools" in prepare.get("template", ""):
        prompts = folder / "prompts.jsonl"
        prompts.write_text(json.dumps(asked_with_tools("asked")) + "\n")
    sections["chat"] |= {"once": str(prompts), "answers": str(folder / "answers.jsonl")}
    twin = folder / "twin.yaml"
    twin.write_text(yaml.safe_dump(sections, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return twin
