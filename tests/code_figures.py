"""Prints how a checkout's code is written, a figure a line; tests, benchmarks and the sample aside.

    python tests/code_figures.py [CHECKOUT]

For comparison: nanochat has 1.3 ternaries and 1.7 comprehensions per 100 lines and 14 % comments, litgpt 0.75, 0.7 and
6 %. Lines are those that are not blank, docstrings among them; only the total counts all.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
MAX_FILE = 400


@dataclass
class Figures:
    """Sums over all files."""

    lines: int = 0
    filled: int = 0
    comments: int = 0
    """Lines that are a comment alone."""
    ternaries: int = 0
    comprehensions: int = 0
    imports_in_functions: int = 0
    lines_for_types: int = 0
    """Of imports under TYPE_CHECKING."""
    functions: list[tuple[int, str]] = field(default_factory=list)
    files: list[tuple[int, str]] = field(default_factory=list)

    def add(self, name: str, text: str) -> None:
        tree = ast.parse(text)
        lines = text.splitlines()
        self.files.append((len(lines), name))
        self.lines += len(lines)
        self.comments += sum(line.lstrip().startswith("#") for line in lines)
        self.filled += sum(bool(line.strip()) for line in lines)
        for node in ast.walk(tree):
            self.ternaries += isinstance(node, ast.IfExp)
            self.comprehensions += isinstance(node, COMPREHENSIONS)
            if isinstance(node, FUNCTIONS):
                self.functions.append((node.end_lineno - node.lineno + 1, f"{name}: {node.name}"))
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                self.lines_for_types += sum(found.end_lineno - found.lineno + 1 for found in imports_below(node))
        inner = {id(found) for node in ast.walk(tree) if isinstance(node, FUNCTIONS) for found in imports_below(node)}
        self.imports_in_functions += len(inner)

    def show(self) -> None:
        longest, function = max(self.functions)
        long_files = sorted((size, name) for size, name in self.files if size > MAX_FILE)
        print(f"total lines: {self.lines:,} in {len(self.files)} files, {self.filled:,} of them not blank")
        print(f"longest function: {longest} lines ({function})")
        print(f"ternaries per 100 lines: {100 * self.ternaries / self.filled:.2f}")
        print(f"comprehensions per 100 lines: {100 * self.comprehensions / self.filled:.2f}")
        print(f"comments per 100 lines: {100 * self.comments / self.filled:.1f}")
        print(f"imports in functions: {self.imports_in_functions}")
        print(f"lines of imports under TYPE_CHECKING: {self.lines_for_types}")
        names = ", ".join(f"{name} ({size})" for size, name in reversed(long_files))
        print(f"files over {MAX_FILE} lines: {len(long_files)}{': ' if names else ''}{names}")


def imports_below(node: ast.AST) -> list[ast.AST]:
    return [found for found in ast.walk(node) if isinstance(found, (ast.Import, ast.ImportFrom))]


def program_files(checkout: Path) -> list[Path]:
    found = []
    for path in sorted(checkout.rglob("*.py")):
        parts = path.relative_to(checkout).parts
        if not parts[0].startswith(".") and parts[0] not in ("tests", "benchmarks", "data", "out"):
            found.append(path)
    return found


def main() -> None:
    checkout = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT)
    figures = Figures()
    for path in program_files(checkout):
        figures.add(str(path.relative_to(checkout)), path.read_text(encoding="utf-8"))
    figures.show()


if __name__ == "__main__":
    main()
