"""From a command line to one frozen dataclass of options, and from an error to one line and an exit code.

Every command ends with `sys.exit(cli.run(main, options))`. Its options are the fields of a frozen dataclass, the
string under each field is its help, and `__post_init__` raises `UserError` for values that cannot be. Nothing heavy is
imported here, so `--help` answers at once.
"""

import difflib
import errno
import itertools
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

import yaml
from docstring_parser import parse_from_object
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from lit_gpt.errors import DataError, Interrupted, UserError, raise_problems
from utils.cluster.ranks import end_process, is_distributed, own_exit_code, process_rank
from utils.cluster.streams import CLOSED, drop_output, flush_output, output_is_closed, ready_streams
from utils.recipe.sections import read_recipe

OK, BUG, USAGE, DATA, IO, INTERRUPTED = 0, 1, 2, 65, 74, 75

PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
"""Errors of a file system that is failing over or was mounted anew: the same command may go on a while later."""

POSITIONAL: dict[str, dict[str, Any]] = {
    "folders": {"nargs": "+", "type": Path, "metavar": "FOLDER", "help": "One or several of them."},
    "repo": {"type": str, "metavar": "REPO", "help": "A repository of the Hugging Face Hub, as ORG/NAME."},
    "action": {"type": str, "metavar": "ACTION", "help": "ls, show NAME, cp NAME FILE, check FILE or run FILE."},
    "names": {"nargs": "*", "type": str, "metavar": "NAME", "help": "What the action is about."},
}
"""Fields of these names are given without an option's name: `script.py FOLDER FOLDER`."""

OptionsT = TypeVar("OptionsT")


def parse_or_exit(options_class: type[OptionsT], argv: Sequence[str] | None = None) -> OptionsT:
    """Parses `argv` (default: `sys.argv[1:]`) into `options_class`; --help and mistakes in it end the process here.

    A command calls it above its imports of heavy packages: both are answered at once. Ctrl-C and a failing file system
    during these imports end the process as they do during the work.
    """
    if argv is None:
        ready_streams()
        argv = sys.argv[1:]
        sys.excepthook = _end_imports
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt_imports)
    try:
        return _parse_or_print(options_class, argv)
    except (UserError, OSError) as e:
        sys.exit(_report(e, _wants_traceback(argv)))


def _parse_or_print(options_class: type[OptionsT], argv: Sequence[str]) -> OptionsT:
    """Parses `argv`; a SystemExit once --help is not only printed, but written."""
    try:
        return parse(options_class, argv)
    except SystemExit:
        flush_output()
        raise


def _interrupt_imports(number: int, frame: FrameType | None) -> NoReturn:
    """Ends the process at once: a package that catches everything while it is imported would catch Ctrl-C too."""
    end_process(_report(KeyboardInterrupt(), with_traceback=False))


def _end_imports(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ends the process for what no `run` has caught: with one line if it is nobody's bug."""
    if not isinstance(error, OSError):
        sys.__excepthook__(kind, error, trace)
        return
    end_process(_report(error, with_traceback=_wants_traceback(sys.argv[1:])))


def run(main: Callable[[OptionsT], None], options: OptionsT) -> int:
    """Calls `main(options)` and returns the exit code.

    A user's mistake, bad data or a failing disk is one line on stderr; a traceback means a bug (or `--debug true`).
    One of several processes does not return but ends here, see `end_process`.
    """
    exit_code = OK
    if signal.getsignal(signal.SIGINT) is _interrupt_imports:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main(options)
        flush_output()
    except (UserError, DataError, Interrupted, OSError, KeyboardInterrupt) as e:
        exit_code = _report(e, getattr(options, "debug", False))
    except Exception:
        if not is_distributed():
            raise
        # Ends at once: the interpreter would first wait for this process's threads, the others for this one.
        traceback.print_exc()
        exit_code = BUG
    if is_distributed():
        end_process(exit_code)
    return exit_code


def _described(error: BaseException) -> tuple[str, int]:
    """One line for the user, and the exit code."""
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}", INTERRUPTED if error.errno in PASSING else IO
    if isinstance(error, KeyboardInterrupt):
        return "interrupted from the keyboard", INTERRUPTED
    assert isinstance(error, (UserError, DataError, Interrupted))
    return str(error), error.exit_code


def _report(error: BaseException, with_traceback: bool) -> int:
    """Prints the error once for the whole run; returns what this process exits with.

    Nothing is said when the reader of stdout has gone (`| head`): it wanted no more.
    """
    if isinstance(error, BrokenPipeError) and output_is_closed():
        drop_output()
        return CLOSED
    message, exit_code = _described(error)
    if with_traceback:
        traceback.print_exc()
    rank = process_rank()
    if rank and getattr(error, "on_every_process", False):
        return own_exit_code(exit_code)  # process 0 prints it for all
    if rank and "SLURM_STEP_ID" in os.environ and not is_distributed():
        # Most often the first task finds the same before the tasks met, says it, and Slurm ends the others.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(exit_code))
        time.sleep(5.0)
    prefix = f"error (rank {rank}): " if rank else "error: "
    print(prefix + " ".join(message.split()), file=sys.stderr, flush=True)
    return exit_code


