"""The house: a small core, rooms with one front door each, imports that point one way."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "capsule_lib"
MAY_USE = {  # each file of the core and each room, and what of the package it may import
    "contract": set(),
    "files": set(),
    "device": set(),
    "routing": {"contract"},
    "losses": {"contract"},
    "data": {"contract", "files"},
    "layers": {"contract", "routing"},
    "model": {"contract", "device", "layers", "routing"},
    "training": {"contract", "data", "losses", "model"},
    "weights": {"device", "files", "layers", "model"},
    "routings": {"contract", "layers", "routing"},
    "plots": {"contract"},
    "morphometry": {"contract", "model"},
    "museum": {"data", "losses", "model", "routing"},
    "own_pictures": {"contract", "morphometry"},
    "checks": {"data", "device", "files", "losses", "model", "routing", "weights"},
    "explorer": {"contract", "data", "files", "layers", "model", "morphometry", "own_pictures", "plots", "weights"},
    "experiments": {
        "contract",
        "data",
        "device",
        "files",
        "losses",
        "model",
        "museum",
        "routing",
        "routings",
        "training",
    },
    "train": {"contract", "data", "device", "files", "model", "morphometry", "own_pictures", "training", "weights"},
    "bench": {
        "data",
        "device",
        "explorer",
        "files",
        "layers",
        "losses",
        "model",
        "routing",
        "weights",
    },  # it times them all
}


def imported(path):
    """What a file imports of the package, as the parts of its dotted names."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module != "capsule_lib"]
    names += [f"capsule_lib.{a.name}" for n in nodes if getattr(n, "module", "") == "capsule_lib" for a in n.names]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return [name.split(".")[1:] for name in names if name.split(".")[0] == "capsule_lib"]


def test_the_table_names_every_module():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert files | rooms == MAY_USE.keys()


def test_the_table_has_no_circle():
    left = {name: set(below) for name, below in MAY_USE.items()}
    while left:
        free = {name for name, below in left.items() if not below & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {name: below for name, below in left.items() if name not in free}


@pytest.mark.parametrize("name", MAY_USE)
def test_imports_point_one_way_and_through_front_doors(name):
    room = PACKAGE / name
    for path in sorted(room.rglob("*.py")) if room.is_dir() else [PACKAGE / f"{name}.py"]:
        for first, *inside in imported(path):
            assert first in MAY_USE[name] | {name}, f"{path.name} imports {first}"
            assert first == name or not inside, f"{path.name} does not use the front door of {first}: {inside}"


def test_the_core_is_small():
    files = sorted(PACKAGE.glob("*.py"))
    assert len(files) <= 12 and sum(len(path.read_text().splitlines()) for path in files) <= 1200


READ_IN_ONE_SITTING = {  # the room of checkers, in the parts that a reader reads it in
    "how code is asked": ["__init__", "verdict", "reports"],
    "what readers write": ["capsules", "routing", "losses", "inputs"],
    "what others wrote": ["layers", "networks"],
}


def test_each_part_of_the_checkers_is_read_in_one_sitting_and_knows_no_exercise():
    files = {path.stem: path for path in (PACKAGE / "checks").glob("*.py")}
    assert files.keys() == {name for part in READ_IN_ONE_SITTING.values() for name in part}
    for part, names in READ_IN_ONE_SITTING.items():
        assert sum(len(files[name].read_text().splitlines()) for name in names) <= 900, part
    for name in files.keys() - {"__init__"}:
        assert not any("exercises" in parts for parts in imported(files[name])), name


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_first_line_says_what_a_file_is_for(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring and len(docstring.splitlines()[0]) > 20


def test_the_tree_in_contributing_names_every_file_and_room_and_fits_on_one_screen():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    tree = text[text.index("capsule_lib/\n") :].split("```")[0]
    named = {line.split()[0].rstrip("/").removesuffix(".py") for line in tree.splitlines() if line.startswith("  ")}
    assert named == MAY_USE.keys() and len(tree.splitlines()) <= 30
