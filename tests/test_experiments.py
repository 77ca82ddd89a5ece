"""Transformations, the networks that are compared, read-outs, records that go on, and the whole experiment in little."""

import json
import math
import subprocess
import sys
import urllib.error
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
from torch import nn

from capsule_lib import digit_sets, evaluate, load_digits, load_pretrained
from capsule_lib.data import TRANSFORMATIONS, affnist, transform
from capsule_lib.experiments import (
    CLAIMS,
    CONDITIONS,
    NETWORKS,
    QUANTITIES,
    Claim,
    Classifier,
    Comparison,
    Family,
    Robustness,
    build,
    by_network,
    compare,
    entropy,
    errors_under,
    family,
    last_features,
    loss_of,
    parameters,
    posed,
    read_out,
    read_outs,
    recipe,
    robustness,
    run,
    verdict,
    wall,
)
from capsule_lib.experiments import command as command_module
from capsule_lib.experiments.networks import OFFLINE, PRETRAINED_VIT, pretrained_vit
from capsule_lib.experiments.record import Record
from capsule_lib.experiments.robustness import MARGIN, READ_OUT, VERSION, flops, placed_at_random
from capsule_lib.files import read_shipped
from capsule_lib.losses import margin_loss
from capsule_lib.morphometry import measure
from capsule_lib.routings import ROUTINGS
from capsule_lib.training import Trainer, TrainingConfig, train

ROOT = Path(__file__).parent.parent


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def spot(right, up, size=28):
    """A soft spot, so many pixels from the middle."""
    axis = torch.arange(size) - (size - 1) / 2
    return (-((axis[None] - right) ** 2 + (-axis[:, None] - up) ** 2) / 4.5).exp()[None, None]


def place(images):
    """Where the ink is, to the right and upwards of the middle."""
    found = measure(images)
    return found["horizontal position"].item(), found["vertical position"].item()


# Transformations


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_amount_that_changes_nothing_changes_nothing(name):
    images = noise(3, 2, 20, 28)
    torch.testing.assert_close(transform(images, name, TRANSFORMATIONS[name].none), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "amount", "before", "after"),
    [
        ("turn", 90, (6, 0), (0, 6)),  # anticlockwise
        ("turn", -30, (0, 6), (3, 5.196)),
        ("scale", 1.5, (4, -4), (6, -6)),
        ("scale", 0.5, (8, 2), (4, 1)),
        ("slant", 45, (0, 5), (5, 5)),
        ("slant", 45, (2, -5), (-3, -5)),
        ("slant", -17, (0, 6), (-6 * math.tan(math.radians(17)), 6)),
        ("shift", 4, (0, 2), (4, 2)),
        ("shift", -2.5, (0, 2), (-2.5, 2)),
        ("raise", 4, (1, 0), (1, 4)),
    ],
)
def test_what_is_moved_goes_where_it_should(name, amount, before, after):
    assert place(transform(spot(*before), name, amount)) == pytest.approx(after, abs=0.06)


def test_a_quarter_turn_of_any_picture_is_exact():
    images = noise(2, 3, 28, 28)
    torch.testing.assert_close(transform(images, "turn", 90), images.rot90(1, (2, 3)), atol=1e-4, rtol=0)


def test_strokes_are_widened_and_narrowed_by_whole_pixels_and_parts_of_them():
    bar = torch.zeros(1, 1, 28, 28)
    bar[..., 4:24, 12:15] = 1
    widths = [transform(bar, "thicken", a)[0, 0, 14].sum().item() for a in (-2, -1, 0, 0.5, 1, 2, 4)]
    assert widths == pytest.approx([1, 2, 3, 3.5, 4, 5, 7], abs=1e-5)
    assert transform(bar, "thicken", 2)[0, 0, 14, 11:16].tolist() == 5 * [1]  # to both sides
    grey = transform(0.6 * bar, "thicken", 2)
    assert grey.max().item() == pytest.approx(0.6) and grey[0, 0, 14].sum().item() == pytest.approx(3.0)


def test_blur_keeps_the_ink_and_has_its_standard_deviation():
    point = torch.zeros(2, 1, 41, 41)
    point[..., 20, 20] = 1
    blurred = transform(point, "blur", torch.tensor([1.0, 2.5]))
    axis = torch.arange(41) - 20.0
    for sums in (2, 3):
        profile = blurred.sum((1, sums))
        torch.testing.assert_close(profile.sum(1), torch.ones(2), atol=1e-4, rtol=0)
        torch.testing.assert_close((profile * axis**2).sum(1).sqrt(), torch.tensor([1.0, 2.5]), atol=0.02, rtol=0)


def test_noise_has_its_standard_deviation_comes_back_with_its_seed_and_stays_in_range():
    grey = torch.full((20, 1, 28, 28), 0.5)
    noisy = transform(grey, "noise", 0.1)
    assert (noisy - grey).std().item() == pytest.approx(0.1, abs=0.003) and not torch.equal(noisy[0], noisy[1])
    assert torch.equal(noisy, transform(grey, "noise", 0.1)) and not torch.equal(
        noisy, transform(grey, "noise", 0.1, seed=1)
    )
    extreme = transform(grey, "noise", 1)
    assert extreme.min() == 0 and extreme.max() == 1


