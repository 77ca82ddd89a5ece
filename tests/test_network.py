"""Layers, the whole network and its training: shapes, counts, and the mistakes of published ports."""

import ast
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

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
    margin_loss,
    random_shift,
    reconstruction_loss,
    squash,
)
from capsule_lib.model import PRESETS, CapsNetOutput
from capsule_lib.morphometry import LIVE, dimension_effects
from capsule_lib.training import TrainingConfig, train

TRAINING = capsule_lib.training.trainer
STANDING_STILL = 1e-9  # a learning rate at which the weights stay what they are

TINY = CapsNetConfig(
    (1, 9, 11), classes=3, stem_channels=4, kernel_size=3, types=2, primary_dim=4, class_dim=5, decoder_hidden=(8, 9)
)
# As `compact` is made: layers of batch norm, and primary capsules each of whose dimensions has a channel of its own.
NORMED = dataclasses.replace(TINY, stem=((3, 3, 1), (8, 3, 2)), kernel_size=2, depthwise=True)


def normed():
    """A network of NORMED that has learned means and variances, in evaluation mode."""
    net = CapsNet(NORMED)
    for _ in range(3):
        net(torch.rand(20, 1, 9, 11))
    return net.eval()


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (PRESETS["paper"], 8_215_568),
        (dataclasses.replace(PRESETS["paper"], decoder_hidden=None), 6_804_224),
        (PRESETS["small"], 2_117_072),
        (PRESETS["compact"], 1_572_880),
        (dataclasses.replace(PRESETS["compact"], decoder_hidden=None), 161_536),
        (CapsNetConfig(image_shape=(3, 256, 256)), 797_326_080),
    ],
)
def test_parameter_counts(config, parameters):
    with torch.device("meta"):  # shapes without numbers
        assert count(CapsNet(config)) == parameters


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


def test_capsules_are_ordered_by_type_then_row_then_column():
    types, dim, height, width = 3, 4, 2, 5
    layer = PrimaryCaps(types * dim, types, dim, kernel_size=1, stride=1)
    layer.conv.weight.data.copy_(torch.eye(types * dim)[:, :, None, None])
    layer.conv.bias.data.zero_()
    maps = torch.randn(2, types * dim, height, width)
    places = [(t, y, x) for t in range(types) for y in range(height) for x in range(width)]
    expected = [[torch.stack([image[k * types + t, y, x] for k in range(dim)]) for t, y, x in places] for image in maps]
    torch.testing.assert_close(layer(maps), squash(torch.stack([torch.stack(capsules) for capsules in expected])))


def test_depthwise_each_dimension_of_a_capsule_comes_from_one_channel_and_one_place():
    layer, maps = PrimaryCaps(6, types=3, dim=2, kernel_size=3, stride=2, depthwise=True), torch.randn(1, 6, 7, 9)
    assert layer.conv.weight.shape == (6, 1, 3, 3) and layer(maps).shape == (1, 3 * 3 * 4, 2)
    jacobian = torch.autograd.functional.jacobian(layer.conv, maps)[0, :, :, :, 0]  # [6, 3, 4] by [6, 7, 9]
    for channel in range(6):
        for row in range(3):
            for column in range(4):
                seen = jacobian[channel, row, column].nonzero()
                assert seen[:, 0].unique().tolist() == [channel]
                assert seen[:, 1].unique().tolist() == [2 * row, 2 * row + 1, 2 * row + 2]
                assert seen[:, 2].unique().tolist() == [2 * column, 2 * column + 1, 2 * column + 2]


@pytest.mark.parametrize("training", [True, False])
def test_layers_of_the_stem_are_convolution_batch_norm_and_relu(training):
    net, x = normed().train(training), torch.rand(5, 1, 9, 11)
    seen, state = [], {name: t.clone() for name, t in net.state_dict().items()}
    net.primary_caps.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(x)
    for conv, norm, stride in (("stem.0", "stem.1", 1), ("stem.3", "stem.4", 2)):
        x = nn.functional.conv2d(x, state[f"{conv}.weight"], state[f"{conv}.bias"], stride)
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        if training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        x = torch.relu(x * state[f"{norm}.weight"][:, None, None] + state[f"{norm}.bias"][:, None, None])
    torch.testing.assert_close(seen[0], x)


