"""The architecture, held by syntax trees: who imports whom, what runs on import, how long and deep functions are."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMAND_FOLDERS = ("data", "lit_gpt/scripts", "lit_gpt/generate", "lit_gpt/chat")
UTILS_LIBRARY = ("utils/__init__.py", "utils/cli.py")
# started by a command with `python -m`: checks that need a fresh process
PROCESSES = (
    "lit_gpt/formats/hf_logits_process.py",
    "lit_gpt/formats/peft_logits_process.py",
    "utils/export/hf_probabilities_process.py",
    "utils/export/converter_process.py",
)
SAMPLE, SHIPPED = "data/sample", "hf_files"  # outside of the house
JUNK_DRAWERS = {"utils.py", "misc.py", "common.py", "helpers.py"}

FLOORS = (
    ("lit_gpt",),  # errors.py, repository.py and what else lies outside of the rooms
    ("lit_gpt/model", "lit_gpt/tokenizer"),
    ("lit_gpt/formats",),
    ("lit_gpt/inference",),
    ("utils/files",),
    ("utils/cluster",),
    ("utils/recipe",),
    ("utils",),  # cli.py
    ("utils/data",),
    ("utils/prepare/chat",),
    ("utils/prepare", "utils/run"),
    ("utils/train", "utils/books"),
    ("utils/export",),
    ("utils/report", "utils/chat"),
    ("utils/stages",),
    ("commands",),
)
"""From the bottom to the top: a room imports rooms of lower floors, and neither its neighbours nor what is above."""

LINES = {
    "lit_gpt": 498,
    "lit_gpt/model": 1923,
    "lit_gpt/tokenizer": 1605,
    "lit_gpt/formats": 3578,
    "lit_gpt/inference": 454,
    "utils/files": 694,
    "utils/cluster": 677,
    "utils/recipe": 187,
    "utils": 366,
    "utils/data": 1553,
    "utils/prepare/chat": 2135,
    "utils/prepare": 7810,
    "utils/run": 1489,
    "utils/train": 3381,
    "utils/export": 2303,
    "utils/report": 807,
    "commands": 1899,
    "utils/stages": 1116,
    "utils/books": 4697,
    "utils/chat": 1313,
}
"""The most lines a room may have, docstrings and blank lines included: as many as it has. Who needs more says why."""

LONG_FILES = ("lit_gpt/formats/families.py",)
"""Files of over 400 lines; the opening of the room says why."""

MAX_LINES, MAX_NESTING, MAX_FILE_LINES = 60, 4, 400
MAX_HELP_MODULES = 320  # imported by --help, in a tenth of a second; numpy alone would add 100, torch 1,100
# What a constant may be made with: pure, and quick.
CONSTRUCTORS = {
    "Path",
    "Path(__file__).resolve",
    "TypeVar",
    "dict",
    "frozenset",
    "re.compile",
    "set",
    "tuple",
}
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match, ast.AsyncFor, ast.AsyncWith)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def find_modules() -> list[str]:
    """All of the program's Python files, relative to the repository.

    What tests and measures it is not among them, nor what it wrote: models hold a Python file for endpoints.
    """
    others = ("tests", "benchmarks", "out", "checkpoints")
    folders = (path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    nested = (path for name in folders if name not in others for path in (ROOT / name).rglob("*.py"))
    return sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.py"), *nested))


MODULES = find_modules()


def room_of(path: str) -> str:
    """The room that a file lies in, as `FLOORS` has it; "commands" for a file that a person runs."""
    folder = str(Path(path).parent)
    is_utils_command = folder == "utils" and path not in UTILS_LIBRARY
    if folder in (".", *COMMAND_FOLDERS) or is_utils_command:
        return "commands"
    return folder


ROOMS = {module: room_of(module) for module in MODULES}
COMMANDS = [path for path, room in ROOMS.items() if room == "commands" and Path(path).name != "__init__.py"]
SCRIPTS = [*COMMANDS, *(path for path, room in ROOMS.items() if room == SAMPLE)]


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def parse(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), path)


def imported(tree: ast.Module, package: str) -> set[str]:
    """Every module that is imported anywhere in `tree`, and every name imported from one, which may be a module."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def imports_of(path: str) -> set[str]:
    return imported(parse(path), module_name(str(Path(path).parent)))


def is_name(node: ast.expr, *names: str) -> bool:
    return ast.unparse(node) in names


def is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def runs_on_import(node: ast.stmt) -> bool:
    """Whether a module's statement does more than define something."""
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.ClassDef, *FUNCTIONS)) or is_main_guard(node):
        return False
    if isinstance(node, ast.If) and is_name(node.test, "TYPE_CHECKING", "typing.TYPE_CHECKING"):
        return any(runs_on_import(inner) for inner in (*node.body, *node.orelse))
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Constant)
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        calls = [inner for inner in ast.walk(node) if isinstance(inner, ast.Call)]
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return not all(isinstance(target, (ast.Name, ast.Tuple)) for target in targets) or any(
            not is_name(call.func, *CONSTRUCTORS) for call in calls
        )
    return True


def functions_of(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, FUNCTIONS))


