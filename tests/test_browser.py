"""In a real browser: the explorer in JupyterLab and on Voilà's page answers keys, mouse and buttons."""

import contextlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_drawing import DIGITS

from capsule_lib import load_digits, load_pretrained
from capsule_lib.explorer import CapsuleExplorer
from capsule_lib.explorer.pictures import PANEL, strip
from capsule_lib.explorer.spreads import load_spreads

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="none of chromium, chromium-browser, google-chrome is on PATH")

EXPLORE = Path(__file__).parent.parent / "capsule_lib" / "explorer" / "explore.ipynb"
EXPLORER = ".capsule-explorer"
TABS = {  # and what is to be seen there
    "knobs": "input[placeholder='name it']",
    "draw a digit": "svg[aria-label^='Drawing pad']",
    "sweep": "button[title='sweep every knob']",
    "measure": "button[title^='what each dimension']",
    "save": "button[title='save the pictures']",
}
PATIENCE = 40  # seconds until something counts as missing, for the busiest machine
LAB = ["--no-browser", "--allow-root", "--expose-app-in-browser", "--LabApp.news_url=None"]


@contextlib.contextmanager
def served(folder: Path, module: str, *options: str):
    """The address of a Jupyter server that keeps its settings in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    homes = {f"JUPYTER_{kind}_DIR": str(folder / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    homes |= {"IPYTHONDIR": str(folder / "ipython"), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w+") as log:
        command = [sys.executable, "-m", module, f"--port={port}", *options]
        server = subprocess.Popen(command, env=os.environ | homes, stdout=log, stderr=log)
        try:
            address, end = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
            while not _answers(
                f"{address}/api/status?token=t" if module == "jupyterlab" else f"{address}/voila/static/"
            ):
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


@pytest.fixture(scope="module", params=["JupyterLab", "Voilà"])
def opened(request, browser, tmp_path_factory):
    """A page with the explorer on it."""
    folder = tmp_path_factory.mktemp("served")
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.set_default_timeout(1000 * PATIENCE)
    if request.param == "Voilà":
        with served(folder, "voila", "--no-browser", "--Voila.ip=127.0.0.1", str(EXPLORE)) as address:
            page.goto(address)
            page.wait_for_selector(".noUi-handle")
            yield page
            page.close()
        return
    shutil.copy(EXPLORE, folder)
    options = *LAB, f"--ServerApp.root_dir={folder}", "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=t"
    with served(folder, "jupyterlab", *options) as address:
        page.goto(f"{address}/lab/tree/{EXPLORE.name}?token=t&reset")
        page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady")
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_selector(".noUi-handle")
        yield page
        page.close()


@pytest.fixture
def page(opened):
    """The explorer with the first 4, untouched: a new class puts all else back."""
    opened.get_by_label("knobs in").select_option("standard deviations")
    for label in ("5", "4"):
        opened.locator(".widget-dropdown select").first.select_option(label)
        opened.get_by_text(f"read as {label}", exact=True).wait_for()
    tab(opened, "knobs")
    return opened


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """The same explorer here, to say what should be seen."""
    digits, names = load_digits("shipped", "test"), tmp_path_factory.mktemp("names") / "names.json"
    return CapsuleExplorer(load_pretrained("small"), digits, load_spreads("small"), names, label=4)


def tab(page, name):
    page.locator(".widget-toggle-button", has_text=name).click()
    page.locator(TABS[name]).first.wait_for()


def turn(page, d, keys):
    """Press keys on the slider of knob d."""
    page.locator(".noUi-handle").nth(1 + d).focus()  # the first one is morph's
    for key in keys:
        page.keyboard.press(key)


def burst(page, d):
    """200 keys on the slider of knob d, which end 2 below the digit's own value: the range ends at 4, 6 back, 4 on, 4 back."""
    page.locator(".noUi-handle").nth(1 + d).evaluate("""(handle) => {  // faster than page.keyboard, without a pause
        for (const [key, count] of [["ArrowRight", 60], ["ArrowLeft", 60], ["ArrowRight", 40], ["ArrowLeft", 40]])
            for (let n = 0; n < count; n++) handle.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    }""")


