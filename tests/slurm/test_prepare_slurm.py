"""`srun … prepare_data.py` and slurm/prepare.slurm on a real Slurm cluster: the same bytes, whatever happens."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import ROOT, SAMPLE, SHARED, TOKENIZER, run
from tests.prepare.test_prepare_data import OF_MIXED, mixed_corpus
from tests.slurm.cluster import Cluster, JobEnd

pytestmark = pytest.mark.slurm

SPLIT_FILES = 9  # eight shards and the part that says they are complete
LOST = "another task ended early; run the same command again, what is done is kept"
BROKEN = b"[A:] un\n\n" * 30_000 + b"[A:] d\xff\n"  # behind what one task looks at before all begin
WHERE = f"Wrong/train.txt: no valid UTF-8 at byte offset {len(BROKEN) - 2}"


def arguments(source: Path, data: Path) -> list[object]:
    given = ("--source_path", source, "--checkpoint_dir", TOKENIZER, "--destination_path", data)
    return ["prepare_data.py", *given, "--max_length", 256]


def on_tasks(tasks: int) -> list[str]:
    """An srun of that many tasks, on both nodes if there are several."""
    return ["srun", f"--nodes={min(tasks, 2)}", f"--ntasks={tasks}", "--kill-on-bad-exit=0"]


def prepare(cluster: Cluster, tasks: int, source: Path, data: Path, *more: object) -> subprocess.CompletedProcess[str]:
    command = (*on_tasks(tasks), sys.executable, *map(str, (*arguments(source, data), *more)))
    return cluster.run(*command, cwd=ROOT, timeout=600, check=False)


def start(cluster: Cluster, tasks: int, source: Path, data: Path, output: Path) -> subprocess.Popen[bytes]:
    """`prepare` in the background, its stdout and stderr in the file `output`."""
    command = [*on_tasks(tasks), sys.executable, *map(str, arguments(source, data))]
    with output.open("wb") as file:
        return subprocess.Popen(command, cwd=ROOT, env=cluster.environment(), stdout=file, stderr=subprocess.STDOUT)


def tasks_of(data: Path) -> dict[int, dict[str, str]]:
    """The processes that prepare `data` as tasks of a step: process id → environment."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().decode().split("\0")
            if "prepare_data.py" in words and str(data) in words and words[0] != "srun":
                pairs = (pair.partition("=") for pair in (process / "environ").read_bytes().decode().split("\0"))
                found[int(process.name)] = {name: value for name, _, value in pairs}
    return found


def kill_processes(cluster: Cluster, data: Path) -> None:
    for process in tasks_of(data):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def kill_step(cluster: Cluster, data: Path) -> None:
    for variables in list(tasks_of(data).values())[:1]:
        step = f"{variables['SLURM_JOB_ID']}.{variables['SLURM_STEP_ID']}"
        cluster.run("scancel", "--signal=KILL", step, check=False)


def content_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file by its relative path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def times_of_complete(data: Path) -> dict[str, int]:
    """When the files of each complete split were written."""
    parts = list((data / "parts").glob("[!.]*.json"))
    files = [path for part in parts for path in (part, *data.glob(f"{part.stem}-*.safetensors"))]
    return {path.name: path.stat().st_mtime_ns for path in files}


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def shards_in(data: Path) -> int:
    return len(list(data.glob("[!.]*.safetensors")))