def _wants_traceback(argv: Sequence[str]) -> bool:
    """Whether the line says `--debug true`: options of a faulty line are not parsed."""
    words: list[str] = []
    for word in argv:
        words += word.split("=", 1) if word.startswith("--") else [word]
    given = [value for option, value in itertools.pairwise(words) if option == "--debug"]
    return bool(given) and given[-1].lower() in ("true", "yes", "1")


def parse(options_class: type[OptionsT], argv: Sequence[str]) -> OptionsT:
    """Parses `argv` into `options_class`.

    Options may be shortened to any unambiguous beginning (`--max` for `--max_batches`), as argparse allows. `--config
    FILE.yaml` gives any option's value; what comes after it on the line wins. The file may be a recipe, of which a
    class with a `SECTION` reads that section. A field of type `tuple[str, ...]` takes one or several
    texts, one of `tuple[int, ...]` numbers.

    Raises:
        UserError: for a line, or a file, that does not make options.
    """
    names = [field.name for field in fields(options_class)]
    parser = _make_parser(options_class)
    options = [name for name in names if name not in POSITIONAL]
    argv = _expand(argv, [*options, "config", "help", "print_config"])
    section = getattr(options_class, "SECTION", None)
    try:
        namespace = parser.parse_args(_with_sections(argv, section))
    except ArgumentError as e:
        raise UserError(_readable(str(e), options_class)) from None
    except UnicodeDecodeError as e:
        raise UserError(f"--config: the file is not UTF-8 text: {e}") from None
    return _make_options(options_class, namespace)


def parse_values(options_class: type[OptionsT], values: Mapping[str, Any]) -> tuple[OptionsT | None, list[str]]:
    """Makes options of a recipe's section; None, and all that is wrong with it, where that cannot be done.

    Whether values fit each other, which `__post_init__` says, is asked only where each is one.
    """
    names = [field.name for field in fields(options_class)]
    unknown = [name for name in values if name not in names]
    problems = [f"unknown option {name}{_nearest(str(name), options_class)}" for name in unknown]
    several = _fields_of_several(options_class)
    single = [name for name in several if not isinstance(values.get(name, []), (list, tuple))]
    kinds = {str: "texts", int: "numbers"}
    problems += [f"{name} must be a list of {kinds[several[name]]}, such as [{values[name]}]" for name in single]
    rest = {name: value for name, value in values.items() if name in names and name not in single}
    parser = _make_parser(options_class)
    namespace = None
    while namespace is None:
        try:
            namespace = parser.parse_args(["--config", *_as_words(rest)])
        except ArgumentError as e:
            problems.append(_readable(str(e), options_class).removesuffix("; see --help"))
            wrong = re.search(r'Parser key "([\w.]+)"(?: element \d+)?:', str(e))
            if wrong is None or rest.pop(wrong[1], None) is None:
                break
    if problems or namespace is None:
        return None, problems
    try:
        return _make_options(options_class, namespace), []
    except UserError as e:
        return None, list(e.problems or [str(e)])


def _make_options(options_class: type[OptionsT], namespace: Any) -> OptionsT:
    values = {field.name: namespace[field.name] for field in fields(options_class)}
    for name in _fields_of_several(options_class):
        values[name] = tuple(values[name] or ())
    hints = get_type_hints(options_class)
    taken = {name for name, hint in hints.items() if hint is Any or type(None) in get_args(hint)}
    empty = [name for name, value in values.items() if value is None and name not in taken]
    raise_problems([f"--{name} has no value: give it one, or leave it out" for name in empty])
    return options_class(**values)


def _fields_of_several(options_class: type) -> dict[str, type]:
    """The fields that take one or several texts or numbers, and which of the two."""
    hints = get_type_hints(options_class)
    kinds = {tuple[str, ...]: str, tuple[int, ...]: int}
    return {field.name: kinds[hints[field.name]] for field in fields(options_class) if hints[field.name] in kinds}


def _make_parser(options_class: type) -> ArgumentParser:
    """A parser with the fields of `options_class`, and --config."""
    # Resolved here: jsonargparse would import what the script imports for type checkers only, 3 s of torch.
    options_class.__init__.__annotations__ = {**get_type_hints(options_class), "return": type(None)}
    several = _fields_of_several(options_class)
    description = (options_class.__doc__ or "").strip()
    parser = ArgumentParser(description=description, exit_on_error=False, default_meta=False)
    defaults = {field.name: field.default for field in fields(options_class)}
    positional = POSITIONAL.keys() & defaults.keys()
    parser.add_class_arguments(options_class, as_group=False, skip={*several, *positional})
    for name, kind in several.items():
        if name in positional:
            continue
        metavar = "TEXT" if kind is str else "NUMBER"
        parser.add_argument(f"--{name}", nargs="+", type=kind, metavar=metavar, default=[*defaults[name]])
    for name in POSITIONAL:  # in their order
        if name in positional:
            parser.add_argument(name, **POSITIONAL[name])
    helps = _help_texts(options_class)
    for action in parser._actions:
        action.help = helps.get(action.dest, action.help)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with values for any of these options.")
    return parser


