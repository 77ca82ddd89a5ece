"""The contract at every door: the same wrong input gets the same clear answer everywhere, and none ends in a raw error."""

import dataclasses
import json
import math
import traceback
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import traitlets
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import capsule_lib
from capsule_lib import (
    CapsNet,
    CapsNetConfig,
    Decoder,
    DigitCaps,
    PrimaryCaps,
    dynamic_routing,
    evaluate,
    load_digits,
    load_pretrained,
    load_weights,
    margin_loss,
    plots,
    random_shift,
    reconstruction_loss,
    save_weights,
    squash,
)
from capsule_lib.explorer import CapsuleExplorer, load_spreads, measure_spreads
from capsule_lib.morphometry import dimension_effects, effects, measure
from capsule_lib.own_pictures import mnist_like
from capsule_lib.routings import RoutedCaps, Routing
from capsule_lib.training import Trainer, TrainingConfig, train

PACKAGE = Path(capsule_lib.__file__).parent
TINY = CapsNetConfig((1, 9, 11), classes=3, stem_channels=4, kernel_size=3, types=2, primary_dim=4, class_dim=5, decoder_hidden=(8,))  # fmt: skip
CLEAR = ValueError, TypeError, FileNotFoundError, traitlets.TraitError


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return CapsNet(TINY).eval()


def pictures(count=6):
    return torch.rand(count, 1, 9, 11, generator=torch.Generator().manual_seed(0))


def classes(count=6):
    return torch.arange(count) % 3


# Every door that takes pictures, called with them; and those that take labels, called with both.
TAKE_PICTURES = {
    "the network": lambda net, x: net(x),
    "encode": lambda net, x: net.encode(x),
    "primary": lambda net, x: net.primary(x),
    "evaluate": lambda net, x: evaluate(net, x, classes()),
    "train": lambda net, x: list(train(net, x, classes(), 1, batch_size=3, learning_rate=1e-9)),
    "Trainer": lambda net, x: Trainer(net, x, classes(), TrainingConfig()),
    "measure_spreads": lambda net, x: measure_spreads(net, x, classes()),
    "dimension_effects": lambda net, x: dimension_effects(net, x, classes()),
    "effects": lambda net, x: effects(net, x, classes(), 1),
    "CapsuleExplorer": lambda net, x: CapsuleExplorer(net, (x, classes())),
    "CapsuleExplorer, a dict of pairs": lambda net, x: CapsuleExplorer(net, {"mine": (x, classes())}),
}
TAKE_LABELS = {
    "the network": lambda net, x, y: net(x, y),
    "evaluate": evaluate,
    "train": lambda net, x, y: list(train(net, x, y, 1, batch_size=3, learning_rate=1e-9)),
    "Trainer": lambda net, x, y: Trainer(net, x, y, TrainingConfig()),
    "measure_spreads": measure_spreads,
    "dimension_effects": dimension_effects,
    "effects": lambda net, x, y: effects(net, x, y, 1),
    "CapsuleExplorer": lambda net, x, y: CapsuleExplorer(net, (x, y)),
    "margin_loss": lambda net, x, y: margin_loss(net(x).lengths.detach(), y),
    "the decoder": lambda net, x, y: net.decoder(net(x).capsules, y),
    "decode": lambda net, x, y: net.decode(torch.rand(len(x), 5), y),
}
WRONG_PICTURES = {  # and what the error says
    "bytes": (lambda: 255 * pictures(), "0..1; got .*divide by 255"),
    "mean 0": (lambda: 2 * pictures() - 1, "0..1; got .*leave out the normalisation to mean 0"),
    "one NaN": (lambda: pictures().index_put((torch.tensor([4]),), torch.tensor(math.nan)), "not finite, first in number 4"),
    "infinite": (lambda: pictures() + math.inf, "not finite, first in number 0"),
    "uint8": (lambda: (255 * pictures()).byte(), r"got torch.uint8: convert with .float\(\) / 255"),
    "int64": (lambda: pictures().long(), "floating-point numbers; got torch.int64"),
    "bool": (lambda: pictures() > 0.5, "floating-point numbers; got torch.bool"),
    "complex": (lambda: pictures() + 0j, "floating-point numbers; got torch.complex64"),
    "empty": (lambda: pictures()[:0], "must not be empty"),
    "no channels": (lambda: pictures()[:, 0], r"\[N, C, H, W\]; got .*images\[:, None\]"),
    "flat": (lambda: pictures().flatten(1), r"\[N, C, H, W\]; got a tensor of shape \[6, 99\]"),
    "five axes": (lambda: pictures()[None], r"\[N, C, H, W\]; got"),
    "another size": (lambda: pictures()[:, :, :8], r"\['B', 1, 9, 11\]; got \[6, 1, 8, 11\]: resize"),
    "colour": (lambda: pictures().expand(-1, 3, -1, -1), r"got \[6, 3, 9, 11\]: give them 1 channel with images.mean"),
    "channels last": (lambda: pictures().permute(0, 2, 3, 1), r"images.permute\(0, 3, 1, 2\)"),
    "a list": (lambda: [pictures()[0]] * 6, "must be a tensor .*; got list: convert it with torch.as_tensor"),
    "an array": (lambda: pictures().numpy(), "got ndarray: convert it with torch.as_tensor"),
    "a loader": (lambda: DataLoader(TensorDataset(pictures(), classes())), "got DataLoader: take its batches"),
    "nothing": (lambda: None, "must be a tensor .*; got NoneType"),
}  # fmt: skip
WRONG_LABELS = {
    "plus 7": (lambda: classes() + 7, r"0\.\.2; got 7\.\.9"),
    "below 0": (lambda: classes() - 1, r"0\.\.2; got -1\.\.1"),
    "one too few": (lambda: classes(5), "6 images need as many labels, one per image; got 5"),
    "one too many": (lambda: classes(7), "6 images need as many labels"),
    "float": (lambda: classes().float(), "whole numbers; got torch.float32"),
    "bool": (lambda: classes() > 1, "whole numbers; got torch.bool"),
    "a list": (lambda: classes().tolist(), "must be a tensor .*; got list"),
    "an array": (lambda: classes().numpy(), "got ndarray: convert it with torch.as_tensor"),
    "empty": (lambda: classes(0), "must not be empty"),
    "words": (lambda: "012012", "got str"),
}


