"""Chats in batches: what is predicted is what the assistants said, whatever else is in the row."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from litgpt.config import Config

import prepare_data
from lit_gpt.model.building import build_model
from lit_gpt.model.loss import IGNORE
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import TINY_MODEL, TOKENIZER, run_command
from utils.data.batches import TrainingData, collate, validation_batches
from utils.data.manifest import TRAIN, Manifest
from utils.data.mixture import Mixture
from utils.data.shards import Row, RowReader

ANSWERS = [f"Réponse {number} :\n{'oui ' * (number % 5)}fin 🙂" for number in range(40)]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty chats of two turns, of which the first answer of every fourth has the weight 0, in rows of several."""
    folder = tmp_path_factory.mktemp("chats")
    lines = []
    for number in range(0, 40, 2):
        messages = []
        for turn in (number, number + 1):
            messages.append({"role": "user", "content": f"Question {turn} ?"})
            weight = 0 if turn % 8 == 0 else 1
            messages.append({"role": "assistant", "content": ANSWERS[turn], "weight": weight})
        lines.append(json.dumps({"messages": messages}))
    (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    given = ("--source_path", folder / "train.jsonl", "--converter", "messages", "--template", "saiga")
    where = ("--checkpoint_dir", TOKENIZER, "--destination_path", folder / "data")
    arguments = [str(word) for word in (*given, *where, "--max_length", 400)]
    assert run_command(prepare_data.PrepareOptions, prepare_data.main, arguments) == 0
    return folder / "data"


@pytest.fixture(scope="module")
def data(chats: Path) -> TrainingData:
    manifest = Manifest.load(chats)
    mixture = Mixture.of(manifest.select(TRAIN), None)
    return TrainingData(chats, mixture, 3, mixture.rows, manifest.window, mask_documents=True)


def runs_of_targets(targets: torch.Tensor) -> list[list[int]]:
    found: list[list[int]] = []
    before = IGNORE
    for target in targets.flatten().tolist():
        if target != IGNORE:
            if before == IGNORE:
                found.append([])
            found[-1].append(target)
        before = target
    return found


def test_the_targets_are_the_answers_and_their_ends(data):
    """Each trained answer of an epoch is a run of targets, once; it is decoded here, and not compared with parts."""
    tokenizer = Tokenizer(TOKENIZER)
    decoded: Counter[str] = Counter()
    for batch in data.step(0, 0, 1, 2).batches:
        for run in runs_of_targets(batch.targets):
            assert run.count(tokenizer.eos_id) == 1
            decoded[tokenizer.decode(run).strip()] += 1
    assert decoded == Counter(answer for number, answer in enumerate(ANSWERS) if number % 8)


def test_counts_of_a_step_are_those_of_the_manifest(chats, data):
    [entry] = Manifest.load(chats).splits
    step = data.step(0, 0, 1, 4)
    assert step.targets == entry.targets == sum(batch.target_count for batch in step.batches)
    assert step.tokens == entry.tokens - entry.documents == entry.targets + sum(entry.masked.values())
    assert set(entry.masked) == {"template", "user", "weight_0"}
    assert entry.conversations == entry.documents == 20 and entry.messages == 80
    assert entry.target_bytes < entry.text_bytes
    batches = validation_batches(chats, entry, 401, 0, 1, 3, None, True)
    assert sum(batch.target_count for batch in batches) == entry.targets


def test_packed_a_and_b_are_as_each_alone(chats):
    """The targets are the union, and B's logits stay when A becomes another text: with real rows of several chats."""
    [entry] = Manifest.load(chats).splits
    reader = RowReader(chats, entry)
    row = next(row for row in map(reader.read, range(entry.rows)) if len(row.segment_lengths) > 1)
    a, b = row.segment_lengths[:2].tolist()
    both = [slice(0, a), slice(a, a + b)]
    pair = Row(row.tokens[: a + b], row.segment_lengths[:2], row.segment_overlaps[:2], row.parts[: a + b])
    alone = []
    for part in both:
        one = np.ones(1, np.int32)
        alone.append(Row(row.tokens[part], one * (part.stop - part.start), one, row.parts[part]))
    together, first, second = (collate([one], len(one.tokens)) for one in (pair, *alone))
    expected = [*first.targets[0].tolist(), IGNORE, *second.targets[0].tolist()]
    assert together.targets[0].tolist() == expected and first.target_count and second.target_count
    values = {**yaml.safe_load(TINY_MODEL), "vocab_size": 1280, "padded_vocab_size": 1280, "block_size": 512}
    model = build_model(Config(**values), None, None, seed=1, dtype=torch.float32)
    other = collate([replace(pair, tokens=np.append(np.flip(pair.tokens[:a]), pair.tokens[a:]))], a + b)
    with torch.no_grad():
        logits = [model(batch.input_ids, segments=batch.segments) for batch in (together, other, second)]
    assert torch.equal(logits[0][:, a:], logits[1][:, a:]) and not torch.equal(logits[0][:, :a], logits[1][:, :a])
    torch.testing.assert_close(logits[0][:, a:], logits[2], atol=1e-5, rtol=1e-5)
