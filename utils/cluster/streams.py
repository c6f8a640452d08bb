"""What this process reads and prints, in whatever locale: text is UTF-8, and printing it never ends the work.

Imports nothing heavy.
"""

import os
import select
import sys

CLOSED = 141
"""The exit code of a program whose reader went away, as a shell has it for SIGPIPE (128 + 13)."""


def ready_streams() -> None:
    """Makes stdout and stderr print any text, and files and names UTF-8, which may start this program anew."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        _start_anew_in_utf8()
    if sys.stdout is None:  # the file descriptor was closed: a file opened later would take its number
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  it stays open
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  it stays open
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def _start_anew_in_utf8() -> None:
    """Replaces this process by the same command in Python's UTF-8 mode: of names, arguments and other people's files.

    What is printed keeps the terminal's encoding.
    """
    # An ASCII locale leaves an argument's bytes as they are; any other has decoded them. A file's name stays.
    words = sys.orig_argv[1:]
    encoded = [
        os.fsencode(word) if os.path.exists(word) else word.encode("utf-8", "surrogateescape")  # noqa: PTH110
        for word in words
    ]
    environment = {"PYTHONIOENCODING": f"{getattr(sys.stdout, 'encoding', 'utf-8')}:backslashreplace", **os.environ}
    if sys.getfilesystemencoding() == "ascii" and "PYTHONIOENCODING" not in os.environ:
        del environment["PYTHONIOENCODING"]  # nobody has such a terminal; the bytes of UTF-8 hurt no pipe
    os.execve(sys.executable, [os.fsencode(sys.executable), *encoded], {**environment, "PYTHONUTF8": "1"})


def output_is_closed() -> bool:
    """Whether whoever read this process's stdout has gone, as `| head` does."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False  # it is no file, as in a test


def flush_output() -> None:
    """Writes out what was printed; a BrokenPipeError now, instead of a message when the interpreter ends."""
    if not sys.stdout.closed:
        sys.stdout.flush()


def drop_output() -> None:
    """Lets everything go nowhere that is still to be printed: the interpreter would complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