@pytest.mark.parametrize("wrong", WRONG_PICTURES)
@pytest.mark.parametrize("door", TAKE_PICTURES)
def test_wrong_pictures_get_the_same_answer_at_every_door(net, door, wrong):
    make, words = WRONG_PICTURES[wrong]
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(CLEAR, match=words):
        TAKE_PICTURES[door](net, make())
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("wrong", WRONG_LABELS)
@pytest.mark.parametrize("door", TAKE_LABELS)
def test_wrong_labels_get_the_same_answer_at_every_door(net, door, wrong):
    make, words = WRONG_LABELS[wrong]
    with pytest.raises(CLEAR, match=words):
        TAKE_LABELS[door](net, pictures(), make())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("door", TAKE_PICTURES)
def test_pictures_of_any_precision_are_welcome(net, door, dtype):
    TAKE_PICTURES[door](net, pictures().to(dtype))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("door", TAKE_LABELS)
def test_labels_of_any_integer_type_are_welcome(net, door, dtype):
    TAKE_LABELS[door](net, pictures(), classes().to(dtype))


def test_a_picture_may_leave_its_range_by_rounding():
    images = torch.tensor([[[[1.00001, -0.00001]]]]).expand(2, 1, 1, 2)
    assert capsule_lib.contract.check_pictures(images) is images
    with pytest.raises(ValueError, match=r"0\.\.1; got 0\.00\.\.1\.01: .*clamp"):
        capsule_lib.contract.check_pictures(images.clamp(0) * 1.01)


@pytest.mark.parametrize("wrong", [255, 5, -1, 0.5, math.nan])
def test_a_set_of_classes_holds_0_and_1_only(wrong):
    present = torch.eye(3)
    assert margin_loss(torch.rand(3, 3), present).isfinite()
    present[1, 1] = wrong
    with pytest.raises(ValueError, match="a set of classes holds 0 and 1 only"):
        margin_loss(torch.rand(3, 3), present)


