"""A recipe's stages: run once, skipped when nothing changed, gone on with whatever killed them."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_gpt.checksums import file_sha256
from tests import warm_start
from tests.stages.recipes import make_foundation, run_recipe, sections, write_recipe
from utils.recipe.sections import read_recipe
from utils.run.csv_log import METRICS, read_csv
from utils.stages import run as stages
from utils.stages.run import Signals, run_stages

# Files with times or speeds, or that say how often a run was started; lists of checksums of such files.
OF_A_CLOCK = {"metrics.csv", "validation.csv", "training_log.out", "run.yaml", "state.json", ".metadata", "mixture.csv"}
OF_A_CLOCK |= {"SHA256SUMS", "training_provenance.json", "README.md", "convergence.png"}


def hashes(folder: Path) -> dict[str, str]:
    """Each file that `folder` holds, the stages' records among them, with its SHA-256."""
    return {str(path.relative_to(folder)): file_sha256(path) for path in made(folder) if path.name not in OF_A_CLOCK}


def made(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and ".lock" not in path.parts)


def number_made(folder: Path) -> int:
    """How many files `folder` holds while a recipe runs; 0 where a folder got its name, or went, during the count."""
    try:
        return len(made(folder))
    except FileNotFoundError:
        return 0


def test_a_recipe_killed_ten_times_makes_what_one_never_killed_makes(tmp_path: Path) -> None:
    foundation = make_foundation(tmp_path / "foundation")
    recipe = write_recipe(tmp_path / "recipe.yaml", sections(tmp_path / "out", foundation))
    done = warm_start.run(run_recipe, [str(recipe)])
    assert done.returncode == 0, done.stdout + done.stderr
    whole = hashes(tmp_path / "out")
    files = len(made(tmp_path / "out"))
    assert {"answers.jsonl", "hf/model.safetensors", "merged/lit_model.pth", ".run.validate.json"} < whole.keys()

    (tmp_path / "out").rename(tmp_path / "whole")
    chance = random.Random(16)
    log = tmp_path / "log"
    log.touch()
    for kill in range(1, 11):
        (process,) = warm_start.start(run_recipe, [str(recipe)], output=log, errors=log)
        while process.exitcode is None and os.getpgid(process.pid) != process.pid:
            time.sleep(0.01)  # it does not lead its group yet
        while process.exitcode is None and number_made(tmp_path / "out") < kill * files // 11:
            time.sleep(0.01)
        process.join(chance.uniform(0, 0.3))
        if process.exitcode is None:  # it may be faster, on a busy machine
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), log.read_text()
    done = warm_start.run(run_recipe, [str(recipe)])
    assert done.returncode == 0, log.read_text() + done.stdout + done.stderr
    assert hashes(tmp_path / "out") == whole


def test_a_signal_reaches_the_stage_and_the_same_command_goes_on(tmp_path: Path) -> None:
    content = sections(tmp_path / "out", make_foundation(tmp_path / "foundation"))
    content["pretrain"] |= {"max_steps": 100_000, "save_interval": 100_000, "eval_interval": 100_000}
    recipe = write_recipe(tmp_path / "recipe.yaml", content)
    log, run_dir = tmp_path / "log", tmp_path / "out" / "run"
    (process,) = warm_start.start(run_recipe, [str(recipe)], output=log, errors=log)
    deadline = time.monotonic() + 300
    while not any(row["split"] == "train" for row in read_csv(run_dir / METRICS)) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)  # the runner alone
    process.join(300)
    assert process.exitcode == 75, log.read_text()
    assert log.read_text().splitlines()[-1] == "error: the stage pretrain was interrupted; run the same command again"
    assert [path for path in (run_dir / "checkpoints").iterdir() if path.name.startswith("step-")]


# The rules, with stages that write a file at once


