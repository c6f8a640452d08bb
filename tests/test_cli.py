"""From the command line to options, and from errors to one line and an exit code."""

from __future__ import annotations

import errno
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from lit_gpt.errors import DataError, Interrupted, UserError, raise_problems
from tests.conftest import ROOT, run_command
from utils import cli


@dataclass(frozen=True)
class Options:
    """What a script may be told."""

    data_dir: Path
    """Where the data lies."""
    max_batches: int | None = None
    """Stop after so many."""
    batch_size: int = 3
    """Samples."""
    batch_kind: Literal["round", "square"] = "round"
    """Their form."""
    rate: float = 1e-3
    """How fast."""
    shares: tuple[float, ...] = ()
    """Of the whole."""
    debug: bool = False
    """Show a traceback."""

    def __post_init__(self) -> None:
        raise_problems([f"--{name} must be positive" for name in ("batch_size", "rate") if getattr(self, name) <= 0])


@dataclass(frozen=True)
class FolderOptions:
    """A script with folders."""

    folders: list[Path]
    """Some."""
    title: str = ""
    """Of the figure."""


NEEDED = ("--data_dir", "here")


def parse(*argv: object) -> Options:
    return cli.parse(Options, [*NEEDED, *map(str, argv)])


def fail(capsys: pytest.CaptureFixture[str], argv: list[str], error: BaseException | None = None) -> tuple[int, str]:
    """The exit code and stderr of a `main` that raises `error`."""

    def main(_: Options) -> None:
        if error is not None:
            raise error

    code = run_command(Options, main, argv)
    return code, capsys.readouterr().err


def assert_refused(capsys: pytest.CaptureFixture[str], argv: list[str], *words: str) -> None:
    code, err = fail(capsys, argv)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err
    assert "<class" not in err and "Traceback" not in err


def test_all_kinds_of_values():
    options = parse("--max_batches=7", "--rate", "2e-5", "--batch_kind", "square", "--shares", "[0.5, 1]")
    assert options == Options(Path("here"), 7, rate=2e-5, batch_kind="square", shares=(0.5, 1.0))


def test_an_option_may_be_shortened():
    assert parse("--max", 4).max_batches == 4
    assert parse("--max=4").max_batches == 4


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([*NEEDED, "--batch", "4"], ("--batch ", "--batch_size", "--batch_kind")),
        ([*NEEDED, "--nope", "4"], ("--nope",)),
        ([*NEEDED, "stray"], ("stray",)),
        ([*NEEDED, "--batch_kind", "flat"], ("--batch_kind", "'round', 'square'")),
        ([*NEEDED, "--batch_size", "many"], ("--batch_size", "int", "many")),
        ([*NEEDED, "--max_batches", "1.5"], ("--max_batches", "int", "1.5")),
        ([*NEEDED, "--max_batches"], ("--max_batches",)),
        ([], ("--data_dir is required",)),
        ([*NEEDED, "--batch_size", "0", "--rate", "-1"], ("--batch_size", "--rate")),
        ([*NEEDED, "--config", "nowhere.yaml"], ("nowhere.yaml",)),
    ],
)
def test_a_wrong_line_is_refused(capsys, argv, words):
    assert_refused(capsys, argv, *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"nope: 1\n", ("nope",)),
        (b"batch_size: many\n", ("--batch_size", "many")),
        (b"batch_size: [1\n", ()),
        (b"- 1\n", ()),
        (b"", ()),
        (b"batch_size: 1 # \xff\n", ()),
    ],
)
def test_a_wrong_configuration_is_refused(capsys, tmp_path, content, words):
    path = tmp_path / "options.yaml"
    path.write_bytes(content)
    assert_refused(capsys, [*NEEDED, "--config", str(path)], *words)


def test_an_unknown_key_of_a_configuration_names_the_nearest(capsys, tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("max_batch: 1\n")
    assert_refused(capsys, [*NEEDED, "--config", str(path)], "unknown option max_batch", "the nearest is max_batches")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("max-batches: 1\n", ("unknown option max-batches in --config", "the nearest is max_batches")),
        ("zzz: 1\n", ("unknown option zzz in --config; see --help",)),
    ],
)
def test_a_key_with_hyphens_or_like_no_other(capsys, tmp_path, content, words):
    path = tmp_path / "options.yaml"
    path.write_text(content)
    assert_refused(capsys, [*NEEDED, "--config", str(path)], *words)


def test_an_unknown_option_names_the_nearest(capsys):
    assert_refused(
        capsys, [*NEEDED, "--max-batches", "1"], "unknown option --max-batches, the nearest is --max_batches"
    )
    assert_refused(capsys, [*NEEDED, "--zzz=1"], "unknown option --zzz=1; see --help")


