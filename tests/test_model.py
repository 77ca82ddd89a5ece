"""The whole network: sizes, shapes, what it decodes, and number formats."""

import dataclasses
import re

import pytest
import torch
from conftest import TINY

from capsule_lib import CapsNet, CapsNetConfig
from capsule_lib.model import PRESETS


def count(config: CapsNetConfig) -> int:
    with torch.device("meta"):  # shapes without numbers
        return sum(p.numel() for p in CapsNet(config).parameters())


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (PRESETS["paper"], 8_215_568),
        (dataclasses.replace(PRESETS["paper"], decoder_hidden=None), 6_804_224),
        (PRESETS["small"], 2_117_072),
        (CapsNetConfig(image_shape=(3, 256, 256)), 797_326_080),
    ],
)
def test_parameter_counts(config, parameters):
    assert count(config) == parameters


def test_the_papers_network_has_its_shapes():
    net = CapsNet.from_preset("paper")
    images = torch.rand(1, 1, 28, 28)
    assert net.config.grid == (6, 6)
    assert net.primary(images).shape == (1, 1152, 8)
    out = net(images)
    assert [list(x.shape) for x in out] == [[1, 10], [1, 10, 16], [1, 1, 28, 28]]
    assert net.digit_caps.iterations == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"image_shape": (1, 17, 17)},  # the smallest: a grid of 1 x 1
        {"image_shape": (1, 28, 20)},
        {"image_shape": (3, 32, 32), "classes": 5},
        {"image_shape": (2, 21, 34), "classes": 1, "class_dim": 3},
        {"image_shape": (1, 9, 7), "kernel_size": 4, "primary_dim": 1},
        {"decoder_hidden": (7,), "types": 1, "iterations": 1},
        {"decoder_hidden": None},
    ],
)
def test_other_networks_work_too(changes):
    config = dataclasses.replace(PRESETS["small"], **{"stem_channels": 4, **changes})
    net = CapsNet(config)
    labels = torch.tensor([0, config.classes - 1])
    rows, columns = config.grid
    images = torch.rand(2, *config.image_shape)
    out = net(images, labels)
    assert net.primary(images).shape == (2, config.types * rows * columns, config.primary_dim)
    assert out.capsules.shape == (2, config.classes, config.class_dim)
    torch.testing.assert_close(out.lengths, out.capsules.norm(dim=2))
    if config.decoder_hidden is None:
        assert out.reconstruction is None
    else:
        assert out.reconstruction.shape == images.shape


def test_lengths_lie_in_0_to_1_and_reconstructions_too(tiny):
    out = tiny(torch.rand(5, 1, 12, 12))
    assert (out.lengths >= 0).all()
    assert (out.lengths <= 1).all()
    assert (out.reconstruction >= 0).all()
    assert (out.reconstruction <= 1).all()


def test_without_labels_the_longest_capsule_is_decoded_and_with_them_the_labels(tiny):
    images = torch.rand(6, 1, 12, 12)
    out = tiny(images)
    longest = out.lengths.argmax(dim=1)
    others = (longest + 1) % 3
    torch.testing.assert_close(out.reconstruction, tiny.decoder(out.capsules, longest))
    torch.testing.assert_close(tiny(images, others).reconstruction, tiny.decoder(out.capsules, others))
    assert (tiny(images, others).reconstruction != out.reconstruction).flatten(1).any(dim=1).all()
    assert torch.equal(tiny(images, others).capsules, out.capsules)


def test_the_mode_does_not_decide_what_is_decoded(tiny):
    images, labels = torch.rand(2, 1, 12, 12), torch.tensor([0, 2])
    assert torch.equal(tiny.train()(images).reconstruction, tiny.eval()(images).reconstruction)
    assert torch.equal(tiny.train()(images, labels).reconstruction, tiny.eval()(images, labels).reconstruction)


def test_the_prediction_for_one_image_does_not_depend_on_its_batch_mates(tiny):
    """Mistake 5. At trained-size weights, so that routing really moves the couplings."""
    torch.nn.init.normal_(tiny.digit_caps.weight)
    images = torch.rand(5, 1, 12, 12)
    together = tiny(images)
    for n in range(5):
        for got, right in zip(tiny(images[n : n + 1]), together, strict=True):
            torch.testing.assert_close(got, right[n : n + 1])


