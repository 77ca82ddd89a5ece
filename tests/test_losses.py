"""The margin and the reconstruction loss, by hand."""

import pytest
import torch

from capsule_lib import margin_loss, reconstruction_loss


def test_margin_loss_by_hand():
    lengths = torch.tensor([[0.7, 0.4, 0.05], [0.95, 0.0, 0.3]])
    # image 0, label 0: (0.9 - 0.7)^2 + 0.5 (0.4 - 0.1)^2 = 0.04 + 0.045; image 1, label 2: (0.9 - 0.3)^2 + 0.5 (0.95 - 0.1)^2
    expected = ((0.04 + 0.045) + (0.36 + 0.5 * 0.85**2)) / 2
    assert margin_loss(lengths, torch.tensor([0, 2])).item() == pytest.approx(expected)


def test_margin_loss_is_summed_over_classes_and_averaged_over_the_batch():
    absent = torch.tensor([[0.95, 0.6, 0.6, 0.6]])
    label = torch.tensor([0])
    assert margin_loss(absent, label).item() == pytest.approx(3 * 0.5 * 0.25)
    assert margin_loss(absent.repeat(5, 1), label.repeat(5)).item() == pytest.approx(3 * 0.5 * 0.25)


def test_two_classes_can_be_present():
    target = torch.tensor([[1, 1, 0]])
    assert margin_loss(torch.tensor([[0.9, 0.95, 0.1]]), target).item() == pytest.approx(0, abs=1e-12)
    assert margin_loss(torch.tensor([[0.9, 0.4, 0.1]]), target).item() == pytest.approx(0.25)


def test_beyond_the_margins_loss_and_gradient_are_zero():
    lengths = torch.tensor([[0.93, 0.07]], requires_grad=True)
    loss = margin_loss(lengths, torch.tensor([0]))
    loss.backward()
    assert loss.item() == 0 and (lengths.grad == 0).all()


def test_gradient_of_the_margin_loss():
    lengths = torch.tensor([[0.3, 0.6, 0.95], [0.05, 0.8, 0.5]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: margin_loss(x, torch.tensor([0, 1])), lengths)


def test_reconstruction_scale():
    torch.manual_seed(0)
    a, b = torch.rand(3, 1, 28, 28), torch.rand(3, 1, 28, 28)
    mean = (a - b).square().mean()
    assert reconstruction_loss(a, b).item() == pytest.approx(0.392 * mean.item(), rel=1e-5)
    assert reconstruction_loss(a, b, 0.01).item() == pytest.approx(7.84 * mean.item(), rel=1e-5)


def test_gradient_of_the_reconstruction_loss():
    a = torch.rand(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    b = torch.rand(2, 1, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: reconstruction_loss(x, b), a)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), r"0\.\.2; got 0\.\.3"),
        (torch.tensor([-1, 0]), r"0\.\.2; got -1\.\.0"),
        (torch.tensor([0]), "2 whole numbers"),
        (torch.tensor([0.0, 1.0]), "whole numbers"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        margin_loss(torch.rand(2, 3), labels)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"lengths \[B, J\]"):
        margin_loss(torch.rand(3), torch.tensor([0]))
    with pytest.raises(ValueError, match="one shape"):
        reconstruction_loss(torch.rand(2, 1, 4, 4), torch.rand(2, 16))
