"""Primary capsules, class capsules and the decoder: what must hold whatever the weights are."""

import re

import pytest
import torch
from torch import nn

from capsule_lib.layers import Decoder, DigitCaps, PrimaryCaps
from capsule_lib.routing import dynamic_routing, squash


def regrouping(types: int, dim: int) -> PrimaryCaps:
    """Primary capsules whose convolution hands its input through."""
    layer = PrimaryCaps(types * dim, types, dim, kernel_size=1, stride=1)
    with torch.no_grad():
        layer.conv.weight.copy_(torch.eye(types * dim)[:, :, None, None])
        layer.conv.bias.zero_()
    return layer


def unsquash(v):
    length = v.norm(dim=2, keepdim=True)
    return v / length * (length / (1 - length)).sqrt()


# --- primary capsules ---


def test_the_numbers_of_a_capsule_come_from_one_place():
    """Mistake 1: tag every convolution output with its place, and look inside the capsules."""
    place = torch.arange(1.0, 37.0).view(1, 1, 6, 6).expand(1, 256, 6, 6)
    tags = unsquash(regrouping(32, 8)(place / 36)) * 36
    assert tags.shape == (1, 1152, 8)
    torch.testing.assert_close(tags, tags[:, :, :1].expand_as(tags), rtol=1e-3, atol=1e-3)
    counts = tags[0, :, 0].round().long().bincount()
    assert counts.tolist() == [0] + 36 * [32]  # every place gives one capsule of each type


def test_capsules_are_ordered_by_type_then_row_then_column():
    types, dim, height, width = 3, 4, 2, 5
    maps = torch.randn(2, types * dim, height, width)
    got = regrouping(types, dim)(maps)
    expected = []
    for image in maps:
        for t in range(types):
            for y in range(height):
                for x in range(width):
                    expected.append(torch.stack([image[k * types + t, y, x] for k in range(dim)]))
    torch.testing.assert_close(got, squash(torch.stack(expected).view(2, types * height * width, dim)))


def test_every_output_of_the_convolution_is_in_one_capsule():
    maps = torch.randn(1, 12, 3, 3)
    found = unsquash(regrouping(3, 4)(maps)).flatten().sort().values
    torch.testing.assert_close(found, maps.flatten().sort().values, rtol=1e-3, atol=1e-3)


def test_primary_capsules_have_lengths_below_1():
    assert (PrimaryCaps(4, 2, 8, 3, 2)(30 * torch.randn(2, 4, 9, 9)).norm(dim=2) < 1).all()


def test_primary_capsules_keep_both_signs():
    """Mistake 15: a ReLU before squash would confine them to one orthant."""
    u = PrimaryCaps(4, 2, 8, 3, 2)(torch.randn(2, 4, 9, 9))
    assert ((u < 0).any(dim=0).any(dim=0) & (u > 0).any(dim=0).any(dim=0)).all()


def test_primary_capsules_count_by_kernel_and_stride():
    assert PrimaryCaps(256, 32, 8, 9, 2)(torch.randn(1, 256, 20, 20)).shape == (1, 32 * 6 * 6, 8)
    assert PrimaryCaps(3, 2, 4, 3, 1)(torch.randn(2, 3, 5, 9)).shape == (2, 2 * 3 * 7, 4)


# --- class capsules ---


def test_class_capsules_are_the_routed_votes():
    layer = DigitCaps(7, 4, 3, 5)
    nn.init.normal_(layer.weight)
    u = torch.randn(2, 7, 4)
    v, c = layer(u, return_couplings=True)
    expected_v, expected_c = dynamic_routing(layer.votes(u), 3, return_couplings=True)
    assert v.shape == (2, 3, 5)
    assert c.shape == (3, 2, 7, 3)
    torch.testing.assert_close(v, expected_v)
    torch.testing.assert_close(c, expected_c)
    torch.testing.assert_close(layer(u), v)