class Stages:
    """Stands in for the stages' processes: writes what each is asked for, and keeps which were started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.started: list[str] = []
        self.exit_codes: dict[str, int] = {}
        self.weights = "weights"
        (folder / "run").mkdir()
        (folder / "run" / "model").write_text("trained")
        self.folder = folder
        self.content: dict[str, Any] = {
            "plot": {"folders": [str(folder / "run")], "output": str(folder / "curve.png")},
            "merge": {"lora_path": str(folder / "run"), "save_path": str(folder / "merged")},
            "convert": {"input_path": str(folder / "run"), "output_dir": str(folder / "hf")},
            "quantize": {"output_dir": str(folder / "gguf"), "methods": ["f16"]},
        }
        monkeypatch.setattr(stages.subprocess, "Popen", self.popen)

    def popen(self, words: list[str], pass_fds: tuple[int, ...]) -> Stages:
        self.name = next(name for name, section in stages.SECTIONS.items() if words[1].endswith(section.script))
        self.started.append(self.name)
        return self

    def wait(self) -> int:
        if self.exit_codes.get(self.name):
            return self.exit_codes[self.name]
        written = {
            "plot": ("curve.png", "figure"),
            "merge": ("merged/lit_model.pth", self.weights),
            "convert": ("hf/config.json", self.weights),
            "quantize": ("gguf/quantization.csv", self.weights),
        }
        name, text = written[self.name]
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(text)
        return 0

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, first: str | None = None, last: str | None = None) -> list[str]:
        """The stages that a start has begun."""
        path = write_recipe(self.folder / "recipe.yaml", self.content)
        recipe = read_recipe(path)
        self.started = []
        with Signals() as signals:
            run_stages(recipe, stages.chosen_stages(recipe, first, last), first, signals)
        return self.started


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stages]:
    handled = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    yield Stages(monkeypatch, tmp_path)
    for number, handler in handled.items():
        signal.signal(number, handler)


ALL_STAGES = ["plot", "merge", "convert", "quantize"]


def test_what_is_complete_and_unchanged_is_skipped(small: Stages, capsys: pytest.CaptureFixture) -> None:
    assert small.run() == ALL_STAGES
    capsys.readouterr()
    assert small.run() == []
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("  skipped")] == ALL_STAGES


def test_a_lock_of_a_start_that_was_killed_when_all_was_done_is_removed(small: Stages) -> None:
    small.run()
    (made,) = small.folder.glob(".*.plot.json")
    left = made.with_suffix(".lock")
    left.touch()
    small.run()
    assert not left.exists()


def edit_input(small: Stages) -> None:
    (small.folder / "run" / "model").write_text("trained further")


def edit_option(small: Stages) -> None:
    small.content["convert"]["dtype"] = "bfloat16"


def edit_option_of_another_result(small: Stages) -> None:
    small.content["convert"]["dtype"] = "bfloat16"
    small.weights = "weights in bfloat16"


def edit_option_without_effect(small: Stages) -> None:
    small.content["convert"]["debug"] = True


def edit_what_answers(small: Stages) -> None:
    small.content["chat"] = {"system": "You are brief."}


def remove_result(small: Stages) -> None:
    (small.folder / "hf" / "config.json").unlink()


def damage_result(small: Stages) -> None:
    (small.folder / "curve.png").write_text("")


def damage_record(small: Stages) -> None:
    (small.folder / ".curve.png.plot.json").write_text("{")


def edit_card(small: Stages) -> None:
    (small.folder / "hf" / "README.md").write_text("a card")
    (small.folder / "hf" / "training_provenance.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "started"),
    [
        (edit_input, ["plot", "merge", "convert"]),
        (edit_option, ["convert"]),
        (edit_option_of_another_result, ["convert", "quantize"]),
        (edit_option_without_effect, []),
        (edit_what_answers, ["quantize"]),
        (remove_result, ["convert"]),
        (damage_result, ["plot"]),
        (damage_record, ["plot"]),
        (edit_card, []),
    ],
)
def test_what_has_changed_is_made_again_and_no_more(
    change: Callable[[Stages], None], started: list[str], small: Stages
) -> None:
    small.run()
    change(small)
    assert small.run() == started
    assert small.run() == []


def test_from_runs_again_and_until_ends(small: Stages) -> None:
    assert small.run(last="merge") == ["plot", "merge"]
    assert small.run(first="merge", last="convert") == ["merge", "convert"]
    assert small.run() == ["quantize"]
    (small.folder / "curve.png").unlink()
    with pytest.raises(Exception, match=r"curve.png, which plot makes, is not there"):
        small.run(first="convert")


def test_stages_that_a_recipe_has_not_are_named(small: Stages) -> None:
    for first, last in (("chat", None), (None, "pretrain"), ("convert", "plot")):
        with pytest.raises(Exception, match=r"the stages of .* are plot, merge|--until plot comes before"):
            small.run(first, last)


def test_a_merge_is_not_taken_for_unfinished_if_the_record_alone_is_missing(small: Stages) -> None:
    """As after a kill between the folder's renaming and the record's writing."""
    small.run()
    record = small.folder / ".merged.merge.json"
    begun = record.read_text().replace(record.read_text().split('"result": ')[1].split(",")[0], "null")
    record.write_text(begun)
    assert small.run() == []
    assert '"result": null' not in record.read_text()
    record.write_text(begun)
    edit_input(small)
    assert "merge" in small.run()  # of another input: what was made is removed first


def test_the_exit_code_of_a_stage_is_that_of_the_recipe(small: Stages) -> None:
    for code, expected in ((65, 65), (2, 2), (1, 1), (75, 75), (-signal.SIGTERM, 75), (-signal.SIGSEGV, 1)):
        small.exit_codes["merge"] = code
        with pytest.raises(Exception, match=r"the stage merge ") as caught:
            small.run()
        assert caught.value.exit_code == expected
    small.exit_codes["merge"] = -signal.SIGKILL
    with pytest.raises(OSError, match=r"the stage merge was killed by signal 9, probably out of memory"):
        small.run()
    small.exit_codes["merge"] = 0
    assert small.run() == ["merge", "convert", "quantize"]


def test_a_stage_that_another_process_runs_is_refused(small: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = read_recipe(write_recipe(small.folder / "recipe.yaml", small.content))
    monkeypatch.setattr(stages.time, "sleep", lambda _: None)
    with stages._alone(recipe, "merge"), pytest.raises(Exception, match=r"merge of .* is still being run by another"):
        small.run()
    assert small.run() == ["merge", "convert", "quantize"]
    assert not [*small.folder.glob(".*.lock")]
