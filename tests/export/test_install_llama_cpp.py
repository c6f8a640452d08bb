"""utils/install_llama_cpp.py on a small stand-in for llama.cpp, by real CMake and pip; `make test` installs it."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest

from tests.conftest import run_command
from utils import install_llama_cpp
from utils.export.llama_cpp import CHATS, CONVERTER, PROGRAMS, LlamaCpp
from utils.install_llama_cpp import KEPT, STAMP, InstallOptions, main

CMAKE = """
cmake_minimum_required(VERSION 3.19)
project("llama.cpp" CXX)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
include_directories(${CMAKE_SOURCE_DIR})
add_library(llama-common log.cpp)
add_library(llama log.cpp)
add_library(cpp-httplib log.cpp)
foreach(program llama-quantize llama-perplexity llama-completion llama-tokenize)
    add_executable(${program} main.cpp)
endforeach()
"""
LOG = """
#include <cstdio>
struct common_log;
inline common_log * common_log_main() { return nullptr; }
inline void common_log_flush(common_log *) { std::puts("all was printed"); }
"""


@pytest.fixture(autouse=True)
def own_program(tmp_path_factory, monkeypatch):
    """In place of the one that needs llama.cpp's own library."""
    file = tmp_path_factory.mktemp("own") / "llama_chats.cpp"
    file.write_text("int main() {}\n")
    monkeypatch.setattr(install_llama_cpp, "CHATS_SOURCE", file)


def write_source(folder: Path, program: str = "int main() {}\n") -> Path:
    folder.mkdir(parents=True)
    (folder / "CMakeLists.txt").write_text(CMAKE)
    (folder / "log.h").write_text(LOG)
    (folder / "log.cpp").write_text('#include "log.h"\n')
    (folder / "main.cpp").write_text(program)
    for name in KEPT:
        (folder / name).write_text(name)
    return folder


def install(folder: Path, *arguments: str) -> int:
    return run_command(InstallOptions, main, ["--dir", str(folder), *arguments])


def test_programs_and_converter_get_their_place_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(install_llama_cpp, "fetch", lambda _, stage: write_source(stage / "source"))
    folder = tmp_path / "llama"
    (tmp_path / "llama.tmp").mkdir()  # somebody else's
    assert install(folder) == 0
    (tmp_path / "llama.tmp").rmdir()
    llama = LlamaCpp.find(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(["bin", STAMP, *KEPT])
    said = {name: subprocess.check_output([llama.programs / name], text=True) for name in (*PROGRAMS, CHATS)}
    assert [name for name in PROGRAMS if "all was printed" in said[name]] == ["llama-perplexity", "llama-completion"]
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]

    for path in (folder / STAMP, folder / "bin" / PROGRAMS[0]):  # what is damaged is not what was installed
        path.write_bytes(b"\xff")
        path.chmod(0o644)
        assert install(folder) == 0 and LlamaCpp.find(folder)
    monkeypatch.setattr(install_llama_cpp, "fetch", lambda *_: pytest.fail("it is there already"))
    assert install(folder) == 0
    monkeypatch.setattr(install_llama_cpp, "SETTINGS", {"CMAKE_BUILD_TYPE": "Debug"})  # another recipe
    monkeypatch.setattr(install_llama_cpp, "fetch", lambda _, stage: write_source(stage / "source", "not C++"))
    capsys.readouterr()
    assert install(folder) == 74
    assert "error: cmake failed" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["llama"] and (folder / CONVERTER).is_file()


def test_another_archive_is_not_unpacked(tmp_path, monkeypatch, capsys):
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "llama_cpp_python-0.3.36.tar.gz").write_bytes(b"something else")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "found"))
    assert install(tmp_path / "llama", "--source", "pypi") == 65
    assert "another SHA-256" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["found"]


def test_an_archive_that_cannot_be_unpacked(tmp_path, monkeypatch, capsys):
    def downloads(command: list[str], stage: Path) -> None:
        (stage / "llama_cpp_python.tar.gz").write_bytes(gzip.compress(b"no archive" * 100)[:-9])

    monkeypatch.setattr(install_llama_cpp, "call", downloads)
    assert install(tmp_path / "llama", "--source", "pypi") == 65
    assert "cannot be unpacked" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_tag_of_the_commits_name_is_another_commit(tmp_path, monkeypatch, capsys):
    def git(*words: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@x")
        return subprocess.check_output(["git", "-C", tmp_path / "origin", *who, *words], text=True).strip()

    (tmp_path / "origin").mkdir()
    git("init", "--quiet")
    commits = []
    for message in ("first", "second"):
        git("commit", "--quiet", "--allow-empty", "-m", message)
        commits.append(git("rev-parse", "HEAD"))
    monkeypatch.setattr(install_llama_cpp, "GIT_URL", f"file://{tmp_path / 'origin'}")
    monkeypatch.setattr(install_llama_cpp, "COMMIT", commits[0][:9])
    (tmp_path / "stage").mkdir()
    tree = install_llama_cpp.fetch_by_git(tmp_path / "stage")
    assert (tree / ".git" / "HEAD").read_text().strip() == commits[0]
    git("tag", commits[0][:9], commits[1])
    assert install(tmp_path / "llama", "--source", "git") == 65
    assert f"another commit in file://{tmp_path / 'origin'}, {commits[1]}" in capsys.readouterr().err
    assert not (tmp_path / "llama").exists()


def test_what_cannot_be_had_is_said(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    assert install(tmp_path / "mine") == 2
    assert "holds something else" in capsys.readouterr().err
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{tmp_path}/nowhere/.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/")
    assert install(tmp_path / "llama", "--source", "git") == 74
    assert "git failed" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert install(tmp_path / "llama") == 2
    assert "C++ compiler" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
