"""Fetches llama.cpp at its pinned version, builds the programs that GGUF export needs, and puts them into one folder.

The source comes from its git host, or from the Python registry, where llama-cpp-python's archive carries the tree.
The programs are linked statically. A C++ compiler has to be there; CMake is installed for the build if it is missing.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this file's folder

from lit_gpt.errors import DataError, UserError
from lit_gpt.repository import REPOSITORY
from utils import cli
from utils.export.llama_cpp import CHATS, COMMIT, FOLDER, GIT_URL, PACKAGE, PACKAGE_SHA256, PROGRAMS, LlamaCpp

STAMP = "installed.json"
CMAKE = "cmake==4.1.2"
KEPT = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion", "gguf-py", "LICENSE")
# Added to ggml alone, which does the arithmetic; the rest is compiled at -O1, which takes 0.5 to 0.8 of -O3's time.
OPTIMISED = 'set(CMAKE_CXX_FLAGS_RELEASE "-O3 -DNDEBUG")\n'
LOGGED_SOURCE = """\
#include "log.h"
struct Logged { ~Logged() { common_log_flush(common_log_main()); } } logged;
"""
# Added to the build of llama.cpp. Command lines, templates and downloads are not optimised at all. Most time goes
# to headers, so 16 files are compiled as one, but for those that do not go together. Two programs print
# from another thread and end without waiting: on a busy machine every third run on a small model lost its last lines.
ADDED = """\
function(join_files target apart)
    if(NOT TARGET ${target})
        return()
    endif()
    get_target_property(folder ${target} SOURCE_DIR)
    get_target_property(files ${target} SOURCES)
    list(FILTER files INCLUDE REGEX "[.]cpp$")
    foreach(file IN LISTS files)
        get_filename_component(path ${file} ABSOLUTE BASE_DIR ${folder})
        if(file MATCHES "${apart}")
            set(is_apart ON)
        else()
            set(is_apart OFF)
        endif()
        set_property(SOURCE ${path} TARGET_DIRECTORY ${target} PROPERTY SKIP_UNITY_BUILD_INCLUSION ${is_apart})
    endforeach()
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 16)
endfunction()
cmake_language(DEFER CALL join_files llama-common "(^|/)json[.]cpp|jinja/")
cmake_language(DEFER CALL join_files llama "dsv4|unicode")
cmake_language(DEFER CALL target_compile_options llama-common PRIVATE -O0)
cmake_language(DEFER CALL target_compile_options cpp-httplib PRIVATE -O0)
cmake_language(DEFER CALL target_sources llama-perplexity PRIVATE [[{stage}/logged.cpp]])
cmake_language(DEFER CALL target_sources llama-completion PRIVATE [[{stage}/logged.cpp]])
cmake_language(DEFER CALL add_executable llama-chats [[{stage}/llama_chats.cpp]])
cmake_language(DEFER CALL target_link_libraries llama-chats PRIVATE llama-common llama)
cmake_language(DEFER CALL target_compile_options llama-chats PRIVATE -O0)
"""
# A program of ours, of what llama.cpp's server does with a conversation before the model sees it.
CHATS_SOURCE = REPOSITORY / "utils" / "export" / "llama_chats.cpp"
SETTINGS = {
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_CXX_FLAGS_RELEASE": "-O1 -DNDEBUG",
    "BUILD_SHARED_LIBS": "OFF",  # the programs run wherever the folder is moved to
    "GGML_NATIVE": "OFF",  # AVX2 and no more: built on a login node, run on another machine
    "GGML_CCACHE": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
}


@dataclass(frozen=True)
class InstallOptions:
    """Install the converter and programs of llama.cpp that utils/quantize_gguf.py needs; nothing if they are there."""

    dir: Path | None = None
    """Folder to make. Default: .llama.cpp in this repository, where utils/quantize_gguf.py looks."""
    source: Literal["auto", "git", "pypi"] = "auto"
    """Where the source comes from; auto tries the git host first, then the Python registry."""
    debug: bool = False
    """Show tracebacks."""


def main(options: InstallOptions) -> None:
    folder = (options.dir or FOLDER).resolve()
    # what the installation is compared with: another commit or setting means another build
    recipe = {
        "commit": COMMIT,
        "settings": SETTINGS,
        "added": [OPTIMISED, ADDED, LOGGED_SOURCE, CHATS_SOURCE.read_text(encoding="utf-8")],
    }
    if is_installed(folder, recipe):
        print(f"llama.cpp {COMMIT} is in {folder}")
        return
    if folder.exists() and not (folder / STAMP).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--dir {folder} holds something else; give a folder that is new or empty")
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        raise UserError("building llama.cpp needs a C++ compiler, and there is no c++: install g++, or load its module")
    stage = folder.with_name(f".{folder.name.removeprefix('.')}.tmp")
    shutil.rmtree(stage, ignore_errors=True)  # what a killed installation left
    stage.mkdir(parents=True)
    try:
        source = fetch(options.source, stage)
        build(source, stage)
        installed = stage / "installed"
        (installed / "bin").mkdir(parents=True)
        for name in (*PROGRAMS, CHATS):
            shutil.copy2(stage / "build" / "bin" / name, installed / "bin" / name)
        for name in KEPT:
            (source / name).rename(installed / name)
        (installed / STAMP).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        installed.rename(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    print(f"llama.cpp {COMMIT} is in {folder}")


def is_installed(folder: Path, recipe: dict[str, object]) -> bool:
    try:
        LlamaCpp.find(folder)
        return json.loads((folder / STAMP).read_text(encoding="utf-8")) == recipe
    except (UserError, OSError, ValueError):
        return False


def fetch(source: str, stage: Path) -> Path:
    """The source tree, below `stage`; an OSError if none can be reached, a DataError if it is not the pinned one."""
    if source in ("auto", "git"):
        try:
            return fetch_by_git(stage)
        except OSError as e:
            if source == "git":
                raise
            print(f"no llama.cpp by git ({e}); trying {PACKAGE}", flush=True)
    tree = fetch_from_pypi(stage)
    print(f"llama.cpp {COMMIT} from the source archive of {PACKAGE}", flush=True)
    return tree


def fetch_by_git(stage: Path) -> Path:
    """The tree of the one commit whose hash begins with `COMMIT`, which git refuses if there are several."""
    if shutil.which("git") is None:
        raise OSError("there is no git")
    tree = stage / "git"
    # without files of other commits; an abbreviated commit cannot be fetched by itself
    call(["git", "clone", "--quiet", "--filter=blob:none", "--no-checkout", GIT_URL, str(tree)], stage)
    call(["git", "-C", str(tree), "checkout", "--quiet", "--detach", COMMIT], stage)
    call(["git", "-C", str(tree), "rev-parse", "HEAD"], stage)
    # git prefers a tag or branch of that name, which may be another commit
    if not (head := (stage / "log").read_text(encoding="utf-8").strip()).startswith(COMMIT):
        raise DataError(f"{COMMIT} names another commit in {GIT_URL}, {head}, as a tag or branch does")
    return tree


def fetch_from_pypi(stage: Path) -> Path:
    """The tree from the archive, whose SHA-256 pip compares before it runs the package's own build."""
    requirement = stage / "requirements.txt"
    requirement.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]
    try:
        call([*command, "--require-hashes", "--dest", str(stage), "--requirement", str(requirement)], stage)
    except OSError as e:
        if "DO NOT MATCH THE HASHES" in (stage / "log").read_text(encoding="utf-8", errors="replace"):
            raise DataError(f"{PACKAGE} from the Python registry has another SHA-256 than {PACKAGE_SHA256}") from None
        raise OSError(f"{PACKAGE} cannot be downloaded from the Python registry: {e}") from None
    (archive,) = stage.glob("*.tar.gz")
    try:
        with tarfile.open(archive) as tar:
            inside = [member for member in tar if "/vendor/llama.cpp/" in member.name]
            tar.extractall(stage, inside, filter="data")
    except (tarfile.TarError, EOFError, zlib.error) as e:  # the last two: a compressed archive that is cut off
        raise DataError(f"the archive of {PACKAGE} cannot be unpacked: {e}") from None
    archive.unlink()
    return next(stage.glob("*/vendor/llama.cpp"))


