"""In a real browser: the explorer in JupyterLab, which runs on in the page when Python has gone."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="none of chromium, chromium-browser, google-chrome is on PATH")

PATIENCE = 40  # seconds until something counts as missing, for the busiest machine
LAB = ["--no-browser", "--allow-root", "--expose-app-in-browser", "--LabApp.news_url=None"]
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
CODE = """
import capsule_lib
from capsule_lib.explorer import CapsuleExplorer, load_spreads
net, spreads = capsule_lib.load_pretrained("small"), load_spreads("small")
images, labels = capsule_lib.load_digits("shipped", "test")
many = images.repeat(2, 1, 1, 1).flip(0), labels.repeat(2).flip(0)
explorer = CapsuleExplorer(net, {"shipped": (images, labels), "many": many}, spreads, names_file="names.json", label=4)
explorer
"""


@contextlib.contextmanager
def served(folder: Path, *options: str):
    """The address of a JupyterLab that keeps its settings in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    homes = {f"JUPYTER_{kind}_DIR": str(folder / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    homes |= {"IPYTHONDIR": str(folder / "ipython"), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w+") as log:
        command = [sys.executable, "-m", "jupyterlab", f"--port={port}", *options]
        server = subprocess.Popen(command, env=os.environ | homes, stdout=log, stderr=log)
        try:
            address, end = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
            while not _answers(f"{address}/api/status?token=t"):
                log.seek(0)
                assert server.poll() is None and time.monotonic() < end, log.read()
                time.sleep(0.2)
            yield address
        finally:
            server.terminate()
            server.wait(PATIENCE)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except urllib.error.HTTPError:
        return True  # a server that says no is there
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """A notebook with the explorer in JupyterLab."""
    folder = tmp_path_factory.mktemp("served")
    nbformat.write(new_notebook(cells=[new_code_cell(CODE)], metadata=KERNEL), folder / "explore.ipynb")
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.set_default_timeout(1000 * PATIENCE)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    options = *LAB, f"--ServerApp.root_dir={folder}", "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=t"
    with served(folder, *options) as address:
        page.goto(f"{address}/lab/tree/explore.ipynb?token=t&reset")
        page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady")
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_selector(".capsule-explorer .longest")
        page.folder = folder
        yield page
        page.close()


@pytest.fixture
def page(opened):
    """The explorer with the first 4, untouched: a new class puts all else back."""
    run(
        opened,
        "explorer.source = 'shipped'; explorer.label = 5; explorer.units = 'standard deviations'; explorer.label = 4",
    )
    until(opened, lambda state: state["label"] == 4 and not any(state["knobs"]))
    opened.get_by_role("tab", name="dimensions").click()
    return opened


def run(page, code):
    """What Python prints when the notebook's kernel runs this code."""
    return page.evaluate(
        """async (code) => {
            const run = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({ code });
            let printed = "";
            run.onIOPub = (message) => { printed += message.content.text ?? message.content.evalue ?? ""; };
            await run.done;
            return printed.trim();
        }""",
        code,
    )


def until(page, holds):
    """Wait until the page's state is so; returns it."""
    end = time.monotonic() + PATIENCE
    while not holds(state := page.evaluate("() => document.querySelector('.capsule-explorer').explorer.state")):
        assert time.monotonic() < end, state
        time.sleep(0.05)
    return state


def told(page, code, expected):
    """Wait until Python, which hears of moves when they pause, prints this."""
    end = time.monotonic() + PATIENCE
    while (printed := run(page, code)) != expected:
        assert time.monotonic() < end, printed
        time.sleep(0.1)


def lengths(page):
    return [float(text) for text in page.locator(".lengths .value").all_inner_texts()]


def test_keys_turn_a_dimension_and_python_hears_of_it(page):
    page.get_by_role("slider", name="dimension 3", exact=True).focus()
    for _ in range(5):  # JupyterLab has commands on the arrow keys, too
        page.keyboard.press("ArrowRight")
    told(page, "print(explorer.knobs[2:5])", "[0.0, 0.5, 0.0]")
    line = run(page, "print(explorer.as_python())")
    assert line.startswith("CapsuleExplorer(net, digits, spreads, label=4, knobs=[0.0, 0.0, 0.0, 0.5,")
    theirs = run(page, "print([round(x, 2) for x in explorer.lengths.tolist()])")
    assert np.allclose(lengths(page), eval(theirs), atol=0.011)
    page.get_by_role("button", name="dimension 3 back to the digit's own value").press("Enter")
    told(page, "print(any(explorer.knobs))", "False")


def test_what_python_sets_is_shown(page):
    run(page, "explorer.label = 7; explorer.units = 'raw'; explorer.knobs = [0.1] * 16")
    state = until(page, lambda state: state["label"] == 7 and state["knobs"][15] == 0.1)
    assert state["units"] == "raw" and state["index"] == 0
    page.wait_for_function("() => document.querySelectorAll('.is-turned').length === 16")
    page.get_by_text("+0.100").first.wait_for()
    run(page, "explorer.draw([[[0.2, 0.2], [0.8, 0.2], [0.4, 0.9]]])")
    until(page, lambda state: len(state["strokes"]) == 1 and not any(state["knobs"]))


def test_names_typed_in_the_page_are_kept_in_the_file_and_are_never_markup(page):
    name = page.get_by_role("textbox", name="your name for dimension 2", exact=True)
    name.fill("<img src=x onerror=alert(1)>")
    name.press("Enter")
    told(page, "print(*explorer._names.values())", "<img src=x onerror=alert(1)>")
    assert "onerror" in (page.folder / "names.json").read_text()
    page.get_by_role("tab", name="plane").click()
    page.wait_for_function("() => document.querySelector('.plane option:nth-child(3)')?.textContent.startsWith('<img')")
    assert page.locator(".capsule-explorer img").count() == 0


def test_another_set_and_a_digit_that_only_python_has(page):
    page.locator(".menu summary").click()
    page.get_by_label("digits from").select_option("many")
    until(page, lambda state: state["source"] == "many")
    page.keyboard.press("Escape")
    index = page.get_by_role("spinbutton", name="number of the digit in its class")
    index.fill("150")  # of 200: 100 went to the page
    index.press("Enter")
    told(page, "print(explorer.index)", "150")
    page.wait_for_function("() => document.querySelector('.capsule-explorer').explorer.asked.has('4 150')")
    theirs = eval(run(page, "print([round(x, 2) for x in explorer.lengths.tolist()])"))
    page.wait_for_timeout(500)
    assert np.allclose(lengths(page), theirs, atol=0.011)


def test_measures_come_from_python_and_go_with_their_class(page):
    page.get_by_role("tab", name="measure").click()
    page.get_by_role("button", name="measure what each dimension does").click()
    assert "class 4" in page.locator(".table caption").inner_text()
    assert page.locator(".table tr").count() == 17 and "slant" in page.locator(".table").inner_text()
    page.get_by_role("button", name="a digit of class 7").click()
    page.locator(".table caption").wait_for(state="detached")


def test_nothing_is_cut_off_and_nothing_failed(page):
    output = page.locator(".jp-OutputArea-output", has=page.locator(".capsule-explorer")).first
    assert output.evaluate("(part) => part.scrollWidth - part.clientWidth") <= 1
    failed = '[data-mime-type="application/vnd.jupyter.error"], [data-mime-type="application/vnd.jupyter.stderr"]'
    assert page.locator(failed).all_inner_texts() == [] and page.faults == []


def test_without_python_the_page_goes_on_and_says_what_it_lacks(page):  # the last one: it ends the kernel
    page.evaluate("async () => { await window.jupyterapp.shell.currentWidget.sessionContext.shutdown(); }")
    before = lengths(page)
    page.get_by_role("slider", name="dimension 14", exact=True).press("Home")
    page.wait_for_function(
        "(before) => document.querySelector('.lengths .value').textContent !== before", arg=str(before[0])
    )
    page.evaluate("() => { document.querySelector('.capsule-explorer').explorer.patience = 300; }")
    page.get_by_role("tab", name="measure").click()
    page.get_by_role("button", name="measure what each dimension does").click()
    page.get_by_text("Python does not answer").wait_for()