def _with_sections(argv: Sequence[str], section: str | None) -> list[str]:
    """Replaces each recipe that --config names by its section's options, as YAML.

    Positional options of the section follow at the line's end, unless the line has some of its own.
    """
    words: list[str] = []
    for word in argv:
        words += word.split("=", 1) if word.startswith("--config=") else [word]
    positional: list[str] = []
    for at, (option, path) in enumerate(itertools.pairwise(words)):
        recipe = read_recipe(Path(path)) if option == "--config" else None
        if recipe is None:
            continue
        if section is None:
            raise UserError(f"{path} is a recipe, and none of its sections is of this command")
        words[at + 1], *positional = _as_words(recipe.values(section))
    return [*words, *positional] if len(words) == 2 else words


def _as_words(values: Mapping[str, Any]) -> list[str]:
    """What comes after --config on a line: options as YAML, and the positional ones one by one."""
    positional = [str(value) for name in POSITIONAL if name in values for value in values[name]]
    return [yaml.safe_dump({name: value for name, value in values.items() if name not in POSITIONAL}), *positional]


def _help_texts(options_class: type) -> dict[str, str | None]:
    """The strings under the fields of a class and of those it inherits from, where jsonargparse does not look."""
    helps = {}
    parents = options_class.__mro__[:-1]  # object, the last, has no fields
    for parent in reversed(parents):  # a class overrides its parents
        helps |= {parameter.arg_name: parameter.description for parameter in parse_from_object(parent).params}
    return helps


def _expand(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """Replaces each option by the one full name it is the beginning of."""
    expanded = []
    for word in argv:
        option, equals, value = word.partition("=")
        beginning = option.removeprefix("--")
        if option.startswith("--") and beginning and beginning not in names:
            matches = [name for name in names if name.startswith(beginning)]
            if len(matches) > 1:
                raise UserError(f"option {option} could be " + " or ".join(f"--{name}" for name in matches))
            if matches:
                option = "--" + matches[0]
        expanded.append(option + equals + value)
    return expanded


def _readable(message: str, options_class: type) -> str:
    """jsonargparse's message in the words of the command line."""
    if "object does not support item assignment" in message or "object is not iterable" in message:
        return "--config: an option of several texts needs a list of them"
    if "Unrecognized arguments:" in message:
        unknown = message.split("Unrecognized arguments:")[1].split()[0]
        return f"unknown option {unknown}{_nearest(unknown, options_class)}; see --help"
    annotations = {field.name: str(field.type) for field in fields(options_class)}
    if match := re.search(r"Key '([^']+)' is not expected", message):
        return f"unknown option {match[1]} in --config{_nearest(match[1], options_class)}; see --help"
    if match := re.search(r'Key "([\w.]+)" is required', message):
        if match[1] in POSITIONAL:
            return f"no {POSITIONAL[match[1]]['metavar'].lower()} is given; see --help"
        return f"--{match[1]} is required; see --help"
    if match := re.search(r'Parser key "([\w.]+)"(?: element \d+)?:\s*(.*)', message, flags=re.DOTALL):
        return _wrong_value(match[1], match[2], annotations.get(match[1], ""))
    return message


def _nearest(unknown: str, options_class: type) -> str:
    """Names the option that an unknown one resembles, if there is one."""
    names = [field.name for field in fields(options_class)]
    word = unknown.partition("=")[0].lstrip("-").replace("-", "_")
    nearest = difflib.get_close_matches(word, names, n=1)
    dashes = "--" if unknown.startswith("--") else ""
    return f", the nearest is {dashes}{nearest[0]}" if nearest else ""


def _wrong_value(name: str, reason: str, annotation: str) -> str:
    """Says what the option `name` may be instead, by jsonargparse's reason and the field's annotation."""
    choices = re.search(r"Literal\[(.*?)\]", annotation)
    if choices:
        return f"--{name} must be one of {choices[1]}"
    if annotation.startswith("list[dict"):
        return f"--{name} must be a list of mappings, in a --config file or as JSON"
    if annotation.startswith("dict"):
        return f"--{name} must be a mapping of texts, in a --config file or as JSON"
    reason = re.sub(r"<class '(\w+)'>", r"\1", reason)
    kinds = re.search(r"Subtypes: \[(.*?)\].*Given value: (.*)", reason, flags=re.DOTALL)
    if kinds:
        reason = f"Expected one of {kinds[1].replace('NoneType', 'null')}. Got value: {kinds[2]}"
    return f"--{name}: {reason}"


def public_values(options: Any) -> dict[str, Any]:
    """The options as plain YAML values: paths become absolute strings, tuples lists."""

    def plain(value: Any) -> Any:
        if value is None or isinstance(value, (str, int, float, bool)):
            return value
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        return str(value.absolute() if isinstance(value, Path) else value)

    return {field.name: plain(getattr(options, field.name)) for field in fields(options)}
