"""The explorer shows what a direct call of the network gives, for any network, and goes on working after bad input."""

import hashlib
import json
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import traitlets
from PIL import Image
from safetensors.torch import load

from capsule_lib import CapsNet, CapsNetConfig, digit_sets, files, load_digits, load_pretrained
from capsule_lib.explorer import CapsuleExplorer, names, pictures
from capsule_lib.explorer import spreads as spreads_file
from capsule_lib.explorer import widget as explorer
from capsule_lib.explorer.spreads import EDGES, LIMITS, load_spreads, measure_spreads, save_spreads
from capsule_lib.morphometry import effects
from capsule_lib.own_pictures import mnist_like
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
    pixels = np.asarray(pictures.strip(shown.original, shown.reconstruction, shown.changed, pictures.PANEL))
    assert pixels.shape == (200, 10 * (4 * 24 + 3), 3)
    assert (pixels[5::10, 5:240:10] == (255 * shown.original).round().byte().movedim(0, 2).numpy()).all()


def test_the_picture_is_digit_reconstruction_changed_and_signed_difference(shown):
    shown.knobs = [3.0, *[0.0] * 15]
    picture = pictures.strip(shown.original, shown.reconstruction, shown.changed, pictures.PANEL)
    pixels = np.asarray(picture)[3::7, 3::7].astype(int)
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


def test_sheet_and_row_are_the_decoders_pictures(shown, small, digits, monkeypatch):
    sheets = []
    monkeypatch.setattr(explorer, "sheet_picture", lambda images, *rest: sheets.append(images))
    shown.knobs = [0.0, 1.0, *[0.0] * 14]
    shown.sheet(), shown.sheet([5])
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


def test_digits_can_be_chosen_from_several_sets(small, digits, tmp_path):
    images, labels = digits
    odd = labels % 2 == 1  # a set that lacks some classes
    sets = {"all": lambda: digits, "odd": lambda: (images[odd].flip(0), labels[odd].flip(0))}
    shown = CapsuleExplorer(small[0], sets, small[1], tmp_path / "n.json", label=3, index=2, knobs=[1.0] * 16)
    assert shown._sources == ["all", "odd"] and shown.source == "all" and "source" not in shown.as_python()
    shown.set_state({"source": "odd"})  # from the page's menu
    assert (shown.source, shown.label, shown.index, shown.knobs) == ("odd", 3, 0, [0.0] * 16)
    assert shown.original.equal(number(digits, 3, 5)) and shown._counts == [0, 6] * 5
    known = {"CapsuleExplorer": CapsuleExplorer, "model": small[0], "digits": sets, "spreads": small[1]}
    assert eval(shown.as_python(), known).original.equal(shown.original)
    with pytest.raises(traitlets.TraitError, match="no digit of class 4"):
        shown.label = 4
    shown.source, shown.label = "all", 4
    shown.source = "odd"
    assert shown.label == 1


def test_a_set_that_cannot_be_had_is_said_and_the_present_one_stays(small, digits, tmp_path):
    def gone():
        raise FileNotFoundError("the disk was taken away")

    sets = {"here": lambda: digits, "gone": gone, "wrong": lambda: (digits[0][:, :, :20], digits[1])}
    shown = CapsuleExplorer(small[0], sets, small[1], tmp_path / "n.json", label=4)
    for name, words in [("gone", "taken away"), ("wrong", "this network takes images"), ("none", "choose from 'here'")]:
        with pytest.raises(traitlets.TraitError, match=words):
            shown.source = name
        assert shown.source == "here"
        shown.set_state({"source": name})  # the page is told, and goes back
        assert words in shown._notice and shown.source == "here"
    shown.label = 7
    assert shown.original.equal(number(digits, 7, 0))


# What goes to the page, and what comes from it


def test_the_page_gets_the_network_the_spreads_and_the_digits_whole(shown, small, digits):
    weights = load(shown._weights)
    assert weights.keys() == small[0].state_dict().keys()
    assert all(t.dtype == torch.float16 and t.float().equal(small[0].state_dict()[name]) for name, t in weights.items())
    assert all(t.equal(getattr(small[1], name)) for name, t in load(shown._spreads).items())
    sent = load(shown._digits)
    assert sent["images"].dtype == torch.uint8 and (sent["images"].float() / 255).equal(digits[0])
    assert sent["labels"].tolist() == digits[1].tolist() and shown._counts == [6] * 10


