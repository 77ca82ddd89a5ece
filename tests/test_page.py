"""The stand-alone page: from a file, without Python or a network, at every width, by mouse, keyboard and touch."""

import gzip
import re

import numpy as np
import pytest
import torch
from test_browser import browser, pytestmark  # noqa: F401, a fixture and a mark
from test_drawing import DIGITS

from capsule_lib import CapsNet, load_digits, load_pretrained
from capsule_lib.explorer import CapsuleExplorer, load_spreads, measure_spreads
from capsule_lib.explorer import page as written

STATE = "document.querySelector('.capsule-explorer').explorer.state"
PICTURE = "document.querySelector('.capsule-explorer').explorer.view.picture"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    path.write_text(written.stand_alone())
    assert path.stat().st_size < 5.8e6
    return path.as_uri()


@pytest.fixture
def opening(browser, address):  # noqa: F811
    """A function that opens the page as a new visitor, and notes what it asks of any host and what fails."""
    contexts = []

    def opening(link="", width=1280, height=720, before="", at=address, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith(("file:", "data:", "blob:")) or page.faults.append(request.url),
        )
        page.add_init_script(before)
        page.goto(at + link)
        page.wait_for_selector(".lengths .longest, .notice:not(:empty)")
        return page

    yield opening
    for context in contexts:
        for page in context.pages:
            assert page.faults == []
        context.close()


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """The same explorer in Python, to say what should be seen."""
    names = tmp_path_factory.mktemp("names") / "names.json"
    return CapsuleExplorer(
        load_pretrained("small"), load_digits("shipped", "test"), load_spreads("small"), names, label=4
    )


def settled(page):
    """Wait for the last picture of a motion, and return the page's picture and lengths."""
    page.wait_for_function("() => !document.querySelector('.capsule-explorer').explorer.running")
    picture, lengths = page.evaluate(f"() => [[...{PICTURE}], [...{PICTURE.replace('picture', 'lengths')}]]")
    return torch.tensor(picture).view(1, 28, 28), torch.tensor(lengths)


def agree(page, twin, **state):
    """The page shows what Python shows in this state."""
    fresh = {
        "label": 4,
        "strokes": [],
        "index": 0,
        "partner": 0,
        "shown_class": None,
        "morph": 0.0,
        "knobs": [0.0] * 16,
    }
    twin.units = state.pop("units", "standard deviations")
    twin._put(**fresh | state)
    picture, lengths = settled(page)
    assert torch.allclose(picture, twin.changed, atol=1e-5) and torch.allclose(lengths, twin.lengths, atol=1e-5)


def knobs(**turned):
    return [turned.get(f"k{d}", 0.0) for d in range(16)]


def slider(page, d):
    return page.get_by_role("slider", name=f"dimension {d}", exact=True)


def test_keyboard_turns_dimensions_undoes_and_announces(opening, twin):
    page = opening()
    agree(page, twin)
    slider(page, 3).focus()
    for key in ["ArrowRight"] * 5:
        page.keyboard.press(key)
    agree(page, twin, knobs=knobs(k3=0.5))
    slider(page, 14).press("Home")
    agree(page, twin, knobs=knobs(k3=0.5, k14=-4.0))
    assert "no real digit there" in slider(page, 14).get_attribute("aria-valuetext")
    page.get_by_role("status").get_by_text(f"read as {twin.lengths.argmax()}").wait_for()
    page.keyboard.press("Control+z")
    agree(page, twin, knobs=knobs(k3=0.5))
    page.keyboard.press("Control+z")
    agree(page, twin)
    page.keyboard.press("Control+Shift+z")
    agree(page, twin, knobs=knobs(k3=0.5))
    slider(page, 3).press("Delete")
    agree(page, twin)