def picture(page):
    """The pixels that are shown once the picture has stood still for half a second."""
    data = page.evaluate("""async () => {
        const image = document.querySelector("img.widget-image");
        for (let seen = null, still = 0; still < 10; ) {
            await new Promise((resolve) => setTimeout(resolve, 50));
            still = image.src === seen ? still + 1 : 0;
            seen = image.src;
        }
        return [...new Uint8Array(await (await fetch(image.src)).arrayBuffer())];
    }""")
    return np.asarray(Image.open(io.BytesIO(bytes(data))))


def expected(twin, **knobs):
    """The pixels that the explorer should show for the first 4, some knobs turned, such as k3=0.5."""
    twin.label, twin.knobs = 4, [knobs.get(f"k{d}", 0.0) for d in range(16)]
    return np.asarray(strip(twin.original, twin.reconstruction, twin.changed, PANEL))


def same(a, b):
    return a.shape == b.shape and np.abs(a.astype(int) - b).max() <= 1  # another process may round differently


def test_the_page_is_whole(page):
    assert page.locator(".noUi-handle").count() == 17
    assert page.get_by_text("javascript error").count() == 0  # a widget that the page could not show
    failed = '[data-mime-type="application/vnd.jupyter.error"], [data-mime-type="application/vnd.jupyter.stderr"]'
    assert page.locator(failed).all_inner_texts() == []


def test_no_label_is_cut_off_and_nothing_needs_scrolling_sideways(page):
    cut = page.evaluate("""() => [...document.querySelectorAll(".jupyter-widgets.widget-button, .widget-label, .widget-html-content")]
        .filter((part) => part.offsetParent && part.scrollWidth > part.clientWidth + 1).map((part) => part.innerText)""")
    assert cut == []
    output = page.locator(".jp-OutputArea-output", has=page.locator(".noUi-handle")).first
    assert output.evaluate("(part) => part.scrollWidth - part.clientWidth") <= 1


def test_every_control_and_picture_has_a_name_in_words(page):
    page.locator(".noUi-handle[aria-label]").nth(16).wait_for()
    for name in TABS:
        tab(page, name)
        parts = re.findall(
            r'- (button|combobox|img|radio|slider|spinbutton|textbox)\b(?: "(.*?)")?',
            page.locator(EXPLORER).aria_snapshot(),
        )
        assert {"button", "combobox", "img", "slider", "spinbutton"} <= {role for role, _ in parts}
        assert [part for part in parts if not re.search("[a-z]", part[1])] == [], name
    dimensions = page.locator(f"{EXPLORER} .noUi-handle").evaluate_all("(all) => all.map((one) => one.ariaLabel)")
    assert [n for n in range(16) if f"change dimension {n}, standard deviations" not in dimensions[1 + n]] == []
    tab(page, "knobs")
    page.get_by_label("knobs in").select_option("principal axes")
    page.get_by_role("slider", name="change axis 15, principal axes, from -4 to 4").wait_for()


def test_the_tabulator_reaches_every_control(page):
    turn(page, 0, ["ArrowRight"])  # so that there is a past picture to go back to
    picture(page)
    for name in TABS:
        tab(page, name)
        unreached = page.evaluate_handle(
            """(explorer) => new Set(
            [...explorer.querySelectorAll("button:enabled, select, input, .noUi-handle")].filter((part) => part.offsetParent)
        )""",
            page.query_selector(EXPLORER),
        )
        assert unreached.evaluate("(parts) => parts.size") > 15
        page.locator(f"{EXPLORER} select").first.focus()
        for _ in range(100):
            unreached.evaluate("(parts) => parts.delete(document.activeElement)")
            page.keyboard.press("Tab")
            if not page.evaluate(
                "(explorer) => explorer.contains(document.activeElement)", page.query_selector(EXPLORER)
            ):
                break
        assert unreached.evaluate("(parts) => [...parts].map((part) => part.outerHTML)") == [], name


def test_nothing_on_the_page_moves_from_tab_to_tab(page):
    places = []
    for name in TABS:
        tab(page, name)
        places.append(page.get_by_text("the last pictures").evaluate("(part) => part.getBoundingClientRect().top"))
    assert len(set(places)) == 1, places


