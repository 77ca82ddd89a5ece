"""Pictures carry their words, show the arrays that they are given, and move when a control moves."""

import io
import math
import re

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from capsule_lib import plots
from capsule_lib.plots import page


@pytest.fixture(autouse=True)
def no_figure_is_left_open():
    yield
    assert not plt.get_fignums()
    plt.close("all")


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, as [what, options]."""
    shown = []
    monkeypatch.setattr(page, "display", lambda what, **options: shown.append((what, options)))
    return shown


@pytest.mark.parametrize("picture", [plt.figure, lambda: Image.new("L", (30, 20), 255)])
def test_show_says_the_caption_twice_and_closes_the_figure(shown, picture):
    plots.show(
        picture(),
        """A dot where
        x < 1.""",
    )
    (bundle, options), (below, _) = shown
    assert options["metadata"] == {"image/png": {"alt": "A dot where x < 1."}} and options["raw"]
    assert below.data == "<em>A dot where x &lt; 1.</em>"
    assert bundle["text/plain"].startswith("<") and " at 0x" not in bundle["text/plain"]


def test_a_picture_stands_on_a_white_card_with_round_corners(shown):
    plots.show(Image.new("L", (30, 20), 100), "Grey.")
    card = np.asarray(Image.open(io.BytesIO(shown[0][0]["image/png"])))
    assert card.shape == (20 + 2 * page.CARD, 30 + 2 * page.CARD, 4)
    assert card[0, 0, 3] == card[-1, -1, 3] == 0  # transparent
    assert (card[20, 2] == 255).all() and (card[20, 25] == [100, 100, 100, 255]).all()


def test_a_table_is_aligned_and_says_the_same_as_text_and_as_html(shown):
    rows = {
        "a long name": [1234567, 0.125],
        "<b>": torch.tensor([2.0, -0.0001]),
        "c": [torch.tensor(3), True],
        "d": ["4 %", np.float32(0.5)],
    }
    plots.table(rows, ["count", "share"])
    bundle, options = shown[0]
    assert options == {"raw": True}
    assert bundle["text/plain"].splitlines() == [
        "                 count  share",
        "a long name  1,234,567   0.12",
        "<b>               2.00   0.00",
        "c                    3    yes",
        "d                  4 %   0.50",
    ]
    words = re.findall(r"<t[hd] .*?>(.*?)</t[hd]>", bundle["text/html"])
    assert words[:9] == ["", "count", "share", "a long name", "1,234,567", "0.12", "&lt;b&gt;", "2.00", "0.00"]
    assert words[9:] == ["c", "3", "yes", "d", "4 %", "0.50"]
    assert bundle["text/html"].count("text-align: left") == 5


def test_a_table_takes_one_value_per_name_and_rows_of_cells(shown):
    plots.table({"x": 0.5, "half": torch.tensor(1.25, dtype=torch.float16)}, digits=1)
    plots.table([("small", 2, None), ("paper", float("nan"), "")], ["network", "n", "note"])
    assert shown[0][0]["text/plain"] == "x     0.5\nhalf  1.2"
    assert shown[1][0]["text/plain"] == "network    n  note\nsmall      2  None\npaper    nan"


@pytest.mark.parametrize(
    "rows, columns",
    [({"a": [1, 2], "b": 1}, ()), ({"a": 1}, ["1", "2", "3"]), ({"a": [1, 2]}, ["1"]), ([("a", 1), ("b",)], ())],
)
def test_a_table_with_a_row_of_another_length_is_refused(rows, columns):
    with pytest.raises(ValueError, match=r"has \d cells with its name"):
        plots.table(rows, columns)


def test_a_digit_is_ink_on_paper_in_whole_enlarged_pixels():
    image = torch.tensor([[[0.0, 1.0], [0.5, 2.0]]])
    grey = np.asarray(plots.digit_image(image, size=20))
    assert grey.shape == (20, 20)
    assert [grey[5, 5], grey[5, 15], grey[15, 15]] == [255, 0, 0] and 126 <= grey[15, 5] <= 128


def test_rows_hold_the_images_they_are_given_in_order():
    first, second = torch.rand(3, 1, 4, 4), torch.rand(3, 1, 4, 4)
    figure = plots.digit_rows({"one": first, "two": second}, ["a", "b", "c"])
    for axis, name, images in zip(figure.axes, ("one", "two"), (first, second), strict=True):
        strip = axis.images[0].get_array()
        assert strip.shape == (6, 18) and axis.images[0].get_clim() == (0, 1)
        for n in range(3):
            assert np.allclose(strip[1:5, 6 * n + 1 : 6 * n + 5], images[n, 0])
        assert name in [text.get_text() for text in axis.texts]
    assert [text.get_text() for text in figure.axes[0].texts[1:]] == ["a", "b", "c"]
    plt.close(figure)


def test_confusion_counts_true_rows_and_predicted_columns():
    figure = plots.confusion(torch.tensor([1, 1, 2, 0]), torch.tensor([0, 0, 2, 0]), classes=3)
    axis = figure.axes[0]
    written = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axis.texts}
    assert written == {(0, 0): "1", (0, 1): "2", (2, 2): "1"}
    coloured = axis.images[0].get_array()
    assert coloured[0, 1] == 2 and coloured.sum() == 2  # the diagonal stays white
    assert axis.get_xlabel() == "predicted" and axis.get_ylabel() == "true"
    plt.close(figure)


def test_a_live_picture_follows_its_controls():
    slider = widgets.FloatSlider(0.0, min=0, max=1)
    box = plots.live(lambda grey: plots.digit_image(torch.full((1, 2, 2), grey), size=2), grey=slider)
    frame = next(child for child in box.children if isinstance(child, plots.Frame))
    assert (pixels(frame.value)[10:12, 10:12] == 255).all()
    slider.value = 1.0
    assert (pixels(frame.value)[10:12, 10:12] == [0, 0, 0, 255]).all()
    assert slider.description == "grey"


def test_an_error_while_drawing_is_said_and_the_next_position_works():
    slider = widgets.IntSlider(0, 0, 2)
    box = plots.live(lambda n: plots.digit_image(torch.zeros(1, 2, 2) / (1 if n != 1 else "one"), size=2), n=slider)
    message = box.children[-1]
    slider.value = 1
    assert "TypeError" in message.value
    slider.value = 2
    assert message.value == ""


def test_widgets_are_words_where_no_kernel_runs():
    frame = plots.Frame()
    assert frame._repr_mimebundle_()["text/plain"] == plots.INTERACTIVE
    frame.draw(plt.figure(figsize=(1, 1)))
    assert pixels(frame.value).shape[0] > 10


def test_spreads_are_drawn_at_their_places_with_their_bars():
    found = [{"a": (1.0, 0.5), "b": (2.0, 0.1)}, {"a": (4.0, 0.25)}, {"a": (8.0, math.nan), "b": (3.0, 0.1)}]
    figure = plots.spreads(found, [100, 300, 1000], ("digits", "%"), log=True)
    (axis,) = figure.axes
    (a, b) = axis.containers
    assert a.lines[0].get_xydata().tolist() == [[100, 1], [300, 4], [1000, 8]]
    assert b.lines[0].get_xydata().tolist() == [[100, 2], [1000, 3]]
    (bars,) = a.lines[2]
    assert [[y for _, y in bar] for bar in bars.get_segments()[:2]] == [[0.5, 1.5], [3.75, 4.25]]
    assert axis.get_xscale() == axis.get_yscale() == "log" and [t.get_text() for t in axis.get_legend().texts] == [
        "a",
        "b",
    ]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["100", "300", "1,000"]
    plt.close(figure)


def test_at_words_networks_stand_side_by_side():
    names = [f"net {n}" for n in range(9)]
    figure = plots.spreads([{name: (5.0 + n, 1.0) for n, name in enumerate(names)}] * 2, ["one", "two"], ("", "%"))
    (axis,) = figure.axes
    xs = torch.tensor([[float(x) for x in container.lines[0].get_xdata()] for container in axis.containers])
    assert (xs.diff(dim=0) > 0.05).all() and ((xs - torch.arange(2)).abs() < 0.5).all()
    looks = {(c.lines[0].get_color(), c.lines[0].get_marker()) for c in axis.containers}
    assert len(looks) == 9 and axis.get_yscale() == "linear"
    assert [t.get_text() for t in axis.get_xticklabels()] == ["one", "two"]
    plt.close(figure)