@pytest.mark.parametrize("name", [n for n in TRANSFORMATIONS if n != "noise"])
def test_each_picture_can_have_its_own_amount(name):
    images = noise(3, 2, 28, 20)
    low, none, high = (
        float(x) for x in (TRANSFORMATIONS[name].low, TRANSFORMATIONS[name].none, TRANSFORMATIONS[name].high)
    )
    amounts = torch.tensor([low, none, 0.6 * none + 0.4 * high])
    together = transform(images, name, amounts)
    alone = torch.cat([transform(images[[n]], name, amounts[n].item()) for n in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert not torch.allclose(together[2], images[2], atol=0.01)


@pytest.mark.parametrize(
    ("name", "amount", "words"),
    [
        ("rotate", 3, "no transformation 'rotate': choose one of 'turn', 'scale'"),
        ("turn", 181, "turn: expected -180 to 180 °; got 181"),
        ("turn", math.nan, "turn: expected -180 to 180 °; got nan"),
        ("scale", 0, "scale: expected 0.5 to 2 times; got 0"),
        ("thicken", torch.tensor([0.0, 1, 5]), "thicken: expected -2 to 4 px; got 5"),
        ("noise", -0.1, "noise: expected 0 to 1; got -0.1"),
        ("shift", torch.zeros(2), "shift: expected one amount, or 3, one per picture; got \\[2\\]"),
    ],
)
def test_a_transformation_that_is_not_there_or_out_of_range_is_refused(name, amount, words):
    with pytest.raises(ValueError, match=words):
        transform(noise(3, 1, 28, 28), name, amount)


def test_transformations_take_pictures_only():
    for call in (lambda x: transform(x, "turn", 10), affnist):
        with pytest.raises(ValueError, match="divide by 255"):
            call(255 * noise(3, 1, 28, 28))
        with pytest.raises(TypeError, match="must be a tensor"):
            call([1])
    with pytest.raises(ValueError, match="28, 28"):
        affnist(noise(3, 1, 40, 40))


def test_affnist_has_its_recipe():
    images = torch.zeros(1000, 1, 28, 28)
    images[:, :, 4:22, 10:12] = 1  # an upright bar, 18 pixels tall and 2 wide, not in the middle
    out = affnist(images)
    assert out.shape == (1000, 1, 40, 40) and out.min() >= 0 and out.max() <= 1
    area = out.sum((1, 2, 3)) / images[0].sum()  # width times height; nothing is cut off
    assert 0.6 < area.min() < 0.72 and 1.28 < area.max() < 1.5 and area.mean().item() == pytest.approx(1, abs=0.02)
    assert area.std().item() == pytest.approx(0.4 / 12**0.5 * 2**0.5, abs=0.015)  # width and height are drawn apart
    slant = measure(out)["slant"]
    # Turned by up to 20 degrees, and sheared by up to atan(0.2 times width over height) besides.
    turned = affnist(images.transpose(2, 3))  # a bar that lies: the shear changes nothing of it
    lying = -measure(turned.transpose(2, 3))["slant"]
    assert (
        lying.abs().max() < 21 and lying.std().item() == pytest.approx(20 / 3**0.5, abs=0.7) and abs(lying.mean()) < 1
    )
    assert 21 < slant.abs().max() < 38 and slant.std() > lying.std() + 0.5
    heights, widths = measure(out)["height"], measure(turned)["width"]
    assert heights.max() > 20 and widths.max().item() == pytest.approx(18 * 1.2, abs=1.5)
    across, up = measure(out)["horizontal position"], measure(out)["vertical position"]
    assert across.min() < -12 and across.max() > 12 and up.min() < -8 and up.max() > 8  # anywhere in the frame
    assert abs(across.mean()) < 1 and abs(up.mean()) < 1
    assert torch.equal(out, affnist(images)) and not torch.equal(out, affnist(images, seed=1))


@pytest.mark.slow
def test_the_shipped_network_has_the_errors_that_were_measured_before():
    """On 2,000 official test digits, to 0.3 percentage points, and 1 for the noise."""
    sets = digit_sets()
    if "MNIST test" not in sets:
        pytest.skip("MNIST is not at hand")
    images, labels = (part[:2000] for part in sets["MNIST test"]())
    net = load_pretrained("small")
    known = {"upright": 0.75, "turned 15°": 2.35, "turned 30°": 15.1, "turned -30°": 13.35, "turned 45°": 46.45, "thickened 2 px": 5.0, "thinned 1 px": 3.85, "moved 4 px": 3.05, "noise 0.3": 35}  # fmt: skip
    for name, error in known.items():
        found = evaluate(net, transform(images, *CONDITIONS[name]), labels).error
        assert found == pytest.approx(error, abs=1 if "noise" in name else 0.3), name


# Networks


@pytest.mark.parametrize("pixels", [28, 40])
@pytest.mark.parametrize("name", OFFLINE)
def test_every_network_fits_both_sizes_and_all_of_it_is_trained(name, pixels):
    torch.manual_seed(0)
    net = build(name, pixels).train()
    out = net(noise(4, 1, pixels, pixels), torch.arange(4))
    assert out.lengths.shape == (4, 10)
    loss = loss_of(net)(out.lengths, torch.arange(4)) + (out.reconstruction.sum() if net.decoder else 0)
    loss.backward()
    still = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


@pytest.mark.parametrize("pixels", [28, 40])
def test_the_cnn_has_as_many_parameters_as_small_without_its_decoder(pixels):
    assert parameters(build("CNN", pixels)) == pytest.approx(parameters(build("no reconstruction", pixels)), rel=0.01)
    assert last_features(build("CNN", pixels), noise(2, 1, pixels, pixels), torch.arange(2)).shape == (2, 160)


def test_what_is_read_out_is_the_label_s_capsule_or_what_the_last_layer_takes():
    images, labels = noise(300, 1, 28, 28), torch.arange(300) % 10
    small, cnn = build("small"), build("CNN")
    capsules = small(images).capsules
    torch.testing.assert_close(last_features(small, images, labels)[13], capsules[13, 3])
    with torch.no_grad():
        torch.testing.assert_close(cnn.scores(last_features(cnn, images, labels)), cnn(images).lengths)


@pytest.mark.parametrize(("name", "twins"), [("small", ""), ("compact", "compact, ")])
def test_the_controls_differ_from_a_capsule_network_in_one_thing(name, twins):
    small, uniform, without = build(name), build(f"{twins}uniform couplings"), build(f"{twins}no reconstruction")
    assert replace(small.config, iterations=1) == uniform.config
    assert replace(small.config, decoder_hidden=None) == without.config
    shapes = {n: p.shape for n, p in small.named_parameters()}
    assert shapes == {n: p.shape for n, p in uniform.named_parameters()}
    assert {n: s for n, s in shapes.items() if "decoder" not in n} == {
        n: p.shape for n, p in without.named_parameters()
    }
    _, couplings = uniform.digit_caps(uniform.primary(noise(2, 1, 28, 28)), return_couplings=True)
    assert couplings.shape[0] == 1 and (couplings == 0.1).all()


def test_global_pooling_has_the_convolutions_of_small():
    small, pooled = build("small"), build("global pooling")
    convolutions = [m for m in pooled.modules() if isinstance(m, nn.Conv2d)]
    assert [m.weight.shape for m in convolutions] == [small.stem.weight.shape, small.primary_caps.conv.weight.shape]
    assert convolutions[1].stride == small.primary_caps.conv.stride
    blank = torch.zeros(1, 1, 28, 28)
    blank[..., 12:16, 12:16] = noise(4, 4)
    maps = pooled.features[:4](blank)
    torch.testing.assert_close(pooled.features(blank), maps.mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "pixels", "words"),
    [
        ("LeNet", 28, "no network 'LeNet': choose from 'small'"),
        ("small", 16, "small does not fit pictures of 16 x 16 pixels .*at least 17 x 17.*meant for 28 and 40"),
        ("ViT", 30, "ViT does not fit pictures of 30 x 30 pixels"),
        ("VGG-11", 20, "VGG-11 does not fit pictures of 20 x 20 pixels"),
        ("global pooling", 9, "global pooling does not fit pictures of 9 x 9 pixels"),
        ("CNN", 0, "pixels: expected a whole number from 1 on"),
    ],
)
def test_a_network_that_is_not_there_or_does_not_fit_is_refused(name, pixels, words):
    with pytest.raises(ValueError, match=words):
        build(name, pixels)


def test_the_pretrained_network_works_up_to_its_download():
    pixels = 40
    net = pretrained_vit(pixels, weights=None).eval()
    images = noise(2, 1, pixels, pixels)
    assert net(images).lengths.shape == (2, 10) and 85e6 < parameters(net) < 87e6
    seen = net.features[0](images)
    assert seen.shape == (2, 3, 224, 224)
    black, white = (net.features[0](torch.full((1, 1, pixels, pixels), value)).mean((0, 2, 3)) for value in (0.0, 1.0))
    torch.testing.assert_close(white - black, 1 / torch.tensor([0.229, 0.224, 0.225]))
    torch.testing.assert_close(black, -torch.tensor([0.485, 0.456, 0.406]) / torch.tensor([0.229, 0.224, 0.225]))
    net(images).lengths.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_where_its_weights_cannot_be_downloaded_it_says_so(monkeypatch, tmp_path, capsys):
    def refuse(*given, **how):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(OSError, match="'pretrained ViT' needs weights that could not be downloaded .*no network"):
        build(PRETRAINED_VIT)
    out = tmp_path / "record.json"
    monkeypatch.setattr(sys, "argv", ["x", "robustness", "--quick", "--out", str(out), "--networks", PRETRAINED_VIT])
    assert command_module.main() == 1 and "could not be downloaded" in capsys.readouterr().err


def test_a_new_network_that_scores_other_classes_is_refused(monkeypatch):
    net = Classifier(nn.Flatten(), 784)
    net.scores = nn.Linear(784, 5)
    monkeypatch.setitem(NETWORKS, "mine", lambda pixels: net)
    with pytest.raises(ValueError, match=r"mine does not fit .*should be \[2, 10\] and are \[2, 5\]"):
        build("mine")


def test_more_pixels_cost_more_and_attention_is_counted():
    assert flops(build("CNN", 40), 40) > 1.9 * flops(build("CNN"), 28) > 0
    # 50 tokens through 6 layers of 4 x 128² + 2 x 128 x 256 weights, two operations each: 78.6 million, and the attention.
    assert 78.6e6 < flops(build("ViT"), 28) < 95e6


# The trainer


def test_the_trainer_takes_another_loss_and_another_largest_shift():
    seen = []

    class Spy(Classifier):
        def forward(self, images, labels=None):
            seen.append(images)
            return super().forward(images)

    net, image = Spy(nn.Flatten(), 1600), torch.zeros(200, 1, 40, 40)
    image[:, :, 20, 20] = 1
    for most in (0, MARGIN):
        trainer = Trainer(
            net, image, torch.arange(200) % 10, TrainingConfig(epochs=1, batch_size=200, max_shift=most), loss_of(net)
        )
        list(trainer.steps())
        rows, columns = seen[-1].nonzero()[:, 2:].T
        for places in (rows, columns):
            assert {p - 20 for p in places.tolist()} == set(range(-most, most + 1))
    (epoch,) = train(net, image, torch.arange(200) % 10, 1, loss_of(net), learning_rate=1e-6)
    cross_entropy = nn.CrossEntropyLoss()(torch.zeros(5, 10), torch.arange(5)).item()
    assert trainer.end_epoch().margin == pytest.approx(cross_entropy, abs=0.5)
    assert epoch.margin == pytest.approx(cross_entropy, abs=0.5)


# Read-outs


def made_up(count, labels, seed, make):
    """A triple for `read_out`: features that `make` draws from poses, labels and noise [count, 16]."""
    generator = torch.Generator().manual_seed(seed)
    poses, labels = torch.rand(count, generator=generator), torch.arange(count) % labels
    return make(poses, labels, torch.randn(count, 16, generator=generator)), poses, labels


def mixed(poses, labels, rest):
    """The pose spread over all 16 numbers, in another direction for each class, beside as much else."""
    direction = noise(3, 16, seed=7)[labels] - 0.5
    return rest - (rest * direction).sum(1, keepdim=True) / direction.square().sum(1, keepdim=True) * direction + 4 * poses[:, None] * direction  # fmt: skip


@pytest.mark.parametrize(
    ("make", "linear", "single"),
    [
        (lambda p, y, rest: torch.cat([p[:, None] + 5, rest[:, 1:]], 1), (0.999, 1), (0.999, 1)),
        (mixed, (0.99, 1), (0, 0.6)),
        (lambda p, y, rest: rest, (-0.2, 0.05), (-0.2, 0.05)),
        (lambda p, y, rest: torch.cat([(1 - 2 * y[:, None]) * p[:, None], 0 * rest[:, 1:]], 1), (0.999, 1), (0.999, 1)),
        (
            lambda p, y, rest: torch.cat([p[:, None], *8 * [3 * rest]], 1),
            (-0.2, 0.2),
            (-0.2, 0.2),
        ),  # beyond 16 components
        (lambda p, y, rest: torch.cat([50 * p[:, None], *8 * [rest]], 1), (0.99, 1), (0.9, 1)),  # the first component
        (lambda p, y, rest: 0 * rest, (-0.05, 0.001), (-0.05, 0.001)),
    ],
)
def test_a_read_out_finds_what_is_there_and_no_more(make, linear, single):
    found = read_out(made_up(600, 3, 0, make), made_up(300, 3, 1, make))
    assert linear[0] <= found["linear"] <= linear[1] and single[0] <= found["single"] <= single[1]


def test_a_read_out_is_judged_on_unseen_digits():
    few = made_up(18 * 3, 3, 0, lambda p, y, rest: rest)
    assert read_out(few, few)["linear"] > 0.8  # 16 numbers explain 18 poses, whatever they are
    assert read_out(few, made_up(300, 3, 1, lambda p, y, rest: rest))["linear"] < -1


def test_a_read_out_of_too_few_digits_is_refused():
    with pytest.raises(ValueError, match="class 0 has 10 digits to fit on and 30 to test: 18 and 2 are needed"):
        read_out(made_up(20, 2, 0, mixed), made_up(60, 2, 1, mixed))


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_poses_fill_their_range_and_are_those_of_the_pictures(quantity):
    images = load_digits("shipped", "test")[0][:300]
    out, poses = posed(images, quantity, seed=3)
    name, low, high = QUANTITIES[quantity]
    assert low <= poses.min() < low + 0.05 * (high - low) and high - 0.05 * (high - low) < poses.max() <= high
    torch.testing.assert_close(out[7], transform(images[[7]], name, poses[7].item())[0], atol=1e-5, rtol=0)
    assert not torch.equal(poses, posed(images, quantity, seed=4)[1])


# Records


def record(path, **changes):
    given = {"experiment": "robustness", "number": 3, "settings": {"seeds": (0, 1), "epochs": {"100": 2}}, "device": torch.device("cpu"), "command": "first"}  # fmt: skip
    return Record(path, **given | changes)


def test_a_record_goes_on_and_keeps_its_commands(tmp_path):
    path = tmp_path / "new" / "r.json"
    first = record(path)
    assert json.loads(path.read_text())["cells"] == {}  # so a place that can't be written to is known at once
    first.add("a", {"x": 1})
    second = record(path, command="second")
    assert second.cells == {"a": {"x": 1}}
    second.add("b", {"x": 2})
    there = json.loads(path.read_text())
    assert there["cells"] == {"a": {"x": 1}, "b": {"x": 2}} and there["commands"] == ["first", "second"]
    assert (
        there["versions"]["torch"] == torch.__version__.split("+")[0] or there["versions"]["torch"] == torch.__version__
    )
    assert there["settings"]["seeds"] == [0, 1] and "cpu" in there["machine"]


def test_two_processes_may_add_to_one_record_and_what_a_killed_one_left_is_cleared_away(tmp_path):
    path = tmp_path / "r.json"
    (tmp_path / ".r.json.999999999").write_text("{")
    one, two = record(path), record(path)
    one.add("a", {"x": 1})
    two.add("b", {"x": 2})
    one.add("c", {"x": 3})
    assert json.loads(path.read_text())["cells"].keys() == {"a", "b", "c"} and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"number": 4}, "version is 3 there and 4 here"),
        ({"experiment": "overlap"}, "experiment is 'robustness' there"),
        ({"settings": {"seeds": [0, 1], "epochs": {"100": 3}}}, "settings.epochs.100 is 2 there and 3 here"),
        ({"settings": {"seeds": [0, 1], "epochs": {}}}, "settings.epochs.100 is 2 there and None here"),
        ({"settings": {"seeds": [0]}}, r"settings.seeds is \[0, 1\] there and \[0\] here"),
        ("machine", "machine is 'another' there and "),
        ("torch", "versions.torch is '1.0' there and"),
    ],
)
def test_a_record_of_another_kind_is_refused_and_left_as_it_is(tmp_path, change, words):
    path = tmp_path / "r.json"
    record(path).add("a", {"x": 1})
    if isinstance(change, str):
        there = json.loads(path.read_text())
        there |= {"machine": "another"} if change == "machine" else {"versions": there["versions"] | {"torch": "1.0"}}
        path.write_text(json.dumps(there))
        change = {}
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"{words}.*another file to --out"):
        record(path, **change)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"cells": [], "commands": []}', "3", b"\xff\xfe"])
