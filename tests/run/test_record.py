"""run.yaml: what an older version wrote is read, and the same run is told from another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lit_gpt.errors import DataError, UserError
from utils.run.record import RUN, RunIdentity, RunRecord

IDENTITY = RunIdentity(
    model={"n_layer": 2},
    lora=None,
    base="abc",
    quantize=None,
    data="def",
    mixture={"one": 0.5, "other": 0.5},
    samples_per_step=16,
    mask_documents=True,
    master_weights=False,
    seed=7,
)
RECORD = RunRecord(IDENTITY, {"seed": 7}, {"steps": 3}, {"torch": "2"}, None, [{"from_step": 0}])


def change_identity(run_dir: Path, **values: object) -> None:
    """Gives fields of the saved identity other values; None takes them out."""
    content = yaml.safe_load((run_dir / RUN).read_text())
    identity = content["identity"] | values
    content["identity"] = {name: value for name, value in identity.items() if name not in values or value is not None}
    (run_dir / RUN).write_text(yaml.safe_dump(content, sort_keys=False))


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    RECORD.save(tmp_path)
    assert RunRecord.load(tmp_path) == RECORD
    written = yaml.safe_load((tmp_path / RUN).read_text())
    assert list(written) == ["identity", "options", "schedule", "versions", "commit", "history", "normalised"]
    assert list(written["identity"]) == [
        *("model", "lora", "base", "added_tokens", "quantize", "data", "template", "mixture"),
        *("samples_per_step", "mask_documents", "master_weights", "optimizer", "seed"),
    ]


def test_a_record_of_an_older_or_a_later_version_is_read(tmp_path: Path) -> None:
    RECORD.save(tmp_path)
    change_identity(tmp_path, quantize=None, master_weights=None, of_a_later_version=1)
    record = RunRecord.load(tmp_path)
    assert record.identity == replace(IDENTITY, master_weights=None)
    record.check_same_run(record.identity, tmp_path)
    with pytest.raises(UserError, match=r"holds another run \(master_weights was None, now False\)"):
        record.check_same_run(IDENTITY, tmp_path)


def test_another_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data was def, now x; seed was 7, now 8"):
        RECORD.check_same_run(replace(IDENTITY, data="x", seed=8), tmp_path)
    with pytest.raises(DataError, match="the run of another model"):
        RECORD.check_same_run(replace(IDENTITY, model={"n_layer": 3}, seed=8), tmp_path)


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    RECORD.save(tmp_path)
    change_identity(tmp_path, base="", data=None)
    for content in ((tmp_path / RUN).read_text(), "identity: 1\n", "- 1\n", "options: {}\n", "a: [\n", ""):
        (tmp_path / RUN).write_text(content)
        with pytest.raises(DataError, match=r"is no run\.yaml of this program"):
            RunRecord.load(tmp_path)
