"""The drawings and the page to keep: drawn by their script, true to the network, legible, and described in words."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
import torch

import capsule_lib
from capsule_lib import model

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks" / "drawings"
NOTATION = ROOT / "notebooks" / "notation.ipynb"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_a_browser = pytest.mark.skipif(not CHROMIUM, reason="none of chromium, chromium-browser, google-chrome is on PATH")

specification = importlib.util.spec_from_file_location("draw", FOLDER / "draw.py")
draw = importlib.util.module_from_spec(specification)
specification.loader.exec_module(draw)
FILES = sorted(FOLDER.glob("*.svg"))
NAMES = [path.name for path in FILES]


def parsed(path):
    return ElementTree.fromstring(path.read_text(encoding="utf-8"))


def elements(path, name):
    return list(parsed(path).iter(f"{{http://www.w3.org/2000/svg}}{name}"))


def title(path):
    return elements(path, "title")[0].text


def test_the_files_are_what_the_script_draws():
    drawn = draw.drawings()
    assert sorted(drawn) == NAMES
    for path in FILES:
        assert path.read_bytes() == drawn[path.name].encode(), f"{path.name}: run python notebooks/drawings/draw.py"


def test_the_digit_is_what_the_network_makes_of_it():
    stored, measured = json.loads((FOLDER / "digit.json").read_text()), draw.measure()
    assert stored.keys() == measured.keys()
    for name in stored:
        difference = (torch.tensor(stored[name]) - torch.tensor(measured[name])).abs()
        if name == "angles":
            difference = torch.minimum(difference, 360 - difference)
        assert difference.max() <= (0 if name in ("label", "image", "givers") else 2), name
    assert stored["lengths"].index(max(stored["lengths"])) == stored["label"]


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.name.startswith("network")], ids=lambda path: path.name
)
def test_shapes_are_those_of_the_network(path):
    net, images = capsule_lib.CapsNet(model.PRESETS["small"]), torch.rand(3, 1, 28, 28)
    stem = net.stem(images)
    u = net.primary_caps(stem)
    votes, v = net.digit_caps.votes(u), net.digit_caps(u)
    flows = [images, stem, u, votes, v, v, v.flatten(1)]
    flows += [torch.empty(3, layer.out_features) for layer in net.decoder.layers if isinstance(layer, torch.nn.Linear)]
    flows += [net.decoder(v, torch.tensor([0, 1, 2]))]
    written = [text.text for text in elements(path, "text") if text.text.startswith("[")]
    assert sorted(written) == sorted(str(["B", *flow.shape[1:]]).replace("'", "") for flow in flows)


def luminance(colour):
    parts = (int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5))
    return sum(
        share * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
        for share, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
    )


def contrast(a, b):
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_drawing_is_legible_whole_and_described(path):
    root = parsed(path)
    assert root.get("viewBox").startswith("0 0 1000 ") and root.get("role") == "img"
    assert root.get("aria-labelledby") == "title desc"
    assert [part.get("id") for name in ("title", "desc") for part in elements(path, name)] == ["title", "desc"]
    assert len(title(path)) > 100 and len(elements(path, "desc")[0].text) > 400
    for text in elements(path, "text"):
        assert text.text.strip() and int(text.get("font-size")) >= 15
        assert contrast(text.get("fill"), "#ffffff") >= 4.5
    for dark, _, light in [*draw.COLOURS.values(), draw.GREY]:
        assert contrast(dark, light) >= 4.5
    card = elements(path, "rect")[0]  # a light card under everything, so that a dark page does no harm
    assert card.get("fill") == "#ffffff" and float(card.get("width")) > 990
    # Nothing is fetched, run or taken from elsewhere.
    names = {element.tag.split("}")[1] for element in root.iter()}
    assert names <= {"svg", "title", "desc", "g", "rect", "circle", "path", "polygon", "text"}
    assert not re.search(r"href|url\(|style=|@|https?://(?!www\.w3\.org/2000/svg)", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("notebook", draw.AT_HAND)
def test_the_part_at_hand_is_coloured_and_the_rest_is_grey(notebook):
    parts, _ = draw.AT_HAND[notebook]
    used = {text.get("fill") for text in elements(FOLDER / f"network-{notebook}.svg", "text")}
    assert used == {draw.GREY[0]} | {draw.COLOURS[part][0] for part in parts}
    whole = {text.get("fill") for text in elements(FOLDER / "network.svg", "text")}
    assert whole == {dark for dark, _, _ in draw.COLOURS.values()}


def markdown():
    """Every page of the course in Markdown: its folder, its name and its text."""
    yield ROOT, "README.md", (ROOT / "README.md").read_text(encoding="utf-8")
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                yield path.parent, path.name, cell.source


def test_where_a_drawing_is_shown_its_title_is_the_alternative_text():
    shown = [(page, alt, folder / file) for folder, page, text in markdown() for alt, file in images(text)]
    assert {"README.md", NOTATION.name} <= {page for page, _, _ in shown}
    for page, alt, file in shown:
        assert file.is_file() and alt == title(file), page


def images(text):
    return re.findall(r"!\[([^\]]*)\]\(([^)]*\.svg)\)", text)


# --- the page to keep -------------------------------------------------------------------------------------------------


def test_the_page_names_what_stands_in_the_code_and_in_the_presets():
    text = "\n".join(cell.source for cell in nbformat.read(NOTATION, as_version=4).cells)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| $")]
    code = "\n".join(path.read_text() for path in (ROOT / "capsule_lib").glob("*.py"))
    symbols = [row for row in rows if row[1].startswith("`")]
    assert len(symbols) >= 12
    for row in symbols:
        linked = re.findall(r"\((\d\d_\w+\.ipynb)\)", row[-1])
        here = code + "".join((ROOT / "notebooks" / name).read_text() for name in linked)
        for name in re.findall(r"`(\w+)`", row[1]):
            assert re.search(rf"\b{name}\b", here), name
    sizes = {"$I$": lambda c: c.types * c.grid[0] * c.grid[1], "$K$": lambda c: c.primary_dim}
    sizes |= {"$J$": lambda c: c.classes, "$D$": lambda c: c.class_dim}
    for letter, of in sizes.items():
        (row,) = [row for row in rows if row[0] == letter]
        small, paper = (int(cell.split("=")[-1].replace(",", "")) for cell in row[3:])
        assert [small, paper] == [of(model.PRESETS[name]) for name in ("small", "paper")]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    with playwright.sync_playwright() as engine:
        yield engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])


OVERLAPPING = """() => {
  const boxes = [...document.querySelectorAll("text")].map((text) => [text.textContent, text.getBBox()]);
  const [, , width, height] = document.documentElement.getAttribute("viewBox").split(" ").map(Number);
  const out = boxes.filter(([, a]) => a.x < 8 || a.x + a.width > width - 8 || a.y < 8 || a.y + a.height > height - 8);
  const pairs = boxes.flatMap(([words, a], n) => boxes.slice(n + 1).filter(([, b]) =>
    a.x < b.x + b.width && b.x < a.x + a.width && a.y + 4 < b.y + b.height && b.y + 4 < a.y + a.height
  ).map(([others]) => [words, others]));
  return [...out.map(([words]) => words), ...pairs];
}"""


@in_a_browser
@pytest.mark.parametrize("family", [None, "DejaVu Sans"], ids=["usual", "wide"])
@pytest.mark.parametrize("name", ["network.svg", "votes.svg"])
def test_no_words_overlap_or_leave_the_card(browser, tmp_path, name, family):
    """In the fonts that are usual, and in the widest that a reader may have instead."""
    source = (FOLDER / name).read_text(encoding="utf-8")
    if family:
        source = re.sub(r'font-family="[^"]*sans-serif"', f'font-family="{family}"', source)
    (tmp_path / name).write_text(source, encoding="utf-8")
    page = browser.new_page()
    page.goto((tmp_path / name).as_uri())
    assert page.evaluate(OVERLAPPING) == []


def made(target, *variables, **folders):
    """Run a recipe of the Makefile with this interpreter, other folders in the place of its own."""
    command = ["make", "-n", "-B", "-o", ".venv/installed", "--no-print-directory", target, *variables]
    recipe = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.replace("\\\n", " ")
    words = shlex.split(recipe[recipe.index("nbconvert") :])
    words = [folders.get(word, word) for word in words]
    subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@in_a_browser
def test_the_page_to_keep_has_two_sides_of_a4(browser, tmp_path):
    made("sheet", build=str(tmp_path))
    page = browser.new_page()
    page.route("https://**", lambda route: route.abort())  # MathJax
    page.goto((tmp_path / "notation.html").as_uri())
    assert page.evaluate("document.images.length && [...document.images].every((image) => image.naturalWidth)")
    pdf = page.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 2
    (box,) = set(re.findall(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)\s*\]", pdf))
    assert [round(float(side) / 72 * 25.4) for side in box] == [210, 297]


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_slides_carry_the_drawings_inside(tmp_path):
    made("slides", f"NOTEBOOKS={NOTATION}", **{"build/slides": str(tmp_path)})
    slides = (tmp_path / "notation.slides.html").read_text(encoding="utf-8")
    assert "data:image/svg+xml;base64," in slides and "drawings/network.svg" not in slides