def test_the_page_of_a_network_with_batch_norm_shows_what_python_shows(opening, tmp_path, monkeypatch):
    torch.manual_seed(0)
    net, digits = CapsNet.from_preset("compact"), load_digits("shipped", "test")
    with torch.no_grad():
        net.digit_caps.weight.mul_(5)
        for _ in range(20):
            net(digits[0][:100])  # batch norm learns
    net.eval()
    twin = CapsuleExplorer(net, digits, measure_spreads(net, *digits), tmp_path / "names.json", label=4)
    monkeypatch.setattr(written, "load_pretrained", lambda name: net)
    monkeypatch.setattr(written, "load_spreads", lambda name: twin.spreads)
    (tmp_path / "explorer.html").write_text(written.stand_alone("compact"))
    page = opening(at=(tmp_path / "explorer.html").as_uri())
    agree(page, twin)
    slider(page, 3).press("End")
    agree(page, twin, knobs=knobs(k3=4.0))
    assert not torch.allclose(twin.changed, twin.reconstruction, atol=1e-3)


def test_a_burst_ends_at_its_last_position_and_queues_nothing(opening, twin):
    page = opening()
    frames = page.evaluate("""async () => {
        const explorer = document.querySelector(".capsule-explorer").explorer;
        const draw = explorer.network.draw.bind(explorer.network);
        let frames = 0;
        explorer.network.draw = (...given) => (frames++, draw(...given));
        for (let n = 0; n < 200; n++) explorer.turn(5, n / 50 - 2);
        await new Promise((resolve) => setTimeout(resolve, 300));
        return frames;
    }""")
    assert 1 <= frames <= 3
    agree(page, twin, knobs=knobs(k5=199 / 50 - 2))


def test_new_units_turn_nothing(opening, twin):
    """A slider once posted back its value as its range and step changed: all sixteen were turned a little."""
    page = opening()
    page.locator(".menu summary").click()
    for units in ("raw", "principal axes", "standard deviations"):
        page.get_by_label("sliders in").select_option(units)
        agree(page, twin, units=units)
        assert page.evaluate(f"() => {STATE}.knobs.some(Boolean)") is False
        assert page.locator(".is-turned").count() == 0
    page.get_by_label("sliders in").select_option("principal axes")
    page.keyboard.press("Escape")
    page.get_by_role("slider", name="axis 2", exact=True).press("End")
    agree(page, twin, units="principal axes", knobs=knobs(k2=4.0))


def test_the_reading_of_the_digit_and_of_the_picture_are_both_named(opening):
    net, (images, labels) = load_pretrained("small"), load_digits("shipped", "test")
    read = net(images).lengths.argmax(1)
    [wrong, *_] = (read != labels).nonzero()[:, 0].tolist()
    label = int(labels[wrong])
    index = (labels[:wrong] == label).sum().item()
    page = opening(f"#label={label}&index={index}")
    assert f"The network reads a {read[wrong]}" in page.locator(".own").inner_text() or page.locator(".hint").count()
    words = page.locator(".read").inner_text()
    _, lengths = settled(page)
    assert re.search(rf"changed picture, read as {lengths.argmax()} .* the digit, read as {read[wrong]} ", words), words


def draw(page, digit, touch=False):
    box = page.locator(".pad").bounding_box()
    for stroke in DIGITS[digit]:
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        if touch:
            session = page.context.new_cdp_session(page)
            for kind, at in [("touchStart", points[0]), *(("touchMove", p) for p in points[1:]), ("touchEnd", None)]:
                touched = [] if at is None else [{"x": at[0], "y": at[1]}]
                session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touched})
            continue
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point)
        page.mouse.up()
    page.wait_for_function(f"(count) => {STATE}.strokes.length === count", arg=len(DIGITS[digit]))


