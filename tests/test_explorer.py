"""The explorer shows what a direct call of the network gives, for any network, and goes on working after bad input."""

import asyncio
import hashlib
import html
import io
import json
import random
import shutil
import sys
import time

import ipywidgets as widgets
import numpy as np
import pytest
import torch
import traitlets
from PIL import Image

from capsule_lib import CapsNet, CapsNetConfig, files, load_digits, load_pretrained
from capsule_lib.explorer import CapsuleExplorer, pictures
from capsule_lib.explorer import spreads as spreads_file
from capsule_lib.explorer import widget as explorer
from capsule_lib.explorer.spreads import EDGES, LIMITS, load_spreads, measure_spreads, save_spreads
from capsule_lib.morphometry import effects
from capsule_lib.plots import INTERACTIVE

SEVEN = [[[0.2, 0.2], [0.8, 0.2], [0.4, 0.9]]]


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits("shipped", "test")
    keep = torch.cat([(labels == j).nonzero()[:6, 0] for j in range(10)])
    return images[keep], labels[keep]


@pytest.fixture(scope="module")
def small():
    return load_pretrained("small"), load_spreads("small")


@pytest.fixture
def shown(small, digits, tmp_path):
    """An explorer of `small`, which keeps names in a folder of its own."""
    return CapsuleExplorer(small[0], digits, small[1], names_file=tmp_path / "names.json", label=4)


def odd_network(**config):
    """A network unlike the course's, and digits for it: colour, not square, 3 classes of 5 numbers."""
    config = {"image_shape": (3, 20, 24), "classes": 3, "class_dim": 5, "stem_channels": 4, "types": 2} | config
    net = CapsNet(CapsNetConfig(**config, decoder_hidden=(8,))).eval()
    with torch.no_grad():
        net.digit_caps.weight.mul_(20)  # untrained capsules would be too short to draw anything
    return net, (torch.rand(12, *config["image_shape"]), torch.arange(12) % config["classes"])


def direct(net, digit, label, shift=0.0, shown=None):
    """A digit's capsule of class `shown`, shifted, and its picture, by the network's own forward pass and decoder."""
    shown = label if shown is None else shown
    with torch.no_grad():
        v = net(digit[None]).capsules.clone()
        v[0, shown] += shift
        return v[0, shown], net.decoder(v, torch.tensor([shown]))[0]


def number(digits, label, index):
    return digits[0][digits[1] == label][index]


def message(shown):
    return html.unescape(shown._message.value.split(">", 1)[1].removesuffix("</div>"))


def close(a, b):
    return torch.allclose(a, b, atol=1e-5)


# Spreads


def test_spreads_are_those_of_each_classs_own_capsules(small, digits):
    spreads = measure_spreads(small[0], *digits)
    with torch.no_grad():
        for j in range(10):
            x = small[0](digits[0][digits[1] == j]).capsules[:, j]
            assert close(spreads.mean[j], x.mean(0)) and close(spreads.std[j], x.std(0, correction=0))
            z = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
            for d in range(16):
                assert spreads.counts[j, d].tolist() == np.histogram(z[:, d], EDGES.numpy())[0].tolist()


def test_axes_are_orthogonal_by_variance_and_point_one_way():
    net, (images, labels) = odd_network()
    spreads = measure_spreads(net, images, labels)
    own = net(images).capsules[torch.arange(12), labels].detach()
    for j in range(3):
        axes, x = spreads.axes[j], own[labels == j]
        assert close(axes @ axes.T, torch.eye(5))
        assert close(((x - x.mean(0)) @ axes.T).std(0, correction=0), spreads.axis_std[j])
        assert (spreads.axis_std[j].diff() <= 1e-6).all() and spreads.axis_counts[j].sum(1).tolist() == [4] * 5
        assert (axes.gather(1, axes.abs().argmax(1, keepdim=True)) > 0).all()


def test_one_digit_a_class_has_no_spread_and_no_nan_and_outliers_count_in_the_outer_bins():
    net, (images, labels) = odd_network()
    spreads = measure_spreads(net, images[:3], labels[:3])
    assert all(part.isfinite().all() for part in spreads) and spreads.std.abs().max() < 1e-6
    far = torch.cat([torch.zeros(99, 1), torch.tensor([[9.0]])])
    assert spreads_file._spread(far)[4][0, -1] == 1


def test_a_class_without_images_has_no_spread():
    net, (images, labels) = odd_network()
    with pytest.raises(ValueError, match="class 1 has no image"):
        measure_spreads(net, images[labels != 1], labels[labels != 1])


@pytest.mark.parametrize("name", ["small", "paper"])
def test_shipped_spreads_are_those_of_the_training_digits(name):
    images, labels = load_digits("shipped", "train")
    label = 7  # one class shows it; all of them take the paper's network 15 seconds
    with torch.no_grad():
        own = load_pretrained(name).encode(images[labels == label])[:, label]
    assert torch.allclose(load_spreads(name).mean[label], own.mean(0), atol=1e-3)
    assert torch.allclose(load_spreads(name).std[label], own.std(0), atol=1e-3)
    assert load_spreads(name).counts.sum(2).eq(400).all()


def test_spreads_for_other_weights_are_refused(tmp_path, monkeypatch, small):
    weights = tmp_path / "weights"
    weights.mkdir()
    for file in ("small.json", "small.safetensors", "paper.json"):
        shutil.copy(spreads_file.WEIGHTS / file, weights / file)
    monkeypatch.setattr(spreads_file, "WEIGHTS", weights)
    monkeypatch.setattr(files, "DATA", tmp_path)

    def list_sums():
        sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  weights/{p.name}\n" for p in weights.iterdir()]
        (tmp_path / "SHA256SUMS").write_text("".join(sums))

    with pytest.raises(ValueError, match="no spreads ship under the name 'small'"):
        load_spreads("small")
    path = save_spreads(small[1], weights / "small.safetensors")
    with pytest.raises(ValueError, match="does not name weights/small.spreads.safetensors"):
        load_spreads("small")
    list_sums()
    assert all(a.equal(b) for a, b in zip(load_spreads("small"), small[1], strict=True))
    content = path.read_bytes()
    for seed in range(50):
        bit = random.Random(seed).randrange(8 * len(content))
        path.write_bytes(content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :])
        with pytest.raises(ValueError, match="cut short or altered"):
            load_spreads("small")
        path.write_bytes(content[: bit // 8])
        with pytest.raises(ValueError, match="cut short or altered"):
            load_spreads("small")
    path.write_bytes(content)
    path.rename(weights / "paper.spreads.safetensors")
    list_sums()
    with pytest.raises(ValueError, match="other weights than paper"):
        load_spreads("paper")


# What is shown


def test_the_digit_its_reconstruction_and_its_capsule_are_the_networks_own(shown, small, digits):
    shown.index = 3
    digit = number(digits, 4, 3)
    capsule, picture = direct(small[0], digit, 4)
    assert shown.original.equal(digit) and close(shown.capsule, capsule)
    assert close(shown.reconstruction, picture) and close(shown.changed, picture)


@pytest.mark.parametrize("units", LIMITS)
def test_knobs_move_the_capsule_in_their_units(shown, small, digits, units):
    net, spreads = small
    knobs = torch.zeros(16)
    knobs[2], knobs[9] = 0.8 * LIMITS[units], -0.2 * LIMITS[units]
    shown.units, shown.knobs = units, knobs.tolist()
    shift = {
        "raw": knobs,
        "standard deviations": knobs * spreads.std[4],
        "principal axes": sum(knobs[d] * spreads.axis_std[4, d] * spreads.axes[4, d] for d in (2, 9)),
    }[units]
    capsule, picture = direct(net, number(digits, 4, 0), 4, shift)
    assert close(shown.capsule, capsule) and close(shown.changed, picture)
    assert not close(shown.changed, shown.reconstruction)
    assert close(shown.lengths, net(picture[None]).lengths[0].detach())


def test_another_classs_capsule_is_decoded_in_its_own_spread(shown, small, digits):
    shown.shown_class = 9
    shown.knobs = [2.0, *[0.0] * 15]
    capsule, picture = direct(small[0], number(digits, 4, 0), 4, torch.eye(16)[0] * 2 * small[1].std[9], shown=9)
    assert close(shown.capsule, capsule) and close(shown.changed, picture)
    shown.index = 1  # the reconstruction stays that of the digit's own class
    assert close(shown.reconstruction, direct(small[0], number(digits, 4, 1), 4)[1])


def test_morph_goes_from_one_digit_to_another(shown, small, digits):
    shown.partner = 2
    (one, _), (other, _) = (direct(small[0], number(digits, 4, n), 4) for n in (0, 2))
    for morph in (0.0, 0.25, 1.0):
        shown.morph = morph
        assert close(shown.capsule, one + morph * (other - one))


@pytest.mark.parametrize("config", [{}, {"stem": ((4, 9, 1), (16, 3, 1)), "depthwise": True}])
def test_any_network_with_a_decoder_can_be_explored(tmp_path, config):
    net, digits = odd_network(**config)
    net.train()(digits[0])  # as a fresh one is; batch norm learns
    shown = CapsuleExplorer(net, digits, names_file=tmp_path / "n.json", label=2, index=1, knobs=[0, 0, 0, 3.0, 0])
    spreads = measure_spreads(net, *digits)
    net.eval()
    capsule, picture = direct(net, number(digits, 2, 1), 2, torch.eye(5)[3] * 3 * spreads.std[2])
    assert close(shown.capsule, capsule) and close(shown.changed, picture) and list(shown.lengths.shape) == [3]
    pixels = np.asarray(Image.open(io.BytesIO(shown._picture.value)))
    assert pixels.shape == (200, 10 * (4 * 24 + 3), 3)
    assert (pixels[5::10, 5:240:10] == (255 * shown.original).round().byte().movedim(0, 2).numpy()).all()
    assert message(shown) == ""


def test_the_picture_is_digit_reconstruction_changed_and_signed_difference(shown):
    shown.knobs = [3.0, *[0.0] * 15]
    pixels = np.asarray(Image.open(io.BytesIO(shown._picture.value)))[3::7, 3::7].astype(int)
    assert pixels.shape == (28, 4 * 28 + 3, 3)
    panels = [pixels[:, 29 * n : 29 * n + 28] for n in range(4)]
    for panel, image in zip(panels, (shown.original, shown.reconstruction, shown.changed), strict=False):
        assert (panel == (255 * (1 - image[0])).round().int()[:, :, None].numpy()).all()
    difference = (shown.changed - shown.reconstruction)[0]
    more, less = difference > 0.2, difference < -0.2
    assert more.any() and less.any()
    assert (panels[3][more][:, 0] > panels[3][more][:, 2]).all() and (
        panels[3][less][:, 0] < panels[3][less][:, 2]
    ).all()
    assert (panels[3][difference == 0] == 255).all()


def test_the_bars_say_the_lengths_in_words_and_the_knobs_whether_real_digits_lie_there(shown):
    shown.knobs = [4.0, *[0.0] * 7, -4.0, *[0.0] * 7]
    for length in shown.lengths.tolist():
        assert f"{length:.2f}" in shown._bars.value
    assert f"read as {shown.lengths.argmax()}" in shown._bars.value
    z = shown.spreads.place(shown.capsule, 4, "raw")
    for d, row in enumerate(shown._rows):
        assert row.slider.value == shown.knobs[d]
        real = shown.spreads.counts[4, d, (EDGES[1:] <= z[d]).sum().clamp(max=23)] > 0
        assert ("no digit there" in row.value.value) == (not real) and (real or d in (0, 8))
    assert any("no digit there" in row.value.value for row in shown._rows)
    assert "+4 sd" in shown._rows[0].value.value and "its own value" in shown._rows[1].value.value


def test_where_no_real_digit_lies_is_judged_dimension_by_dimension(small, digits, tmp_path):
    counts = torch.zeros(10, 16, 24)
    counts[4, 3] = 1
    shown = CapsuleExplorer(small[0], digits, small[1]._replace(counts=counts), tmp_path / "n.json", label=4)
    assert [d for d, row in enumerate(shown._rows) if "no digit there" not in row.value.value] == [3]


def test_a_histogram_puts_the_digits_own_value_under_the_sliders_middle():
    counts = torch.zeros(24)
    counts[15] = 5  # digits at 1 to 1.33 standard deviations
    svg = pictures.histogram(counts, 1.0, 4.0, 1.0, 212, "words & more")
    assert "V0.0H114.3" in svg and "H106.0" in svg  # a slider of 200 pixels, 0 at 106, 25 pixels a standard deviation
    assert 'aria-label="words &amp; more"' in svg
    assert "V0.0H172.7" in pictures.histogram(counts, 1.0, 0.25, 0.5, 212, "")[:2000]


def test_sheet_and_row_are_the_decoders_pictures(shown, small, digits, monkeypatch):
    sheets = []
    monkeypatch.setattr(explorer, "sheet_picture", lambda images, *rest: sheets.append(images))
    shown.knobs = [0.0, 1.0, *[0.0] * 14]
    shown.sheet(), shown.row(5)
    assert list(sheets[0].shape) == [16, 11, 1, 28, 28] and close(sheets[1], sheets[0][5:6])
    std = small[1].std[4]
    for d, column, knob in [(0, 0, -4.0), (1, 5, 0.0), (7, 10, 4.0), (15, 6, 0.8)]:
        knobs = torch.tensor(shown.knobs)
        knobs[d] = knob
        assert close(sheets[0][d, column], direct(small[0], number(digits, 4, 0), 4, knobs * std)[1])


def test_a_sheet_is_drawn_as_rows_and_columns():
    images = torch.zeros(2, 11, 1, 28, 28)
    images[1, 10] = 1
    page = np.asarray(pictures.sheet_picture(images, [3, 4], "raw"))
    assert page.shape == (24 + 2 * 58, 24 + 11 * 58, 3)
    assert (page[24 + 58 : -2, 24 + 10 * 58 : -2] == 0).all()
    assert (page[24 : 24 + 58, 24:] == 255).all()
    assert (page[:24] < 128).any() and (page[:, :24] < 128).any()  # the numbers


# Choosing, history, names


def test_another_label_begins_afresh(shown):
    shown.knobs = [1.0] * 16
    shown.index, shown.partner, shown.morph, shown.shown_class = 5, 4, 0.5, 3
    shown.label = 7
    assert (shown.index, shown.partner, shown.morph, shown.shown_class, shown.knobs) == (0, 0, 0.0, None, [0.0] * 16)
    shown.knobs = [1.0] * 16
    shown.units = "raw"
    assert shown.knobs == [0.0] * 16


def controls(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from controls(child)


def press(shown, description):
    [button] = [w for w in controls(shown) if isinstance(w, widgets.Button) and w.description == description]
    button.click()


def turn_to(shown, name):
    [tabs] = [w for w in controls(shown) if isinstance(w, widgets.ToggleButtons)]
    tabs.value = name


def test_of_knobs_pad_sweep_and_save_the_chosen_one_is_seen(shown):
    panes = shown.children[4].children
    assert [pane.layout.display for pane in panes] == [None, "none", "none", "none", "none"]
    turn_to(shown, "sweep")
    assert [pane.layout.display for pane in panes] == ["none", "none", None, "none", "none"]


def test_buttons_and_controls_set_the_state(shown, monkeypatch):
    press(shown, "next")
    assert shown.index == 1
    shown.index = 5
    press(shown, "next")
    assert shown.index == 0  # the last is followed by the first
    monkeypatch.setattr(explorer.random, "randrange", lambda count: count - 1)
    press(shown, "random")
    assert shown.index == 5
    press(shown, "random knobs")
    assert len(set(shown.knobs)) > 8 and max(map(abs, shown.knobs)) <= 2
    shown.knobs = [2.0] * 16
    shown._rows[3].box.children[-1].click()
    assert shown.knobs[3] == 0 and shown.knobs[4] != 0
    press(shown, "reset all")
    assert shown.knobs == [0.0] * 16
    shown._rows[6].slider.value = 1.5
    assert shown.knobs == [*[0.0] * 6, 1.5, *[0.0] * 9]
    for name, value in [
        ("shown_class", 2),
        ("units", "raw"),
        ("morph", 0.5),
        ("partner", 2),
        ("index", 4),
        ("label", 1),
    ]:
        shown._controls[name].value = value
        assert getattr(shown, name) == value
    assert message(shown) == "" and shown._controls["morph"].value == 0
    assert shown.shown_class is None and shown._controls["shown_class"].label == "the digit's own"


def test_digits_can_be_chosen_from_several_sets(small, digits, tmp_path):
    images, labels = digits
    odd = labels % 2 == 1  # a set that lacks some classes
    sets = {"all": lambda: digits, "odd": lambda: (images[odd].flip(0), labels[odd].flip(0))}
    shown = CapsuleExplorer(small[0], sets, small[1], tmp_path / "n.json", label=3, index=2, knobs=[1.0] * 16)
    menu = shown._controls["source"]
    assert menu.options == ("all", "odd") and shown.source == "all" and "source" not in shown.as_python()
    menu.value = "odd"
    assert (shown.source, shown.label, shown.index, shown.knobs) == ("odd", 3, 0, [0.0] * 16)
    assert shown.original.equal(number(digits, 3, 5)) and shown._controls["label"].options == (1, 3, 5, 7, 9)
    again = eval(
        shown.as_python(), {"CapsuleExplorer": CapsuleExplorer, "model": small[0], "digits": sets, "spreads": small[1]}
    )
    assert again.original.equal(shown.original)
    with pytest.raises(traitlets.TraitError, match="no digit of class 4"):
        shown.label = 4
    shown._slots[0].children[1].click()  # back to the picture of the first set
    assert (shown.source, shown.index, shown.knobs) == ("all", 2, [1.0] * 16) and len(
        shown._controls["label"].options
    ) == 10
    assert shown.original.equal(number(digits, 3, 2))
    shown.index = 0
    shown.source = "odd"
    assert shown.original.equal(number(digits, 3, 5))
    shown.source, shown.label = "all", 4
    shown.source = "odd"
    assert shown.label == 1 and shown._controls["label"].value == 1
    press(shown, "measure")
    assert shown._effects.value == effects(small[0], images[odd].flip(0), labels[odd].flip(0), 1)._repr_html_()
    shown.shown_class = 4
    press(shown, "measure")
    assert "class 4" in message(shown)


def test_a_set_that_cannot_be_had_is_said_and_the_present_one_stays(small, digits, tmp_path):
    def gone():
        raise FileNotFoundError("the disk was taken away")

    sets = {"here": lambda: digits, "gone": gone, "wrong": lambda: (digits[0][:, :, :20], digits[1])}
    shown = CapsuleExplorer(small[0], sets, small[1], tmp_path / "n.json", label=4)
    for name, words in [("gone", "taken away"), ("wrong", "this network takes images"), ("none", "choose from 'here'")]:
        with pytest.raises(traitlets.TraitError, match=words):
            shown.source = name
        assert shown.source == "here"
    shown._controls["source"].value = "gone"
    assert "taken away" in message(shown) and shown._controls["source"].value == "here"
    shown.label = 7
    assert message(shown) == "" and shown.original.equal(number(digits, 7, 0))


def test_one_set_needs_no_menu(shown):
    assert shown._controls["source"] not in list(controls(shown))


def test_the_history_keeps_what_each_control_led_to_and_goes_back(shown):
    for knob in (0.5, 1.0, 1.5):  # one slider is dragged ...
        shown._rows[2].slider.value = knob
    shown._rows[5].slider.value = -1.0  # ... then another
    kept = [view.state["knobs"][2] for view in shown._history if view]
    assert kept == [0.0, 1.5]
    turned, picture = shown.knobs, shown.changed
    press(shown, "reset all")
    assert shown.knobs == [0.0] * 16
    shown.label = 8
    back = shown._slots[2].children[1]
    assert not back.disabled and shown._slots[7].children[1].disabled
    back.click()
    assert (shown.label, shown.knobs) == (4, turned) and shown.changed.equal(picture)
    assert shown._controls["label"].value == 4 and shown._rows[5].slider.value == -1.0
    for n in range(20):
        shown.label = n % 10
    assert len(shown._history) == 8 and all(shown._history)


def test_a_line_of_python_rebuilds_the_setting(shown, small, digits):
    shown.index, shown.units, shown.morph, shown.partner = 2, "principal axes", 0.3, 1
    press(shown, "random knobs")
    line = shown.as_python()
    assert "\n" not in line and line.startswith(
        "CapsuleExplorer(model, digits, spreads, label=4, index=2, partner=1, units="
    )
    known = {"CapsuleExplorer": CapsuleExplorer, "model": small[0], "digits": digits, "spreads": small[1]}
    assert eval(line, known).changed.equal(shown.changed)
    shown.draw(SEVEN)
    again = eval(shown.as_python(), known)
    assert again.original.equal(shown.original) and again.changed.equal(shown.changed)


def test_a_saved_picture_is_a_png_twice_as_large(shown, tmp_path):
    path = shown.save(tmp_path / "picture.png")
    assert Image.open(path).size == (2 * 7 * (4 * 28 + 3), 2 * 7 * 28)


def test_names_are_kept_for_their_class_and_kind_and_survive_a_restart(shown, small, digits):
    file = shown._names_file
    shown._rows[5].name.value = "stroke thickness"
    again = CapsuleExplorer(small[0], digits, small[1], names_file=file, label=4)
    assert again._rows[5].name.value == "stroke thickness"
    again.units = "principal axes"
    assert again._rows[5].name.value == ""
    again.label = 3
    assert again._rows[5].name.value == ""
    other, digits = odd_network(classes=10, class_dim=16)
    assert CapsuleExplorer(other, digits, small[1], names_file=file, label=4)._rows[5].name.value == ""
    shown._rows[5].name.value = ""
    assert json.loads(file.read_text()) == {}


def test_a_broken_names_file_is_said_and_left_alone(small, digits, tmp_path):
    for broken in ('{"cut', "[1]", '{"a": 1}'):
        file = tmp_path / "names.json"
        file.write_text(broken)
        shown = CapsuleExplorer(small[0], digits, small[1], names_file=file)
        assert "is no file of names" in message(shown)
        shown._rows[0].name.value = "slant"
        assert "is no file of names" in message(shown) and file.read_text() == broken
        shown.knobs = [1.0] * 16
        assert message(shown) == "" and not close(shown.changed, shown.reconstruction)


def test_a_names_file_that_breaks_later_leaves_no_name_of_another_class(shown):
    shown._rows[0].name.value = "slant"
    shown._names_file.write_text("{")
    shown.label = 5
    assert "is no file of names" in message(shown) and shown._rows[0].name.value == ""


def test_a_sweep_is_shown_for_all_knobs_or_for_the_one_turned_last(shown):
    turn_to(shown, "sweep")
    shown._rows[3].slider.value = 1.0
    for button, picture, words in [
        ("all knobs", shown.sheet(), "Each row turns one dimension"),
        ("last knob", shown.row(3), "Dimension 3"),
    ]:
        press(shown, button)
        assert Image.open(io.BytesIO(shown._sheet.value)).tobytes() == picture.tobytes()
        assert words in shown._caption.value
    turn_to(shown, "save")
    press(shown, "Python")
    assert message(shown) == shown.as_python()


def test_what_each_dimension_does_is_measured_for_the_class_that_is_decoded(shown, small, digits):
    turn_to(shown, "measure")
    press(shown, "measure")
    assert shown._effects.value == effects(small[0], *digits, 4)._repr_html_()
    shown.shown_class = 7
    press(shown, "measure")
    assert shown._effects.value == effects(small[0], *digits, 7)._repr_html_() and "class 7" in shown._effects.value


# Drawing by hand, bad input, bursts


def test_a_drawing_becomes_the_current_digit_of_the_class_that_is_read(shown, small):
    from capsule_lib.explorer.drawing import mnist_like

    shown.knobs = [1.0] * 16
    assert shown.draw(SEVEN) is shown
    image = mnist_like(SEVEN)
    lengths = small[0](image[None]).lengths[0]
    assert shown.label == lengths.argmax() and shown.original.equal(image) and shown.knobs == [0.0] * 16
    assert f"class {shown.label}" in message(shown) and f"{lengths.max():.2f}" in message(shown)
    assert close(shown.changed, direct(small[0], image, shown.label)[1])
    line = shown.as_python()
    for choose in (lambda: setattr(shown, "index", 1), lambda: press(shown, "next")):
        shown.draw(SEVEN)
        assert shown.as_python() == line and shown.original.equal(image)
        choose()
        assert shown.strokes == [] and shown.index == 1 and not shown.original.equal(image)


def pad(shown):
    return next(w for w in controls(shown) if type(w).__name__ == "DrawingPad")


def test_the_pad_draws_and_an_empty_drawing_is_said(shown):
    pad(shown).strokes = SEVEN
    assert shown.strokes == SEVEN
    pad(shown).strokes = []
    assert "draw a digit first" in message(shown) and shown.strokes == SEVEN
    shown.label = 2
    assert message(shown) == ""


def test_drawings_need_a_network_for_grey_squares(tmp_path):
    net, digits = odd_network()
    with pytest.raises(ValueError, match="grey and square"):
        CapsuleExplorer(net, digits, names_file=tmp_path / "n.json").draw(SEVEN)


def test_without_the_pad_everything_else_works(monkeypatch, small, digits, tmp_path):
    monkeypatch.setitem(sys.modules, "capsule_lib.explorer.drawing", None)
    shown = CapsuleExplorer(small[0], digits, small[1], names_file=tmp_path / "n.json")
    assert any("drawing pad can't be loaded" in w.value for w in controls(shown) if isinstance(w, widgets.HTML))
    shown.knobs = [1.0] * 16
    assert message(shown) == "" and not close(shown.changed, shown.reconstruction)


def test_what_cannot_be_explored_is_refused(small, digits, tmp_path):
    images, labels = digits
    blind = CapsNet(CapsNetConfig(stem_channels=4, types=2, decoder_hidden=None))
    for net, given, spreads, state, words in [
        (blind, digits, small[1], {}, "no decoder"),
        (
            small[0],
            (images[:, :, :20], labels),
            small[1],
            {},
            r"takes images \['B', 1, 28, 28\]; got \[60, 1, 20, 28\]",
        ),
        (small[0], (images[:0], labels[:0]), small[1], {}, "images must not be empty"),
        (small[0], (images - 0.5, labels), small[1], {}, "must lie in 0..1; got -0.50..0.50"),
        (small[0], (images * torch.nan, labels), small[1], {}, "must lie in 0..1"),
        (small[0], (images, labels[:9]), small[1], {}, "60 images need as many labels"),
        (small[0], (images, labels + 1), small[1], {}, "labels must lie in 0..9"),
        (odd_network()[0], odd_network()[1], small[1], {}, r"spreads are \[3, 5\], these are \[10, 16\]"),
        (small[0], (images[labels != 3], labels[labels != 3]), None, {}, "class 3 has no image"),
        (small[0], digits, small[1], {"lable": 3}, "has no 'lable'"),
    ]:
        with pytest.raises(ValueError, match=words):
            CapsuleExplorer(net, given, spreads, names_file=tmp_path / "n.json", **state)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("label", 12, "no digit of class 12"),
        ("index", 6, "digits 0 to 5; got index 6"),
        ("partner", -1, "got partner -1"),
        ("shown_class", 10, "classes 0 to 9; got shown_class 10"),
        ("units", "cm", "expected any of"),
        ("morph", 1.5, "from 0 to 1; got 1.5"),
        ("morph", float("nan"), "got nan"),
        ("knobs", [0.0] * 15, "takes 16 knobs; got 15"),
        ("knobs", [9.0] * 16, "lie in -4..4"),
        ("knobs", [float("nan")] * 16, "lie in -4..4"),
    ],
)
def test_a_wrong_state_is_refused_and_changes_nothing(shown, name, value, words):
    shown.knobs = [0.5] * 16
    state, picture = shown._state, shown.changed
    with pytest.raises(traitlets.TraitError, match=words):
        setattr(shown, name, value)
    assert shown._state == state and shown.changed.equal(picture)
    shown.knobs = [1.0] * 16
    assert not shown.changed.equal(picture)


def test_an_error_in_a_callback_is_said_and_the_next_event_works(shown, monkeypatch, tmp_path):
    with monkeypatch.context() as broken:
        broken.setattr(explorer, "strip", lambda *args: 1 / 0)
        shown.knobs = [1.0] * 16
        assert "can't be drawn: division by zero" in message(shown)
    turn_to(shown, "save")
    [path] = [w for w in controls(shown) if isinstance(w, widgets.Text) and w.description == "file"]
    mine = tmp_path / "thesis.png"
    mine.write_bytes(b"precious")
    path.value = str(mine)
    press(shown, "save")
    assert "exists already, and is left as it is" in message(shown) and mine.read_bytes() == b"precious"
    shown._rows[0].slider.value = 2.0
    assert message(shown) == "" and shown.knobs[0] == 2.0


def test_of_a_burst_only_the_last_position_is_drawn_and_results_are_never_stale(shown, monkeypatch):
    drawn = []
    draw = shown._picture.draw
    monkeypatch.setattr(shown._picture, "draw", lambda picture: (drawn.append(picture), draw(picture)))

    async def burst():
        for n in range(200):
            shown._rows[3].slider.value = n / 100
        last = shown.changed  # not drawn yet, but worked out when it is read
        await asyncio.sleep(0.2)
        return last

    last = asyncio.run(burst())
    assert shown.knobs[3] == 1.99 and last.equal(shown.changed) and 1 <= len(drawn) <= 2
    expected = pictures.strip(shown.original, shown.reconstruction, last, pictures.PANEL)
    assert drawn[-1].tobytes() == expected.tobytes() and "+1.99 sd" in shown._rows[3].value.value


def test_a_long_burst_is_drawn_on_the_way_too(shown, monkeypatch):
    drawn = []
    monkeypatch.setattr(shown._picture, "draw", drawn.append)

    async def burst():
        begun = time.perf_counter()
        while time.perf_counter() < begun + 0.5:
            shown.morph = random.random()
            await asyncio.sleep(0.001)

    shown.partner = 1
    asyncio.run(burst())
    assert len(drawn) >= 3


def test_pictures_are_worked_out_by_one_thread_and_the_readers_setting_stays(shown, monkeypatch):
    threads = []
    decode = CapsNet.decode
    monkeypatch.setattr(CapsNet, "decode", lambda *args: (threads.append(torch.get_num_threads()), decode(*args))[1])
    torch.set_num_threads(2)
    try:
        shown.knobs = [1.0] * 16
        shown.sheet()
        assert threads == [1, 1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)  # as conftest.py has it


def test_everything_has_a_label_in_words(shown):
    for widget in controls(shown):
        if isinstance(
            widget, (widgets.Button, widgets.Dropdown, widgets.Text, widgets.FloatSlider, widgets.BoundedIntText)
        ):
            assert len(widget.tooltip or "") > 5, widget
    assert shown._repr_mimebundle_()["text/plain"] == INTERACTIVE