@pytest.mark.parametrize("name", ["paper", "small"])
def test_the_papers_layout_is_built_as_before_there_were_others(name):
    """The same names in the same order, and the same random numbers for each: older weights and seeds still fit."""
    config = PRESETS[name]
    torch.manual_seed(0)
    state = CapsNet(config).state_dict()
    torch.manual_seed(0)
    parts = {
        "stem": nn.Conv2d(1, config.stem_channels, 9),
        "primary_caps.conv": nn.Conv2d(config.stem_channels, 8 * config.types, 9, 2),
        "digit_caps": DigitCaps(36 * config.types, 8, 10, 16),
        "decoder": Decoder(10, 16, (512, 1024), (1, 28, 28)),
    }
    expected = {f"{part}.{name}": t for part, layer in parts.items() for name, t in layer.state_dict().items()}
    assert [*state] == [*expected] and all(torch.equal(t, expected[name]) for name, t in state.items())


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_class_capsules_are_the_routed_votes(iterations):
    layer, u = DigitCaps(7, 4, 3, 5, iterations), torch.randn(2, 7, 4)
    nn.init.normal_(layer.weight)  # large enough for routing to move the couplings
    votes = layer.votes(u)
    for i in range(7):
        for j in range(3):
            torch.testing.assert_close(votes[:, i, j], u[:, i] @ layer.weight[j, :, i])
    for got, right in zip(
        layer(u, return_couplings=True), dynamic_routing(votes, iterations, return_couplings=True), strict=True
    ):
        torch.testing.assert_close(got, right)


@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 7, 5), (2, 4, 7), (7, 4), (2, 7, 4, 1)])
def test_capsules_that_do_not_fit_are_a_clear_error(shape):
    layer = DigitCaps(7, 4, 3, 5)
    for use in (layer, layer.votes):
        with pytest.raises(ValueError, match=r"\[B, 7, 4\]; got a (torch.*)?tensor"):
            use(torch.zeros(shape))


def test_the_decoder_is_that_of_figure_2_and_ends_in_a_sigmoid():
    decoder = Decoder(10, 16, (512, 1024), (1, 28, 28))
    linear = [layer for layer in decoder.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(160, 512), (512, 1024), (1024, 784)]
    drawn = decoder(5 * torch.randn(3, 10, 16), torch.tensor([0, 9, 4]))
    assert 0 <= drawn.min() < 0.5 < drawn.max() <= 1  # a ReLU before the sigmoid would keep it above a half


def test_a_batch_of_one_class_is_drawn_as_in_a_mixed_one():
    decoder, v = CapsNet(TINY).decoder, torch.randn(4, 3, 5)
    same = decoder(v, torch.tensor([1, 1, 1, 1]))
    torch.testing.assert_close(same[:2], decoder(v, torch.tensor([1, 1, 0, 2]))[:2])  # mistake 6
    torch.testing.assert_close(same[3:], decoder(v[3:], torch.tensor([1])))


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


@pytest.mark.parametrize("make", [lambda: CapsNet(TINY), normed])
def test_the_prediction_for_one_image_does_not_depend_on_its_batch_mates(make):
    net, images = make(), torch.rand(5, 1, 9, 11)
    nn.init.normal_(net.digit_caps.weight)  # mistake 5 shows only where routing moves the couplings
    together = net(images)
    for n in range(5):
        for got, right in zip(net(images[n : n + 1]), together, strict=True):
            torch.testing.assert_close(got, right[n : n + 1])


