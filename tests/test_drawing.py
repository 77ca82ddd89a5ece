"""A drawing becomes an image like MNIST's, which the network reads; the pad sends strokes and shows what Python sets."""

import json
import math
import shutil
import subprocess

import pytest
import torch
import traitlets

from capsule_lib import load_digits, load_pretrained, morphometry
from capsule_lib.explorer.drawing import DrawingPad, mnist_like


def arc(x, y, width, height, start, end):
    """An ellipse's arc with half-axes `width` and `height`: 0 degrees is right, 90 is down."""
    turns = [math.radians(start + (end - start) * n / 24) for n in range(25)]
    return [[x + width * math.cos(turn), y + height * math.sin(turn)] for turn in turns]


DIGITS = [
    [arc(0.5, 0.5, 0.2, 0.32, -90, 270)],
    [[[0.5, 0.15], [0.5, 0.85]]],
    [[*arc(0.5, 0.33, 0.2, 0.18, -170, 30), [0.3, 0.82], [0.72, 0.82]]],
    [[*arc(0.46, 0.33, 0.2, 0.17, -150, 90), *arc(0.46, 0.67, 0.23, 0.18, -90, 150)]],
    [[[0.32, 0.15], [0.28, 0.52], [0.72, 0.52]], [[0.66, 0.2], [0.64, 0.88]]],
    [[[0.68, 0.18], [0.36, 0.18], [0.34, 0.47], *arc(0.46, 0.64, 0.22, 0.19, -115, 140)]],
    [[[0.62, 0.15], [0.42, 0.4], *arc(0.5, 0.66, 0.17, 0.18, -170, 190)]],
    [[[0.28, 0.2], [0.72, 0.2], [0.46, 0.86]]],
    [[*arc(0.5, 0.33, 0.15, 0.17, 90, -270), *arc(0.5, 0.68, 0.18, 0.18, -90, 270)]],
    [[*arc(0.5, 0.34, 0.17, 0.18, 0, -360), [0.67, 0.34], [0.6, 0.86]]],
]


def moved(strokes, matrix=((1, 0), (0, 1)), offset=(0, 0), tremor=0.0):
    (a, b), (c, d) = matrix
    return [
        [
            [a * x + b * y + offset[0] + dx, c * x + d * y + offset[1] + dy]
            for (x, y), (dx, dy) in zip(stroke, (tremor * torch.randn(len(stroke), 2)).tolist(), strict=True)
        ]
        for stroke in strokes
    ]


def drawn(**variant):
    return torch.stack([mnist_like(moved(strokes, **variant)) for strokes in DIGITS])


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"matrix": ((1, -0.25), (0, 1))},  # leaning to the right
        {"matrix": ((1, 0.15), (0, 1))},
        {"matrix": ((0.3, 0), (0, 0.3)), "offset": (0.6, 0.05)},  # small, in a corner
        {"matrix": ((1.3, 0), (0, 1))},
        {"tremor": 0.01},
    ],
    ids=["plain", "right", "left", "small", "wide", "tremor"],
)
def test_the_network_reads_what_is_drawn(variant):
    with torch.no_grad():
        read = load_pretrained("small")(drawn(**variant)).lengths.argmax(dim=1)
    assert (read == torch.arange(10)).sum() >= 8, read.tolist()


def test_drawings_measure_like_mnist():
    images, _ = load_digits("shipped")
    ours, theirs = morphometry.measure(drawn()), morphometry.measure(images[:1000])
    for name, tolerance in [
        ("stroke thickness", 0.15),
        ("total ink", 10),
        ("horizontal position", 0.05),
        ("vertical position", 0.05),
    ]:
        assert ours[name].mean() == pytest.approx(theirs[name].mean().item(), abs=tolerance), name
    assert (torch.maximum(ours["width"], ours["height"]) - 20).abs().max() < 0.2
    ink = drawn()[drawn() > 0.02]
    assert ink.max() == 1 and 0.45 < (ink < 0.98).float().mean() < 0.65  # as many grey edges: 61 % in MNIST


