"""Commands in other locales than UTF-8, and into pipes that nobody reads: real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, SAMPLE, TOKENIZER
from tests.test_layers import COMMANDS

ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
TEXT = "Привет, Œuvre ─ 3 € 𝄞"

SCRIPT = """
import sys
from dataclasses import dataclass
from pathlib import Path
sys.path.insert(0, {root!r})
from utils import cli

@dataclass(frozen=True)
class Options:
    '''Tries text.'''
    text: str
    '''What is said.'''
    folder: Path
    '''Where files are.'''

OPTIONS = cli.parse_or_exit(Options)

def main(options):
    assert options.text == {text!r}, ascii(options.text)
    (options.folder / options.text).write_text(options.text)
    print(options.text, [path.name for path in options.folder.iterdir()], "\\udcff")
    print(options.text, file=sys.stderr)

sys.exit(cli.run(main, OPTIONS))
"""


def start(words: list[object], variables: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    words = [word if isinstance(word, bytes) else str(word) for word in words]
    return subprocess.run([sys.executable, *words], env={**environment, **variables}, capture_output=True, timeout=600)


@pytest.fixture(scope="module")
def latin_1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a locale whose text is Latin-1."""
    folder = tmp_path_factory.mktemp("locale")
    made = shutil.which("localedef") and subprocess.run(
        ["localedef", "-i", "en_US", "-f", "ISO-8859-1", folder / "en_US.ISO-8859-1"], capture_output=True
    )
    if not made or not (folder / "en_US.ISO-8859-1").is_dir():
        pytest.skip("localedef cannot make a Latin-1 locale here")
    return {"LOCPATH": str(folder), "LC_ALL": "en_US.ISO-8859-1"}


@pytest.mark.parametrize("kind", ["latin-1 output", "ascii output", "C", "latin-1"])
def test_text_of_any_script_is_printed_and_read_in_any_locale(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    variables = {
        "latin-1 output": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "latin-1"},
        "ascii output": {**ASCII, "PYTHONIOENCODING": "ascii"},
        "C": ASCII,
    }.get(kind)
    if variables is None:
        variables = request.getfixturevalue("latin_1")
    text = "Œuvre ─" if kind == "latin-1 output" else TEXT
    if kind == "latin-1":
        text = "Théâtre"  # what can be typed there
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT), text=text), encoding="utf-8")
    folder = tmp_path / "files"
    folder.mkdir()
    typed = text.encode("latin-1") if kind == "latin-1" else text
    done = start([script, "--folder", folder, "--text", typed], variables)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert (folder / text).read_bytes() == text.encode()
    assert b"\\udcff" in done.stdout
    expected = {
        "latin-1 output": b"\\u0152uvre \\u2500",
        "ascii output": b"\\u041f\\u0440",
        "C": TEXT.encode(),
        "latin-1": b"Th\xe9\xe2tre",
    }
    assert expected[kind] in done.stdout


def test_help_can_be_printed_anywhere() -> None:
    for command in COMMANDS:
        done = start([ROOT / command, "--help"], {"PYTHONIOENCODING": "ascii"})
        assert done.returncode == 0 and done.stdout, (command, done.stderr)


def test_a_corpus_with_french_names_is_prepared_alike_in_a_c_locale(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus" / "FR" / "Théâtre"
    corpus.mkdir(parents=True)
    shutil.copy(SAMPLE / "french" / "FR" / "Marche" / "train.txt", corpus / "train.txt")
    for name, variables in (("utf8", {"LC_ALL": "C.UTF-8"}), ("c", ASCII)):
        words = ["--source_path", tmp_path / "corpus", "--checkpoint_dir", TOKENIZER, "--max_length", 64]
        words += ["--num_workers", 1, "--destination_path", tmp_path / name]
        done = start([ROOT / "prepare_data.py", *words], variables)
        assert done.returncode == 0, done.stderr.decode()
    manifests = [(tmp_path / name / "manifest.json").read_text(encoding="utf-8") for name in ("utf8", "c")]
    assert manifests[0] == manifests[1] and "FR/Théâtre" in manifests[0]


def piped(*words: object, into: str) -> tuple[int, str]:
    """The exit code of a command whose stdout goes `into` another, and what it says on stderr."""
    script = f'"$@" | {into}; exit "${{PIPESTATUS[0]}}"'
    command = ["bash", "-c", script, "bash", sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stderr


def test_a_command_whose_reader_went_away_ends_quietly(data_dir: Path) -> None:
    inspected = piped(ROOT / "prepare_data.py", "--inspect", data_dir, "--show", 1000, into="head -n 1")
    assert inspected == (141, "")
    assert piped(ROOT / "utils" / "inspect_data.py", data_dir, "--show", 0, into="true") == (141, "")


def test_help_whose_reader_went_away_ends_quietly() -> None:
    code, errors = piped(ROOT / "pretrain.py", "--help", into="true")
    assert code in (0, 141) and errors == ""  # argparse swallows what goes wrong where the text is longer than a buffer
    assert piped(ROOT / "pretrain.py", "--help", into="cat") == (0, "")


def test_a_closed_stdout_is_no_place_to_print_to(data_dir: Path) -> None:
    script = f'"{sys.executable}" "{ROOT}/utils/inspect_data.py" "{data_dir}" --show 1 >&-'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
