"""CSV files of a run that an older version began, that another program wrote, or that a process was killed in."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from lit_gpt.errors import DataError
from utils.run import csv_log
from utils.run.csv_log import (
    METRICS,
    VALIDATION,
    VALIDATION_COLUMNS,
    CsvLog,
    drop_metrics_after,
    read_csv,
)
from utils.train.metrics import METRIC_COLUMNS

FIRST_METRICS = "step,samples,tokens,seconds,device_seconds,split,dataset,loss,targets,learning_rate,grad_norm,"
FIRST_METRICS += "tokens_per_second\n1,4,20,1.0,2.0,train,,3.5,20,0.1,1.5,99\n1,4,20,1.0,2.0,valid,all,3.25,7,,,\n"
FIRST_VALIDATION = "checkpoint,step,samples,tokens,seconds,device_seconds,dataset,loss,targets,max_samples,data\n"
FIRST_VALIDATION += 'step-00000001,1,4,20,1.0,2.0,all,3.25,7,,f\nstep-00000001,1,4,20,1.0,2.0,"a, b",3.0,7,,f\n'
FILES = [(METRICS, METRIC_COLUMNS, FIRST_METRICS), (VALIDATION, VALIDATION_COLUMNS, FIRST_VALIDATION)]


def append(path: Path, columns: tuple[str, ...], **values: object) -> None:
    log = CsvLog(path, columns)
    log.write([values])
    log.close()


@pytest.mark.parametrize(("name", "columns", "first"), FILES)
def test_an_older_versions_file_gets_todays_columns_and_keeps_its_values(
    tmp_path: Path, name: str, columns: tuple[str, ...], first: str
) -> None:
    path = tmp_path / name
    path.write_text(first)
    before = list(csv.DictReader(first.splitlines()))
    append(path, columns, step=2, loss=2.5, dataset="all")
    assert path.read_text().splitlines()[0] == ",".join(columns)
    rows = read_csv(path)
    assert len(rows) == len(before) + 1 and rows[-1]["loss"] == "2.5"
    for row, old in zip(rows, before, strict=False):
        assert row == dict.fromkeys(columns, "") | old
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_columns_in_another_order_are_put_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("b,a\n1,2\n")
    append(path, ("a", "b"), a=3, b=4)
    assert path.read_text() == "a,b\n2,1\n3,4\n"


def test_a_file_with_todays_columns_is_only_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    append(path, ("a", "b"), a=1)
    inode = path.stat().st_ino
    append(path, ("a", "b"), b=2)
    assert path.read_text() == "a,b\n1,\n,2\n" and path.stat().st_ino == inode


@pytest.mark.parametrize("header", ["a,b,time", "time", "a,a"])
def test_a_foreign_file_is_refused_and_stays(tmp_path: Path, header: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"{header}\n1,2\n")
    with pytest.raises(DataError, match=rf"log\.csv has columns .* \({header.split(',')[-1]}"):
        CsvLog(path, ("a", "b"))
    assert path.read_text() == f"{header}\n1,2\n"


def test_a_resumed_run_refuses_foreign_metrics(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text("step,split,perplexity\n1,train,5\n")
    with pytest.raises(DataError, match=r"metrics\.csv .*perplexity"):
        drop_metrics_after(tmp_path, METRIC_COLUMNS, 1)


@pytest.mark.parametrize("half", ["1,", "1,2,", "1,2", "b"])
def test_a_line_that_a_killed_process_began_is_left_out(tmp_path: Path, half: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"b\n7\n{half}")
    assert read_csv(path) == [{"b": "7"}]
    append(path, ("a", "b"), a=3)
    assert path.read_text() == "a,b\n,7\n3,\n"
    path.write_text("a,")  # the header itself
    assert read_csv(path) == []
    append(path, ("a", "b"), a=3)
    assert path.read_text() == "a,b\n3,\n"


@pytest.mark.parametrize("line", ["1", "1,2,3", '"1,2'])
def test_a_complete_line_with_other_fields_is_an_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"a,b\n1,2\n{line}\n3,4\n")
    with pytest.raises(DataError, match=r"log\.csv, line 3 has . fields, the header 2"):
        read_csv(path)


def test_what_a_lost_node_left_of_a_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"a,b\n1,2\n3\0\0\0\0\0,9\n\n5,6\n")
    assert read_csv(path) == [{"a": "1", "b": "2"}, {"a": "5", "b": "6"}]


def test_a_full_disk_while_migrating_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / VALIDATION
    path.write_text(FIRST_VALIDATION)
    with monkeypatch.context() as patch:
        patch.setattr("utils.files.atomic.os.fsync", no_space)
        with pytest.raises(OSError, match="No space") as raised:
            CsvLog(path, VALIDATION_COLUMNS)
    assert raised.value.filename == str(path)
    assert path.read_text() == FIRST_VALIDATION and [path.name for path in tmp_path.iterdir()] == [VALIDATION]
    assert csv_log.check_columns(path, VALIDATION_COLUMNS) != list(VALIDATION_COLUMNS)


def test_a_resumed_run_drops_later_steps_and_migrates(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    path.write_text(FIRST_METRICS)
    drop_metrics_after(tmp_path, METRIC_COLUMNS, 1, keep_validation=False)
    (row,) = read_csv(path)
    assert list(row) == list(METRIC_COLUMNS) and row["split"] == "train" and row["mfu"] == ""