def test_nothing_on_the_page_moves_while_a_knob_is_turned(page):
    picture(page)
    page.evaluate("""() => {
        window.moves = [];
        new PerformanceObserver((list) => window.moves.push(
            ...list.getEntries().map((entry) => [entry.value, ...entry.sources.map((source) => source.node?.innerText + JSON.stringify([source.previousRect, source.currentRect]))])))
            .observe({ type: "layout-shift" });
    }""")
    turn(page, 3, ["Home", "ArrowRight", "End"])  # 'no digit there' comes and goes
    picture(page)
    page.get_by_label("what if it were a").select_option("9")
    page.get_by_label("knobs in").select_option("raw")
    turn(page, 12, ["ArrowRight"] * 3)
    picture(page)
    page.get_by_role("button", name="reset all").click()
    picture(page)
    assert page.evaluate("() => window.moves") == []


def test_keys_turn_a_knob_and_reset_brings_back_the_first_picture(page, twin):
    first = picture(page)
    assert same(first, expected(twin))
    turn(page, 3, ["ArrowRight"] * 5)
    assert same(picture(page), expected(twin, k3=0.5)) and not same(picture(page), first)
    assert page.get_by_text("+0.5 sd", exact=True).is_visible()
    turn(page, 12, ["Home"])
    assert same(picture(page), expected(twin, k3=0.5, k12=-4.0))
    page.get_by_role("button", name="reset all").press("Enter")
    assert same(picture(page), first)


def test_after_a_burst_of_200_keys_the_picture_is_that_of_the_last_position(page, twin):
    burst(page, 5)
    assert same(picture(page), expected(twin, k5=-2.0))
    assert page.get_by_text("-2 sd", exact=True).is_visible()


def test_a_digit_drawn_with_the_mouse_is_read_and_becomes_the_digit(page):
    before = picture(page)
    tab(page, "draw a digit")
    paper = page.locator("svg[aria-label^='Drawing pad']")
    paper.scroll_into_view_if_needed()
    place = paper.bounding_box()
    [stroke] = DIGITS[3]
    for n, (x, y) in enumerate(stroke):
        page.mouse.move(place["x"] + x * place["width"], place["y"] + y * place["height"])
        if n == 0:
            page.mouse.down()
    page.mouse.up()
    page.get_by_text("The network reads your drawing as class 3").wait_for()
    after = picture(page)
    digit = after.shape[0]
    assert (after[:, :digit] != before[:, :digit]).any() and (after[:, digit:] != before[:, digit:]).any()
    assert page.locator(".widget-dropdown select").first.input_value() == "3"
    page.get_by_role("button", name="Clear the drawing").click()
    page.get_by_text("nothing is drawn yet").wait_for()


@pytest.mark.slow
def test_how_long_a_key_press_takes_to_change_the_picture(page, capsys):
    """Prints it, and asserts nothing: the time is the machine's."""
    page.evaluate("""() => {
        window.waits = [];
        document.addEventListener("keydown", () => (window.pressed = performance.now()), true);
        document.querySelector("img.widget-image").addEventListener("load", () =>
            requestAnimationFrame(() => window.waits.push(performance.now() - window.pressed)));
    }""")
    for n in range(100):
        turn(page, n % 16, ["ArrowRight" if n < 50 else "ArrowLeft"])
        page.wait_for_function("(n) => window.waits.length > n", arg=n)
    half, most = np.percentile(page.evaluate("() => window.waits"), [50, 95])
    picture(page)
    bursts = []
    for n in range(5):
        page.evaluate("() => { window.waits = []; }")
        burst(page, n)
        picture(page)
        bursts.append(page.evaluate("() => window.waits.at(-1)"))
    with capsys.disabled():
        print(f"\nfrom key press to picture, {page.title()}: median {half:.0f} ms, 95 % within {most:.0f} ms; ", end="")
        print(f"from the last of 200 keys in a burst to the last picture: {max(bursts):.0f} ms at most in 5 bursts")
