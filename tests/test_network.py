"""Layers, the whole network and its training: shapes, counts, and the mistakes of published ports."""

import ast
import sys
from pathlib import Path

import pytest
import torch

import capsule_lib
from capsule_lib import CapsNet, CapsNetConfig, DigitCaps, PrimaryCaps, evaluate, random_shift, squash, train
from capsule_lib.model import PRESETS
from capsule_lib.train import dimension_effects

TINY = CapsNetConfig(
    (1, 9, 11), classes=3, stem_channels=4, kernel_size=3, types=2, primary_dim=4, class_dim=5, decoder_hidden=(8, 9)
)


def count(net):
    return sum(p.numel() for p in net.parameters())


def test_parameter_counts():
    paper = CapsNet.from_preset("paper")
    assert count(paper) == 8_215_568
    assert count(paper) - count(paper.decoder) == 6_804_224
    assert count(CapsNet.from_preset("small")) == 2_117_072


def test_the_numbers_of_a_primary_capsule_come_from_one_place():
    """Mistake 1: tag every output of the convolution with its place and look inside the capsules."""
    layer = PrimaryCaps(1, types=32, dim=8, kernel_size=1, stride=1)
    place = torch.arange(1.0, 37).view(1, 1, 6, 6)
    layer.conv.weight.data.fill_(1)
    layer.conv.bias.data.zero_()
    u = layer(place)
    assert u.shape == (1, 1152, 8)
    tags = squash(place.flatten().repeat(32)[:, None].expand(1152, 8))
    assert torch.allclose(u[0], tags)


def test_primary_capsules_use_all_orthants_and_are_shorter_than_1():
    u = PrimaryCaps(3, 4, 8, 3, 1)(10 * torch.randn(2, 3, 9, 9))
    assert (u < 0).float().mean() > 0.2 and (u > 0).float().mean() > 0.2  # mistake 15
    assert (u.norm(dim=2) < 1).all()  # mistake 4


def test_untrained_class_capsules_are_not_saturated():
    torch.manual_seed(0)
    lengths = DigitCaps(1152, 8, 10, 16)(squash(torch.randn(2, 1152, 8))).norm(dim=2)
    assert lengths.max() < 0.95  # mistake 3


def test_the_decoder_sees_the_chosen_capsule_only():
    net = CapsNet(TINY)
    v = torch.randn(3, 3, 5)
    classes = torch.tensor([2, 2, 2])  # mistake 6: a batch of one class
    changed = v.clone()
    changed[:, :2] = torch.randn(3, 2, 5)
    assert torch.equal(net.decoder(v, classes), net.decoder(changed, classes))
    changed[:, 2] += 1
    assert not torch.equal(net.decoder(v, classes), net.decoder(changed, classes))


def test_labels_choose_the_capsule_in_training_and_the_longest_in_use():
    net, images = CapsNet(TINY), torch.rand(4, 1, 9, 11)
    out = net(images)
    longest = out.lengths.argmax(1)
    assert torch.equal(out.reconstruction, net.decoder(out.capsules, longest))
    other = (longest + 1) % 3
    assert torch.equal(net(images, other).reconstruction, net.decoder(out.capsules, other))


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        CapsNetConfig((3, 40, 32), classes=5, stem_channels=8, types=2, class_dim=6),
        CapsNetConfig((1, 17, 17), stem_channels=4, types=1),
    ],
)
def test_other_sizes(config):
    out = CapsNet(config)(torch.rand(2, *config.image_shape))
    assert out.lengths.shape == (2, config.classes) and out.capsules.shape == (2, config.classes, config.class_dim)
    assert out.reconstruction.shape == (2, *config.image_shape)
    assert out.reconstruction.min() >= 0 and out.reconstruction.max() <= 1


