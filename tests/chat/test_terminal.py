"""The chat in a real terminal: what tmux shows of it, as text."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chat.known_answers import make_known_model
from tests.conftest import ROOT

pytestmark = pytest.mark.tmux
SECONDS = 600  # until what is expected is on the screen, on a busy machine
ENDLESS = ("--max_new_tokens", "20000")


class Terminal:
    """A window of a tmux server of its own, in which the chat runs."""

    def __init__(self, socket: Path, width: int, height: int, *options: object) -> None:
        self._socket = socket
        self.raw = socket.with_suffix(".raw")
        words = [sys.executable, str(ROOT / "lit_gpt" / "chat" / "base.py"), *map(str, options)]
        words += ["--temperature", "0", "--accelerator", "cpu"]
        # the shell waits: a window whose program ends at once would be gone before it is looked at
        line = f"exec 2>&1; read _; {shlex.join(words)}; echo ended $?; read _"
        self.tmux("-f", "/dev/null", "new-session", "-d", "-x", width, "-y", height, line)
        self.tmux("pipe-pane", f"cat > {self.raw}")
        self.keys("Enter")

    def tmux(self, *words: object, text: str | None = None) -> str:
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
        environment.pop("TMUX", None)
        command = ["tmux", "-u", "-S", str(self._socket), *map(str, words)]
        done = subprocess.run(command, env=environment, input=text, capture_output=True, encoding="utf-8", check=True)
        return done.stdout

    def keys(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def paste(self, text: str) -> None:
        """Pastes as a terminal does it where a program has asked for marks around what is pasted."""
        self.tmux("load-buffer", "-", text=text)
        self.tmux("paste-buffer", "-p")

    def resize(self, width: int) -> None:
        """Makes the window so wide; tmux tells the program a quarter of a second after an earlier change."""
        self.tmux("resize-window", "-x", width)
        device = self.tmux("display-message", "-p", "#{pane_tty}").strip()
        deadline = time.monotonic() + SECONDS
        terminal = os.open(device, os.O_RDONLY | os.O_NOCTTY)
        try:
            while os.get_terminal_size(terminal).columns != width:
                assert time.monotonic() < deadline, f"the terminal is not {width} wide"
                time.sleep(0.05)
        finally:
            os.close(terminal)

    def screen(self) -> str:
        """What is on the screen, without the lines before the first prompt and without blank ends."""
        lines = [line.rstrip() for line in self.tmux("capture-pane", "-p").splitlines()]
        return "\n".join(lines).strip("\n")

    def wait(self, pattern: str) -> str:
        """The screen, as soon as it holds the pattern."""
        deadline = time.monotonic() + SECONDS
        while not re.search(pattern, screen := self.screen()):
            assert time.monotonic() < deadline, f"no {pattern!r} on the screen:\n{screen}"
            time.sleep(0.05)
        return screen

    def close(self) -> None:
        self.tmux("kill-server")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    before = make_known_model(folder / "before", 32768, {"?": "世界🙂 ok", "!": "ab\n"})
    after = make_known_model(folder / "after", 32768, {"?": "bon🎉", "!": "ja "})
    return before, after


@pytest.fixture(scope="module")
def terminals(models, tmp_path_factory) -> Iterator[tuple[Terminal, Terminal]]:
    """One with the first model and one with both; they start beside each other."""
    sockets = tmp_path_factory.mktemp("tmux")
    before, after = models
    one = Terminal(sockets / "one", 60, 20, "--model", before, *ENDLESS)
    two = Terminal(sockets / "two", 110, 24, "--compare", before, after, *ENDLESS)
    yield one, two
    for terminal in (one, two):
        terminal.close()


HELLO = """\
  /help lists what can be said; Ctrl-C ends an answer, an em
pty line the conversation
> Hello?
世界🙂 ok
  39 of 32,768 tokens
>"""
RESIZED = """\
> A question that is longer than forty c
ells, is it?
世界🙂 ok
"""
NOT_SENT = """\
> Typed
  an empty line or Ctrl-D ends the conve
rsation
>"""
SIDE_BY_SIDE = """\
> Hello?
── before                                             │ ── after
世界🙂 ok                                             │ bon🎉
  before: 39 of 32,768 tokens
  after: 33 of 32,768 tokens
>"""
ONE_UNDER_THE_OTHER = """\
> Short?
── before
世界🙂 ok
── after
bon🎉
"""
PASTED = """\
> first line
second line
third?
世界🙂 ok
  102 of 32,768 tokens
>"""


def test_a_conversation(terminals):
    terminal, _ = terminals
    terminal.wait("^>|\n>")
    terminal.keys("Hello?", "Enter")
    assert terminal.wait("tokens\n>") == HELLO
    # of the characters' bytes each is a token: none was shown before it was whole
    assert "\N{REPLACEMENT CHARACTER}" not in terminal.raw.read_text(encoding="utf-8")

    terminal.paste("first line\nsecond line\nthird?")
    assert terminal.wait("third").endswith("> first line\nsecond line\nthird?")
    terminal.keys("Enter")
    assert terminal.wait("third.\n.+\n.+tokens\n>").endswith(PASTED)

    terminal.keys("Go!", "Enter")
    terminal.wait("ab\nab\nab\n")
    terminal.keys("C-c")
    screen = terminal.wait("stopped\n>")
    assert re.search(r"ab\n(ab|a|)\^C\n  [\d,]+ of 32,768 tokens; stopped\n>$", screen), screen

    terminal.resize(40)
    terminal.keys("A question that is longer than forty cells, is it?", "Enter")
    assert RESIZED in terminal.wait("is it.\n.+\n.+tokens\n>")

    terminal.keys("Typed")
    terminal.wait("> Typed")
    terminal.keys("C-c")
    assert terminal.wait("rsation\n>").endswith(NOT_SENT)
    terminal.keys("/undo", "Enter")
    assert "taken back: A question that is longer" in terminal.wait("taken back")
    terminal.keys("C-d")
    terminal.wait("ended 0")


def test_two_answers_stand_side_by_side(terminals):
    _, terminal = terminals
    terminal.wait("^>|\n>")
    terminal.keys("Hello?", "Enter")
    assert terminal.wait("tokens\n>").endswith(SIDE_BY_SIDE)

    terminal.keys("Go!", "Enter")
    terminal.wait("ja\n")
    terminal.resize(104)
    terminal.wait(f"\nab {{{49}}}│")
    terminal.keys("C-c")
    screen = terminal.wait("after: .+stopped\n>")
    assert re.search(r"before: [\d,]+ of 32,768 tokens; stopped\n  after: [\d,]+ of 32,768 tokens; stopped\n>", screen)
    rows = terminal.raw.read_text(encoding="utf-8").splitlines()
    assert {row.index("│") for row in rows if row.startswith("ab ")} == {54, 51}

    terminal.resize(60)
    terminal.keys("Short?", "Enter")
    assert ONE_UNDER_THE_OTHER in terminal.wait("bon.\n.+tokens\n.+tokens\n>")
