"""The page's own network computes what PyTorch computes: reading, routing, drawing, knobs, and digits from pen strokes."""

import base64
import copy
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from test_browser import browser, pytestmark  # noqa: F401, a fixture and a mark
from test_drawing import DIGITS, moved
from torch import nn

from capsule_lib import CapsNet, CapsNetConfig, load_digits, load_pretrained
from capsule_lib.data import DATA
from capsule_lib.explorer import load_spreads, measure_spreads
from capsule_lib.explorer.spreads import LIMITS, bins
from capsule_lib.model import PRESETS
from capsule_lib.own_pictures import mnist_like

NETWORK = Path(__file__).parent.parent / "capsule_lib" / "explorer" / "network.js"
SHARED = """
import * as lib from "./network.js";
window.lib = lib;
window.bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
window.floats = (text) => new Float32Array(bytes(text).buffer);
window.text = (values) => {  // numbers to float64 bytes to text
    const all = new Uint8Array(Float64Array.from(values).buffer);
    let letters = "";
    for (let n = 0; n < all.length; n += 8192) letters += String.fromCharCode(...all.subarray(n, n + 8192));
    return btoa(letters);
};
window.flat = (arrays) => arrays.flatMap((values) => [...values]);
"""
SHAPES = {  # unlike `small`: colour and not square; small kernels and odd sizes; no hidden layer and one class; batch norm
    "colour": {"image_shape": (3, 20, 24), "classes": 3, "class_dim": 5, "stem_channels": 6, "types": 2},
    "odd": {
        "image_shape": (1, 15, 13), "kernel_size": 3, "types": 3, "primary_dim": 5, "stem_channels": 9, "class_dim": 7,
        "decoder_hidden": (9, 11, 13),
    },
    "plain": {"image_shape": (2, 17, 17), "classes": 1, "class_dim": 4, "stem_channels": 17, "decoder_hidden": ()},
    "compact": dataclasses.asdict(PRESETS["compact"]),
    "depthwise": {
        "image_shape": (3, 15, 19), "kernel_size": 4, "types": 3, "primary_dim": 4, "stem": ((5, 4, 2), (12, 1, 1)),
        "depthwise": True,
    },
    "batch norm": {"image_shape": (1, 17, 16), "kernel_size": 5, "types": 2, "primary_dim": 3, "stem": ((11, 3, 1),)},
    "alone": {"image_shape": (1, 13, 14), "kernel_size": 5, "types": 2, "primary_dim": 4, "stem_channels": 8, "depthwise": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def page(browser):  # noqa: F811
    page = browser.new_page()
    files = {"/": ("text/html", "<!doctype html><script type=module src=test.js></script>")}
    files |= {"/test.js": ("text/javascript", SHARED), "/network.js": ("text/javascript", NETWORK.read_text())}

    def answer(route):
        kind, body = files[route.request.url.removeprefix("http://page.test")]
        route.fulfill(content_type=kind, body=body)

    page.route("http://page.test/**", answer)
    page.goto("http://page.test/")
    page.wait_for_function("() => window.flat")
    yield page
    page.close()


def text(values):
    return base64.b64encode(
        values if isinstance(values, bytes) else values.float().contiguous().numpy().tobytes()
    ).decode()


def back(letters, *shape):
    return torch.from_numpy(np.frombuffer(base64.b64decode(letters)).copy()).reshape(shape)


def opened(page, name, net, content=None):
    """Make the network known to the page under this name."""
    content = content or save({name: t.contiguous() for name, t in net.state_dict().items()})
    page.evaluate(
        "([name, weights, config]) => { window[name] = new lib.Network(lib.readSafetensors(bytes(weights)), config); }",
        [name, text(content), json.loads(json.dumps(dataclasses.asdict(net.config)))],
    )


@pytest.fixture(scope="module")
def small(page):
    net = load_pretrained("small")
    opened(page, "small", net, (DATA / "weights/small.safetensors").read_bytes())  # the very file, in half precision
    return net


def built(**config):
    torch.manual_seed(0)
    net = CapsNet(CapsNetConfig(**{"decoder_hidden": (8,)} | config)).eval()
    with torch.no_grad():
        net.digit_caps.weight.mul_(5)  # untrained capsules would be too short to tell apart
        for norm in net.stem.modules():
            if isinstance(norm, nn.BatchNorm2d):  # a fresh one would leave all as it is; and its eps should count
                for part, low, high in [("weight", 0.5, 2), ("bias", -0.5, 0.5), ("running_mean", -0.3, 0.3)]:
                    getattr(norm, part).uniform_(low, high)
                norm.running_var.uniform_(0, 0.1)[0] = 0
                norm.running_var[-1] = 1e-5
                norm.num_batches_tracked.fill_(12_345)  # not a number in half precision
    return net


def agree(ours, theirs):
    """Within 2e-6 of the largest."""
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() <= 2e-6 * theirs.abs().max()


def compare(page, name, net, images, iterations):
    """The page's network against torch in double precision, whose own rounding is out of the way; returns the page's numbers."""
    seen = page.evaluate(
        """([name, images, count, iterations]) => {
            const net = window[name];
            const all = floats(images), step = all.length / count;
            const seen = Array.from({ length: count }, (_, n) => net.read(all.slice(n * step, (n + 1) * step), iterations));
            const drawn = seen.flatMap(({ capsules }) => Array.from({ length: net.J }, (_, j) =>
                net.draw(capsules.slice(j * net.D, (j + 1) * net.D).map((x, d) => x + 0.1 * Math.sin(d + j)), j)));
            const each = (name) => text(flat(seen.flatMap((one) => one[name])));
            return { primary: each("primary"), capsules: each("capsules"), lengths: each("lengths"), couplings: each("couplings"),
                rounds: each("rounds"), drawn: text(flat(drawn)), shares: text(net.shares(seen.at(-1), 0)) };
        }""",
        [name, text(images), len(images), iterations],
    )
    I, J, D = net.digit_caps.weight.shape[2], net.config.classes, net.config.class_dim
    shapes = {
        "primary": (net.config.primary_dim, I),
        "capsules": (J, D),
        "lengths": (J,),
        "couplings": (iterations, I, J),
    }
    shapes |= {"rounds": (iterations, J), "drawn": (J, *net.config.image_shape)}
    ours = {name: back(seen[name], len(images), *shape) for name, shape in shapes.items()}
    exact = copy.deepcopy(net).double()
    exact.digit_caps.iterations = iterations
    with torch.no_grad():
        u = exact.primary(images.double())
        v, couplings = exact.digit_caps(u, return_couplings=True)
        agree(ours["primary"], u.mT)
        agree(ours["capsules"], v)
        agree(ours["lengths"], v.norm(dim=2))
        agree(ours["couplings"], couplings.transpose(0, 1))
        for t in range(iterations):
            exact.digit_caps.iterations = t + 1
            agree(ours["rounds"][:, t], exact.digit_caps(u).norm(dim=2))
        drawn = exact.decode(perturbed(v).flatten(0, 1), torch.arange(J).repeat(len(images)))
        agree(ours["drawn"].flatten(0, 1), drawn)
        brought = exact.digit_caps.votes(u[-1:])[0, :, 0] * couplings[-1, -1, :, :1]
        s = brought.sum(dim=0)
        agree(back(seen["shares"], I), brought @ s / s.square().sum())
    return ours


def perturbed(v):
    J, D = v.shape[1:]
    return v + 0.1 * torch.sin(torch.arange(D) + torch.arange(J)[:, None])


def test_a_hundred_digits_are_read_and_redrawn_as_by_torch(page, small):
    images, labels = load_digits("shipped", "test")
    keep = torch.cat([(labels == j).nonzero()[:10, 0] for j in range(10)])
    ours = compare(page, "small", small, images[keep], 3)
    own = torch.arange(100), labels[keep]
    with torch.no_grad():  # in single precision, as a notebook computes
        v = small.encode(images[keep])
        agree(ours["capsules"], v)
        agree(ours["lengths"], v.norm(dim=2))
        agree(ours["drawn"][own], small.decode(perturbed(v)[own], labels[keep]))


@pytest.mark.parametrize("iterations", [1, 2, 4, 5])
def test_any_number_of_iterations(page, small, iterations):
    compare(page, "small", small, load_digits("shipped", "test")[0][:10], iterations)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_networks_of_other_shapes(page, shape, dtype):
    net = built(**SHAPES[shape]).to(dtype)
    weights = {name: t.contiguous() for name, t in net.state_dict().items()}
    opened(page, "other", net.float(), save(weights))
    compare(page, "other", net, torch.rand(5, *net.config.image_shape), 3)


@pytest.mark.parametrize("units", LIMITS)
def test_knobs_places_and_bins_are_those_of_python(page, units):
    spreads = load_spreads("small")
    knobs = torch.linspace(-1, 1, 16) * LIMITS[units]
    capsule = spreads.mean[4] + torch.randn(16) * spreads.std[4]
    seen = page.evaluate(
        """([content, knobs, capsule, units]) => {
            const spreads = new lib.Spreads(lib.readSafetensors(bytes(content)));
            const place = spreads.place(floats(capsule), 4, units);
            return { shift: text(spreads.shift([...floats(knobs)], 4, units)), place: text(place), limit: lib.LIMITS[units],
                bins: [...place].map(lib.Spreads.bin), edges: [-9, -4, -1e-9, 0, 3.99, 4, 9].map(lib.Spreads.bin),
                counts: text(spreads.histogram(4, 5, units)), unit: spreads.unit(4, 5, units) };
        }""",
        [text((DATA / "weights/small.spreads.safetensors").read_bytes()), text(knobs), text(capsule), units],
    )
    assert seen["limit"] == LIMITS[units]
    agree(back(seen["shift"], 16), spreads.shift(knobs, 4, units))
    place = spreads.place(capsule, 4, units)
    assert torch.allclose(back(seen["place"], 16).float(), place, atol=1e-4)
    assert seen["bins"] == bins(place).tolist()
    assert seen["edges"] == [0, 0, 11, 12, 23, 23, 23]
    counts = spreads.axis_counts if units == "principal axes" else spreads.counts
    assert back(seen["counts"], 24).tolist() == counts[4, 5].tolist()
    assert seen["unit"] == pytest.approx(spreads.std[4, 5].item() if units == "raw" else 1)


def test_spreads_of_any_network(page):
    net = built(**SHAPES["colour"])
    spreads = measure_spreads(net, torch.rand(12, 3, 20, 24), torch.arange(12) % 3)
    knobs = torch.randn(5)
    seen = page.evaluate(
        """([content, knobs]) => text(new lib.Spreads(lib.readSafetensors(bytes(content)))
            .shift([...floats(knobs)], 2, "principal axes"))""",
        [text(save({name: t.contiguous() for name, t in spreads._asdict().items()})), text(knobs)],
    )
    agree(back(seen, 5), spreads.shift(knobs, 2, "principal axes"))


@pytest.mark.parametrize("size", [28, 40, 33])
def test_a_drawing_becomes_the_same_digit_as_in_python(page, size):
    drawings = [*DIGITS, *(moved(strokes, ((0.3, 0.1), (0, 0.4)), (2, -1), 0.01) for strokes in DIGITS[:4])]
    drawings.append([[[0.5, 0.1], [0.5, 0.9]], [], [[0.8, 0.5]]])  # with an empty stroke, and a dot
    seen = page.evaluate(
        "([drawings, size]) => text(flat(drawings.map((strokes) => lib.mnistLike(strokes, size))))", [drawings, size]
    )
    for ours, strokes in zip(back(seen, len(drawings), 1, size, size), drawings, strict=True):
        assert (ours - mnist_like(strokes, size)).abs().max() < 1e-5


@pytest.mark.parametrize(
    "strokes, words",
    [([], "draw a digit first"), ([[]], "draw a digit first"), ([[[0.5, 0.5], [0.51, 0.5]]], "a speck"),
     ([[["a", 1], [2, 3]]], "not a finite number"), ([[[None, 1], [0, 0]]], "not a finite number")],
)  # fmt: skip
def test_what_is_no_drawing_is_said(page, strokes, words):
    assert words in failure(page, "(strokes) => lib.mnistLike(strokes)", strokes)


def failure(page, call, argument=None):
    """The message of the Error that a call throws."""
    return page.evaluate(
        f"(x) => {{ try {{ ({call})(x); return null; }} catch (e) {{ return e.message; }} }}", argument
    )


def test_weights_that_are_damaged_or_do_not_fit_are_said(page):
    net = built(**SHAPES["odd"])
    content = save({name: t.contiguous() for name, t in net.state_dict().items()})
    config = json.loads(json.dumps(dataclasses.asdict(net.config)))
    build = "([content, config]) => new lib.Network(lib.readSafetensors(bytes(content)), config)"
    assert failure(page, build, [text(content), config]) is None
    length = int.from_bytes(content[:8], "little")
    for broken, words in [
        (b"", "it has 0 bytes"),
        (content[:100], "header is cut short"),
        (b"\xff" * 100, "header is cut short"),
        (content[:8] + b"x" * length + content[8 + length :], "not JSON"),
        (content[:-1], "is cut short"),
        (content[: 8 + length], "is cut short"),
        (content.replace(b'"F32"', b'"I32"', 1), "numbers of type I32"),
        (save({"stem.bias": torch.zeros(9)}), "is absent"),
        (content.replace(b'"shape":[9]', b'"shape":[8]', 1), "another size than its shape"),
    ]:
        assert words in failure(page, build, [text(broken), config]), words
    for change, words in [
        ({"types": 4}, "primary_caps.conv.weight should be 20 x 9 x 3 x 3 and is 15 x 9 x 3 x 3"),
        ({"class_dim": 8}, "digit_caps.weight"),
        ({"image_shape": [1, 15, 15]}, "digit_caps.weight"),
        ({"decoder_hidden": [9, 11]}, "decoder.layers.4.weight"),
        ({"decoder_hidden": None}, "no decoder"),
        ({"stem": [[9, 3, 1]]}, "stem.0.weight should be 9 x 1 x 3 x 3 and is absent"),
        ({"depthwise": True}, "primary_caps.conv.weight should be 15 x 1 x 3 x 3 and is 15 x 9 x 3 x 3"),
    ]:
        assert words in failure(page, build, [text(content), config | change]), words


def test_a_zero_image_and_numbers_at_the_edge_stay_finite(page, small):
    compare(page, "small", small, torch.zeros(1, 1, 28, 28), 3)
    compare(page, "small", small, torch.ones(1, 1, 28, 28), 3)
    whole = torch.tensor([0, -1, 2**40, 12_345])
    seen = page.evaluate("(content) => text(lib.readSafetensors(bytes(content)).x.data)", text(save({"x": whole})))
    assert back(seen, 4).tolist() == whole.tolist()
    halves = torch.tensor([0.0, -0.0, 65504, 6e-8, -6e-5, 1 / 3, math.inf, -math.inf, math.nan], dtype=torch.float16)
    for values in (halves, halves.bfloat16()):
        seen = page.evaluate("(content) => text(lib.readSafetensors(bytes(content)).x.data)", text(save({"x": values})))
        assert back(seen, 9).equal(values.double()) or torch.allclose(
            back(seen, 9), values.double(), equal_nan=True, rtol=0, atol=0
        )


@pytest.mark.slow
@pytest.mark.parametrize("slower", [1, 4])
def test_how_long_the_page_takes(page, small, capsys, slower):
    """Prints it, and asserts nothing: the time is the machine's. A knob's move is one drawing and one reading."""
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": slower})
    draw, both, load = page.evaluate(
        """([image, weights, config]) => {
            const { capsules } = small.read(floats(image));
            const timed = (act, count) => {
                const times = Array.from({ length: count }, () => {
                    const start = performance.now();
                    act();
                    return performance.now() - start;
                }).sort((a, b) => a - b);
                return [times[count >> 1], times[Math.floor(0.95 * count)]];
            };
            const capsule = capsules.slice(64, 80);
            timed(() => small.read(small.draw(capsule, 4)), 20);
            const content = bytes(weights);
            return [timed(() => small.draw(capsule, 4), 200), timed(() => small.read(small.draw(capsule, 4)), 200),
                timed(() => new lib.Network(lib.readSafetensors(content), config), 5)];
        }""",
        [text(load_digits("shipped", "test")[0][420]), text((DATA / "weights/small.safetensors").read_bytes()),
         json.loads(json.dumps(dataclasses.asdict(small.config)))],
    )  # fmt: skip
    with capsys.disabled():
        print(f"\nprocessor {slower} times slower: a drawing {draw[0]:.1f} ms (95 %: {draw[1]:.1f}), with its reading "
              f"{both[0]:.1f} ms (95 %: {both[1]:.1f}), the weights {load[0]:.0f} ms")  # fmt: skip