def test_without_decoder():
    config = CapsNetConfig((1, 9, 9), classes=3, stem_channels=4, kernel_size=3, types=2, decoder_hidden=None)
    net = CapsNet(config)
    assert net(torch.rand(2, 1, 9, 9)).reconstruction is None
    list(train(net, torch.rand(6, 1, 9, 9), torch.tensor([0, 1, 2] * 2), 1, batch_size=3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CapsNet.from_preset("huge"), "'huge'.*'paper', 'small'"),
        (lambda: CapsNet(CapsNetConfig(image_shape=(1, 16, 28))), "16 x 28 pixels are too small.*17 x 17"),
        (lambda: CapsNet(TINY)(torch.rand(2, 3, 9, 11)), r"\['B', 1, 9, 11\]; got \[2, 3, 9, 11\]"),
        (lambda: CapsNet(TINY)(torch.rand(2, 1, 28, 28)), r"got \[2, 1, 28, 28\]"),
        (lambda: CapsNet(TINY)(torch.rand(2, 1, 9, 11), torch.tensor([0, 3])), r"0\.\.2; got 0\.\.3"),
        (lambda: DigitCaps(5, 4, 3, 2)(torch.rand(1, 5, 3)), r"\[B, 5, 4\]; got.*\[1, 5, 3\]"),
    ],
)
def test_clear_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_each_image_is_shifted_by_itself_within_two_pixels():
    images = torch.zeros(600, 1, 28, 28)
    images[:, 0, 0, 13] = 1  # at the edge: it may leave, never wrap round
    moved = random_shift(images)
    places = {tuple(spot.tolist()) for spot in moved[:, 0].nonzero()[:, 1:]}
    assert places == {(y, x) for y in range(3) for x in range(11, 16)}
    assert 300 < moved.sum() < 420  # three moves of five keep it on the page


def test_training_masks_by_label_shifts_and_learns(monkeypatch):
    torch.manual_seed(0)
    net, seen = CapsNet(TINY), []
    labels = torch.arange(3).repeat(8)
    images = torch.zeros(24, 1, 9, 11)
    for n, label in enumerate(labels):
        images[n, 0, 2 + 2 * label, 3:8] = 1
    hook = net.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    epochs = []
    for epoch in train(net, images, labels, 12, batch_size=7, learning_rate=1e-2):
        assert not net.training
        epochs.append(epoch)
    hook.remove()
    assert sorted(torch.cat(seen[:4]).tolist()) == sorted(labels.tolist())  # mistake 11
    assert epochs[-1].margin < 0.5 * epochs[0].margin
    module = sys.modules["capsule_lib.train"]  # the name capsule_lib.train is the function
    monkeypatch.setattr(module, "random_shift", lambda *_: pytest.fail("test images were shifted"))  # mistake 13
    assert evaluate(net, images, labels).lengths.shape == (24, 3)


def test_training_is_repeatable_bit_for_bit():
    def weights():
        torch.manual_seed(3)
        net = CapsNet(TINY)
        list(train(net, torch.rand(20, 1, 9, 11), torch.arange(20) % 3, 2, batch_size=6))
        return torch.cat([p.flatten() for p in net.parameters()])

    assert torch.equal(weights(), weights())


def test_training_refuses_what_it_cannot_learn():
    images, labels = torch.rand(6, 1, 9, 11), torch.arange(6) % 3
    with pytest.raises(ValueError, match=r"0\.\.1.*normalisation"):  # mistake 12
        next(train(CapsNet(TINY), 2 * images - 1, labels, 1))
    net = CapsNet(TINY)
    net.stem.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="epoch 1"):
        list(train(net, images, labels, 1))


def test_evaluate_counts_mistakes_and_keeps_the_mode():
    net, images = CapsNet(TINY).train(), torch.rand(10, 1, 9, 11)
    longest = net(images).lengths.argmax(1)
    labels = torch.where(torch.arange(10) < 3, (longest + 1) % 3, longest)
    result = evaluate(net, images, labels, batch_size=4)
    assert result.error == pytest.approx(30) and net.training
    assert result.mse == pytest.approx((net(images).reconstruction - images).square().mean().item(), rel=1e-4)


def test_a_dimension_that_the_decoder_ignores_has_no_effect():
    net = CapsNet(TINY)
    net.decoder.layers[0].weight.data.view(-1, 3, 5)[:, :, 4] = 0
    effects = dimension_effects(net, torch.rand(12, 1, 9, 11), torch.arange(12) % 3)
    assert effects.shape == (3, 5) and (effects[:, 4] == 0).all() and (effects[:, :4] > 0).all()


def test_no_device_is_hard_coded():
    """Mistake 19."""
    for path in Path(capsule_lib.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                moves = [a.value for a in node.args if isinstance(a, ast.Constant)] if node.func.attr == "to" else []
                assert node.func.attr not in ("cuda", "mps") and not moves, f"{path.name}:{node.lineno}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_same_numbers_on_cuda():
    net, images = CapsNet(PRESETS["small"]).eval(), torch.rand(4, 1, 28, 28)
    expected, got = net(images), net.cuda()(images.cuda())
    for a, b in zip(expected, got, strict=True):
        assert torch.allclose(a, b.cpu(), atol=1e-3)
    list(train(net, images, torch.arange(4), 1))