def test_what_bytes_and_halves_cannot_hold_goes_whole(tmp_path):
    net, digits = odd_network()
    shown = CapsuleExplorer(net, digits, names_file=tmp_path / "n.json")
    assert all(t.equal(net.state_dict()[name]) for name, t in load(shown._weights).items())
    order = digits[1].argsort(stable=True)
    assert load(shown._digits)["images"].equal(digits[0][order])


def test_a_count_of_batches_stays_whole_and_costs_no_precision(tmp_path):
    net, digits = odd_network(stem=((4, 9, 1), (16, 3, 1)), depthwise=True)
    net.half().float().stem[1].num_batches_tracked.fill_(12_345)  # not a number in half precision
    weights = load(CapsuleExplorer(net, digits, names_file=tmp_path / "n.json")._weights)
    counts = {name: t.tolist() for name, t in weights.items() if name.endswith("num_batches_tracked")}
    assert counts == {"stem.1.num_batches_tracked": 12_345, "stem.4.num_batches_tracked": 0}
    assert all(t.dtype == torch.float16 for name, t in weights.items() if name not in counts)
    assert all(t.float().equal(net.state_dict()[name].float()) for name, t in weights.items())


def test_the_layers_of_now_count_not_those_of_the_config(digits):
    net = load_pretrained("small")
    net.digit_caps.iterations = 5
    config = CapsuleExplorer(net, digits, load_spreads("small"))._config
    assert config["iterations"] == 5 and config["class_dim"] == 16 and config["decoder_hidden"] == (512, 1024)
    net.digit_caps = torch.nn.Identity()
    with pytest.raises(ValueError, match="networks with DigitCaps; this one has Identity"):
        CapsuleExplorer(net, digits, load_spreads("small"))