def nesting(node: ast.AST) -> int:
    """How many blocks lie in one another below `node`. An elif is as deep as its if; inner functions are apart."""
    deepest = 0
    for field, value in ast.iter_fields(node):
        children = [child for child in (value if isinstance(value, list) else [value]) if isinstance(child, ast.AST)]
        is_elif = (
            isinstance(node, ast.If) and field == "orelse" and len(children) == 1 and isinstance(children[0], ast.If)
        )
        for child in children:
            if not isinstance(child, (*FUNCTIONS, ast.ClassDef, ast.Lambda)):
                deepest = max(deepest, nesting(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


def unannotated(tree: ast.AST) -> list[str]:
    """Public functions and methods that leave an argument or their result without a type."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found += [f"{node.name}.{name}" for name in unannotated(node)]
        is_public = isinstance(node, FUNCTIONS) and (not node.name.startswith("_") or node.name == "__init__")
        if not is_public:
            continue
        arguments = node.args
        named = [*arguments.posonlyargs, *arguments.args]
        is_static = any(is_name(decorator, "staticmethod") for decorator in node.decorator_list)
        named = named[1:] if isinstance(tree, ast.ClassDef) and not is_static else named
        everything = [*named, *arguments.kwonlyargs, *filter(None, (arguments.vararg, arguments.kwarg))]
        if node.returns is None or any(argument.annotation is None for argument in everything):
            found.append(node.name)
    return found


# Floors


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def project_imports(path: str) -> set[str]:
    """The project's files that a file imports, at its top or anywhere else."""
    files = {module_name(module): module for module in MODULES}
    return {files[name] for name in imports_of(path) if name in files} - {path}


def forbidden_imports(path: str) -> list[str]:
    """What a file imports of its own floor's other rooms or of floors above it."""
    room = ROOMS[path]
    found = []
    for imported_file in sorted(project_imports(path)):
        other = ROOMS[imported_file]
        if other == room != "commands" or Path(imported_file).name == "__init__.py":
            continue
        if floor_of(other) >= floor_of(room):
            found.append(f"{imported_file} ({other})")
    return found


def find_circle(edges: dict[str, set[str]]) -> list[str]:
    """Files that import one another, in order; none if there is no circle."""
    finished: set[str] = set()

    def visit(path: str, above: list[str]) -> list[str]:
        if path in above:
            return [*above[above.index(path) :], path]
        if path in finished:
            return []
        for imported_file in sorted(edges.get(path, ())):
            if circle := visit(imported_file, [*above, path]):
                return circle
        finished.add(path)
        return []

    for path in edges:
        if circle := visit(path, []):
            return circle
    return []


def test_there_are_modules_to_look_at():
    assert {"utils/cli.py", "utils/data/shards.py", "utils/data/sample_order.py"} <= set(MODULES)
    assert {"plot_convergence_curves.py", "utils/merge_lora.py", "lit_gpt/chat/base.py"} <= set(COMMANDS)
    assert set(ROOMS.values()) == {room for rooms in FLOORS for room in rooms} | {SAMPLE, SHIPPED}


@pytest.mark.parametrize("path", [path for path in MODULES if ROOMS[path] not in (SAMPLE, SHIPPED)])
def test_imports_go_down(path):
    assert forbidden_imports(path) == []


def test_no_files_import_one_another():
    packages = {path for path in MODULES if Path(path).name == "__init__.py"}
    assert find_circle({path: project_imports(path) - packages for path in MODULES}) == []


@pytest.mark.parametrize("room", LINES)
def test_a_room_keeps_to_its_lines(room):
    paths = [path for path in MODULES if ROOMS[path] == room]
    lines = sum(len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in paths)
    assert lines <= LINES[room], f"{room} has {lines} lines"


@pytest.mark.parametrize("path", [path for path in MODULES if path not in LONG_FILES])
def test_a_file_is_short(path):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("room", sorted({room for rooms in FLOORS for room in rooms} - {"commands"}))
def test_a_room_says_what_it_does_and_must_not_know(room):
    opening = ast.get_docstring(parse(f"{room}/__init__.py"))
    assert opening and len(opening.split(".")) > 2


def unexplained_imports(source: str) -> list[int]:
    """Lines of imports inside functions without a comment beside them or above them that says why."""
    lines = source.splitlines()
    found = []
    for function in functions_of(ast.parse(source)):
        numbers = [node.lineno for node in ast.walk(function) if isinstance(node, (ast.Import, ast.ImportFrom))]
        for first, number in enumerate(numbers):
            between = lines[numbers[first - 1] : number - 1] if first else ["none"]
            follows_another = not any(line.strip() for line in between)
            explained = "#" in lines[number - 1] or lines[number - 2].lstrip().startswith("#")
            if not explained and not follows_another:
                found.append(number)
    return found


@pytest.mark.parametrize("path", MODULES)
def test_imports_inside_functions_have_a_reason(path):
    assert unexplained_imports((ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", [path for path in MODULES if path.startswith(("lit_gpt/", "utils/"))])
def test_only_commands_can_be_run(path):
    assert path in (*COMMANDS, *PROCESSES) or not any(is_main_guard(node) for node in parse(path).body)


def test_transformers_is_asked_by_a_process_without_litgpt():
    names = "{'litgpt', 'lightning'} & {*sys.modules}"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, lit_gpt.formats.hf_logits_process; sys.exit({names} or 0)"], cwd=ROOT
    )
    assert done.returncode == 0


@pytest.mark.parametrize("path", SCRIPTS)
def test_scripts_can_be_run_and_run_nothing_on_import(path):
    body = parse(path).body
    assert [f"line {node.lineno}" for node in body if runs_on_import(node)] == []
    assert is_main_guard(body[-1])


def test_there_is_no_junk_drawer():
    assert [path for path in MODULES if Path(path).name in JUNK_DRAWERS] == []


# Style


@pytest.mark.parametrize("path", MODULES)
def test_functions_are_short_flat_and_annotated(path):
    tree = parse(path)
    problems = [f"{name} lacks annotations" for name in unannotated(tree)]
    for function in functions_of(tree):
        lines, depth = function.end_lineno - function.lineno + 1, nesting(function)
        if lines > MAX_LINES:
            problems.append(f"{function.name} has {lines} lines")
        if depth > MAX_NESTING:
            problems.append(f"{function.name} is nested {depth} deep")
    assert problems == []


@pytest.mark.parametrize("path", SCRIPTS)
def test_help_answers_at_once(path):
    words = [sys.executable, "-X", "importtime", path, "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    imported = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert 100 < len(imported) <= MAX_HELP_MODULES, imported


# The rules themselves


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import a.b", {"a.b"}),
        ("from a import b", {"a", "a.b"}),
        ("def f():\n    from utils.data import x", {"utils.data", "utils.data.x"}),
        ("from . import b", {"package.inner", "package.inner.b"}),
        ("from ..other import b", {"package.other", "package.other.b"}),
    ],
)
def test_imports_are_found(source, found):
    assert imported(ast.parse(source), "package.inner") == found


@pytest.mark.parametrize(
    ("edges", "circle"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c", "b"]),
        ({"a": {"a"}}, ["a", "a"]),
    ],
)
def test_circles_are_found(edges, circle):
    assert find_circle(edges) == circle


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import a", []),
        ("def f():\n    import a", [2]),
        ("def f():\n    import a  # it takes a second", []),
        ("def f():\n    # they take a second\n    import a\n    import b", []),
        ("def f():\n    import a  # it takes a second\n    x = 1\n    import b", [4]),
    ],
)
def test_unexplained_imports_are_found(source, lines):
    assert unexplained_imports(source) == lines


