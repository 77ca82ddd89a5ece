"""The convolution with fewer multiplications: the same numbers as PyTorch's, wherever it is taken."""

import pytest
import torch
from torch import nn

from capsule_lib.bench.convolution import _transforms, convolve

SHAPES = [  # B, C, H, W, O, kernel, stride
    (3, 2, 20, 20, 4, 9, 2),  # as in the paper
    (2, 3, 32, 32, 2, 9, 2),  # an even number of places
    (2, 3, 21, 26, 5, 9, 2),  # not square, and the last row is never reached
    (2, 1, 17, 9, 3, 9, 2),  # one place along a side
    (1, 1, 9, 9, 1, 9, 2),  # one place
    (2, 3, 14, 15, 2, 5, 1),
    (2, 3, 14, 15, 2, 5, 3),
    (2, 2, 11, 10, 3, 2, 3),  # pixels between the kernel's places are skipped
]


def both(shape, channels_last=False):
    """Outputs and gradients, by PyTorch and by `convolve`, in float64."""
    batch, channels, height, width, out, kernel, stride = shape
    torch.manual_seed(0)
    x = torch.randn(batch, channels, height, width, dtype=torch.float64)
    weight = torch.randn(out, channels, kernel, kernel, dtype=torch.float64)
    if channels_last:
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    leaves = [x.requires_grad_(), weight.requires_grad_(), torch.randn(out, dtype=torch.float64, requires_grad=True)]
    results = []
    for function in (nn.functional.conv2d, convolve):
        y = function(*leaves, stride)
        towards = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
        results.append([y, *torch.autograd.grad(y, leaves, towards)])
    return zip(*results, strict=True)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_numbers_and_gradients_are_those_of_conv2d(shape, channels_last):
    for expected, got in both(shape, channels_last):
        assert got.shape == expected.shape
        assert (got - expected).norm() < 1e-12 * expected.norm()


def test_the_papers_kernel_takes_592_multiplications_for_each_pair_of_channels(multiplications):
    x, weight, bias = torch.randn(5, 3, 20, 20), torch.randn(7, 3, 9, 9), torch.zeros(7)
    counted = multiplications(lambda: convolve(x, weight, bias, 2))
    assert counted["aten.bmm"] == 592 * 5 * 3 * 7
    assert multiplications(lambda: nn.functional.conv2d(x, weight, bias, 2))["aten.convolution"] == 2916 * 5 * 3 * 7


@pytest.mark.parametrize("stride", [1, 2])
def test_float32_keeps_its_digits(stride):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(32, 16, 9, stride), torch.rand(64, 32, 20, 20)
    expected = nn.functional.conv2d(x.double(), layer.weight.double(), layer.bias.double(), stride)
    assert (convolve(x, layer.weight, layer.bias, stride) - expected).norm() < 3e-6 * expected.norm()


def test_what_was_run_for_inference_can_be_trained_afterwards():
    _transforms.cache_clear()
    layer, x = nn.Conv2d(2, 4, 9, 2).double(), torch.rand(64, 2, 20, 20, dtype=torch.float64)
    with torch.inference_mode():
        convolve(x, layer.weight, layer.bias, 2)
    convolve(x, layer.weight, layer.bias, 2).sum().backward()
    assert layer.weight.grad.norm() > 0
