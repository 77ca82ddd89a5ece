"""Both loss terms against values worked out by hand."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from capsule_lib.contract import present_classes
from capsule_lib.losses import margin_loss, reconstruction_loss


@pytest.mark.parametrize(
    ("lengths", "label", "loss"),
    [
        ([0.9, 0.1, 0.1], 0, 0.0),  # all at their margins
        ([1.0, 0.0, 0.05], 0, 0.0),  # beyond their margins: flat
        ([0.7, 0.1, 0.1], 0, 0.2**2),
        ([0.9, 0.5, 0.1], 0, 0.5 * 0.4**2),
        ([0.5, 0.3, 0.2], 0, 0.4**2 + 0.5 * (0.2**2 + 0.1**2)),
        ([0.0, 0.0, 0.0], 2, 0.9**2),
        ([1.0, 1.0, 1.0], 1, 0.5 * 2 * 0.9**2),  # summed over the classes, not averaged
    ],
)
def test_margin_loss_by_hand(lengths, label, loss):
    assert margin_loss(torch.tensor([lengths]), torch.tensor([label])).item() == pytest.approx(loss, abs=1e-7)


def test_margin_loss_is_averaged_over_the_batch():
    lengths = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.5, 0.1]])
    expected = (0.4**2 + 0.5 * (0.2**2 + 0.1**2) + 0.5 * 0.4**2) / 2
    assert margin_loss(lengths, torch.tensor([0, 0])).item() == pytest.approx(expected)
    twice = margin_loss(lengths.repeat(2, 1), torch.tensor([0, 0, 0, 0]))
    assert twice.item() == pytest.approx(expected)


def test_margins_and_down_weight_can_be_chosen():
    loss = margin_loss(torch.tensor([[0.5, 0.3]]), torch.tensor([0]), m_plus=0.8, m_minus=0.2, down_weight=3.0)
    assert loss.item() == pytest.approx(0.3**2 + 3 * 0.1**2)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool])
def test_two_classes_may_be_present_at_once(dtype):
    present = torch.tensor([[1, 0, 1]]).to(dtype)
    expected = 0.2**2 + 0.5 * 0.3**2 + 0.4**2
    assert margin_loss(torch.tensor([[0.7, 0.4, 0.5]]), present).item() == pytest.approx(expected)


def test_a_class_number_means_the_same_as_its_row_of_targets():
    lengths, labels = torch.rand(5, 5), torch.tensor([3, 0, 4, 4, 1])  # as many images as classes
    assert torch.equal(margin_loss(lengths, labels), margin_loss(lengths, torch.eye(5)[labels]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_may_have_any_whole_number_type(dtype):
    labels = torch.tensor([2, 0])
    lengths = torch.rand(2, 3)
    assert torch.equal(margin_loss(lengths, labels.to(dtype)), margin_loss(lengths, labels))


def test_margin_loss_has_the_gradient_of_its_formula():
    lengths = torch.rand(6, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 3, 3])
    assert gradcheck(lambda lengths: margin_loss(lengths, labels), lengths)


def test_beyond_the_margins_loss_and_gradient_are_zero():
    lengths = torch.tensor([[0.93, 0.07]], requires_grad=True)
    loss = margin_loss(lengths, torch.tensor([0]))
    loss.backward()
    assert loss.item() == 0
    assert (lengths.grad == 0).all()


@given(st.integers(0, 4), st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_margin_loss_is_zero_only_where_every_margin_is_kept(label, lengths):
    kept = lengths[label] >= 0.9 and all(x <= 0.1 for j, x in enumerate(lengths) if j != label)
    loss = margin_loss(torch.tensor([lengths], dtype=torch.float64), torch.tensor([label]))
    assert (loss.item() == 0) == kept or loss.item() < 1e-300  # the square of the tiniest excess is zero, too


@pytest.mark.parametrize("labels", [[0, 5], [-1, 0], [7, 9]])
def test_labels_out_of_range_are_a_clear_error(labels):
    with pytest.raises(ValueError, match=rf"0\.\.4; got {min(labels)}\.\.{max(labels)}.*classes"):
        margin_loss(torch.rand(2, 5), torch.tensor(labels))


@pytest.mark.parametrize(
    "labels", [torch.tensor([1]), torch.tensor([1, 2, 3]), torch.ones(2, 4).long(), torch.tensor(1)]
)
def test_labels_of_a_wrong_shape_are_a_clear_error(labels):
    with pytest.raises(ValueError, match="need as many labels|labels must be|a set of classes is"):
        margin_loss(torch.rand(2, 5), labels)


def test_labels_that_are_no_whole_numbers_are_a_clear_error():
    with pytest.raises(ValueError, match=r"whole numbers.*torch\.float32"):
        margin_loss(torch.rand(2, 5), torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("shape", [(5,), (2, 5, 16), ()])
def test_lengths_of_a_wrong_shape_are_a_clear_error(shape):
    with pytest.raises(ValueError, match=re.escape(f"lengths must be [B, J]; got a tensor of shape {list(shape)}")):
        margin_loss(torch.rand(shape), torch.tensor([1, 2]))


def test_one_hot_rows_have_a_single_1_at_the_label():
    assert present_classes(torch.tensor([2, 0]), 2, 3).int().tolist() == [[0, 0, 1], [1, 0, 0]]


def test_reconstruction_loss_by_hand():
    redrawn, images = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    redrawn[0, 0, 0] = torch.tensor([0.5, 1.0])
    images[1, 0, 1, 1] = 0.2
    expected = 0.0005 * (0.5**2 + 1.0**2 + 0.2**2) / 2
    assert reconstruction_loss(redrawn, images).item() == pytest.approx(expected)


def test_at_784_pixels_the_papers_sum_is_0_392_times_the_mean():
    redrawn, images = torch.rand(2, 3, 1, 28, 28, dtype=torch.float64)
    mean = (redrawn - images).square().mean()
    assert reconstruction_loss(redrawn, images).item() == pytest.approx(0.392 * mean.item())
    assert reconstruction_loss(redrawn, images, scale=0.01).item() == pytest.approx(7.84 * mean.item())


def test_reconstruction_loss_does_not_grow_with_the_batch():
    redrawn, images = torch.rand(2, 3, 2, 5, 5)
    twice = reconstruction_loss(redrawn.repeat(2, 1, 1, 1), images.repeat(2, 1, 1, 1))
    torch.testing.assert_close(twice, reconstruction_loss(redrawn, images))


def test_images_that_do_not_match_are_a_clear_error():
    with pytest.raises(ValueError, match=re.escape("[2, 1, 28, 28] and [2, 1, 28, 27]")):
        reconstruction_loss(torch.rand(2, 1, 28, 28), torch.rand(2, 1, 28, 27))