def test_a_drawing_is_read_redrawn_and_turned_and_taken_back(opening, twin):
    page = opening()
    draw(page, 3)
    state = page.evaluate(f"() => {STATE}")
    assert state["label"] == 3 and len(state["strokes"]) == 1
    agree(page, twin, label=3, strokes=state["strokes"])
    slider(page, 2).press("End")
    agree(page, twin, label=3, strokes=state["strokes"], knobs=knobs(k2=4.0))
    page.get_by_role("button", name="clear").click()  # a digit of the set comes back, the drawing does not stay
    page.locator(".ink polyline").wait_for(state="detached")
    assert page.evaluate(f"() => {STATE}.strokes") == []
    page.mouse.click(*np.add(list(page.locator(".pad").bounding_box().values())[:2], 20))
    page.get_by_role("alert").get_by_text("speck").wait_for()
    agree(page, twin, label=3)


def test_on_a_phone_a_finger_draws_under_itself_and_the_digit_stays_in_sight(opening):
    page = opening(width=390, height=844, has_touch=True, is_mobile=True)
    draw(page, 7, touch=True)
    state = page.evaluate(f"() => {STATE}")
    assert state["label"] == 7
    assert np.abs(np.array(state["strokes"][0]) - DIGITS[7][0]).max() < 0.02  # the ink is where the finger was
    page.evaluate("() => document.querySelector('.knob:nth-child(16)').scrollIntoView({ block: 'end' })")
    for part in (".changed canvas", ".lengths"):
        box = page.locator(part).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] < 844 / 2, part


def test_nothing_is_clipped_small_or_in_the_way(opening):
    page = opening("#label=4&knobs=14:-3 2:1.5", before="localStorage.setItem('capsule-explorer seen', 'true')")
    page.get_by_role("button", name="smaller pad").click()
    for width, height in [(360, 780), (390, 844), (820, 1180), (1280, 720), (1920, 1080)]:
        page.set_viewport_size({"width": width, "height": height})
        for panel in ("dimensions", "plane", "inside", "sweep"):
            if page.get_by_role("tab", name=panel).is_visible():
                page.get_by_role("tab", name=panel).click()
            found = page.evaluate("""() => {
                const parts = [...document.querySelectorAll(".body *")].filter((part) => part.checkVisibility({ visibilityProperty: true }) && !part.closest(".status, .past, svg"));
                const out = parts.filter((part) => {
                    const { left, right } = part.getBoundingClientRect();
                    return left < -1 || right > innerWidth + 1;
                });
                const cut = parts.filter((part) => part.matches("button, p, figcaption, label, small, output") && part.scrollWidth > part.clientWidth + 1 && part.clientWidth);
                const tiny = parts.filter((part) => part.matches("button, select, input") && Math.min(part.offsetWidth, part.offsetHeight) < (part.closest(".lengths") ? 18 : 23));
                return { out: out.map((part) => part.outerHTML.slice(0, 120)), cut: cut.map((part) => part.outerHTML.slice(0, 120)),
                    tiny: tiny.map((part) => part.outerHTML.slice(0, 120)), wide: document.documentElement.scrollWidth - innerWidth };
            }""")
            assert found == {"out": [], "cut": [], "tiny": [], "wide": 0}, (width, panel)
        share = page.locator(".changed .paper").bounding_box()["width"] / width
        assert share > (0.3 if width >= 1000 else 0.4), width


def test_text_and_controls_stand_out_on_a_light_page_and_on_a_dark_one(opening):
    page = opening()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        check_contrast(page)


def check_contrast(page):
    """WCAG: 4.5 to 1 for words, 3 to 1 for what has to be seen of controls."""
    colours = page.evaluate("""() => {
        const body = document.querySelector(".body");
        const probe = body.appendChild(document.createElement("i"));
        return Object.fromEntries(["paper", "page", "ink", "soft", "line", "hills", "accent", "on-accent", "less", "more"].map((name) => {
            probe.style.color = `var(--${name})`;
            return [name, getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number)];
        }));
    }""")

    def contrast(a, b):
        parts = [np.array(colours[name]) / 255 for name in (a, b)]
        linear = [
            np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722] for c in parts
        ]
        return (max(linear) + 0.05) / (min(linear) + 0.05)

    for front in ("ink", "soft", "accent"):
        assert contrast(front, "page") >= 4.5 and contrast(front, "paper") >= 4.5, front
    assert contrast("on-accent", "accent") >= 4.5
    for front in ("line", "hills", "less", "more"):
        assert contrast(front, "page") >= 2.995 and contrast(front, "paper") >= 2.995, front


