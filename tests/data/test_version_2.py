"""A data folder of format version 2 is read as it was, and says what it does not know.

`version_2/` was made by the last program of that version, of the texts beside it; so were the numbers below.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

import prepare_data
from lit_gpt.errors import DataError
from tests.conftest import TOKENIZER, run_command
from utils import inspect_data
from utils.data.batches import collate
from utils.data.manifest import MANIFEST, TEST, TRAIN, Manifest
from utils.data.shards import RowReader

FOLDER = Path(__file__).parent / "version_2"
FINGERPRINT = "aab1fdeaf6df770ebba9a53ca34b857e17f3448a909f80a013adbfb7f2940991"
TARGETS = {TRAIN: [31, 30, 32, 32, 32, 32, 31, 3, 30], TEST: [21]}
BATCHES = {
    TRAIN: ["88e6299612d4124e", "8d8b0bd1f2509458", "743c950b8b0b0b1c"],
    TEST: ["dfdb78182cc10a00", "ea1bb71ebca38dcf", "a63f94c6037c08c9"],
}
"""SHA-256 of the token ids, targets and segments of all rows in one batch."""
SHOWN = """\
── segment 1: 18 tokens, 17 of them targets
Une autre phrase, pour la validation.
── segment 2: 5 tokens, 4 of them targets
Et une.
── padding: 10 tokens
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(FOLDER, tmp_path / "data", ignore=shutil.ignore_patterns("FR"))
    shutil.copytree(TOKENIZER, tmp_path / "data/tokenizer")
    return tmp_path / "data"


def test_its_batches_are_the_same(folder):
    manifest = Manifest.load(folder)
    assert manifest.format_version == 2 and not manifest.template
    assert manifest.fingerprint(manifest.select(TRAIN)) == FINGERPRINT, "a run on these data could not be resumed"
    for entry in manifest.splits:
        reader = RowReader(folder, entry)
        rows = [reader.read(number) for number in range(entry.rows)]
        assert [row.parts for row in rows] == [None] * entry.rows
        assert [reader.count(number)[0] for number in range(entry.rows)] == TARGETS[entry.split]
        batch = collate(rows, manifest.window)
        assert batch.ends is None
        hashes = [hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16] for tensor in batch[:3]]
        assert hashes == BATCHES[entry.split]


def test_what_it_does_not_know_is_not_made_up(folder):
    for entry in Manifest.load(folder).splits:
        assert (entry.text_bytes, entry.target_bytes, entry.masked, entry.conversations) == (None, None, {}, 0)


def test_it_is_shown_as_it_was(folder, capsys):
    arguments = [str(folder), "--show", "3"]
    assert run_command(inspect_data.InspectOptions, inspect_data.main, arguments) == 0
    assert f"══ FR/A test, row 0 of 1\n{SHOWN}" in capsys.readouterr().out


def test_preparing_the_texts_again_gives_the_same_shards_and_counts_their_bytes(folder, tmp_path):
    """So that a run that began on the older folder goes on on the new one."""
    shutil.copytree(FOLDER / "FR", tmp_path / "corpus/FR")
    given = ("--source_path", tmp_path / "corpus", "--checkpoint_dir", TOKENIZER, "--destination_path", folder)
    arguments = [str(word) for word in (*given, "--max_length", 32, "--multiple_of", 1, "--num_workers", 1)]
    assert run_command(prepare_data.PrepareOptions, prepare_data.main, arguments) == 0
    old, new = Manifest.load(FOLDER), Manifest.load(folder)
    assert new.format_version == 3 and new.fingerprint(new.select(TRAIN)) == FINGERPRINT
    for before, entry in zip(old.splits, new.splits, strict=True):
        assert entry.shards == before.shards
        documents = (FOLDER / f"FR/A/{entry.split}.txt").read_bytes().strip().split(b"\n\n")
        assert entry.text_bytes == entry.target_bytes == sum(map(len, documents))


def test_a_version_that_is_not_known_is_refused(folder):
    values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    (folder / MANIFEST).write_text(json.dumps({**values, "format_version": 1}), encoding="utf-8")
    with pytest.raises(DataError, match="format version 1, this program reads 2 and 3; prepare the data again"):
        Manifest.load(folder)