@pytest.fixture(scope="module")
def plays(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Real plays as 72 datasets of some 250 kB, 16 MB in all, and what a call without Slurm makes of them."""
    folder = tmp_path_factory.mktemp("plays")
    for path in sorted((SHARED / "data" / "claire").rglob("train.txt")):
        scenes = path.read_text(encoding="utf-8").split("\n\n")
        for number in range(24):
            dataset = folder / "source" / path.parts[-3] / f"{path.parts[-2]}{number:02}"
            dataset.mkdir(parents=True)
            (dataset / "train.txt").write_text("\n\n".join(scenes[number % 8 :: 8]), encoding="utf-8")
    run(*arguments(folder / "source", folder / "data"))
    return folder / "source", content_of(folder / "data")


# --- any number of tasks


@pytest.fixture(scope="module")
def sample_content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a call without Slurm makes of the French sample."""
    data = tmp_path_factory.mktemp("sample") / "data"
    run(*arguments(SAMPLE / "french", data))
    return content_of(data)


@pytest.mark.parametrize("tasks", [1, 3, 8])  # 6 splits: with 8 tasks, two have nothing to do
def test_any_number_of_tasks_writes_the_same(
    cluster: Cluster, tmp_path: Path, sample_content: dict[str, str], tasks: int
) -> None:
    done = prepare(cluster, tasks, SAMPLE / "french", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert content_of(tmp_path / "data") == sample_content
    lines = done.stdout.splitlines()
    assert sum(" documents, " in line for line in lines) == 6 and sum("manifest.json" in line for line in lines) == 1
    again = prepare(cluster, min(tasks, 2), SAMPLE / "french", tmp_path / "data")
    assert again.returncode == 0 and again.stdout.count(": kept\n") == 6, again.stderr
    assert content_of(tmp_path / "data") == sample_content


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[object], dict[str, str]]:
    """A corpus of several formats, options with all there is to do, and what a call without Slurm makes of it."""
    folder = tmp_path_factory.mktemp("mixed")
    source, metadata = mixed_corpus(folder)
    options = ["--metadata", metadata, *OF_MIXED]
    run(*arguments(source, folder / "data"), *options)
    return source, options, content_of(folder / "data")


@pytest.mark.parametrize("tasks", [1, 3, 8])
def test_any_number_of_tasks_finds_the_same_duplicates_and_variants(
    cluster: Cluster, tmp_path: Path, mixed: tuple[Path, list[object], dict[str, str]], tasks: int
) -> None:
    source, options, content = mixed
    done = prepare(cluster, tasks, source, tmp_path / "data", *options)
    assert done.returncode == 0, done.stderr
    assert content_of(tmp_path / "data") == content
    assert any("reports/" in name for name in content)
    again = prepare(cluster, 2, source, tmp_path / "data", *options)
    assert again.returncode == 0 and again.stdout.count(": kept\n") == 8, again.stderr
    assert content_of(tmp_path / "data") == content


@pytest.mark.parametrize(
    ("more", "words"),
    [(("--metadata", "nowhere.csv"), "nowhere.csv"), (("--group_datasets_by_genre", "no.json"), "no.json")],
)
def test_wrong_options_are_said_once(cluster: Cluster, tmp_path: Path, more: tuple[object, ...], words: str) -> None:
    done = prepare(cluster, 3, SAMPLE / "french", tmp_path / "data", *more)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == 2 and len(errors) == 1 and words in errors[0], done.stderr
    assert not content_of(tmp_path / "data")


def test_a_task_tokenises_on_the_cpus_it_was_given(cluster: Cluster) -> None:
    program = "from utils.prepare.work_pool import own_cpus; print(own_cpus())"
    for options, cpus in (([], "1"), (["--cpus-per-task=2"], "2")):
        done = cluster.run(*on_tasks(1), *options, sys.executable, "-c", program, cwd=ROOT)
        assert done.stdout.split() == [cpus]


# --- killed at any time


def run_and_kill(cluster: Cluster, source: Path, data: Path, output: Path, rng: random.Random) -> int:
    """The exit code of a step of one to three tasks that is killed while it starts, meets or works."""
    had, left = shards_in(data), set(data.glob("*.srun-*"))
    tasks, shards = rng.choice((1, 2, 3)), rng.choice((1, 20))
    step = start(cluster, tasks, source, data, output)
    phases = {
        "starts": lambda: len(tasks_of(data)) == tasks,
        "meets": lambda: set(data.glob("*.srun-*")) - left or shards_in(data) > had,  # a single task does not
        "works": lambda: shards_in(data) >= had + shards,
    }
    phase = rng.choice(("starts", "meets", "works", "works"))
    wait_for(lambda: phases[phase]() or step.poll() is not None)
    time.sleep({"starts": 1.5, "meets": 0.02, "works": 0.4}[phase] * rng.random())
    rng.choice((kill_processes, kill_step))(cluster, data)
    return step.wait(timeout=300)


@pytest.mark.shared
def test_killed_ten_times(cluster: Cluster, plays: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    """By Slurm or by the kernel, in every phase, restarted by another number of tasks: nothing is done twice."""
    source, whole = plays
    data, rng, kills = tmp_path / "data", random.Random(20), 0
    complete: dict[str, int] = {}
    while kills < 10:
        code = run_and_kill(cluster, source, data, tmp_path / "output", rng)
        before, complete = complete, times_of_complete(data)
        assert before.items() <= complete.items(), "a complete split was made again"
        is_whole = (data / "manifest.json").exists()
        assert is_whole or code
        kills += code != 0
        if is_whole:  # it was faster
            assert content_of(data) == whole
            shutil.rmtree(data)
            complete = {}
    done = prepare(cluster, 2, source, data)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": kept\n") == len(complete) / SPLIT_FILES
    assert complete.items() <= times_of_complete(data).items()
    assert content_of(data) == whole


@pytest.mark.shared
@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_others_do_not_wait_for_a_task_that_was_killed(
    cluster: Cluster, plays: tuple[Path, dict[str, str]], tmp_path: Path, rank: str
) -> None:
    source, data = plays[0], tmp_path / "data"
    killed = False
    while not killed:
        shutil.rmtree(data, ignore_errors=True)  # it was faster
        step = start(cluster, 3, source, data, tmp_path / "output")
        wait_for(lambda: shards_in(data))
        for process, variables in tasks_of(data).items():
            if variables["SLURM_PROCID"] == rank:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        code = step.wait(timeout=300)
        killed = not (data / "manifest.json").exists()
    assert code == 137
    output = (tmp_path / "output").read_text(encoding="utf-8")
    assert output.count(LOST) == 2 and output.count("Exited with exit code 75") >= 1, output
    assert "Traceback" not in output and not (data / "manifest.json").exists()


@pytest.mark.parametrize(
    ("missing", "words"), [("0", "Interrupted: task 0 did not leave its address"), ("1", f"Interrupted: {LOST}")]
)
def test_the_others_do_not_wait_for_a_task_that_does_not_come(
    cluster: Cluster, tmp_path: Path, missing: str, words: str
) -> None:
    program = f"""
import os; from datetime import timedelta; from pathlib import Path; from utils.cluster import meeting, slurm
if os.environ["SLURM_PROCID"] != "{missing}":
    meeting.JOIN_LIMIT = timedelta(seconds=6)
    slurm.join_tasks(Path("{tmp_path}"))
"""
    done = cluster.run(*on_tasks(3), sys.executable, "-c", program, cwd=ROOT, check=False, timeout=300)
    assert done.returncode == 1 and done.stderr.count(words) == 2, done.stderr


def test_a_task_may_work_for_longer_than_the_tasks_wait_for_each_other_at_the_start(
    cluster: Cluster, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    program = f"""
import os, time; from datetime import timedelta; from pathlib import Path; from utils.cluster import meeting, slurm
import torch.distributed
Path("{tmp_path}", os.environ["SLURM_PROCID"]).touch()
while not all(Path("{tmp_path}", rank).exists() for rank in "01"):  # one may start far later than the other
    time.sleep(0.1)
meeting.JOIN_LIMIT = timedelta(seconds=6)
rank, _, group = slurm.join_tasks(Path("{data}"))
time.sleep(8 * rank)
from utils.cluster.ranks import end_process; from utils.cluster.collectives import together
print(together(lambda: rank, group))
end_process(0)
"""
    done = cluster.run(*on_tasks(2), sys.executable, "-c", program, cwd=ROOT, timeout=300)
    assert done.stdout == "[0, 1]\n" * 2 and not content_of(data)


# --- errors


def test_what_all_tasks_would_find_is_said_once(cluster: Cluster, tmp_path: Path) -> None:
    done = prepare(cluster, 3, tmp_path / "nowhere", tmp_path / "data")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == 2 and len(errors) == 1 and "nowhere is neither a directory nor a file" in errors[0], (
        done.stderr
    )
    assert not content_of(tmp_path / "data")


def broken_corpus(folder: Path) -> Path:
    """The French sample and a dataset whose last document is no text."""
    shutil.copytree(SAMPLE / "french", folder)
    path = folder / "FR" / "Wrong" / "train.txt"
    path.parent.mkdir()
    path.write_bytes(BROKEN)
    return folder


def test_a_broken_document_ends_its_task_at_once_and_the_others_after_their_share(
    cluster: Cluster, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    run(*arguments(SAMPLE / "french", data))
    (data / "parts" / "FR--Cuisine-train.json").unlink()
    done = prepare(cluster, 3, broken_corpus(tmp_path / "source"), data)
    assert done.stdout.count(": kept\n") == 5 and "FR/Cuisine train: 29 documents" in done.stdout, done.stdout
    assert WHERE in done.stderr, done.stderr
    assert done.stderr.count(LOST) == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 75  # srun's is the highest of the tasks'
    assert not (data / "manifest.json").exists()


# --- slurm/prepare.slurm


def submit(cluster: Cluster, clone: Path, *arguments: object) -> int:
    """The id of the batch script's job, three tasks on two nodes."""
    return cluster.submit("--nodes=2", "--ntasks=3", "slurm/prepare.slurm", *arguments, cwd=clone)


def end_of(cluster: Cluster, clone: Path, job_id: int) -> tuple[JobEnd, str]:
    """How the job ended, and what it printed."""
    end = cluster.wait(job_id, timeout=600)
    return end, (clone / "slurm" / "logs" / f"prepare-{job_id}.out").read_text(encoding="utf-8")


def test_the_batch_script_prepares_the_sample(
    cluster: Cluster, clone: Path, tmp_path: Path, sample_content: dict[str, str]
) -> None:
    end, output = end_of(cluster, clone, submit(cluster, clone, f"--dest={tmp_path}"))
    assert end == JobEnd("COMPLETED", 0, 0), output
    log = (tmp_path / "preparation_log.out").read_text(encoding="utf-8")
    assert log.count(" documents, ") == 6, log
    assert {name: sha for name, sha in content_of(tmp_path).items() if name != "preparation_log.out"} == sample_content


def test_a_broken_document_is_the_jobs_exit_code(cluster: Cluster, clone: Path, tmp_path: Path) -> None:
    source = ("--source_path", broken_corpus(tmp_path / "source"), "--checkpoint_dir", TOKENIZER, "--max_length", 256)
    end, output = end_of(cluster, clone, submit(cluster, clone, *source, "--destination_path", tmp_path / "data"))
    assert end == JobEnd("FAILED", 65, 0), output
    assert WHERE in output
    assert not (tmp_path / "data" / "manifest.json").exists()


@pytest.mark.shared
def test_a_killed_job_goes_on_by_itself(
    cluster: Cluster, clone: Path, plays: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    source, whole = plays
    data, killed = tmp_path / "data", False
    while not killed:
        shutil.rmtree(data, ignore_errors=True)  # it was faster
        job_id = submit(cluster, clone, *arguments(source, data)[1:])
        wait_for(lambda: shards_in(data) > 100)
        kill_processes(cluster, data)
        wait_for(lambda: not tasks_of(data))
        killed = not (data / "manifest.json").exists()
    complete = times_of_complete(data)
    wait_for(lambda: cluster.job(job_id)["Restarts"] == "1")
    end, output = end_of(cluster, clone, job_id)
    assert end == JobEnd("COMPLETED", 0, 0), output
    assert complete and complete.items() <= times_of_complete(data).items()
    log = (data / "preparation_log.out").read_text(encoding="utf-8")
    assert log.count(": kept\n") == len(complete) / SPLIT_FILES, log
    assert {name: sha for name, sha in content_of(data).items() if name != "preparation_log.out"} == whole