def test_what_is_no_record_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is not the record of an experiment"):
        record(path)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="is not the record of an experiment"):
        record(tmp_path)  # a folder


def test_figures_by_network_are_means_and_spreads_over_seeds():
    cells = {
        str(n): {"kind": "digits", "network": "CNN", "size": size, "seed": n, "errors": {"upright": error}}
        for n, (size, error) in enumerate([(100, 8.0), (100, 10.0), (300, 1.0)])
    }
    cells["pixels"] = {"kind": "read-out", "features": "pixels", "r": 0.5}
    upright = lambda cell: cell["errors"]["upright"]  # noqa: E731
    assert by_network({"cells": cells}, upright, kind="digits", size=100) == {"CNN": (9.0, pytest.approx(2**0.5))}
    mean, spread = by_network({"cells": cells}, upright, size=300)["CNN"]
    assert mean == 1.0 and math.isnan(spread)
    assert by_network({"cells": cells}, lambda cell: cell["r"], kind="read-out")["pixels"][0] == 0.5
    assert by_network({"cells": cells}, lambda cell: cell.get("r")).keys() == {"pixels"}
    with pytest.raises(ValueError, match="no cell of this record has .*'size': 7"):
        by_network({"cells": cells}, upright, size=7)


def made_up_record(**errors):
    """A record with an upright error for each seed of each network."""
    cells = {}
    for name, values in errors.items():
        for seed, value in enumerate(values):
            cells[f"{name}, {seed}"] = {"kind": "digits", "network": name, "size": 9, "errors": {"a": value, "b": value + 2}, "stopped": None}  # fmt: skip
    return {"cells": cells}