def test_what_stands_after_the_configuration_wins(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("max_batches: 4\nbatch_size: 5\ndata_dir: there\n")
    assert cli.parse(Options, ["--config", str(path)]) == Options(Path("there"), 4, 5)
    assert parse("--config", path, "--batch_size", 9) == Options(Path("there"), 4, 9)


def test_folders_are_given_without_a_name(capsys):
    options = cli.parse(FolderOptions, ["one", "two/three", "--title", "T"])
    assert options == FolderOptions([Path("one"), Path("two/three")], "T")
    assert run_command(FolderOptions, lambda _: None, ["--title", "T"]) == 2
    assert "no folder is given" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("wrong\noption"), 2, "error: wrong option\n"),
        (DataError("bad file"), 65, "error: bad file\n"),
        (Interrupted("again"), 75, "error: again\n"),
        (KeyboardInterrupt(), 75, "error: interrupted from the keyboard\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), 74, "error: No space left on device: /a/b\n"),
        (OSError("odd"), 74, "error: odd\n"),
        (OSError(errno.ESTALE, "Stale file handle", "/a/b"), 75, "error: Stale file handle: /a/b\n"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(capsys, error, code, message):
    assert fail(capsys, [*NEEDED], error) == (code, message)


@pytest.mark.parametrize("argv", [["--debug", "true"], ["--debug=true"], ["--debug", "false", "--debug", "True"]])
def test_debug_shows_the_traceback(capsys, argv):
    code, err = fail(capsys, [*NEEDED, *argv], DataError("bad file"))
    assert code == 65 and err.startswith("Traceback") and err.endswith("error: bad file\n")


@pytest.mark.parametrize("argv", [["--debug", "false"], ["--debug=false"], ["--data_dir", "debug"]])
def test_without_debug_there_is_no_traceback(capsys, argv):
    assert fail(capsys, [*NEEDED, *argv], DataError("bad file")) == (65, "error: bad file\n")


def test_another_rank_says_so(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert fail(capsys, [*NEEDED], DataError("bad file")) == (65, "error (rank 3): bad file\n")


def test_a_bug_keeps_its_traceback(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom dataclasses import dataclass\nfrom utils import cli\n"
        "@dataclass(frozen=True)\nclass Options:\n    '''None.'''\n"
        "def main(options):\n    raise RuntimeError('a bug')\n"
        "sys.exit(cli.run(main, cli.parse_or_exit(Options)))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr and done.stderr.endswith("RuntimeError: a bug\n")


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.parse_or_exit(Options, ["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for words in ("What a script may be told.", "--max_batches", "Stop after so many.", "--config"):
        assert words in shown


@dataclass(frozen=True, kw_only=True)
class OwnOptions(Options):
    """What another script may be told."""

    own: int = 1
    """Only here."""
    rate: float = 2.0
    """Slower."""
    stop: tuple[str, ...] = ()
    """Where to end."""
    types: tuple[str, ...] = ("f16", "q8_0")
    """What to make."""


def test_inherited_options_are_explained(capsys):
    with pytest.raises(SystemExit):
        cli.parse_or_exit(OwnOptions, ["--help"])
    shown = capsys.readouterr().out
    for words in (
        "What another script",
        "Stop after so many.",
        "Only here.",
        "Slower.",
        "--stop TEXT",
        "Where to end.",
    ):
        assert words in shown
    assert "How fast." not in shown


def test_several_texts_are_taken_as_they_are(tmp_path, capsys):
    def stop(*argv: str) -> tuple[str, ...]:
        return cli.parse(OwnOptions, [*NEEDED, *argv]).stop

    assert stop() == () and stop("--stop", "[a:]") == ("[a:]",)
    assert cli.parse(OwnOptions, NEEDED).types == ("f16", "q8_0")
    assert cli.parse(OwnOptions, [*NEEDED, "--ty", "f32"]).types == ("f32",)
    assert stop("--stop", "\n[a:] ", "null", "1", "--own", "2") == ("\n[a:] ", "null", "1")
    path = tmp_path / "options.yaml"
    path.write_text('stop: ["[a:]", "b"]\n')
    assert stop("--config", str(path)) == ("[a:]", "b") and stop("--config", str(path), "--stop", "c") == ("c",)
    for content in ('stop: "[a:]"', "stop: 5"):
        path.write_text(content + "\n")
        assert run_command(OwnOptions, lambda _: None, [*NEEDED, "--config", str(path)]) == 2
        assert "needs a list" in capsys.readouterr().err
    assert run_command(OwnOptions, lambda _: None, [*NEEDED, "--stop"]) == 2
    assert "--stop" in capsys.readouterr().err


def test_public_values_are_plain_yaml():
    @dataclass(frozen=True)
    class Nested:
        path: Path = Path("a")
        paths: tuple[Path, ...] = (Path("b"), Path("/c"))
        weights: dict[str, Path] = field(default_factory=lambda: {"d": Path("e")})
        nothing: int | None = None
        switch: bool = True
        kind: object = errno  # anything else becomes text

    values = cli.public_values(Nested())
    here = Path.cwd()
    assert values.pop("kind") == str(errno)
    assert values == {
        "path": str(here / "a"),
        "paths": [str(here / "b"), "/c"],
        "weights": {"d": str(here / "e")},
        "nothing": None,
        "switch": True,
    }
    assert yaml.safe_load(yaml.safe_dump(values)) == values