@pytest.mark.parametrize(
    ("source", "runs"),
    [
        ("import sys", False),
        ('"""text"""', False),
        ("X = 3", False),
        ("X: int = 3 + 4", False),
        ("T = TypeVar('T')", False),
        ("if TYPE_CHECKING:\n    import a", False),
        ("if __name__ == '__main__':\n    main()", False),
        ("@dataclass(frozen=True)\nclass A:\n    x: int = field(default=3)", False),
        ("print(3)", True),
        ("X = Path(__file__).resolve().parent / 'x'", False),
        ("X = load()", True),
        ("X = [load() for _ in 'ab']", True),
        ("sys.path[0] = '.'", True),
        ("torch.manual = 3", True),
        ("for i in range(3):\n    pass", True),
        ("if sys.argv:\n    import a", True),
        ("if TYPE_CHECKING:\n    main()", True),
        ("with open('a') as f:\n    pass", True),
    ],
)
def test_what_runs_on_import_is_found(source, runs):
    assert runs_on_import(ast.parse(source).body[0]) == runs


@pytest.mark.parametrize(
    ("source", "depth"),
    [
        ("def f():\n return 1", 0),
        ("def f():\n for i in x:\n  if i:\n   pass", 2),
        ("def f():\n if a:\n  pass\n elif b:\n  pass\n elif c:\n  pass", 1),
        ("def f():\n if a:\n  pass\n else:\n  if b:\n   pass\n  x = 1", 2),
        ("def f():\n with a:\n  def g():\n   for i in x:\n    pass", 1),
        ("def f():\n try:\n  pass\n except E:\n  while 1:\n   pass", 2),
        ("def f():\n match x:\n  case 1:\n   if y:\n    pass", 2),
    ],
)
def test_nesting_is_measured(source, depth):
    assert nesting(ast.parse(source).body[0]) == depth


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def f(a: int) -> int: ...", []),
        ("def f(a) -> int: ...", ["f"]),
        ("def f(a: int): ...", ["f"]),
        ("def f(*a, **b: int) -> int: ...", ["f"]),
        ("def _f(a): ...", []),
        ("class A:\n def f(self, a: int) -> int: ...\n def g(self, a): ...", ["A.g"]),
        ("class A:\n @staticmethod\n def f(a) -> int: ...", ["A.f"]),
        ("class A:\n def __init__(self, a) -> None: ...", ["A.__init__"]),
        ("class _A:\n def f(self, a): ...", []),
    ],
)
def test_missing_annotations_are_found(source, names):
    assert unannotated(ast.parse(source)) == names