@pytest.mark.parametrize("ours, theirs, more, differ", [
    ((1.0, 1.2, 1.1), (2.0, 2.2, 2.1), False, "yes"),
    ((1.0, 1.2, 1.1), (2.0, 2.2, 2.1), True, "the other way"),
    ((1.0, 1.2, 1.1), (1.0, 2.4, 2.0), False, "no difference"),  # the larger spread counts
    ((1.0, 2.4, 2.0), (1.0, 1.2, 1.1), False, "no difference"),
    ((1.0, 1.2, 1.1), (2.0,), False, "one seed"),
    ((1.0,), (2.0, 2.1, 2.2), False, "one seed"),
])  # fmt: skip
def test_two_networks_differ_by_more_than_twice_the_larger_spread(ours, theirs, more, differ, monkeypatch):
    comparison = Comparison("error", errors_under("a"), "ours", "theirs", more, {"size": 9})
    record = made_up_record(ours=ours, theirs=theirs)
    outcome = compare(record, comparison)
    assert outcome.differ == differ
    assert (outcome.network, outcome.other) == pytest.approx((sum(ours) / len(ours), sum(theirs) / len(theirs)))
    words = {"yes": "holds", "one seed": "not decided"}.get(differ, "does not hold here")
    monkeypatch.setitem(CLAIMS, "mine", Claim("us", [comparison]))
    assert verdict(record, "mine") == words
    other = comparison._replace(more=not more)
    monkeypatch.setitem(CLAIMS, "mine", Claim("us", [comparison, other]))
    partly = "holds partly" if {"yes", "the other way"} & {differ} else words
    assert verdict(record, "mine") == partly


