"""The notebooks: clean, really compared, described in words; and what they build is what the library has."""

import ast
import itertools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from measures import lines, measure

import capsule_lib
from capsule_lib import model
from capsule_lib.device import TorchDispatchMode

FOLDER = Path(__file__).parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("[0-9]*.ipynb"))
NAMES = [path.stem for path in PATHS]
SAYS_NOTHING = re.compile(r"^(<.*>|Interactive: .*)$")


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def stored_text(cell):
    """What nbval compares, less what would be the same if the code broke."""
    if "nbval-ignore-output" in cell.metadata.get("tags", []):
        return ""
    texts = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in cell.outputs]
    return "\n".join(text for text in texts if not SAYS_NOTHING.match(text.strip())).strip()


def test_the_series_is_whole():
    assert [name[:2] for name in NAMES] == [f"{n:02d}" for n in range(10)]


def test_at_least_half_of_the_code_cells_are_really_compared(capsys):
    counts = {path.stem: (sum(bool(stored_text(c)) for c in code_cells(path)), len(code_cells(path))) for path in PATHS}
    compared, cells = (sum(column) for column in zip(*counts.values(), strict=True))
    with capsys.disabled():
        print(f"\nreally compared: {compared} of {cells} code cells", counts)
    assert compared >= cells / 2


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_hygiene(path):
    notebook, cells = read(path), code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    for cell in cells:
        for out in cell.outputs:
            assert out.output_type != "error"
            text = str(out.get("text", "")) + str(out.get("data", {}).get("text/plain", ""))
            assert "Warning" not in text and not re.search(r"/(root|home|tmp|Users|work)/|[A-Z]:\\", text)
            if "image/png" in out.get("data", {}):
                assert len(out.metadata["image/png"]["alt"]) > 20
        streams = [out.get("name") for out in cell.outputs]
        # Where the kernel happened to flush says nothing: what was printed in one go is one output, without gaps.
        assert not any(name and name == after for name, after in itertools.pairwise(streams))
    assert all("slide_type" in cell.metadata.get("slideshow", {}) for cell in notebook.cells)


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_the_code_is_short_and_carries_ideas(path):
    found = measure(path)
    assert found["ideas"] >= 0.75 and found["columns"] <= 88 and found["median"] <= 6 and found["longest"] <= 25, found


@pytest.mark.parametrize("source, ideas, counted", [
    ("import torch\n\nx = torch.rand(\n    3,\n)\nprint(x)  # so", 3, 4),
    ("figure, axes = plt.subplots(2)\nfor axis in axes:\n    axis.plot(x)\nplots.show(figure, caption)", 0, 4),
    ("for n in range(3):\n    x = x + n\n    print(x)", 2, 3),
    ("def double(x):\n    return 2 * x\n\n\nassert double(1) == 2\ncaption = f'{x}'", 2, 4),
    ("my_number = None  # a number\n\nchecks.answer('01.1', my_number)", 0, 0),
])  # fmt: skip
def test_what_counts_as_an_idea(source, ideas, counted):
    assert lines(source) == (ideas, counted)


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_the_minutes_are_those_of_words_and_cells(path):
    readme = (FOLDER.parent / "README.md").read_text()
    (minutes,) = re.findall(rf"\(notebooks/{path.name}\) \| (\d+) \|", readme)
    (stated,) = re.findall(r"\*(\d+) minutes to read and run", read(path).cells[0].source)
    assert minutes == stated and abs(int(minutes) - measure(path)["minutes"]) <= 1, measure(path)


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_shape_of_a_notebook(path):
    cells = read(path).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for part in (
        "# ",
        "**You will be able to**",
        "Predict before you run",
        "## Check yourself",
        "## Summary",
        "## References",
    ):
        assert part in prose, part
    assert cells[-1].source.splitlines()[-1].startswith("**Next:** ["), "the last line leads on"
    assert prose.count("### Exercise") >= 3 and prose.count("<summary>Hint</summary>") >= 3
    assert sum("solution" in cell.metadata.get("tags", []) for cell in cells) >= 3
    set_up = next(cell for cell in cells if cell.cell_type == "code").source
    assert "ModuleNotFoundError" in set_up and "%pip install -e" in set_up and "checks.progress()" in set_up
    if "01" <= path.stem[:2] <= "06":
        top = "".join(cell.source for cell in cells[:3])
        part = "" if path.stem[:2] == "06" else f"-{path.stem[:2]}"  # 06 builds all of it
        assert f"](drawings/network{part}.svg)" in top