def build(source: Path, stage: Path) -> None:
    cmake, environment = find_cmake(stage)
    for name, content in (("ggml", OPTIMISED), ("llama.cpp", ADDED)):
        (stage / f"{name}.cmake").write_text(content.replace("{stage}", str(stage)), encoding="utf-8")
    (stage / "logged.cpp").write_text(LOGGED_SOURCE, encoding="utf-8")
    shutil.copyfile(CHATS_SOURCE, stage / CHATS_SOURCE.name)
    settings = [f"-D{name}={value}" for name, value in SETTINGS.items()]
    settings += [f"-DCMAKE_PROJECT_{name}_INCLUDE={stage / name}.cmake" for name in ("ggml", "llama.cpp")]
    folder = str(stage / "build")
    cores = len(os.sched_getaffinity(0))
    estimate = f"about {7 / cores:.0f} minutes where nothing else runs"
    print(f"building {', '.join((*PROGRAMS, CHATS))} on {cores} core(s): {estimate}", flush=True)
    call([*cmake, "-S", str(source), "-B", folder, *settings], stage, environment)
    call([*cmake, "--build", folder, "--parallel", str(cores), "--target", *PROGRAMS, CHATS], stage, environment)


def find_cmake(stage: Path) -> tuple[list[str], dict[str, str]]:
    """The command of the machine's CMake, or of one installed below `stage`, and the environment it needs."""
    if found := shutil.which("cmake"):
        return [found], dict(os.environ)
    print(f"there is no cmake; taking {CMAKE} from the Python registry for this build", flush=True)
    target = stage / "cmake"
    call([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), CMAKE], stage)
    return [str(target / "bin" / "cmake")], {**os.environ, "PYTHONPATH": str(target)}


def call(command: list[str], stage: Path, environment: dict[str, str] | None = None) -> None:
    """Runs a command, its output in `stage`/log; an OSError with the line that says why if it fails."""
    log = stage / "log"
    with log.open("w", encoding="utf-8") as file:
        environment = {**(environment or os.environ), "GIT_TERMINAL_PROMPT": "0"}
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
        reasons = [line for line in lines if "error" in line.lower() or "fatal" in line.lower()]
        reason = reasons[0] if reasons else lines[-1]
        raise OSError(f"{Path(command[0]).name} failed: {reason.strip()}")


if __name__ == "__main__":
    sys.exit(cli.run(main, cli.parse_or_exit(InstallOptions)))
