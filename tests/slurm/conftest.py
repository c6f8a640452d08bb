"""The cluster that all tests of this folder share, and a clone of the repository to submit jobs from."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.conftest import ROOT
from tests.slurm.cluster import Cluster, running_cluster, what_is_missing


class LeftOut(pytest.Module):
    """A file of tests that cannot run here. All are skipped from one place: a single line of pytest's summary."""

    def collect(self) -> NoReturn:
        pytest.skip(f"the Slurm tests are left out: {what_is_missing()}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if what_is_missing() and not os.environ.get("CI"):
        return LeftOut.from_parent(parent, path=module_path)
    return None


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes of four CPUs and two "GPUs" each, both idle."""
    if reason := what_is_missing():
        pytest.fail(f"the Slurm tests may not be left out here: {reason}", pytrace=False)
    with running_cluster() as running:
        yield running


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's root as a job sees it, with `.venv` and without earlier output: jobs write below it."""
    folder = tmp_path_factory.mktemp("clone")
    of_jobs = ("*.out", "*.starts", "*.exit_code")
    shutil.copytree(ROOT / "slurm", folder / "slurm", ignore=shutil.ignore_patterns(*of_jobs, "site.sh"))
    for path in (*ROOT.glob("*.py"), *(ROOT / name for name in ("configs", "data", "lit_gpt", "utils"))):
        (folder / path.name).symlink_to(path)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder
