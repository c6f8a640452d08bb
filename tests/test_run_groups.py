"""tests/run_groups.py: every test is in one group, and none can fail unseen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import run_groups
from tests.run_groups import NO_TESTS, PYTEST, TESTS


@pytest.fixture(autouse=True)
def without_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal to the process that runs these tests is not theirs."""
    monkeypatch.setattr(run_groups.signal, "signal", lambda *_: None)


def groups(**codes: int) -> dict[str, list[str]]:
    """Groups that say they ran, with which options, and end with these exit codes."""
    return {name: ["sh", "-c", f'echo "{name} ran $0"; exit {code}', "with"] for name, code in codes.items()}


def test_each_test_is_in_one_group() -> None:
    length = len(PYTEST)
    assert all(tuple(command[:length]) == PYTEST for command in run_groups.GROUPS.values())
    *others, (everything, *ignored) = (command[length:] for command in run_groups.GROUPS.values())
    named = [Path(word) for words in others for word in words]
    assert len(named) == len(set(named))
    assert all(folder.parent == TESTS and list(folder.glob("test_*.py")) for folder in named)
    assert everything == str(TESTS)
    assert ignored == [f"--ignore={folder}" for folder in named]


def test_all_groups_run_with_the_options_and_are_shown(capfd: pytest.CaptureFixture[str]) -> None:
    command = ["sh", "-c", 'echo "ran with $1"', "sh"]
    assert run_groups.main(["--junitxml={group}.xml"], dict.fromkeys(("first", "second", "last"), command)) == 0
    names = ("last", "first", "second")  # the last is shown while it runs
    shown = [line for line in capfd.readouterr().out.splitlines() if line.startswith("ran")]
    assert shown == [f"ran with --junitxml={name}.xml" for name in names]


@pytest.mark.parametrize("name", ["first", "second", "last"])
def test_a_failure_in_any_group_is_one_of_all(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_groups.main([], groups(**({"first": 0, "second": 0, "last": 0} | {name: 1}))) == 1
    assert capfd.readouterr().out.count(" ran with") == 3


def test_an_error_outweighs_a_failure() -> None:
    assert run_groups.main([], groups(first=1, second=4, last=NO_TESTS)) == 4


def test_a_group_that_is_left_out_is_no_failure_but_all_of_them_are() -> None:
    assert run_groups.main([], groups(first=NO_TESTS, second=0, last=0)) == 0
    assert run_groups.main([], groups(first=NO_TESTS, second=NO_TESTS, last=NO_TESTS)) == NO_TESTS


def test_a_group_that_is_killed_is_a_failure() -> None:
    assert run_groups.main([], {**groups(first=0), "last": ["sh", "-c", "kill -9 $$"]}) == 9