def test_everything_has_a_name_in_words_and_the_tabulator_reaches_it(opening):
    page = opening("#label=4&knobs=2:1.5")
    page.locator(".menu summary").click()
    for panel in ("dimensions", "plane", "inside", "sweep"):
        page.get_by_role("tab", name=panel).click()
        snapshot = page.locator(".capsule-explorer").aria_snapshot()
        parts = re.findall(r'- (button|combobox|img|slider|spinbutton|textbox|tab)\b(?: "(.*?)")?', snapshot)
        assert (
            len(parts) > 30
            and [part for part in parts if not re.search(r"[a-z]|^\d: |^[0-9]$|^[0-9] 0", part[1])] == []
        ), panel
    page.get_by_role("tab", name="dimensions").click()
    unreached = page.evaluate_handle("""() => new Set([...document.querySelectorAll(".body :is(button:enabled, select, input, summary)")]
        .filter((part) => part.checkVisibility({ visibilityProperty: true }) && part.tabIndex >= 0))""")
    assert unreached.evaluate("(parts) => parts.size") > 60
    page.evaluate("() => document.querySelector('.class').focus()")
    for _ in range(120):
        unreached.evaluate("(parts) => parts.delete(document.activeElement)")
        page.keyboard.press("Tab")
    assert unreached.evaluate("(parts) => [...parts].map((part) => part.outerHTML)") == []


def test_a_link_carries_the_state_and_a_broken_one_is_said(opening, twin):
    page = opening("#label=7&index=3&units=principal+axes&knobs=3:1.5 15:-2&shown_class=2&morph=0.25&partner=9")
    agree(
        page,
        twin,
        label=7,
        index=3,
        partner=9,
        morph=0.25,
        shown_class=2,
        units="principal axes",
        knobs=knobs(k3=1.5, k15=-2.0),
    )
    page.get_by_role("slider", name="axis 3", exact=True).press("ArrowRight")
    page.wait_for_function("() => location.hash.includes('3%3A1.6')")
    again = opening(page.evaluate("() => location.hash"))
    assert again.evaluate(f"() => {STATE}") == page.evaluate(f"() => {STATE}")
    draw(again, 3)
    again.wait_for_function("() => location.hash.includes('strokes')")
    agree(again, twin, label=3, strokes=again.evaluate(f"() => {STATE}.strokes"))
    strokes = again.evaluate("() => location.hash")
    page = opening("#label=12")
    assert "no digit of class 12" in page.get_by_role("alert").inner_text()
    for link, words in [
        ("#label=<img src=x onerror=alert(1)>", "label should be a number"),
        ("#index=100", "digits 0 to 99"),
        ("#knobs=3", "should be a number"),
        ("#knobs=3:9", "go from"),
        ("#knobs=77:1", "16 dimensions"),
        ("#units=cm", "cm"),
        ("#strokes=0.5,0.5", "a speck"),
        ("#strokes=;;,", "should be a number"),
        ("#evil=1", "evil"),
    ]:
        page.evaluate("(link) => { location.hash = link; }", link)
        page.get_by_role("alert").get_by_text(words).wait_for()
    agree(page, twin)
    assert page.locator(".capsule-explorer img").count() == 0
    page.evaluate("(link) => { location.hash = link; }", strokes)  # a good one is followed, and the fault is gone
    page.wait_for_function(f"() => {STATE}.strokes.length === 1")
    assert page.locator(".notice").inner_text() == ""