def test_primary_capsules_of_a_network_keep_both_signs(tiny):
    u = tiny.primary(torch.rand(5, 1, 12, 12))
    assert (u < 0).any()
    assert (u > 0).any()


def test_the_stem_ends_in_a_relu(tiny):
    seen = []
    tiny.primary_caps.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tiny(torch.rand(2, 1, 12, 12))
    assert seen[0].min() == 0


def test_an_untrained_network_has_classes_of_moderate_length():
    """Mistake 3: none is saturated, and none vanishes."""
    lengths = CapsNet.from_preset("small")(torch.rand(4, 1, 28, 28)).lengths
    assert 0.001 < lengths.median() < 0.5


def test_every_weight_gets_a_gradient(tiny):
    out = tiny(torch.rand(5, 1, 12, 12), torch.tensor([0, 1, 2, 0, 1]))
    (out.lengths.sum() + out.reconstruction.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tiny.parameters())


def test_a_black_image_gives_finite_gradients(tiny):
    """Mistake 14: nothing is divided by a length of zero."""
    for name, weight in tiny.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(weight)
    out = tiny(torch.zeros(2, 1, 12, 12), torch.tensor([0, 1]))
    (out.lengths.sum() + out.reconstruction.sum()).backward()
    assert (out.lengths == 0).all()
    assert all(p.grad.isfinite().all() for p in tiny.parameters())


def test_the_seed_fixes_a_new_network():
    nets = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        nets.append(torch.cat([p.flatten() for p in CapsNet(TINY).parameters()]))
    assert torch.equal(nets[0], nets[1])
    assert not torch.equal(nets[0], nets[2])


def test_capsules_stay_in_float32_under_autocast(tiny):
    images = torch.rand(2, 1, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        u = tiny.primary(images)
        out = tiny(images)
        assert u.dtype == out.capsules.dtype == out.lengths.dtype == torch.float32
        assert torch.equal(tiny.digit_caps(u), out.capsules)
    assert torch.equal(tiny.digit_caps(u), out.capsules)  # the same outside: nothing was rounded
    torch.testing.assert_close(out.lengths, tiny(images).lengths, rtol=0.05, atol=0.01)


def test_a_network_in_float64_works_in_float64(tiny):
    images = torch.rand(2, 1, 12, 12)
    right = tiny(images)
    got = tiny.double()(images.double())
    for a, b in zip(got, right, strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a.float(), b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_class_capsules_of_a_network_in_half_precision_are_float32(tiny, dtype):
    tiny.to(dtype)
    v = tiny.digit_caps(tiny.primary(torch.rand(2, 1, 12, 12, dtype=dtype)))
    assert v.dtype == torch.float32


@pytest.mark.parametrize("size", [(16, 28), (28, 16), (8, 8), (1, 1)])
def test_an_image_too_small_for_the_kernels_is_a_clear_error(size):
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} .*too small.*at least 17 x 17"):
        CapsNet(CapsNetConfig(image_shape=(1, *size)))


@pytest.mark.parametrize("shape", [(2, 3, 12, 12), (2, 1, 12, 13), (1, 12, 12), (2, 144)])
def test_images_that_the_network_was_not_built_for_are_a_clear_error(tiny, shape):
    with pytest.raises(ValueError, match=re.escape(f"['B', 1, 12, 12]; got {list(shape)}")):
        tiny(torch.rand(shape))


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [0, 1, 2]])
def test_labels_that_do_not_fit_are_a_clear_error(tiny, labels):
    with pytest.raises(ValueError, match="labels must"):
        tiny(torch.rand(2, 1, 12, 12), torch.tensor(labels))


def test_an_unknown_preset_is_a_clear_error():
    with pytest.raises(ValueError, match=r"'large'.*'paper', 'small'.*CapsNetConfig"):
        CapsNet.from_preset("large")


@pytest.mark.gpu
def test_a_network_gives_the_same_numbers_on_cuda(tiny):
    images, labels = torch.rand(4, 1, 12, 12), torch.tensor([0, 1, 2, 0])
    tiny.double()
    right = tiny(images.double(), labels)
    got = tiny.cuda()(images.double().cuda(), labels.cuda())
    for a, b in zip(got, right, strict=True):
        assert a.is_cuda
        torch.testing.assert_close(a.cpu(), b)