PAGES = [
    *PATHS,
    FOLDER / "notation.ipynb",
    *(path for path in FOLDER.parent.glob("*.md")),
    *FOLDER.parent.glob("data/**/*.md"),
]


def anchors(path):
    """The places of a page that a link can name: headings, as a code host and as JupyterLab call them, and ids."""
    headings = [line.lstrip("# ") for line in text_of(path).splitlines() if line.startswith("#")]
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | {heading.replace(" ", "-") for heading in headings} | set(re.findall(r'id="([^"]+)"', text_of(path)))


def text_of(path):
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def broken_links(text, path):
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        to = (path.parent / file).resolve() if file else path
        if not to.exists() or (anchor and anchor not in anchors(to)):
            yield target


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(FOLDER.parent)) for path in PAGES])
def test_every_link_leads_somewhere(path):
    assert list(broken_links(text_of(path), path)) == []


def test_broken_links_are_found():
    text = "[a](01_squash.ipynb) [b](01_squosh.ipynb) ![c](drawings/none.svg) [d](../MISTAKES.md#mistake-3) [e](../MISTAKES.md#mistake-999)"
    assert list(broken_links(text, PATHS[0])) == ["01_squosh.ipynb", "drawings/none.svg", "../MISTAKES.md#mistake-999"]


def taken_out(notebook, *names, **more):
    """Functions and classes of a notebook, without running the rest of it."""
    source = "\n".join(c.source for c in code_cells(FOLDER / f"{notebook}.ipynb") if not c.source.startswith("%"))
    nodes = [n for n in ast.parse(source).body if getattr(n, "name", None) in names]
    last = {node.name: node for node in nodes}  # the notebook's final version
    assert set(last) == set(names)
    space = {"torch": torch, "nn": torch.nn, "CapsNetOutput": model.CapsNetOutput}
    space |= {name: getattr(capsule_lib, name) for name in capsule_lib.__all__ if name not in names}
    space |= more
    exec(compile(ast.Module(list(last.values()), []), notebook, "exec"), space)
    return [space[name] for name in names]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_squash_of_notebook_01(dtype):
    (squash,) = taken_out("01_squash", "squash")
    s = torch.tensor([[0.3, -0.4, 1.2], [0, 0, 0], [300, 5, -7]], dtype=dtype)
    torch.testing.assert_close(squash(s), capsule_lib.squash(s))


def test_primary_caps_of_notebook_02():
    (primary_caps,) = taken_out("02_primary_capsules", "PrimaryCaps")
    ours, theirs = primary_caps(6, 3, 4, 5, 2), capsule_lib.PrimaryCaps(6, 3, 4, 5, 2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 11, 13)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_routing_of_notebook_03(iterations):
    routing, loops, layer = taken_out("03_routing", "dynamic_routing", "routing_loops", "DigitCaps")
    u_hat = torch.randn(2, 7, 3, 5)
    expected, couplings = capsule_lib.dynamic_routing(u_hat, iterations, return_couplings=True)
    v, c = routing(u_hat, iterations, return_couplings=True)
    assert torch.allclose(v, expected, atol=1e-6) and torch.allclose(c, couplings, atol=1e-6)
    assert torch.allclose(torch.stack([loops(image, iterations) for image in u_hat]), expected, atol=1e-5)
    ours, theirs = layer(7, 4, 3, 5, iterations), capsule_lib.DigitCaps(7, 4, 3, 5, iterations)
    theirs.load_state_dict(ours.state_dict())
    u = torch.randn(2, 7, 4)
    assert torch.allclose(ours(u), theirs(u), atol=1e-6)