def test_errors_are_means_over_conditions_and_left_out_where_a_network_was_never_stopped():
    cell = {"errors": {"a": 1.0, "b": 4.0}, "stopped": {"errors": {"a": 2.0, "b": 6.0}}}
    assert errors_under("a", "b")(cell) == 2.5 and errors_under("a", "b", stopped=True)(cell) == 4.0
    assert errors_under("a", stopped=True)(cell | {"stopped": None}) is None
    assert read_outs("angle")(cell) is None
    assert read_outs("angle", "single")({"read_out": {"angle": {"linear": 0.6, "single": 0.2}}}) == 0.2


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_shipped_record_can_say_something_of_every_claim(claim):
    record = json.loads(read_shipped("experiments/robustness.json"))
    for comparison in CLAIMS[claim].comparisons:
        outcome = compare(record, comparison)
        assert outcome.network > 0 and outcome.other > 0


# The experiment


@pytest.fixture(scope="module")
def quick():
    return Robustness(recipe(quick=True))


def test_training_digits_are_balanced_and_drawn_by_the_seed(quick):
    images, labels = quick.balanced(300, seed=1)
    assert labels.bincount().tolist() == 10 * [30] and len(images.flatten(1).unique(dim=0)) == 300
    assert not torch.equal(images, quick.balanced(300, seed=2)[0]) and torch.equal(
        images, quick.balanced(300, seed=1)[0]
    )
    assert len(quick.balanced(4_000, seed=1)[1]) == 4_000
    known = {image.numpy().tobytes(): label for image, label in zip(*load_digits("shipped"), strict=True)}
    assert all(known[x.numpy().tobytes()] == y for x, y in zip(images, labels, strict=True))