def test_encode_is_in_evaluation_mode_and_learns_nothing():
    net, images = normed(), torch.rand(300, 1, 9, 11)  # more than are taken at once
    right = torch.cat([net(image[None]).capsules for image in images])
    state = {name: t.clone() for name, t in net.state_dict().items()}
    for training in (True, False):
        torch.testing.assert_close(net.train(training).encode(images), right)
        assert all(module.training == training for module in net.modules())
    assert all(torch.equal(t, state[name]) for name, t in net.state_dict().items())


@pytest.mark.parametrize("config", [TINY, NORMED])
def test_the_stem_ends_in_a_relu_and_the_primary_capsules_do_not(config):
    net, seen = CapsNet(config), []
    net.primary_caps.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    u = net.primary(torch.rand(4, 1, 9, 11))
    assert seen[0].min() == 0
    assert (u < 0).any() and (u > 0).any()  # mistake 15


def test_every_weight_gets_a_gradient_and_a_black_image_no_nan():
    for images in (torch.rand(5, 1, 9, 11), torch.zeros(5, 1, 9, 11)):
        net = CapsNet(TINY)
        if not images.any():  # all capsules are then zero vectors: mistake 14
            for name, weight in net.named_parameters():
                if name.endswith("bias"):
                    nn.init.zeros_(weight)
        out = net(images, torch.tensor([0, 1, 2, 0, 1]))
        (out.lengths.sum() + out.reconstruction.sum()).backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())
        assert not images.any() or all(p.grad.any() for p in net.parameters())


def test_capsules_stay_in_float32_under_autocast():
    net, images = CapsNet(TINY), torch.rand(2, 1, 9, 11)
    with torch.autocast("cpu", torch.bfloat16):
        u, out = net.primary(images), net(images)
    assert u.dtype == out.capsules.dtype == out.lengths.dtype == torch.float32
    assert torch.equal(net.digit_caps(u), out.capsules)  # the same outside: nothing was rounded
    torch.testing.assert_close(out.lengths, net(images).lengths, rtol=0.05, atol=0.01)


def test_a_network_in_float64_works_in_float64():
    net, images = CapsNet(TINY), torch.rand(2, 1, 9, 11)
    right = net(images)
    for got, single in zip(net.double()(images.double()), right, strict=True):
        assert got.dtype == torch.float64
        torch.testing.assert_close(got.float(), single)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_class_capsules_of_a_network_in_half_precision_are_float32(dtype):
    net = CapsNet(TINY).to(dtype)
    assert net.digit_caps(net.primary(torch.rand(2, 1, 9, 11, dtype=dtype))).dtype == torch.float32


def test_votes_are_float32_in_half_precision_and_under_autocast():
    layer, u = DigitCaps(6, 4, 3, 5), torch.randn(2, 6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer.votes(u)
    assert inside.dtype == torch.float32 and torch.allclose(inside, layer.votes(u), rtol=1e-5)
    assert layer.half().votes(u).dtype == torch.float32


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        CapsNetConfig((3, 40, 32), classes=5, stem_channels=8, types=2, class_dim=6),
        CapsNetConfig((1, 17, 17), stem_channels=4, types=1),
        NORMED,
        dataclasses.replace(NORMED, image_shape=(3, 16, 23), kernel_size=4),
        dataclasses.replace(NORMED, image_shape=(1, 7, 7), stem=[[8, 4, 3]], stem_channels=77),
        dataclasses.replace(PRESETS["compact"], image_shape=(1, 27, 40)),
    ],
)
def test_other_sizes(config):
    net, images = CapsNet(config), torch.rand(2, *config.image_shape)
    assert net.primary(images).shape == (2, config.types * math.prod(config.grid), config.primary_dim)
    out = net(images)
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
        (
            lambda: dataclasses.replace(PRESETS["compact"], image_shape=(1, 28, 26)),
            "28 x 26 pixels are too small: convolutions with kernels of 5, 3, 3, 3, 9 need at least 27 x 27",
        ),
        (lambda: CapsNetConfig(stem=(32, 5, 1)), "stem: expected a tuple of 3 whole numbers; got 32"),
        (lambda: CapsNetConfig(stem=()), r"stem: expected layers \(channels, kernel, stride\); got \(\)"),
        (lambda: CapsNetConfig(stem=((32, 5, 0),)), "stem: expected a whole number from 1 on; got 0"),
        (lambda: CapsNetConfig(depthwise="yes"), "depthwise: expected True .*; got 'yes'"),
        (lambda: CapsNetConfig(depthwise=True, types=8), "with 8 x 8 channels, .*; got True with 256"),
        (lambda: PrimaryCaps(8, 3, 2, depthwise=True), "with 3 x 2 channels, .*; got True with 8"),
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


