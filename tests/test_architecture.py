"""The house: a small core, rooms with one front door each, imports that point one way."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "capsule_lib"
CORE = {  # each module of the core, and those below it, which it may import
    "files": set(),
    "device": set(),
    "routing": set(),
    "losses": set(),
    "data": {"files"},
    "layers": {"losses", "routing"},
    "model": {"layers", "routing"},
    "training": {"data", "losses", "model"},
    "weights": {"data", "files", "model"},
    "plots": set(),
}
ROOMS = {  # each room, and the rooms whose front door it may use; all may use the core
    "bench": {"explorer"},  # it times what the others do
    "checks": set(),
    "explorer": {"morphometry"},
    "morphometry": set(),
    "train": set(),
}


def imported(path):
    """What a file imports of the package, as the parts of its dotted names."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module != "capsule_lib"]
    names += [f"capsule_lib.{a.name}" for n in nodes if getattr(n, "module", "") == "capsule_lib" for a in n.names]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return [name.split(".")[1:] for name in names if name.split(".")[0] == "capsule_lib"]


def test_the_tables_name_every_module():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert files == CORE.keys() and rooms == ROOMS.keys()


@pytest.mark.parametrize("name", CORE)
def test_imports_of_the_core_point_one_way(name):
    assert {first for first, *_ in imported(PACKAGE / f"{name}.py")} <= CORE[name]


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_use_the_core_and_the_front_doors_of_other_rooms(room):
    for path in (PACKAGE / room).glob("*.py"):
        for first, *_ in imported(path):
            assert first in CORE.keys() | ROOMS[room] | {room}, f"{path.name} imports {first}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_first_line_says_what_a_file_is_for(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring and len(docstring.splitlines()[0]) > 20