def test_of_a_large_set_some_digits_go_at_once_and_the_others_when_asked(small, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(explorer, "SENT", 2)
    shown = CapsuleExplorer(small[0], digits, small[1], tmp_path / "n.json")
    assert len(load(shown._digits)["labels"]) == 20 and shown._counts == [6] * 10
    [(content, [image])] = asked(shown, monkeypatch, {"digit": [4, 5]})
    assert content == {"digit": [4, 5]}
    assert torch.frombuffer(bytearray(image), dtype=torch.float32).view(1, 28, 28).equal(number(digits, 4, 5))
    assert "fault" in asked(shown, monkeypatch, {"digit": [4, 6]})[0][0]


def asked(shown, monkeypatch, question):
    """What Python sends when the page asks."""
    sent = []
    monkeypatch.setattr(shown, "send", lambda content, buffers=None: sent.append((content, buffers)))
    shown._handle_custom_msg(question, [])
    return sent


def test_measures_are_those_of_the_class_that_the_page_asks_for(shown, small, digits, monkeypatch):
    [(content, _)] = asked(shown, monkeypatch, {"measure": 7})
    assert content == {"measure": 7, "table": effects(small[0], *digits, 7).table()}
    shown = CapsuleExplorer(small[0], (digits[0][digits[1] < 7], digits[1][digits[1] < 7]), small[1])
    [(content, _)] = asked(shown, monkeypatch, {"measure": 7})
    assert "no digit of class 7" in content["fault"]


def test_a_state_from_the_page_is_taken_whole(shown):
    shown.set_state({"label": 7, "index": 5, "knobs": [2.0] * 16, "units": "principal axes", "strokes": SEVEN})
    assert (shown.label, shown.index, shown.knobs, shown.units) == (7, 5, [2.0] * 16, "principal axes")
    assert shown.strokes == SEVEN and shown.original.equal(mnist_like(SEVEN))
    before = shown._state
    shown.set_state({"knobs": [9.0] * 16})
    assert shown._state == before and "lie in -4..4" in shown._notice
    shown.label = 3  # Python's own changes again put all else back
    assert (shown.index, shown.knobs, shown.strokes) == (0, [0.0] * 16, [])


def test_python_tells_the_page_of_all_that_it_sets(shown):
    shown.index, shown.knobs = 5, [1.0] * 16
    shown.label = 7
    state = shown.get_state()
    assert (state["label"], state["index"], state["knobs"], state["strokes"]) == (7, 0, [0.0] * 16, [])


def test_a_line_of_python_rebuilds_the_setting(shown, small, digits):
    shown.index, shown.units, shown.morph, shown.partner = 2, "principal axes", 0.3, 1
    shown.knobs = [0.5, *[-0.25] * 15]
    line = shown.as_python()
    assert "\n" not in line and line.startswith(
        "CapsuleExplorer(model, digits, spreads, label=4, index=2, partner=1, units="
    )
    known = {"CapsuleExplorer": CapsuleExplorer, "model": small[0], "digits": digits, "spreads": small[1]}
    assert eval(line, known).changed.equal(shown.changed)
    shown.draw(SEVEN)
    again = eval(shown.as_python(), known)
    assert again.original.equal(shown.original) and again.changed.equal(shown.changed)


def test_the_line_of_python_has_the_notebooks_own_names(small, digits, monkeypatch):
    space = {"net": small[0], "images": digits[0], "labels": digits[1], "_4": small[1], "spreads": small[1]}
    monkeypatch.setattr(names, "get_ipython", lambda: SimpleNamespace(user_ns=space))
    shown = CapsuleExplorer(small[0], digits, small[1], label=4)
    assert shown.as_python() == "CapsuleExplorer(net, (images, labels), spreads, label=4)"
    assert shown._called == "net, (images, labels), spreads"  # what the page writes into its own line
    shown = CapsuleExplorer(small[0], digit_sets(), small[1], label=4)
    assert shown.as_python() == "CapsuleExplorer(net, capsule_lib.digit_sets(), spreads, label=4)"


def test_a_saved_picture_is_a_png_twice_as_large(shown, tmp_path):
    path = shown.save(tmp_path / "picture.png")
    assert Image.open(path).size == (2 * 7 * (4 * 28 + 3), 2 * 7 * 28)


def test_names_that_the_page_sends_are_kept_and_survive_a_restart(shown, small, digits):
    file = shown._names_file
    key = f"network {shown._network}, class 4, dimension 5"
    shown.set_state({"_names": {key: "stroke thickness"}})
    assert json.loads(file.read_text()) == {key: "stroke thickness"}
    again = CapsuleExplorer(small[0], digits, small[1], names_file=file, label=4)
    assert again._names == {key: "stroke thickness"} and again._network == shown._network
    file.write_text(json.dumps({key: "stroke thickness", "theirs": "slant"}))  # another explorer wrote meanwhile
    shown.set_state({"_names": {}})
    assert json.loads(file.read_text()) == {"theirs": "slant"}
    assert CapsuleExplorer(*odd_network(), names_file=file)._network != shown._network


def test_a_broken_names_file_is_said_and_left_alone(small, digits, tmp_path):
    for broken in ('{"cut', "[1]", '{"a": 1}'):
        file = tmp_path / "names.json"
        file.write_text(broken)
        shown = CapsuleExplorer(small[0], digits, small[1], names_file=file)
        assert "is no file of names" in shown._notice
        shown._notice = ""
        shown.set_state({"_names": {"a": "slant"}})
        assert "is no file of names" in shown._notice and file.read_text() == broken
        shown.knobs = [1.0] * 16
        assert not close(shown.changed, shown.reconstruction)


# Drawing by hand, bad input


def test_a_drawing_becomes_the_current_digit_of_the_class_that_is_read(shown, small):
    shown.knobs = [1.0] * 16
    assert shown.draw(SEVEN) is shown
    image = mnist_like(SEVEN)
    lengths = small[0](image[None]).lengths[0]
    assert shown.label == lengths.argmax() and shown.original.equal(image) and shown.knobs == [0.0] * 16
    assert close(shown.changed, direct(small[0], image, shown.label)[1])
    shown.index = 1
    assert shown.strokes == [] and not shown.original.equal(image)
    with pytest.raises(ValueError, match="draw a digit first"):
        shown.draw([])


def test_drawings_need_a_network_for_grey_squares(tmp_path):
    net, digits = odd_network()
    with pytest.raises(ValueError, match="grey and square"):
        CapsuleExplorer(net, digits, names_file=tmp_path / "n.json").draw(SEVEN)


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
        ("strokes", [[[0.5, 0.5]]], "a speck"),
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


def test_a_picture_is_not_written_over_another_file(shown, tmp_path):
    mine = tmp_path / "thesis.png"
    mine.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="exists already"):
        shown.save(mine)
    assert mine.read_bytes() == b"precious"


def test_the_widget_is_words_where_no_kernel_runs(shown):
    assert shown._repr_mimebundle_()[0]["text/plain"] == INTERACTIVE
