"""What a person says: from a terminal, where it can be edited and pasted, or from a pipe."""

import sys

from lit_gpt.errors import UserError

MORE = "… "  # before a line that goes on


def is_conversation() -> bool:
    """Whether a person types and reads, and no file or pipe."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def read_question(prompt: str) -> str:
    """One or several lines, a backslash at the end of each but the last; empty at the end of the input."""
    lines = [read_line(prompt)]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read_line(MORE))
    return "\n".join(lines).strip("\n")


def read_line(prompt: str) -> str:
    """A line from the keyboard, or what was pasted with lines' ends in it; or a line from a pipe."""
    try:
        if not sys.stdin.isatty():
            return sys.stdin.readline().rstrip()
        import readline  # for a terminal alone: its import gives input() a line editor and a history

        # Python turns it off: what is pasted would be sent at its first line's end
        readline.parse_and_bind("set enable-bracketed-paste on")
        return _edited(prompt)
    except EOFError:
        print()
        return ""
    except UnicodeDecodeError:
        raise UserError("the input is not UTF-8 text") from None


def _edited(prompt: str) -> str:
    return input(prompt).rstrip()