def test_the_plane_moves_two_dimensions(opening, twin):
    page = opening()
    page.get_by_role("tab", name="plane").click()
    page.get_by_label("dimension from left to right").select_option("14")
    page.get_by_label("dimension from below to above").select_option("2")
    page.get_by_text("100 real digits of class 4").wait_for()
    box = page.locator(".plane canvas").bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.3 * box["height"], steps=3)
    page.mouse.up()
    turned = page.evaluate(f"() => {STATE}.knobs")
    agree(page, twin, knobs=turned)
    place = twin.spreads.place(twin.capsule, 4, "standard deviations")
    assert place[14] == pytest.approx(-1, abs=0.1) and place[2] == pytest.approx(2, abs=0.1)
    assert [d for d in range(16) if turned[d]] == [2, 14]
    page.locator(".plane canvas").press("ArrowUp")
    agree(page, twin, knobs=page.evaluate(f"() => {STATE}.knobs"))
    assert twin.spreads.place(twin.capsule, 4, "raw")[2] == pytest.approx(place[2].item() + 0.2, abs=0.01)


def test_inside_shows_each_iteration_and_their_number_can_be_changed(opening):
    page = opening()
    page.get_by_role("tab", name="inside").click()
    words = page.locator(".inside p")
    assert page.locator(".rounds button").count() == 3 and "iterations 1 to 3" in words.inner_text()
    seen = {page.locator(".inside canvas").evaluate("(canvas) => canvas.toDataURL()")}
    for n in (0, 1):
        page.locator(".rounds button").nth(n).click()
        seen.add(page.locator(".inside canvas").evaluate("(canvas) => canvas.toDataURL()"))
    assert len(seen) == 3  # routing is seen to change
    page.get_by_role("button", name="one iteration of routing more").click()
    page.get_by_text("the network was trained with 3").wait_for()
    net = load_pretrained("small")
    net.digit_caps.iterations = 4
    picture, lengths = settled(page)
    assert torch.allclose(lengths, net(picture[None]).lengths[0].detach(), atol=1e-5)


def test_sweep_and_overview_lead_to_what_was_chosen(opening, twin):
    page = opening()
    page.get_by_role("tab", name="sweep").click()
    page.wait_for_function("() => document.querySelector('.sweep canvas').height === 16 * 29")
    sheet = page.locator(".sweep canvas")
    sheet.click(
        position={"x": 0.5 / 11 * sheet.bounding_box()["width"], "y": 2.5 / 16 * sheet.bounding_box()["height"]}
    )
    agree(page, twin, knobs=knobs(k2=-4.0))
    overview = page.locator(".overview canvas")
    box = overview.bounding_box()
    overview.click(position={"x": 5.5 / 16 * box["width"], "y": 9.5 / 10 * box["height"]})
    agree(page, twin, shown_class=9)
    assert "expect a blur" in page.locator(".changed figcaption").inner_text()
    assert page.evaluate("() => document.activeElement.getAttribute('aria-label')") == "dimension 5"


def test_hovering_a_dimension_shows_where_both_ends_would_lie(opening):
    page = opening()
    page.locator(".knob").nth(0).hover()
    shapes = page.locator(".ghosts path").evaluate_all(
        "(all) => all.map((one) => [one.getAttribute('class'), one.getAttribute('d').length])"
    )
    assert [kind for kind, _ in shapes] == ["less", "more"] and min(length for _, length in shapes) > 200
    page.mouse.move(5, 5)
    assert page.locator(".ghosts path").count() == 0


FORBIDDEN = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('forbidden'); } });"
FULL = "Storage.prototype.setItem = () => { throw new Error('full'); };"


def test_names_are_the_visitors_own_and_hints_come_once(opening):
    page = opening()
    assert page.locator(".hint").count() == 3
    slider(page, 3).press("ArrowRight")
    assert page.locator(".hint").count() == 0
    page.get_by_role("textbox", name="your name for dimension 3", exact=True).fill("slant")
    page.keyboard.press("Tab")
    page.reload()
    page.wait_for_selector(".lengths .longest")
    assert page.locator(".hint").count() == 0
    assert page.get_by_role("textbox", name="your name for dimension 3", exact=True).input_value() == "slant"
    assert opening().get_by_role("textbox", name="your name for dimension 3", exact=True).input_value() == ""


