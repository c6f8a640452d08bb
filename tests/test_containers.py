"""The Dockerfile, compose.yaml and fabricant.def, as far as they can be read without Docker or Apptainer."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatchcase
from pathlib import PurePath

import pytest
import yaml

from tests.conftest import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
DEFINITION = (ROOT / "fabricant.def").read_text(encoding="utf-8")
DATED_DEBIAN = r"debian:bookworm-\d{8}-slim"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def sections() -> dict[str, str]:
    """The sections of Apptainer's definition file; what stands before the first has no name."""
    parts = re.split(r"^%(\w+)\n", DEFINITION, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def commands(text: str) -> list[str]:
    return re.findall(r"(?<= )(make \w+|\.venv/bin/python .*)$", text, flags=re.MULTILINE)


def test_the_steps_are_the_readmes_two_commands() -> None:
    """And what installs llama.cpp, by which an image's last stage works: `make test` goes on where that fails."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("## Two commands")[1].split("\n## ")[0]
    two = re.findall(r"```bash\n(make \w+)\n```", readme)
    assert len(two) == 2
    llama_cpp = ".venv/bin/python utils/install_llama_cpp.py"
    runs = [argument for name, argument in instructions() if name == "RUN"]
    assert commands("\n".join(runs)) == [two[0], llama_cpp, two[1]]
    assert commands(sections()["post"]) == [two[0], llama_cpp]


def test_both_images_begin_with_the_same_dated_system_and_packages() -> None:
    bases = [argument for name, argument in instructions() if name == "FROM"]
    (image,) = re.findall(rf"^({DATED_DEBIAN}) AS fabricant$", bases[0])
    assert bases[1:] == ["fabricant AS tested", "fabricant"], "the last one is what is built by default"
    assert f"\nFrom: {image}\n" in sections()[""]
    runs = "\n".join(argument for name, argument in instructions() if name == "RUN")
    found = re.findall(r"apt-get install -y --no-install-recommends ([^&\n]*)", runs + sections()["post"])
    assert len(found) == 2 and found[0].split() == found[1].split()


def test_the_definitions_scripts_are_shell() -> None:
    for name in ("setup", "post", "environment", "runscript"):
        subprocess.run(["sh", "-n"], input=sections()[name], text=True, check=True)


def test_compose_gives_a_training_the_gpus_and_time_to_save() -> None:
    (service,) = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"].values()
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert service["stop_grace_period"] == "10m"
    workdir = dict(instructions())["WORKDIR"]
    mounted = [volume.split(":")[1] for volume in service["volumes"]]
    assert mounted == [f"{workdir}/out", f"{workdir}/checkpoints"]
    for path in mounted:
        assert f" {PurePath(path).name}" in re.search(r"mkdir -p --mode=1777 .*", DOCKERFILE)[0]


def test_no_secret_and_no_host_of_ours_is_in_them() -> None:
    (service,) = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"].values()
    assert service["environment"].pop("HF_TOKEN") is None, "taken from the shell"
    for text in (DOCKERFILE, DEFINITION, yaml.safe_dump(service)):
        assert not re.search(r"token|password|https?://|index-url|\bARG\b", text, flags=re.IGNORECASE)


def is_ignored(path: str) -> bool:
    """Whether .dockerignore keeps a file out: its last pattern that matches the file, or a folder above it, decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        if line.startswith("#"):
            continue
        for part in (PurePath(path), *PurePath(path).parents):
            same_depth = pattern.startswith("**/") or len(part.parts) == len(PurePath(pattern).parts)
            name = part.name if pattern.startswith("**/") else str(part)
            if same_depth and fnmatchcase(name, pattern.removeprefix("**/")):
                ignored = not line.startswith("!")
    return ignored


def test_an_image_has_all_of_the_repository_and_nothing_beside_it() -> None:
    done = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a checkout")
    missing = {path for path in done.stdout.splitlines() if is_ignored(path)}
    of_git_and_docker = {".ci/run", ".gitignore", ".dockerignore", "Dockerfile", "compose.yaml", "fabricant.def"}
    assert missing <= of_git_and_docker
    foreign = (".env", ".git/config", "slurm/site.sh", "slurm/logs/pretrain-1.out", "data/mine/full.txt", "token.txt")
    foreign += ("checkpoints/a/lit_model.pth", "out/run/run.yaml", ".venv/bin/python", "utils/__pycache__/cli.pyc")
    assert all(map(is_ignored, foreign))
