"""Every command that talks to the Hub: what the environment gets wrong is one line. Real processes, no network."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import assert_error, command_line
from tests.formats.hub_server import Hub

TOKENS = {"Cyrillic": "hf_аbcdef", "a space": "hf_abc def", "control": "hf_ab\x07c"}


@pytest.fixture(scope="module")
def hub():
    server = Hub(20_000)
    yield server
    server.close()


def commands(folder: Path) -> list[list[str]]:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    upload = command_line("utils/hf_upload_model.py", "org/model", "--input_dir", folder / "model")
    return [command_line("lit_gpt/scripts/download.py", "--repo_id", "org/model"), upload]


def end(command: list[str], folder: Path, hub: Hub, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**hub.environment(folder), **variables}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("kind", TOKENS)
def test_a_token_with_a_stray_character_is_one_line_that_does_not_show_it(kind: str, tmp_path: Path, hub: Hub) -> None:
    for command in commands(tmp_path):
        done = end(command, tmp_path, hub, HF_TOKEN=TOKENS[kind])
        assert_error(done, 2, "HF_TOKEN", "copy it again")
        assert "abc" not in done.stderr.replace("bash", "")


def test_a_socks_proxy_without_its_package_is_one_line(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "socksio.py").write_text("raise ImportError('hidden')\n")
    for command in commands(tmp_path):
        path = f"{tmp_path / 'hidden'}:{os.environ.get('PYTHONPATH', '')}"
        done = end(command, tmp_path, hub, ALL_PROXY="socks5://127.0.0.1:9", NO_PROXY="", no_proxy="", PYTHONPATH=path)
        assert_error(done, 2, "SOCKS", "pip install socksio")