@pytest.mark.parametrize("reach", [0, 1, 3])
def test_a_shift_moves_all_channels_of_an_image_together_and_lets_black_in(reach):
    images = 0.1 + torch.rand(40, 2, 7, 5)
    framed = nn.functional.pad(images, 4 * [reach])
    for moved, frame in zip(random_shift(images, reach), framed, strict=True):
        windows = [frame[:, y : y + 7, x : x + 5] for y in range(2 * reach + 1) for x in range(2 * reach + 1)]
        assert sum(torch.equal(moved, window) for window in windows) == 1


def test_shifts_follow_the_seed_and_leave_the_input_alone():
    images, results = torch.rand(20, 1, 6, 6), []
    before = images.clone()
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(random_shift(images))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert torch.equal(images, before)


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
    monkeypatch.setattr(TRAINING, "shift", lambda *_: pytest.fail("test images were shifted"))  # mistake 13
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


def bars(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(size, 1, 9, 11), torch.arange(size) % 3


def without_shifts(monkeypatch):
    monkeypatch.setattr(TRAINING, "shift", lambda images, *_: images)


def test_images_and_labels_stay_together_and_every_pass_has_its_own_order(monkeypatch):
    without_shifts(monkeypatch)
    net, seen, (images, labels) = CapsNet(TINY), [], bars(10)
    net.register_forward_pre_hook(lambda net, inputs: seen.append((*inputs, net.training)))
    list(train(net, images, labels, 2, batch_size=4))
    assert [len(x) for x, _, _ in seen] == [4, 4, 2, 4, 4, 2]
    assert all(training for _, _, training in seen)
    orders = []
    for batches in (seen[:3], seen[3:]):
        x, y = (torch.cat(parts) for parts in list(zip(*batches, strict=True))[:2])
        orders.append([next(n for n in range(10) if torch.equal(images[n], image)) for image in x])
        assert sorted(orders[-1]) == list(range(10))
        assert torch.equal(y, labels[orders[-1]])
    assert orders[0] != orders[1]


def test_the_decoder_sees_the_label_even_where_another_class_is_predicted():
    net, seen, (images, _) = CapsNet(TINY), [], bars(24)
    never_predicted = net(images).lengths.argmax(dim=1).bincount(minlength=3).argmin()
    net.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    list(train(net, images, never_predicted.expand(24), 1, learning_rate=STANDING_STILL))
    assert (torch.cat(seen) == never_predicted).all()  # mistake 11


def test_training_images_are_shifted_each_by_itself_and_redrawn_as_shifted(monkeypatch):
    net, seen, targets = CapsNet(TINY), [], []
    net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    monkeypatch.setattr(
        TRAINING, "reconstruction_loss", lambda a, b, scale: targets.append(b) or reconstruction_loss(a, b, scale)
    )
    list(train(net, bars(1)[0].expand(60, 1, 9, 11), torch.zeros(60).long(), 1))
    assert len({image.numpy().tobytes() for image in seen[0]}) > 15  # mistake 13
    assert torch.equal(targets[0], seen[0])


def test_an_epoch_holds_means_over_all_images(monkeypatch):
    without_shifts(monkeypatch)
    net, (images, labels) = CapsNet(TINY), bars(10)
    out = net(images, labels)
    for scale in (0.01, 0.0005):
        (epoch,) = train(net, images, labels, 1, batch_size=4, learning_rate=STANDING_STILL, reconstruction_scale=scale)
        assert epoch.margin == pytest.approx(margin_loss(out.lengths, labels).item(), rel=1e-4)
        redrawn = reconstruction_loss(out.reconstruction, images, scale).item()
        assert epoch.reconstruction == pytest.approx(redrawn, rel=1e-4)
        assert epoch.error == pytest.approx(100 * (out.lengths.argmax(1) != labels).double().mean().item())


def test_the_redrawing_trains_the_decoder():
    net = CapsNet(TINY)
    before = torch.cat([p.detach().flatten().clone() for p in net.decoder.parameters()])
    for scale, same in ((0.0, True), (0.01, False)):
        list(train(net, *bars(6), 1, reconstruction_scale=scale))
        assert torch.equal(torch.cat([p.flatten() for p in net.decoder.parameters()]), before) == same


def test_each_step_uses_the_gradient_of_its_own_batch(monkeypatch):
    without_shifts(monkeypatch)
    net, (images, labels), norms = CapsNet(TINY), bars(1), []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self: norms.append(net.digit_caps.weight.grad.norm()) or step(self)
    )
    list(train(net, images.expand(9, 1, 9, 11), labels.expand(9), 1, batch_size=3, learning_rate=STANDING_STILL))
    torch.testing.assert_close(torch.stack(norms), norms[0].expand(3), rtol=1e-3, atol=0)


