"""What is due after a step."""

from __future__ import annotations

import pytest

from utils.train.agenda import Agenda


def test_agenda_counts_steps_or_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    agenda = Agenda("steps", 2, 3)
    assert [(due.validate, due.save) for due in (agenda.due(step, False, False) for step in range(1, 7))] == [
        (False, False),
        (True, False),
        (False, True),
        (True, False),
        (False, False),
        (True, True),
    ]
    clock = [0.0]
    monkeypatch.setattr("utils.train.agenda.time.monotonic", lambda: clock[0])

    def wait_and_do(agenda: Agenda, step: int) -> bool:
        clock[0] += 5
        due = agenda.due(step, False, False)
        clock[0] += 100 if due.save else 0  # saving takes longer than the interval
        agenda.done(due)
        return due.save

    agenda = Agenda("time", None, 12)
    assert [wait_and_do(agenda, step) for step in range(1, 7)] == [False, False, True, False, False, True]


def test_the_last_step_is_logged_and_validated() -> None:
    agenda = Agenda("steps", eval_interval=4, save_interval=3, log_interval=100, max_steps=5)
    dues = [agenda.due(step, False, False) for step in range(1, 6)]
    assert [due.validate for due in dues] == [False, False, False, True, True]
    assert [due.save for due in dues] == [False, False, True, False, False]
    assert [due.log for due in dues] == [due.log_datasets for due in dues] == [False, False, True, True, True]


def test_the_last_checkpoint_comes_after_a_validation() -> None:
    agenda = Agenda("steps", eval_interval=100, save_interval=3, log_interval=100, max_steps=50, max_checkpoints=2)
    assert not agenda.due(3, False, False, checkpoints=0).validate
    assert agenda.due(6, False, False, checkpoints=1).validate


def test_without_validation_none_is_due() -> None:
    due = Agenda("steps", eval_interval=None, save_interval=3, max_steps=3).due(3, False, False)
    assert due.save and not due.validate


def test_a_signal_and_a_failure_hold_for_all() -> None:
    agenda = Agenda("steps", eval_interval=100, save_interval=100, log_interval=100)
    due = agenda.due(1, interrupted=True, failed=False)
    assert due.interrupted and due.log and due.log_datasets and not due.failed
    due = agenda.due(2, interrupted=False, failed=True)
    assert due.failed and due.log and not due.log_datasets


def test_a_checkpoint_that_was_not_made_is_due_after_every_step() -> None:
    agenda = Agenda("steps", None, 3)
    saved = []
    for step in range(1, 10):
        due = agenda.due(step, False, False)
        agenda.done(due, saved=step not in (3, 4))
        saved.append(due.save)
    assert saved == [False, False, True, True, True, True, False, False, True]
