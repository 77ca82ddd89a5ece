"""MISTAKES.md: numbers, sources, counts, checkers and tests that exist, and the notebooks' links to its rows."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from capsule_lib import checks

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "MISTAKES.md").read_text(encoding="utf-8")
ROW = re.compile(r'^\| <a id="mistake-(\d+)"></a>(\d+) \| (.*) \|$', re.M)
ROWS = {int(number): rest.split(" | ") for _, number, rest in ROW.findall(TEXT)}
SOURCES = dict(re.findall(r"^\[([\w.-]+/[\w.-]+)\]: (\S+) ", TEXT, re.M))
AUTHORS = "Sarasra/models"  # the paper's own code is not a port
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
WORDS = {word: n for n, word in enumerate(NUMBERS, start=1)}


def count(number):
    """How many ports a row says it found, or None where it gives no number."""
    found = re.match(r"(\d+) ports?\b", ROWS[number][3])
    return found and int(found[1])


def wrong_links(text):
    """What is wrong with a text's links to the rows: a row that is not there, or another number of ports."""
    for words, number in re.findall(r"\[([^\]]*)\]\([^)]*MISTAKES\.md#mistake-(\d+)\)", text):
        if int(number) not in ROWS:
            yield f"{words!r}: there is no row {number}"
            continue
        said = [
            WORDS.get(word.lower()) or int(word) for word in words.split() if word.lower() in WORDS or word.isdigit()
        ]
        if said and said != [count(int(number))]:
            yield f"{words!r}: row {number} names {count(int(number))}"
    for anchor in re.findall(r"MISTAKES\.md#([\w-]+)", text):
        if not re.fullmatch(r"mistake-\d+", anchor):
            yield f"#{anchor} is no anchor of MISTAKES.md"


def test_every_line_of_the_table_is_a_row_and_numbers_rise():
    anchors = [(int(a), int(b)) for a, b, _ in ROW.findall(TEXT)]
    assert len(anchors) == sum(line.startswith("|") for line in TEXT.splitlines()) - 2
    assert all(anchor == number for anchor, number in anchors)
    assert [number for number, _ in anchors] == sorted(ROWS)


@pytest.mark.parametrize("number", ROWS)
def test_a_row_is_whole_and_its_count_is_that_of_its_sources(number):
    cells = ROWS[number]
    assert len(cells) == 5 and all(cell.strip() for cell in cells)
    named = set(re.findall(r"\[([\w.-]+/[\w.-]+)\](?!\()", cells[3]))
    assert named <= SOURCES.keys()
    assert count(number) in (None, len(named - {AUTHORS}))
    assert count(number) or named == {AUTHORS} or "not looked up again yet" in cells[3]


def test_every_source_is_named_and_is_a_commit():
    named = set(re.findall(r"\[([\w.-]+/[\w.-]+)\](?!\(|:)", TEXT))
    assert named == SOURCES.keys()
    for repository, address in SOURCES.items():
        assert re.fullmatch(rf"https://github\.com/{re.escape(repository)}/tree/[0-9a-f]{{40}}", address), address


@pytest.mark.parametrize("number", ROWS)
def test_checkers_tests_and_notebooks_that_a_row_names_exist(number):
    here = ROWS[number][4]
    assert all(callable(getattr(checks, name, None)) for name in re.findall(r"`checks\.(\w+)`", here))
    for file, name in re.findall(r"`tests/(\w+\.py)::(\w+)`", here):
        functions = [node.name for node in ast.parse((ROOT / "tests" / file).read_text()).body if hasattr(node, "name")]
        assert name in functions, f"{file} has no {name}"
    for path in re.findall(r"\]\((notebooks/[^)#]+)\)", here):
        assert (ROOT / path).is_file(), path


def test_links_to_the_rows_lead_to_a_row_with_as_many_ports():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("notebooks/*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            text = "\n".join(cell.source for cell in nbformat.reads(text, as_version=4).cells)
        assert list(wrong_links(text)) == [], path.name


@pytest.mark.parametrize(
    "link, wrong",
    [
        ("[eight published ports](../MISTAKES.md#mistake-1)", False),
        ("[a mistake](../MISTAKES.md#mistake-1)", False),
        ("[five published ports](../MISTAKES.md#mistake-1)", True),
        ("[5 ports](../MISTAKES.md#mistake-1)", True),
        ("[a mistake](../MISTAKES.md#mistake-99)", True),
        ("[a mistake](../MISTAKES.md#1)", True),
    ],
)
def test_wrong_links_are_found(link, wrong):
    assert bool(list(wrong_links(link))) == wrong