@pytest.mark.parametrize("wrong", [lambda x: 5 * x, lambda x: -x, lambda x: x + 1.5])
def test_the_margin_loss_takes_lengths_only(wrong):
    with pytest.raises(ValueError, match=r"lengths must lie in 0\.\.1; got .*not logits"):
        margin_loss(wrong(torch.rand(6, 3) + 0.3), classes())


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        *[(name, value) for name in ("epochs", "batch_size", "iterations") for value in (0, -1, 2.5, "3", None, True)],
        *[("learning_rate", value) for value in (0, -2e-3, math.nan, math.inf, "fast")],
        *[(name, value) for name in ("scaling", "ema_decay") for value in (1, 1.5, -0.1, math.nan)],
        *[("max_shift", value) for value in (-1, 2.5, "3", None)],
        *[("rotation", value) for value in (-1, 181, math.nan)],
        *[("reconstruction_scale", value) for value in (-1, math.inf)],
        *[("seed", value) for value in (-1, 2**63, 0.5)],
        ("precision", "float16"),
        ("preset", "huge"),
        ("data", ""),
        ("data", None),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_where_it_is_made(net, field, wrong):
    with pytest.raises(ValueError, match=f"{field}: expected .*; got "):
        TrainingConfig(**{field: wrong})
    if field not in ("preset", "data", "iterations"):
        settings = {"epochs": 1} | {field: wrong}
        with pytest.raises(ValueError, match=f"{field}: expected"):
            list(train(net, pictures(), classes(), **settings))


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        *[(f.name, v) for f in dataclasses.fields(CapsNetConfig) for v in (0, -1, 2.5, "3")],
        ("image_shape", (28, 28)),
        ("image_shape", None),
        ("image_shape", (1, 28, 0)),
        ("iterations", True),
        ("decoder_hidden", (512, 0)),
        ("decoder_hidden", 512),
    ],
)
def test_a_size_that_does_not_fit_is_refused_where_it_is_made(field, wrong):
    with pytest.raises(ValueError, match=f"{field}: expected"):
        CapsNetConfig(**{field: wrong})


def test_lists_are_welcome_as_sizes():
    config = CapsNetConfig(image_shape=[1, 9, 11], kernel_size=3, decoder_hidden=[8])
    assert config.image_shape == (1, 9, 11) and config.decoder_hidden == (8,) and hash(config)
    assert CapsNet(config)(pictures()).reconstruction.shape == (6, 1, 9, 11)
    bare = CapsNet(dataclasses.replace(config, decoder_hidden=()))
    assert bare(pictures()).reconstruction.shape == (6, 1, 9, 11)


# What was written can be read again.


def rewritten(net, tmp_path):
    return load_weights(save_weights(net, tmp_path / "net.safetensors"))


def test_compiled_and_wrapped_networks_are_saved_as_what_they_are(net, tmp_path):
    right = net(pictures()).lengths
    for wrapped in (torch.compile(net), nn.DataParallel(net), nn.DataParallel(torch.compile(net))):
        assert torch.equal(rewritten(wrapped, tmp_path)(pictures()).lengths, right)


def test_a_network_with_another_class_layer_or_decoder_is_read_as_what_it_is(tmp_path):
    net = CapsNet(TINY).eval()
    net.digit_caps, net.decoder = (
        DigitCaps(24, 4, 5, 7, 2),
        Decoder(5, 7, (6, 4), (1, 9, 11)),
    )  # transfer to five classes
    again = rewritten(net, tmp_path)
    for got, right in zip(again(pictures()), net(pictures()), strict=True):
        assert torch.equal(got, right)
    assert again.config.classes == 5 and again.config.iterations == 2 and again.config.decoder_hidden == (6, 4)
    assert torch.equal(net.decode(torch.ones(2, 7), 4), again.decode(torch.ones(2, 7), 4))
    assert evaluate(net, pictures(), torch.arange(6) % 5).lengths.shape == (6, 5)
    with pytest.raises(ValueError, match=r"0\.\.4; got"):
        evaluate(net, pictures(), torch.arange(6))
    net.decoder = None
    assert rewritten(net, tmp_path).decoder is None


def test_iterations_that_were_changed_are_kept(net, tmp_path):
    net = CapsNet(TINY).eval()
    nn.init.normal_(net.digit_caps.weight)
    net.digit_caps.iterations = 1
    assert torch.equal(rewritten(net, tmp_path)(pictures()).lengths, net(pictures()).lengths)


