"""A recipe's stages: run once, skipped when nothing changed, gone on with whatever killed them."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from lit_gpt.checksums import file_sha256
from tests import warm_start
from tests.stages.recipes import make_foundation, run_recipe, sections, write_recipe

# Files with times or speeds, or that say how often a run was started; lists of checksums of such files.
OF_A_CLOCK = {"metrics.csv", "validation.csv", "training_log.out", "run.yaml", "state.json", ".metadata", "mixture.csv"}
OF_A_CLOCK |= {"SHA256SUMS", "training_provenance.json", "README.md", "convergence.png"}


def hashes(folder: Path) -> dict[str, str]:
    """Each file that `folder` holds, the stages' records among them, with its SHA-256."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".lock" not in path.parts]
    return {str(path.relative_to(folder)): file_sha256(path) for path in sorted(files) if path.name not in OF_A_CLOCK}


def test_a_recipe_killed_ten_times_makes_what_one_never_killed_makes(tmp_path: Path) -> None:
    foundation = make_foundation(tmp_path / "foundation")
    recipe = write_recipe(tmp_path / "recipe.yaml", sections(tmp_path / "out", foundation))
    warm_start.run(run_recipe, [str(tmp_path / "none.yaml")])  # so that what is measured are no imports
    began = time.monotonic()
    done = warm_start.run(run_recipe, [str(recipe)])
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stdout + done.stderr
    whole = hashes(tmp_path / "out")
    assert {"answers.jsonl", "hf/model.safetensors", "merged/lit_model.pth", ".run.validate.json"} < whole.keys()

    (tmp_path / "out").rename(tmp_path / "whole")
    chance = random.Random(16)
    kills = 0
    log = tmp_path / "log"
    log.touch()
    while kills < 10:
        (process,) = warm_start.start(run_recipe, [str(recipe)], output=log, errors=log)
        while process.exitcode is None and os.getpgid(process.pid) != process.pid:
            time.sleep(0.01)  # it does not lead its group yet
        process.join(chance.uniform(0.5, seconds / 4))
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), log.read_text()
    done = warm_start.run(run_recipe, [str(recipe)])
    assert done.returncode == 0, log.read_text() + done.stdout + done.stderr
    assert hashes(tmp_path / "out") == whole
