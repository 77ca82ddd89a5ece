"""Measures of a notebook that a reader feels: `python tests/measures.py [NOTEBOOKS]` prints them, test_notebooks.py holds them."""

import ast
import statistics
import sys
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
# What a line that shows begins with: the packages that display, and the names that every figure here has.
SHOWS = {"print", "display", "plt", "plots", "checks", "figure", "axes", "axis"}
WORDS = {"caption", "title", "heading", "label"}


def root(node: ast.AST) -> str:
    """The name that an expression starts with: `axes` of `axes[0].set(...)`."""
    while not isinstance(node, ast.Name):
        inner = getattr(node, "value", getattr(node, "func", None))
        if not isinstance(inner, ast.AST):
            return ""
        node = inner
    return node.id


def kind(statement: ast.stmt) -> str:
    """'idea', 'show' (what displays, checks or words a result), or 'none' (imports, and places that the reader fills in)."""
    match statement:
        case ast.Import() | ast.ImportFrom():
            return "none"
        case ast.Expr(ast.Constant(str())):  # a docstring
            return "none"
        case ast.Expr(value) if ast.unparse(value).startswith("checks.answer("):
            return "none"
        case ast.Assert():
            return "show"
        case ast.Expr(value) if root(value) in SHOWS:
            return "show"
        case ast.FunctionDef(name=name) if name.startswith("my_"):
            return "none"
        case ast.Assign([target], value):
            names = {root(part) for part in getattr(target, "elts", [target])}
            if any(name.startswith("my_") for name in names):
                return "none"
            return "show" if names <= WORDS or root(value) in SHOWS or names & SHOWS else "idea"
    return "idea"


def lines(source: str) -> tuple[int, int]:
    """(idea lines, all lines that count) of a cell, comments and blank lines left out."""
    text = source.splitlines()
    kinds: dict[int, str] = {}

    def mark(statement: ast.stmt) -> set[str]:
        inner = [part for name in ("body", "orelse", "finalbody") for part in getattr(statement, name, [])]
        own = kind(statement)
        for line in range(statement.lineno, statement.end_lineno + 1):
            kinds[line] = own
        if own == "idea" and inner and {seen for part in inner for seen in mark(part)} == {"show"}:
            own = "show"  # a loop in which everything shows
            for line in range(statement.lineno, inner[0].lineno):
                kinds[line] = own
        return {own}

    for statement in ast.parse(source).body:
        mark(statement)
    counted = [
        k for n, k in kinds.items() if text[n - 1].strip() and not text[n - 1].strip().startswith("#") and k != "none"
    ]
    return counted.count("idea"), len(counted)


def measure(path: Path) -> dict[str, float]:
    """Share of idea lines, longest line [columns], median and longest code cell [lines], minutes to read and run."""
    cells = nbformat.read(path, as_version=4).cells
    codes = [cell.source for cell in cells if cell.cell_type == "code"]
    ideas, counted = (sum(column) for column in zip(*map(lines, codes), strict=True))
    heights = [len(code.splitlines()) for code in codes]
    titles = [cell.source.split("\n")[0] for cell in cells]
    exercises = range(titles.index("## Check yourself"), titles.index("## Summary"))  # have minutes of their own
    read = [cell for n, cell in enumerate(cells) if n not in exercises]
    words = sum(len(cell.source.split()) for cell in read if cell.cell_type == "markdown")
    return {
        "ideas": ideas / counted,
        "columns": max(len(line) for code in codes for line in code.splitlines()),
        "median": statistics.median(heights),
        "longest": max(heights),
        "minutes": words / 180 + sum(cell.cell_type == "code" for cell in read),
    }


if __name__ == "__main__":
    print(f"{'notebook':24} ideas columns median longest minutes")
    for path in map(Path, sys.argv[1:] or sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))):
        m = measure(path)
        print(
            f"{path.stem:24} {m['ideas']:5.0%} {m['columns']:7} {m['median']:6.0f} {m['longest']:7} {m['minutes']:7.0f}"
        )