@pytest.mark.skipif("MNIST training" not in digit_sets(), reason="MNIST is not at hand")
def test_no_digit_that_stops_or_tests_is_trained_on():
    experiment = Robustness(recipe("mnist"))
    assert (
        len(experiment.pool[1]) == 59_000 and experiment.test_name == "MNIST" and len(experiment.all_test[1]) == 10_000
    )
    pool = {x.numpy().tobytes() for x in experiment.pool[0]}
    assert not pool & {x.numpy().tobytes() for x in experiment.held_out[0]}


def test_digits_are_placed_anywhere_on_40_by_40():
    images = torch.zeros(600, 1, 28, 28)
    images[:, :, 14, 14] = 1
    rows, columns = placed_at_random(images, 0).nonzero()[:, 2:].T
    for places in (rows, columns):
        assert set(places.tolist()) == set(range(14, 27))
    assert torch.equal(placed_at_random(images, 0), placed_at_random(images, 0))


def test_a_network_is_measured_as_soon_as_its_error_is_low_enough_and_again_at_the_end():
    cell = Robustness(recipe(quick=True) | {"check_every": 2}).cell("global pooling", 200, 0, 0.003)
    assert (
        cell["stopped"]["step"] == 2 and cell["stopped"]["errors"] != cell["errors"]
    )  # of 7 steps; 100 % is low enough
    strict = Robustness(recipe(quick=True) | {"stop_at": {"200": 0.0}})
    assert strict.cell("global pooling", 200, 0, 0.003)["stopped"] is None


def test_a_try_that_diverges_counts_as_all_wrong(quick):
    assert quick.tune("no reconstruction", 1e30)["validation_error"] >= 80


def test_the_same_seed_gives_the_same_network(quick):
    images, labels = quick.balanced(100, seed=0)
    weights = [quick._train("global pooling", images, labels, 1, 0.001, seed)[0].scores.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.allclose(weights[0], weights[2], atol=0.01)


def test_an_experiment_that_is_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    calls = []

    def counted(kind):
        def work(self, *given):
            calls.append((kind, *given))
            if len(calls) == stop_after:
                raise KeyboardInterrupt
            if kind == "tune":
                return {"kind": "learning rate", "network": given[0], "learning_rate": given[1], "validation_error": abs(given[1] - 0.003)}  # fmt: skip
            return {"kind": kind, "given": [*given]}

        return work

    for kind in ("tune", "cell", "control"):
        monkeypatch.setattr(Robustness, kind, counted(kind))
    path, networks, stop_after = tmp_path / "r.json", ["small", "CNN"], 6
    with pytest.raises(KeyboardInterrupt):
        run(path, "shipped", True, networks, "a command")
    assert len(json.loads(path.read_text())["cells"]) == 5
    stopped_at, stop_after = calls.pop(), 0
    run(path, "shipped", True, networks, "a command")
    assert calls[5] == stopped_at and len(set(calls)) == len(calls) == 2 * 2 + 2 + 2 + 2
    assert {given[3] for kind, *given in calls if kind == "cell"} == {0.003}  # the learning rate that did best
    before = path.read_bytes()
    run(path, "shipped", True, networks, "a command")
    assert len(calls) == 10 and path.read_bytes() == before
    with pytest.raises(ValueError, match="settings.* there and .* here"):
        run(path, "shipped", False, networks, "a command")


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiments") / "quick.json"
    line = [sys.executable, "-m", "capsule_lib.experiments", "robustness", "--out", str(path), "--quick"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path, done, json.loads(path.read_text())


def test_the_quick_run_has_every_cell_in_the_shape_of_the_whole(quick_run):
    path, done, there = quick_run
    assert there.keys() == {"experiment", "version", "settings", "machine", "versions", "commands", "cells"}
    assert there["version"] == VERSION and there["commands"] == [
        f"python -m capsule_lib.experiments robustness --out {path} --quick"
    ]
    n = len(OFFLINE)
    assert "100 %" in done.stderr and f"done: {4 * n + 2} cells" in done.stdout
    kinds = {
        kind: [c for c in there["cells"].values() if c["kind"] == kind]
        for kind in ("learning rate", "digits", "placed", "read-out")
    }
    assert [len(k) for k in kinds.values()] == [2 * n, n, n, 2] and len(there["cells"]) == 4 * n + 2
    read_out_shape = {q: {"linear", "single"} for q in QUANTITIES}
    for cell in kinds["digits"] + kinds["placed"]:
        tests = {"placed", "affNIST"} if cell["kind"] == "placed" else CONDITIONS.keys()
        for errors in (cell["errors"], cell["stopped"]["errors"]):
            assert errors.keys() == tests and all(0 <= e <= 100 for e in errors.values())
        assert cell["network"] in OFFLINE and cell["size"] == 200 and cell["seed"] == 0 and cell["tries"] == 2
        assert cell["parameters"] > 160_000 and cell["flops_per_picture"] > 1e7 and cell["seconds"] > 0
        tried = {
            c["learning_rate"]: c["validation_error"] for c in kinds["learning rate"] if c["network"] == cell["network"]
        }
        assert len(tried) == 2 and tried[cell["learning_rate"]] == min(tried.values())
        assert ("error_on_all" in cell) == (cell["kind"] == "digits")
        assert ("read_out" in cell) == (cell["kind"] == "digits" and cell["network"] in READ_OUT)
    for cell in [*kinds["read-out"], *(c for c in kinds["digits"] if "read_out" in c)]:
        assert {q: r.keys() for q, r in cell["read_out"].items()} == read_out_shape
    assert by_network(there, lambda c: c["errors"]["upright"], kind="digits", size=200).keys() == set(OFFLINE)


def test_the_command_says_in_words_what_it_refuses(quick_run, tmp_path, monkeypatch, capsys):
    path, _, _ = quick_run
    for given, code, words in [
        (["robustness", "--out", str(path)], 1, "settings"),
        (["robustness", "--out", str(tmp_path), "--quick"], 1, "is not the record of an experiment"),
    ]:
        monkeypatch.setattr(sys, "argv", ["x", *given])
        assert command_module.main() == code
        assert words in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["x", "robustness", "--out", str(path), "--networks", "LeNet"])
    with pytest.raises(SystemExit):
        command_module.main()
    with pytest.raises(ValueError, match="no data set 'letters': choose one of 'shipped'"):
        recipe("letters")


def test_the_whole_recipe_has_the_sizes_and_seeds_that_were_asked_for():
    whole = recipe()
    assert (
        [*whole["epochs"]] == ["100", "300", "1000", "4000"]
        and len(whole["seeds"]) >= 3
        and len(whole["learning_rates"]) >= 3
    )
    assert recipe("mnist")["epochs"].keys() == {"59000"} and recipe().keys() == recipe(quick=True).keys()
    assert {name for name, _ in CONDITIONS.values()} <= TRANSFORMATIONS.keys()


# The family of routings.


@pytest.fixture(scope="module")
def routings_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiments") / "routings.json"
    run(path, "shipped", True, [*ROUTINGS], "a command", "routings")
    return path, json.loads(path.read_text())


def test_the_quick_run_of_the_routings_has_every_cell_and_goes_on_from_there(routings_run, monkeypatch):
    path, there = routings_run
    assert there["experiment"] == "routings" and there["version"] == family.VERSION
    cells = [c for c in there["cells"].values() if c["kind"] == "routing"]
    assert [c["network"] for c in cells] == [*ROUTINGS] and len(there["cells"]) == 3 * len(ROUTINGS)
    for cell in cells:
        tried = {
            c["learning_rate"]: c["validation_error"]
            for c in there["cells"].values()
            if c["kind"] == "learning rate" and c["network"] == cell["network"]
        }
        assert len(tried) == cell["tries"] == 2 and tried[cell["learning_rate"]] == min(tried.values())
        assert 0 <= cell["held_out_error"] <= 100 and 0 <= cell["error_on_all"] <= 100 and 0 < cell["entropy"] <= 1
        assert cell["parameters"] - cell["routing_parameters"] == 1_572_880 and cell["step_ms"] > 0
    kept = {c["network"]: c["bytes_kept"] for c in cells}
    assert kept["uniform"] < 1_310_720 < min(kept["EM"], kept["inverted attention"])  # 128 x 16 x 10 x 16 votes
    assert by_network(there, lambda c: c["entropy"], kind="routing")["uniform"][0] == 1
    monkeypatch.setattr(Family, "cell", lambda *given: pytest.fail("computed again"))
    before = path.read_bytes()
    run(path, "shipped", True, [*ROUTINGS], "a command", "routings")
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="experiment is 'routings' there and 'robustness' here"):
        run(path, "shipped", True, ["CNN"], "a command")