def spoiled(name):
    net = CapsNet(TINY)
    if name == "decoder for ten":
        net.digit_caps = DigitCaps(24, 4, 5, 5)
    elif name == "two class layers":
        net.digit_caps = nn.Sequential(DigitCaps(24, 4, 8, 4), DigitCaps(8, 4, 3, 5))
    elif name == "another stem":
        net.stem = nn.Conv2d(1, 4, 5)
    elif name == "not finite":
        net.stem.bias.data[0] = math.nan
    else:
        net.stem.bias.data[0] = 1e6
    return net


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("decoder for ten", r"can't be saved: decoder.layers.0.weight should be \[8, 25\] and is \[8, 15\]"),
        ("two class layers", "can't be saved: digit_caps.0.weight should be absent"),
        ("another stem", r"can't be saved: stem.weight should be \[4, 1, 3, 3\] and is \[4, 1, 5, 5\]"),
        ("not finite", "stem.bias holds values that are not finite, so nothing was saved"),
        ("too large for half", "stem.bias holds values that are not finite in float16.*or save without half"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, name, words):
    with pytest.raises(ValueError, match=words):
        save_weights(spoiled(name), tmp_path / "net.safetensors", half=name == "too large for half")
    assert not list(tmp_path.iterdir())


def test_a_mistyped_path_is_named_and_what_is_there(net, tmp_path):
    path = save_weights(net, tmp_path / "mine.safetensors")
    with pytest.raises(
        FileNotFoundError, match="there is no file .*typo.safetensors: its folder holds mine.safetensors"
    ):
        load_weights(tmp_path / "typo.safetensors")
    with pytest.raises(FileNotFoundError, match="no file .*: its folder holds no weights"):
        load_weights(tmp_path / "nowhere" / "mine.safetensors")
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"mine.json, the card of the weights, is missing"):
        load_weights(path)


@pytest.mark.parametrize(
    ("field", "wrong"), [("iterations", 0), ("classes", 2.5), ("image_shape", [28, 28]), ("new", 1)]
)
def test_a_card_that_describes_no_network_is_refused(net, tmp_path, field, wrong):
    path = save_weights(net, tmp_path / "net.safetensors")
    card = json.loads(path.with_suffix(".json").read_text())
    card["config"][field] = wrong
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=f"do not describe a CapsNet .*{field}"):
        load_weights(path)


# Nothing to measure.


def test_a_class_without_images_is_named(net):
    images, labels = pictures(), torch.tensor([0, 0, 0, 2, 2, 2])
    for door in (measure_spreads, dimension_effects, lambda *given: effects(*given, 1)):
        with pytest.raises(ValueError, match="class 1"):
            door(net, images, labels)
    with pytest.raises(ValueError, match="class 1 has 1 image, and 2 are needed"):
        dimension_effects(net, images, torch.tensor([0, 0, 0, 1, 2, 2]))


def test_without_a_decoder_nothing_is_drawn_and_the_error_is_still_measured():
    net = CapsNet(dataclasses.replace(TINY, decoder_hidden=None))
    measured = evaluate(net, pictures(), classes())
    assert measured.mse is None and 0 <= measured.error <= 100
    for door in (
        lambda: net.decode(torch.zeros(1, 5), 0),
        lambda: effects(net, pictures(), classes(), 0),
        lambda: dimension_effects(net, pictures(), classes()),
        lambda: CapsuleExplorer(net, (pictures(), classes())),
    ):
        with pytest.raises(ValueError, match="no decoder"):
            door()


# Whatever is passed, anywhere: a result, or an error of this package's own in plain words.

