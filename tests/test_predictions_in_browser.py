"""In a real JupyterLab: what a prediction hides stays hidden until the reader has chosen, by keyboard too, and then stays open."""

import nbclient
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from test_answers import ASK, PREDICTION
from test_browser import LAB, PATIENCE, browser, pytestmark, served  # noqa: F401, a fixture and a mark

pytest.importorskip("playwright.sync_api")
RUN_ALL = "() => window.jupyterapp.commands.execute('notebook:run-all-cells')"


@pytest.fixture
def page(browser, tmp_path, monkeypatch):  # noqa: F811
    """A notebook as it ships: executed and stored, not yet run by the reader."""
    monkeypatch.setenv("CAPSULE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = new_notebook(cells=[new_code_cell(PREDICTION), new_code_cell(ASK + 'print("the", "hidden", "part")')])
    nbclient.NotebookClient(notebook, store_widget_state=False).execute()
    (tmp_path / "lab").mkdir()
    nbformat.write(notebook, tmp_path / "lab" / "predict.ipynb")
    options = *LAB, f"--ServerApp.root_dir={tmp_path / 'lab'}", "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=t"
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.set_default_timeout(1000 * PATIENCE)
    with served(tmp_path, *options) as address:
        page.goto(f"{address}/lab/tree/predict.ipynb?token=t&reset")
        page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady")
        yield page
        page.close()


def test_commit_then_reveal(page):
    hidden = page.get_by_text("the hidden part", exact=True)
    fold = page.locator("details")
    fold.wait_for()
    assert page.get_by_text("Predict before you look: it grows, or it shrinks?").is_visible()
    assert fold.count() == 1 and not hidden.is_visible()
    fold.locator("summary").press("Enter")  # who wants to see it without choosing, can
    assert hidden.is_visible()

    page.evaluate(RUN_ALL)
    first = page.get_by_role("button", name="it grows")
    first.wait_for()
    page.wait_for_function("() => document.querySelector('details') && !document.querySelector('details').open")
    assert not hidden.is_visible()
    first.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.innerText.trim()") == "it shrinks"
    page.keyboard.press("Enter")
    hidden.wait_for(state="visible")
    said = page.get_by_role("alert").filter(has_text="You predicted it shrinks: and so it is")
    said.wait_for()
    assert "1 of 2 predictions" in said.inner_text() and first.is_disabled()

    page.evaluate(RUN_ALL)  # now it is known: the buttons are gone, the output is open
    first.wait_for(state="detached")
    hidden.wait_for(state="visible")
    assert said.is_visible() and fold.count() == 1
    page.evaluate(
        "async () => { await window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart(); }"
    )
    page.evaluate(RUN_ALL)
    page.wait_for_function("() => !document.querySelector('.jp-Notebook').innerText.includes('[*]')")
    hidden.wait_for(state="visible")
    assert first.count() == 0