def test_networks_of_the_family_differ_in_their_routing_alone():
    experiment, images = Family(family.recipe(quick=True)), noise(3, 1, 28, 28)
    votes = []
    for name in ROUTINGS:
        torch.manual_seed(0)
        net = experiment.build(name, 28)
        assert not net.training and type(net.digit_caps.routing.form) is ROUTINGS[name]
        votes.append(net.digit_caps.votes(net.primary(images)))
    torch.manual_seed(0)
    compact = build("compact")
    right = compact.digit_caps.votes(compact.primary(images))
    assert all(torch.equal(v, right) for v in votes)


def test_the_family_is_trained_with_its_own_settings(monkeypatch):
    seen = []

    class Noted(robustness.Trainer):
        def __init__(self, net, images, labels, config, loss):
            seen.append((config, len(images), loss))
            super().__init__(net, images, labels, config, loss)

    monkeypatch.setattr(robustness, "Trainer", Noted)
    settings = family.recipe(quick=True)
    Family(settings).cell("uniform", 100, 0, 0.005)
    ((config, count, loss),) = seen
    assert count == 100 and loss is margin_loss and (config.learning_rate, config.epochs, config.seed) == (0.005, 1, 0)
    for name, value in {**settings["training"], "batch_size": 64}.items():
        assert getattr(config, name) == value
    assert config.rotation == 15 and config.reconstruction_scale == 0.0005


def test_entropy_is_1_where_all_couplings_are_equal_and_0_where_one_has_all():
    couplings = torch.tensor([[[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.6, 0.6, -0.3, 0]]])
    torch.testing.assert_close(entropy(couplings), torch.tensor([[1.0, 0.0, 0.5, 0.5]]))


def test_the_routings_have_names_and_data_of_their_own(tmp_path, monkeypatch, capsys):
    for given in (["routings", "--networks", "CNN"], ["robustness", "--networks", "EM"]):
        monkeypatch.setattr(sys, "argv", ["x", *given, "--out", str(tmp_path / "r.json")])
        with pytest.raises(SystemExit):
            command_module.main()
        assert f"no {given[-1]!r} in {given[0]}: choose from" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["x", "routings", "--data", "fashion", "--out", str(tmp_path / "r.json")])
    assert command_module.main() == 1 and "choose one of 'shipped', 'mnist'" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


# The museum