VALUES = [
    None, True, 0, -1, 2.5, "x", [], [1, 2], {}, object(), np.ones(3), math.nan, b"y", torch.tensor(1.0), torch.zeros(0), torch.ones(2),
    torch.ones(2, 3), torch.ones(2, 3, 4), torch.ones(2, 1, 9, 11), torch.ones(1, 2, 3, 4, 5), torch.ones(2, 3).long(), torch.ones(2).bool(),
    torch.full((2, 1, 9, 11), math.nan), torch.ones(2, 3) + 1j, torch.arange(3), torch.full((2, 3), -5.0), torch.ones(2, 3).to_sparse(),
]  # fmt: skip
DOORS = {
    "squash": (squash, [torch.rand(2, 3)], {"dim": -1}),
    "dynamic_routing": (dynamic_routing, [torch.rand(2, 3, 4, 5)], {"iterations": 2}),
    "margin_loss": (margin_loss, [torch.rand(2, 3), torch.tensor([0, 1])], {}),
    "reconstruction_loss": (reconstruction_loss, [torch.rand(2, 1, 3, 3), torch.rand(2, 1, 3, 3)], {}),
    "random_shift": (random_shift, [torch.rand(2, 1, 5, 5)], {"max_shift": 1}),
    "PrimaryCaps": (lambda *a: PrimaryCaps(*a)(torch.rand(2, 3, 9, 9)), [3, 2, 4, 3, 2], {}),
    "PrimaryCaps, called": (PrimaryCaps(3, 2, 4, 3, 2), [torch.rand(2, 3, 9, 9)], {}),
    "PrimaryCaps, depthwise": (lambda *a: PrimaryCaps(*a)(torch.rand(2, 8, 9, 9)), [8, 2, 4, 3, 2, True], {}),
    "Routing": (lambda *a: Routing(*a)(torch.rand(2, 3, 4, 5)), ["EM", 3, 4, 5, 2], {}),
    "Routing, called": (Routing("slot attention", 3, 4, 5), [torch.rand(2, 3, 4, 5)], {}),
    "RoutedCaps": (lambda *a: RoutedCaps(*a)(torch.rand(2, 6, 4)), [6, 4, 3, 5, "self-attention", 2], {}),
    "DigitCaps": (lambda *a: DigitCaps(*a)(torch.rand(2, 6, 4)), [6, 4, 3, 5, 2], {}),
    "DigitCaps, called": (DigitCaps(6, 4, 3, 5), [torch.rand(2, 6, 4)], {}),
    "DigitCaps.votes": (DigitCaps(6, 4, 3, 5).votes, [torch.rand(2, 6, 4)], {}),
    "Decoder": (lambda *a: Decoder(*a)(torch.rand(2, 3, 5), classes(2)), [3, 5, (8,), (1, 9, 11)], {}),
    "Decoder, called": (Decoder(3, 5, (8,), (1, 9, 11)), [torch.rand(2, 3, 5), classes(2)], {}),
    "CapsNet": (CapsNet, [TINY], {}),
    "CapsNet, called": (CapsNet(TINY), [pictures(2), classes(2)], {}),
    "from_preset": (CapsNet.from_preset, ["small"], {}),
    "encode": (CapsNet(TINY).encode, [pictures(2)], {}),
    "decode": (CapsNet(TINY).decode, [torch.rand(2, 5), 1], {}),
    "evaluate": (lambda *a, **k: evaluate(CapsNet(TINY), *a, **k), [pictures(2), classes(2)], {"batch_size": 2}),
    "train": (lambda *a: list(train(CapsNet(TINY), *a)), [pictures(2), classes(2), 1], {}),
    "effects": (lambda *a: effects(CapsNet(TINY), *a), [pictures(), classes(), 1, 2, 2.0], {}),
    "dimension_effects": (lambda *a: dimension_effects(CapsNet(TINY), *a), [pictures(), classes()], {}),
    "measure": (measure, [pictures()], {}),
    "measure_spreads": (lambda *a: measure_spreads(CapsNet(TINY), *a), [pictures(), classes()], {}),
    "mnist_like": (mnist_like, [[[[0.1, 0.1], [0.9, 0.9]]], 28], {}),
    "load_digits": (load_digits, ["shipped", "train"], {}),
    "load_pretrained": (load_pretrained, ["small"], {}),
    "load_spreads": (load_spreads, ["small"], {}),
    "digit_image": (plots.digit_image, [torch.rand(1, 5, 5), 20], {}),
    "digit_rows": (plots.digit_rows, [{"a row": torch.rand(2, 1, 5, 5)}], {}),
    "confusion": (plots.confusion, [classes(), classes()], {}),
}


@pytest.mark.parametrize("door", DOORS)
def test_whatever_is_passed_no_error_is_raw(door):
    function, given, named = DOORS[door]
    function(*given, **named)  # the door opens
    calls = [([*given[:n], value, *given[n + 1 :]], named) for n in range(len(given)) for value in VALUES]
    calls += [(given, named | {name: value}) for name in named for value in VALUES]
    raw = []
    for position, keywords in calls:
        try:
            function(*position, **keywords)
        except CLEAR as error:
            last = traceback.extract_tb(error.__traceback__)[-1].filename
            if not last.startswith(str(PACKAGE)) or len(str(error)) < 15:
                raw.append(f"{[str(p)[:40] for p in position]}, {keywords}: {type(error).__name__}: {error}")
        except Exception as error:
            raw.append(f"{[str(p)[:40] for p in position]}, {keywords}: {type(error).__name__}: {error}")
    plt.close("all")
    assert not raw, f"{len(raw)} of {len(calls)} calls:\n" + "\n".join(raw[:12])