def test_the_learning_rate_rises_and_falls_in_one_cycle(monkeypatch):
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    list(train(CapsNet(TINY), *bars(10), 4, batch_size=2, learning_rate=0.003))
    peak = rates.index(max(rates))
    assert len(rates) == 20 and max(rates) == pytest.approx(0.003) and rates[-1] < 1e-5
    assert rates == sorted(rates[:peak]) + sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        (lambda x: x - 0.1, "leave out the normalisation"),
        (lambda x: 255 * x, "divide by 255"),
        (lambda x: x * math.nan, "not finite, first in number 0"),
    ],
)
def test_images_outside_0_to_1_are_refused(wrong, remedy):
    with pytest.raises(ValueError, match=rf"0\.\.1; got .*{remedy}"):  # mistake 12
        next(train(CapsNet(TINY), wrong(bars(6)[0]), bars(6)[1], 1))


@pytest.mark.parametrize("use", [lambda *given: list(train(*given, 1)), evaluate])
@pytest.mark.parametrize("count", [3, 5])
def test_as_many_labels_as_images_are_needed(use, count):
    with pytest.raises(ValueError, match=f"4 images need as many labels, one per image; got {count}"):
        use(CapsNet(TINY), bars(4)[0], bars(count)[1])


class Oracle(nn.Module):
    """Calls an image what its first pixel says, in tenths, and redraws everything in mid-grey."""

    decoder = True

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        lengths = torch.full((len(images), 10), 0.1)
        lengths[range(len(images)), (images[:, 0, 0, 0] * 10).round().long()] = 0.8
        return CapsNetOutput(lengths, None, torch.full_like(images, 0.5))


@pytest.mark.parametrize("batch_size", [1, 3, 250])
def test_error_and_mse_of_known_predictions(batch_size):
    named, labels = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7]), torch.tensor([0, 1, 2, 3, 4, 5, 9, 9])
    images = torch.zeros(8, 1, 2, 2)
    images[:, 0, 0, 0] = named / 10
    measured = evaluate(Oracle(), images, labels, batch_size=batch_size)
    assert measured.error == pytest.approx(25)
    assert measured.mse == pytest.approx(((images - 0.5) ** 2).mean().item())
    assert measured.lengths.argmax(dim=1).tolist() == named.tolist()