@pytest.mark.parametrize("size", [28, 40, 33])
def test_the_centre_of_mass_is_in_the_middle_of_the_same_pixel_as_in_mnist(size):
    image = mnist_like(DIGITS[7], size)
    assert image.shape == (1, size, size) and image.dtype == torch.float32
    place = torch.arange(size, dtype=torch.float32)
    centre = [(image[0].sum(axis) @ place / image.sum()).item() for axis in (0, 1)]
    assert centre == pytest.approx([size // 2, size // 2], abs=0.02)
    assert morphometry.measure(image[None])["height"].item() == pytest.approx(size * 20 / 28, abs=0.2)


def test_place_and_size_of_the_drawing_make_no_difference():
    there = moved(DIGITS[4], ((3, 0), (0, 3)), (-1, 5))  # far outside 0..1
    assert torch.allclose(mnist_like(DIGITS[4]), mnist_like(there), atol=1e-4)


def test_a_line_is_what_it_should_be_by_hand():
    image = mnist_like([[[0.5, 0.2], [0.5, 0.8]]])[0]
    assert image[14, 12:17].tolist() == pytest.approx([0, 0.8, 1, 0.8, 0], abs=1e-6)  # a pen 2.6 wide round pixel 14
    assert image[:, 14].sum() == pytest.approx(20, abs=0.05)


def test_a_dot_beside_a_line_is_drawn():
    image = mnist_like([[[0.5, 0.1], [0.5, 0.9]], [[0.8, 0.5]]])
    assert image[0, :, 18:].sum() == pytest.approx(math.pi * 1.3**2, abs=0.5)


@pytest.mark.parametrize(
    "strokes, message",
    [
        ([], "draw a digit first"),
        ([[]], "draw a digit first"),
        ([[[0.5, 0.5]]], "a speck"),
        ([[[0.5, 0.5], [0.51, 0.5]]], "a speck"),
        (None, "lists of points"),
        ([[["a", 1], [2, 3]]], "lists of points"),
        ([[None]], "lists of points"),
        ([[0.5, 0.1], [0.5, 0.9]], "lists of points"),
        ([[[10**400, 0], [0, 0]]], "lists of points"),
        ([[[float("nan"), 1], [0, 0]]], "not a finite number"),
        ([[[float("inf"), 1], [0, 0]]], "not a finite number"),
    ],
)
def test_what_is_no_drawing_is_said(strokes, message):
    with pytest.raises(ValueError, match=message):
        mnist_like(strokes)


def test_the_pad_holds_strokes_and_nothing_else():
    pad, seen = DrawingPad(), []
    pad.observe(lambda change: seen.append(change["new"]), "strokes")
    pad.set_state({"strokes": [[[0.1, 0.2], [0.3, 1.4]]]})  # what the page sends
    assert seen == [[[[0.1, 0.2], [0.3, 1.4]]]] and pad.get_state("strokes")["strokes"] == seen[0]
    for wrong in ([[[0.1]]], [[["a", 0.1]]], [[0.1, 0.2]], None):
        with pytest.raises(traitlets.TraitError):
            pad.strokes = wrong


def test_the_pad_is_words_where_no_kernel_runs():
    assert "draw a digit" in DrawingPad()._repr_mimebundle_()[0]["text/plain"]


# A page of a few lines: elements that remember what is done to them.
PAGE = """
class Element {
  constructor(name) { Object.assign(this, { name, children: [], attributes: {}, listeners: {} }); }
  setAttribute(key, value) { this.attributes[key] = String(value); }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; }
  addEventListener(kind, listener) { this.listeners[kind] = listener; }
  getBoundingClientRect() { return { left: 10, top: 20, width: 280, height: 280 }; }
  setPointerCapture(id) { this.captured = id; }
  fire(kind, event) {
    this.listeners[kind]({ isPrimary: true, button: 0, pointerId: 7, preventDefault() {}, ...event });
  }
}
globalThis.document = { createElementNS: (_, name) => new Element(name), createElement: (name) => new Element(name) };
const values = { strokes: [] }, listeners = {}, sent = [];
const model = {
  get: (key) => values[key],
  set(key, value) { values[key] = value; listeners["change:" + key]?.(); },
  save_changes: () => sent.push(JSON.stringify(values.strokes)),
  on: (kind, listener) => (listeners[kind] = listener),
  off: (kind, listener) => listeners[kind] === listener && delete listeners[kind],
};
const el = new Element("div");
const leave = pad.render({ model, el });
const [{ children: [paper, { children: [undo, clear] }] }] = el.children;
const lines = () => paper.children.map((line) => line.attributes.points).filter(Boolean);
const at = (x, y) => ({ clientX: 10 + 280 * x, clientY: 20 + 280 * y });
const report = {};
"""


def on_the_page(actions):
    """Run the pad's module on that page, do `actions`, and return what they put into `report`."""
    if not (node := shutil.which("node")):
        pytest.skip("no node to run the pad's JavaScript")
    script = str(DrawingPad._esm).replace("export default { render };", "const pad = { render };")
    program = f"{script}\n{PAGE}\n{actions}\nconsole.log(JSON.stringify(report));"
    done = subprocess.run([node, "--input-type=module", "-"], input=program, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


DRAW = """
paper.fire("pointermove", at(0.9, 0.9));  // nothing pressed yet
paper.fire("pointerdown", at(0.25, 0.5));
paper.fire("pointermove", at(0.5, 0.5));
paper.fire("pointermove", at(0.5, 1.25));
"""


def test_a_stroke_is_shown_at_once_and_sent_when_it_ends():
    report = on_the_page(
        DRAW
        + """
        Object.assign(report, { during: [...sent], shown: lines(), captured: paper.captured });
        paper.fire("lostpointercapture", {});
        paper.fire("lostpointercapture", {});
        Object.assign(report, { sent, after: lines(), label: paper.attributes["aria-label"] });
        """
    )
    assert report["during"] == [] and report["captured"] == 7
    assert report["shown"] == ["0.25,0.5 0.25,0.5 0.5,0.5 0.5,1.25"] == report["after"]
    assert [json.loads(strokes) for strokes in report["sent"]] == [[[[0.25, 0.5], [0.5, 0.5], [0.5, 1.25]]]]
    assert "1 stroke drawn" in report["label"]


def test_a_second_finger_and_the_right_button_draw_nothing():
    report = on_the_page(
        """
        paper.fire("pointerdown", { ...at(0, 0), button: 2 });
        paper.fire("pointerdown", { ...at(0, 0), isPrimary: false });
        report.nothing = lines();
        """
        + DRAW
        + """
        paper.fire("pointermove", { ...at(0, 0), isPrimary: false });
        paper.fire("lostpointercapture", { isPrimary: false });
        Object.assign(report, { sent, shown: lines() });
        """
    )
    assert report == {"nothing": [], "sent": [], "shown": ["0.25,0.5 0.25,0.5 0.5,0.5 0.5,1.25"]}


def test_undo_takes_the_last_stroke_and_clear_takes_all():
    report = on_the_page(
        """
        model.set("strokes", [[[0, 0], [1, 1]], [[0, 1]], [[1, 0]]]);
        report.first = lines();
        undo.fire("click");
        report.second = lines();
        clear.fire("click");
        Object.assign(report, { third: lines(), sent });
        report.labels = [undo, clear].map((button) => [button.textContent, button.attributes["aria-label"]]);
        """
    )
    assert report["first"] == ["0,0 0,0 1,1", "0,1 0,1", "1,0 1,0"]  # a dot is a line that goes nowhere
    assert report["second"] == report["first"][:2] and report["third"] == []
    assert [len(json.loads(strokes)) for strokes in report["sent"]] == [2, 0]
    assert report["labels"] == [["Undo", "Undo the last stroke"], ["Clear", "Clear the drawing"]]


def test_a_pad_taken_off_the_page_no_longer_listens():
    report = on_the_page("leave(); model.set('strokes', [[[0, 0], [1, 1]]]); report.lines = lines();")
    assert report == {"lines": []}