def test_losses_of_notebook_04():
    margin, reconstruction = taken_out("04_loss", "margin_loss", "reconstruction_loss")
    lengths, labels = torch.rand(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    several = (torch.rand(6, 5) > 0.5).float()
    for target in (labels, several):
        assert torch.allclose(margin(lengths, target), capsule_lib.margin_loss(lengths, target))
    a, b = torch.rand(2, 1, 9, 9), torch.rand(2, 1, 9, 9)
    assert torch.allclose(reconstruction(a, b), capsule_lib.reconstruction_loss(a, b))


def test_decoder_of_notebook_05_and_network_of_notebook_06():
    (decoder,) = taken_out("05_decoder", "Decoder")
    ours, theirs = decoder(4, 3, (8, 9), (2, 5, 6)), capsule_lib.Decoder(4, 3, (8, 9), (2, 5, 6))
    theirs.load_state_dict(ours.state_dict())
    v, classes = torch.randn(3, 4, 3), torch.tensor([3, 0, 1])
    assert torch.allclose(ours(v, classes), theirs(v, classes))
    (network,) = taken_out("06_capsnet", "CapsNet")
    ours, theirs = network(model.PRESETS["small"]), capsule_lib.CapsNet.from_preset("small")
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(2, 1, 28, 28)
    for a, b in zip(ours(images), theirs(images), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_forms_of_routing_of_notebook_08(iterations):
    naive_caps, sums, _, couplings, function = taken_out(
        "08_cost_of_routing", "NaiveCaps", "weighted_sums", "agreements", "couplings", "WeightedSums"
    )
    u = torch.randn(3, 7, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, 7, 6, dtype=torch.float64, requires_grad=True)
    expected = capsule_lib.dynamic_routing(torch.einsum("bik,jkid->bijd", u, weight), iterations)
    with torch.no_grad():
        c = couplings(u.mT, weight, iterations)
    v = capsule_lib.squash(function.apply(u.mT, weight, c)).transpose(0, 1)
    assert torch.allclose(v, expected)
    assert torch.allclose(sums(u.mT, weight, c), function.apply(u.mT, weight, c))
    towards = torch.randn_like(v)
    gradients = [torch.autograd.grad(out, (u, weight), towards) for out in (v, expected)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))
    layer = naive_caps(7, 4, 5, 6, iterations)
    layer.weight.data = weight.data.permute(0, 2, 3, 1)[None]
    assert torch.allclose(layer(u), expected, atol=1e-6)


def test_the_listener_of_notebook_08_sees_a_copy_and_no_view():
    (largest,) = taken_out("08_cost_of_routing", "Largest", TorchDispatchMode=TorchDispatchMode)
    x = torch.zeros(1000)
    with largest() as seen:
        (x.view(10, 100)[3] + 1).expand(1000, 100)
    assert seen.bytes == 400
    with largest() as seen:
        x.expand(50, 1000).contiguous()
    assert seen.bytes == 200_000 and "clone" in seen.what


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_slides_build(path, tmp_path):
    """As `make slides` builds them, so that long code is wrapped and a long slide scrolls to what is shown next."""
    recipe = subprocess.run(
        ["make", "-n", "--no-print-directory", "slides", f"NOTEBOOKS={path}"],
        cwd=FOLDER.parent,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.replace("\\\n", " ")
    words = shlex.split(recipe[recipe.index("nbconvert --to slides") :].replace("build/slides", str(tmp_path)))
    subprocess.run([sys.executable, "-m", *words], cwd=FOLDER.parent, check=True, capture_output=True)
    slides = (tmp_path / f"{path.stem}.slides.html").read_text(encoding="utf-8")
    assert slides.count("<section") > 8 and "width: 1280" in slides
    for rule in ("overflow: hidden auto", "white-space: pre-wrap", "fragmentshown"):
        assert slides.rindex(rule) < slides.index("<body")
    assert not re.findall(r'<img[^>]*src="(?!data:)[^"]*"', slides)


@pytest.mark.gpu
@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_every_notebook_runs_on_cuda(path, tmp_path):
    """Executed with one more cell, which asserts that the device is CUDA and that a network, where there is one, is on it."""
    notebook = read(path)
    source = (
        "assert device.type == 'cuda'\nassert 'net' not in globals() or next(net.parameters()).device.type == 'cuda'\n"
    )
    notebook.cells.append(nbformat.v4.new_code_cell(source))
    copy = tmp_path / path.name
    nbformat.write(notebook, copy)
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-cell-timeout=300", str(copy)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