@pytest.mark.parametrize("config", [TINY, NORMED])
@pytest.mark.parametrize("training", [True, False])
def test_evaluate_measures_in_evaluation_mode_and_changes_nothing(training, config):
    net, (images, labels), modes = CapsNet(config).train(training), bars(5), []
    net.register_forward_pre_hook(lambda net, _: modes.append(net.training))
    state, weights = torch.get_rng_state(), {name: t.clone() for name, t in net.state_dict().items()}
    evaluate(net, images, labels, batch_size=3)
    assert modes == [False, False] and net.training == training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, weights[name]) for name, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_without_a_decoder_the_mse_is_not_measured():
    net = CapsNet(dataclasses.replace(TINY, decoder_hidden=None))
    assert evaluate(net, *bars(4)).mse is None
    assert next(train(net, *bars(4), 1)).reconstruction == 0


class TwoPixels(nn.Module):
    """An image's first two pixels are its class capsules; two pixels of four show one of their dimensions, 2 and 10 times."""

    def __init__(self, drawn: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.drawn = drawn

    def encode(self, images):
        return images.flatten(1)[:, None, :2].expand(-1, 2, -1)

    def decode(self, v, label):
        drawn = torch.zeros(len(v), 1, 2, 2)
        drawn[:, 0, 0] = v[:, self.drawn][:, None] * torch.tensor([2.0, 10.0])
        return drawn


@pytest.mark.parametrize("drawn", [0, 1])
def test_an_effect_is_the_root_mean_square_change_over_four_standard_deviations(drawn):
    images, labels = torch.rand(40, 1, 2, 2), torch.arange(40) % 2
    effects = dimension_effects(TwoPixels(drawn), images, labels, digits=3)
    for j in range(2):
        spread = images[labels == j].flatten(1)[:, drawn].std().item()
        assert effects[j, drawn].item() == pytest.approx(4 * spread * math.sqrt((2**2 + 10**2) / 4), rel=1e-5)
        assert effects[j, 1 - drawn] == 0
    assert LIVE == 0.02


def test_no_device_is_hard_coded():
    """Mistake 19: no `.cuda()`, and no call that is given the name of an accelerator."""
    package = Path(capsule_lib.__file__).parent
    for path in [*package.rglob("*.py"), *package.parent.glob("data/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                inputs = [*node.args, *(keyword.value for keyword in node.keywords)]
                texts = [n.value for given in inputs for n in ast.walk(given) if isinstance(n, ast.Constant)]
                called = getattr(node.func, "attr", None)
                assert called not in ("cuda", "mps"), f"{path.name}:{node.lineno}"
                assert not any(str(text).startswith(("cuda", "mps")) for text in texts), f"{path.name}:{node.lineno}"


@pytest.mark.gpu
def test_the_same_numbers_on_cuda():
    net, images = CapsNet(PRESETS["small"]).eval(), torch.rand(4, 1, 28, 28)
    expected, got = net(images), net.cuda()(images.cuda())
    for a, b in zip(expected, got, strict=True):
        assert torch.allclose(a, b.cpu(), atol=1e-3)
    assert random_shift(images.cuda()).is_cuda
    list(train(net, images, torch.arange(4), 1))


SIZES = [  # image shape, classes, types
    ((1, 28, 28), 10, 32),
    ((1, 28, 28), 2, 8),
    ((3, 32, 32), 100, 8),
    ((3, 48, 64), 2, 8),
    ((1, 96, 96), 10, 8),
    ((3, 128, 128), 5, 16),
]


@pytest.mark.parametrize(("shape", "classes", "types"), SIZES)
def test_untrained_lengths_are_moderate_at_any_size(shape, classes, types):
    torch.manual_seed(0)
    net = CapsNet(CapsNetConfig(shape, classes, stem_channels=32, types=types, decoder_hidden=None))
    lengths = torch.linalg.vector_norm(net.encode(torch.rand(4, *shape)), dim=2)
    assert lengths.median() > 1e-4 and lengths.max() < 0.4


@pytest.mark.parametrize("in_capsules", [288, 1152])  # of `small` and of `paper`
def test_the_presets_class_layers_start_at_a_standard_deviation_of_a_tenth(in_capsules):
    torch.manual_seed(1)
    expected = 0.1 * torch.randn(10, 8, in_capsules, 16)
    torch.manual_seed(1)
    assert torch.equal(
        DigitCaps(in_capsules, 8, 10, 16).weight, expected
    )  # bit for bit: seeds in use keep their networks


def three_bars():
    """60 pictures with a bar at one of three heights."""
    labels = torch.arange(3).repeat(20)
    images = torch.zeros(60, 1, 9, 11)
    for n, label in enumerate(labels):
        images[n, 0, 2 + 2 * label, 3:8] = 1
    return images, labels


@pytest.mark.parametrize("layers", [2, 3])
def test_class_layers_on_top_of_each_other_learn(layers):
    torch.manual_seed(0)
    net = CapsNet(dataclasses.replace(TINY, decoder_hidden=None))
    middle = [DigitCaps(8, 4, 8, 4) for _ in range(layers - 2)]
    net.digit_caps = nn.Sequential(DigitCaps(net.digit_caps.weight.shape[2], 4, 8, 4), *middle, DigitCaps(8, 4, 3, 5))
    list(train(net, *three_bars(), 40, batch_size=10, learning_rate=2e-2))
    assert evaluate(net, *three_bars()).error < 5


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, 3])
def test_a_stack_of_class_layers_learns_the_shipped_digits_to_90_percent_in_two_passes(layers):
    torch.manual_seed(0)
    net = CapsNet(dataclasses.replace(PRESETS["small"], decoder_hidden=None))
    middle = [DigitCaps(32, 8, 32, 8) for _ in range(layers - 2)]
    net.digit_caps = nn.Sequential(DigitCaps(288, 8, 32, 8), *middle, DigitCaps(32, 8, 10, 16))
    list(train(net, *load_digits("shipped"), 2, batch_size=64, learning_rate=4e-3))
    assert evaluate(net, *load_digits("shipped", "test")).error < 10


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 48, 64), (1, 9, 11)])
def test_the_default_reconstruction_term_weighs_the_mean_alike_at_any_size(shape):
    kernel = 9 if min(shape[1:]) > 17 else 3
    net = CapsNet(dataclasses.replace(TINY, image_shape=shape, kernel_size=kernel))
    images, labels = torch.rand(4, *shape), torch.arange(4) % 3
    epoch = next(train(net, images, labels, 1, batch_size=4, learning_rate=STANDING_STILL))
    scale = TrainingConfig().scale_for(math.prod(shape))
    assert scale * math.prod(shape) == pytest.approx(7.84) and (scale == 0.01) == (shape == (1, 28, 28))
    assert (
        7.84 * 0.05 < epoch.reconstruction < 7.84 * 0.3
    )  # noise, and the black edges that a shift lets in, redrawn as grey
    assert TrainingConfig(reconstruction_scale=0.5).scale_for(10) == 0.5


@pytest.mark.slow
def test_a_few_large_coloured_pictures_are_learned():
    """80 pictures of 3 x 48 x 64 in two classes, three seeds. With the sum of 9,216 pixels weighed as that of 784, none learns them."""
    learned = {}
    for scale in (None, 0.01):
        errors = []
        for seed in range(3):
            torch.manual_seed(seed)
            labels = torch.arange(80) % 2
            images = 0.2 * torch.rand(80, 3, 48, 64)
            for n, label in enumerate(labels):
                y, x = torch.randint(4, 30, (2,)).tolist()
                images[n, label, y : y + 12, x : x + (24 if label else 8)] += 0.7
            net = CapsNet(CapsNetConfig((3, 48, 64), classes=2, stem_channels=32, types=4))
            settings = {"batch_size": 16, "learning_rate": 0.001, "seed": seed, "reconstruction_scale": scale}
            list(train(net, images.clamp(0, 1), labels, 12, **settings))
            errors.append(evaluate(net, images.clamp(0, 1), labels).error)
        learned[scale] = sum(error == 0 for error in errors)
    assert learned == {None: 3, 0.01: 0}
