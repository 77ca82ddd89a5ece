"""What a notebook says in words, executed: its folded solutions, and the measurements behind its predictions.

python tests/solutions.py FOLDER NOTEBOOKS    writes such copies of the notebooks, for nbval
"""

import ast
import copy
import re
import sys
from pathlib import Path

import nbclient
import nbformat

from capsule_lib.checks.exercises.answer_key import look_up

UNCOMPARED = {"tags": ["nbval-ignore-output"]}
FENCE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def solution(cell) -> str:
    """The code of a markdown cell that is tagged as a solution; '' for any other cell."""
    if cell.cell_type != "markdown" or "solution" not in cell.metadata.get("tags", []):
        return ""
    code = "\n".join(FENCE.findall(cell.source))
    assert code, f"a solution without a ```python block: {cell.source[:80]}"
    return code


def calls(source: str, name: str) -> list[ast.Call]:
    """All calls of checks.<name> in a cell."""
    lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    nodes = ast.walk(ast.parse("\n".join(lines)))
    return [n for n in nodes if isinstance(n, ast.Call) and ast.unparse(n.func) == f"checks.{name}"]


def asked(cell, name: str) -> list[str]:
    """The keys of the predictions or answers that a code cell asks for."""
    return [call.args[0].value for call in calls(cell.source, name)] if cell.cell_type == "code" else []


def proving(source: str) -> str:
    """Solution code that fails where it is wrong: it has an assert, or its last expression must be a verdict that passed."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if isinstance(last, ast.Expr):
        body = "\n".join(source.splitlines()[: last.lineno - 1])
        verdict = f"({ast.unparse(last)})"
        return f"{body}\n_verdict = {verdict}\nassert getattr(_verdict, 'passed', None) is True, _verdict"
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree)), f"this solution proves nothing:\n{source}"
    return source


def executable(notebook):
    """The notebook with code cells after each prediction (what was measured is so) and after each solution (it is right)."""
    whole = copy.deepcopy(notebook)
    whole.cells = []
    for cell in notebook.cells:
        whole.cells.append(cell)
        for key in asked(cell, "predict"):
            truth = look_up("predictions", key)
            source = f"assert ({truth.measured}), 'prediction {key}: measured otherwise than the answer key says'"
            whole.cells.append(nbformat.v4.new_code_cell(source, metadata=UNCOMPARED))
        if code := solution(cell):
            whole.cells.append(nbformat.v4.new_code_cell(proving(code), metadata=UNCOMPARED))
    return whole


def execute(notebook, folder) -> None:
    """Run all cells of `executable` in a fresh kernel, and raise where one fails."""
    nbclient.NotebookClient(executable(notebook), timeout=300, resources={"metadata": {"path": str(folder)}}).execute()


if __name__ == "__main__":
    folder, *paths = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        nbformat.write(executable(nbformat.read(path, as_version=4)), folder / path.name)
