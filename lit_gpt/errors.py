"""What goes wrong for reasons outside the program, by what a user has to do about it.

An error of these classes ends a command with one line and its exit code; any other is a bug and keeps its traceback."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

NO_SOCKS = "a SOCKS proxy is set (ALL_PROXY, HTTPS_PROXY), which needs a package: pip install socksio; or unset it"
"""What httpx's ImportError means to a user."""


class UserError(ValueError):
    """The command line, the configuration or a path is wrong (exit code 2)."""

    exit_code = 2
    problems: tuple[str, ...] = ()
    """What is wrong one by one, where it is several things."""


class DataError(Exception):
    """A file's content is corrupt, foreign or of another model (exit code 65)."""

    exit_code = 65


class Interrupted(Exception):
    """The work was stopped from outside and can be continued by the same command (exit code 75)."""

    exit_code = 75
    on_every_process = True


def raise_problems(problems: Sequence[str]) -> None:
    """Raises one `UserError` that names all `problems`; returns if there are none."""
    if problems:
        error = UserError("; ".join(problems))
        error.problems = tuple(problems)
        raise error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets an `OSError` name `path`: a full disk does not say which file did not fit."""
    try:
        yield
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from e


def as_os_error(error: BaseException | None, path: Path) -> OSError | None:
    """The OSError behind an error of torch's writers, which hide it in a message or context; None if none is."""
    while error is not None and not isinstance(error, OSError):
        if match := re.match(r"\[Errno (\d+)\]", str(error)):
            number = int(match[1])
            return OSError(number, os.strerror(number), str(path))
        error = error.__cause__ or error.__context__
    return error