def test_the_quick_run_of_the_museum_has_a_cell_for_every_exhibit(tmp_path):
    path = tmp_path / "museum.json"
    some = [wall.WORKING, "softmax over the inputs", "a new optimiser in each epoch", "standard-normal weights"]
    run(path, "shipped", True, some, "a command", "museum")
    there = json.loads(path.read_text())
    assert [c["network"] for c in there["cells"].values()] == some and there["experiment"] == "museum"
    for cell in there["cells"].values():
        assert 0 <= cell["error_on_all"] <= 100 and len(cell["margins"]) == 1 and 0 < cell["margins"][0] < 9
    told = [(cell["row"], cell["tells"], cell["right"]) for cell in there["cells"].values()]
    assert told[0] == (None, None, None) and told[1][0] == 2 and told[1][2] == 1 and abs(told[1][1] - 1) > 0.5
    with pytest.raises(ValueError, match="short trainings are on 'shipped'"):
        run(tmp_path / "other.json", "mnist", True, some, "a command", "museum")


# What the pages say


def test_the_readme_s_claims_are_those_of_the_record():
    record = json.loads(read_shipped("experiments/robustness.json"))
    table = (ROOT / "README.md").read_text().split("| claim | said by | here | for example |\n|---|---|---|---|\n")[1]
    rows = []
    for claim, (said_by, (first, *_)) in CLAIMS.items():
        of_first, other, _ = compare(record, first)
        figure = f"{first.measured}: {first.network} {of_first:.2f}, {first.other} {other:.2f}"
        rows.append(f"| {claim} | {said_by} | {verdict(record, claim)} | {figure} |")
    assert table.split("\n\n")[0].splitlines() == rows


def mean(record, value, name, **which):
    return by_network(record, value, **which)[name][0]


def r2(record, source, quantity):
    return mean(record, read_outs(quantity), source)


def misread(record, name, *conditions, kind="digits", size=4_000):
    return mean(record, errors_under(*conditions), name, kind=kind, size=size)


def on_all(record, size):
    return {name: m for name, (m, _) in by_network(record, lambda c: c["error_on_all"], kind="digits", size=size).items()}  # fmt: skip


def cost(record, name):
    return mean(record, lambda c: c["flops_per_picture"], name, kind="digits", size=4_000)


LARGE = ("ResNet-18", "VGG-11")
THIRTY, SCALED, CAPSULES = ("turned 30°", "turned -30°"), ("scaled 0.75", "scaled 1.25"), READ_OUT[:3]
SAID = {  # what notebook 09 says in words, and what the record has to say for it
    "16 components of the plain pixels know as much": lambda r: all(r2(r, "pixels", q) > r2(r, "small", q) - 0.03 for q in QUANTITIES),
    "knows *more*": lambda r: all(r2(r, "CNN", q) > r2(r, "small", q) for q in QUANTITIES),
    "the mean over all places can tell by how much a digit was moved": lambda r: r2(r, "global pooling", "shift") > 0.7,
    "Routing makes no difference. The decoder does": lambda r: all(abs(r2(r, "small", q) - r2(r, "uniform couplings", q)) < 0.04 for q in QUANTITIES),
    "forget much of the size and of the\nthickness": lambda r: all(r2(r, "small", q) - r2(r, "no reconstruction", q) > 0.1 for q in ("scale", "thickness")),
    "the capsule network is nearly the same network": lambda r: all(abs(misread(r, "small", *c) - misread(r, "uniform couplings", *c)) < 1.5 for c in (("upright",), THIRTY, SCALED)),
    "costs a lot for digits that are upright, turned or scaled": lambda r: all(misread(r, "global pooling", *c) > 1.3 * misread(r, "small", *c) for c in (("upright",), THIRTY, SCALED)),
    "stands turns and sizes at least as well as capsules do": lambda r: all(misread(r, "CNN", *c) < misread(r, "small", *c) for c in (THIRTY, SCALED)),
    "most of these networks most is noise": lambda r: sum(misread(r, n, "noise 0.3") > misread(r, n, *THIRTY) for n in OFFLINE if n in on_all(r, 4_000)) > len(OFFLINE) / 2,
    "do not differ by much, upright or transformed": lambda r: all(abs(misread(r, "small", c, kind="placed") - misread(r, "CNN", c, kind="placed")) < 3 for c in ("placed", "affNIST")),
    "the capsule networks are ahead of ResNet-18 and VGG-11": lambda r: max(on_all(r, 100)[n] for n in CAPSULES) < min(on_all(r, 100)[n] for n in LARGE),
    "hardly of the ordinary CNN": lambda r: 0 < on_all(r, 100)["CNN"] - on_all(r, 100)["small"] < 2,
    "uniform couplings do as well": lambda r: on_all(r, 100)["uniform couplings"] < on_all(r, 100)["small"] + 0.5,
    "enough for the others to catch up": lambda r: max(on_all(r, 300)[n] for n in (*LARGE, "CNN")) <= on_all(r, 300)["small"],
    "with 400 the two large networks are ahead": lambda r: max(on_all(r, 4_000)[n] for n in LARGE) < min(on_all(r, 4_000)[n] for n in CAPSULES),
    "needs less arithmetic than the CNN of its size, and a seventh of ResNet-18's": lambda r: cost(r, "small") < cost(r, "CNN") and 0.13 < cost(r, "small") / cost(r, "ResNet-18") < 0.16,
}  # fmt: skip


@pytest.mark.parametrize("sentence", SAID)
def test_what_notebook_09_says_is_what_the_record_says(sentence):
    cells = nbformat.read(ROOT / "notebooks/09_turn_the_digit.ipynb", as_version=4).cells
    assert sentence in "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert SAID[sentence](json.loads(read_shipped("experiments/robustness.json")))