@pytest.mark.parametrize("storage", [FORBIDDEN, FULL], ids=["forbidden", "full"])
def test_a_browser_that_keeps_nothing_is_said_and_all_else_works(opening, twin, storage):
    page = opening(before=storage)
    page.get_by_role("textbox", name="your name for dimension 3", exact=True).fill("slant")
    page.keyboard.press("Tab")
    assert "keeps nothing" in page.get_by_role("alert").inner_text()
    page.get_by_role("slider", name="dimension 3: slant").press("End")
    agree(page, twin, knobs=knobs(k3=4.0))


BROKEN = {
    "values._weights = values._weights.slice(0, 1e6)": "is cut short",
    "values._weights = new Uint8Array(3)": "it has 3 bytes",
    "values._config.types = 9": "don't fit the network",
    "values._config.decoder_hidden = null": "no decoder",
    "values._digits = values._spreads": "digits should be images and labels",
    "values._digits = values._digits.slice(0, -9)": "cut short",
    "values._spreads = values._digits": "spreads lack",
    "CSS.supports = () => false": "browser",
}


def test_what_cannot_be_shown_is_said_where_the_digit_would_be(opening):
    page = opening()
    for change, words in BROKEN.items():
        said = page.evaluate(
            """(change) => {
                const { model } = document.querySelector(".capsule-explorer").explorer;
                const names = ["_config", "_weights", "_spreads", "_digits"];
                const values = Object.fromEntries(names.map((name) => [name, structuredClone(model.get(name))]));
                (0, eval)(`(values) => { ${change} }`)(values);
                const place = document.body.appendChild(document.createElement("div"));
                window.mount(place, values);
                return place.innerText;
            }""",
            change,
        )
        assert words in said, said
    slider(page, 3).press("ArrowRight")  # the others go on


def test_the_python_line_rebuilds_the_picture(opening, twin):
    page = opening("#label=7&index=3&knobs=3:1.5")
    line = page.evaluate("() => document.querySelector('.capsule-explorer').explorer.asPython()")
    known = {"CapsuleExplorer": CapsuleExplorer, "net": twin.model, "spreads": twin.spreads}
    again = eval(line, known | {"digits": load_digits("shipped", "test")})
    agree(page, again, label=7, index=3, knobs=knobs(k3=1.5))


def test_the_code_is_small():
    code = written.module() + written.style()
    assert len(gzip.compress(code.encode(), 9)) < 25_000


@pytest.mark.slow
@pytest.mark.parametrize("slower", [1, 4])
def test_how_long_a_key_press_takes_to_change_picture_and_lengths(opening, capsys, slower):
    """Prints it, and asserts nothing: the time is the machine's."""
    page = opening()
    slider(page, 0).press("ArrowRight")
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": slower})
    waits = page.evaluate("""async () => {
        const { explorer } = document.querySelector(".capsule-explorer");
        const waits = [];
        let done;
        explorer.paintPanel = function () {  // the last that a move paints
            Object.getPrototypeOf(this).paintPanel.call(this);
            done?.();
        };
        for (let n = 0; n < 120; n++) {
            await new Promise((resolve) => setTimeout(resolve, 40));  // as fast as somebody presses keys
            const painted = new Promise((resolve) => (done = resolve));
            const start = performance.now();
            explorer.turn(n % 16, (n % 33 - 16) / 8 || 0.1);
            await painted;
            waits.push(performance.now() - start);
        }
        return waits.slice(20);
    }""")
    with capsys.disabled():
        half, most = np.percentile(waits, [50, 95])
        print(
            f"\nprocessor {slower} times slower: from a move to picture and lengths {half:.1f} ms, 95 % within {most:.1f} ms"
        )