def test_a_vote_is_the_input_capsule_times_its_own_matrix():
    layer = DigitCaps(4, 2, 3, 5)
    u = torch.randn(2, 4, 2)
    votes = layer.votes(u)
    for i in range(4):
        for j in range(3):
            torch.testing.assert_close(votes[:, i, j], u[:, i] @ layer.weight[j, :, i])


def test_class_capsules_have_a_matrix_for_each_pair():
    assert DigitCaps(1152, 8, 10, 16).weight.numel() == 1152 * 8 * 10 * 16


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_class_capsules_route_as_often_as_asked(iterations):
    layer = DigitCaps(7, 4, 3, 5, iterations)
    nn.init.normal_(layer.weight)
    u = torch.randn(2, 7, 4)
    v, c = layer(u, return_couplings=True)
    assert len(c) == iterations
    torch.testing.assert_close(v, dynamic_routing(layer.votes(u), iterations))


def test_untrained_classes_start_short():
    """Mistake 3: weights of standard deviation 1 would saturate every length near 1."""
    lengths = DigitCaps(288, 8, 10, 16)(squash(torch.randn(8, 288, 8))).norm(dim=2)
    assert 0.05 < lengths.median() < 0.5


def test_an_untrained_network_couples_almost_uniformly():
    _, c = DigitCaps(288, 8, 10, 16)(squash(torch.randn(8, 288, 8)), return_couplings=True)
    entropy = -(c * c.log()).sum(dim=3).mean() / torch.tensor(10.0).log()
    assert entropy > 0.999


def test_class_capsules_of_an_image_do_not_depend_on_its_batch_mates():
    layer = DigitCaps(7, 4, 3, 5)
    nn.init.normal_(layer.weight)
    u = torch.randn(4, 7, 4)
    torch.testing.assert_close(layer(u)[2:3], layer(u[2:3]))


@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 7, 5), (2, 4, 7), (7, 4), (2, 7, 4, 1)])
def test_capsules_that_do_not_fit_are_a_clear_error(shape):
    layer = DigitCaps(7, 4, 3, 5)
    for use in (layer, layer.votes):
        with pytest.raises(ValueError, match=re.escape(f"[B, 7, 4]; got a tensor of shape {list(shape)}")):
            use(torch.zeros(shape))


# --- decoder ---


def decoder() -> Decoder:
    return Decoder(3, 4, (8, 16), (2, 5, 6))


def test_decoder_draws_images_in_0_to_1():
    drawn = decoder()(5 * torch.randn(7, 3, 4), torch.zeros(7).long())
    assert drawn.shape == (7, 2, 5, 6)
    assert 0 <= drawn.min() < 0.5 < drawn.max() <= 1  # a ReLU before the sigmoid would keep it above a half


def test_decoder_layers_are_those_of_figure_2():
    linear = [layer for layer in Decoder(10, 16, (512, 1024), (1, 28, 28)).modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(160, 512), (512, 1024), (1024, 784)]


def test_decoder_sees_the_chosen_capsule_only():
    draw, v = decoder(), torch.randn(3, 3, 4)
    classes = torch.tensor([2, 0, 1])
    before = draw(v, classes)
    for image, chosen in enumerate(classes.tolist()):
        for j in range(3):
            changed = v.clone()
            changed[image, j] += 1
            assert torch.equal(draw(changed, classes), before) == (j != chosen)


def test_a_batch_of_one_class_is_drawn_as_in_a_mixed_one():
    """Mistake 6: a softmax or maximum over the batch would spread the mask over images."""
    draw, v = decoder(), torch.randn(4, 3, 4)
    same = draw(v, torch.tensor([1, 1, 1, 1]))
    torch.testing.assert_close(same[:2], draw(v, torch.tensor([1, 1, 0, 2]))[:2])
    torch.testing.assert_close(same[3:], draw(v[3:], torch.tensor([1])))


@pytest.mark.parametrize("classes", [[0, 3], [-1, 0]])
def test_a_class_that_the_decoder_does_not_have_is_a_clear_error(classes):
    with pytest.raises(ValueError, match=r"0\.\.2; got"):
        decoder()(torch.randn(2, 3, 4), torch.tensor(classes))
