"""utils/recipes.py: what it lists, copies, refuses; what a recipe's stages are, tests/stages has."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT, run_command
from utils.recipes import RecipesOptions, main


def recipes(*words: object) -> int:
    return run_command(RecipesOptions, main, [str(word) for word in words])


def test_ls_names_each_recipe_with_its_first_line(capsys: pytest.CaptureFixture) -> None:
    assert recipes("ls") == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("quickstart/lora "))
    first = (ROOT / "configs" / "quickstart" / "lora.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert line.split(maxsplit=1)[1] == first.removeprefix("# ")
    assert not [line for line in lines if "model" in line.split()[0]]


def test_show_prints_a_recipe_and_names_the_nearest_to_one_that_is_none(capsys: pytest.CaptureFixture) -> None:
    assert recipes("show", "quickstart/lora") == 0
    assert capsys.readouterr().out == (ROOT / "configs" / "quickstart" / "lora.yaml").read_text(encoding="utf-8")
    assert recipes("show", "quickstart/laro") == 2
    assert "quickstart/lora" in capsys.readouterr().err


def test_cp_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    target = tmp_path / "mine.yaml"
    assert recipes("cp", "quickstart/lora", target) == 0
    target.write_text("mine")
    assert recipes("cp", "quickstart/lora", target) == 2
    assert target.read_text() == "mine" and "exists already" in capsys.readouterr().err


def test_a_recipe_without_a_stage_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "recipe.yaml"
    twice = "pretrain: {seed: 1}\npretrain:\n  seed: 2\n"
    for text, said in (
        ("chat: {}\n", "no stage to run"),
        ("", "none of a recipe's sections"),
        ("a: [", "not YAML"),
        ("prepare:\n\tseed: 1\n", "line 2: not YAML"),
        (twice, "line 2: pretrain is there twice"),
        ("pretrain:\n  seed: 1\n  batch_size: 2\n  seed: 2\n", "line 4: seed is there twice"),
        ("seed: 1\nout_dir: x\n", "is no recipe: its options (seed, …) stand in no section"),
    ):
        path.write_text(text)
        assert recipes("check", path) == recipes("run", path) == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 2 and said in errors[0] and errors[0] == errors[1]


@pytest.mark.parametrize("words", [["list"], ["check"], ["run", "a", "b"], ["run", "a", "--from", "pretrian"], []])
def test_another_line_is_refused(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert recipes(*words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_jobs_alone_are_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """slurm/recipe.slurm evaluates them: what a path says is no such line."""
    path = tmp_path / "recipe.yaml"
    download = "download: {repo_id: org/name, checkpoint_dir: 'job $(exit)'}\n"
    path.write_text(f"{download}prepare: {{source_path: data/sample, destination_path: {tmp_path}/data}}\n")
    assert recipes("jobs", path) == 0
    out, err = capsys.readouterr()
    assert [line.split()[1] for line in out.splitlines()] == ["download", "prepare"]
    assert err.startswith("job $(exit)/org/name is not there yet")
