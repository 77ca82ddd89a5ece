"""A convolution with fewer multiplications, for processors (not in the paper).

Once routing is lean, the 9 x 9 convolution of the primary capsules is nearly all that is left to compute. Done directly,
its 6 x 6 outputs take 36 x 81 = 2,916 multiplications for each pair of channels. In the Fourier domain they take 592.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad


def convolve(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """What `torch.nn.functional.conv2d(x, weight, bias, stride)` gives, to rounding, from four matrix products.

    Where the kernel moves by two pixels, x and kernel fall into four parts: even and odd rows, even and odd columns. Within
    a part the kernel moves by one pixel, and the sum over all its places is one product for each frequency. The transforms
    are small enough to be written as matrices, so gradients follow by themselves.

    Args:
        x: [B, C, H, W].
        weight: [O, C, k, k], with k at most H and W.
        bias: [O].

    Returns:
        [B, O, rows, columns], one for each place where the kernel fits.
    """
    (batch, channels, height, width), (out, _, kernel, _) = x.shape, weight.shape
    taps = -(-kernel // stride)  # of the kernel's largest part, along a side
    rows, columns = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    part = rows + taps - 1, columns + taps - 1
    of_x, of_kernel, to_output = (matrix.to(x) for matrix in _transforms(rows, columns, taps))

    # Each place of a part becomes a row, for the transforms to mix; everything else goes along in the columns.
    x = pad(x, (0, stride * part[1] - width, 0, stride * part[0] - height))  # cuts off what the kernel never reaches
    x = x.permute(2, 3, 0, 1).reshape(part[0], stride, part[1], stride, batch, channels)
    x = x.permute(0, 2, 4, 1, 3, 5).reshape(part[0] * part[1], -1)
    weight = pad(weight, 2 * (0, stride * taps - kernel)).view(out, channels, taps, stride, taps, stride)
    weight = weight.permute(0, 3, 5, 1, 2, 4).reshape(-1, taps * taps)

    x = (of_x @ x).view(len(of_x), batch, -1)  # [P, B, stride * stride * C]
    weight = (of_kernel @ weight.T).view(len(of_kernel), out, -1)  # [P, O, stride * stride * C]
    y = to_output @ (x @ weight.mT).flatten(1)
    return y.view(rows, columns, batch, out).permute(2, 3, 0, 1) + bias[:, None, None]


@lru_cache
@torch.inference_mode(False)  # kept for later calls, which may ask for gradients
def _transforms(rows: int, columns: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Real matrices R [P, N], S [P, T], Y [M, P] with Y @ (R @ x * S @ w) = the sums of an image part x times a kernel part w
    at all M = rows x columns places of the kernel; x has N = (rows + taps - 1) x (columns + taps - 1) numbers, w T = taps x taps.

    By the convolution theorem this is the inverse Fourier transform of x's times the conjugate of w's. Frequencies come in
    conjugate pairs, and one of a pair is enough; a few are their own conjugates, and real. A product of complex numbers
    takes three multiplications of real ones, not four: (a + bi)(c + di) = p - r + (p + q)i with p = (a + b)c, q = a(d - c),
    r = b(c + d).
    """
    size = torch.tensor([rows + taps - 1, columns + taps - 1])

    def places(rows: int, columns: int) -> Tensor:
        return torch.cartesian_prod(torch.arange(rows), torch.arange(columns))

    frequencies = places(*size)
    opposite = -frequencies % size
    number, number_of_conjugate = torch.arange(len(frequencies)), opposite[:, 0] * size[1] + opposite[:, 1]
    real, pairs = frequencies[number == number_of_conjugate], frequencies[number < number_of_conjugate]

    def waves(where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Real frequencies, and the real and the imaginary parts of the pairs, at some places: each [frequencies, places]."""
        real_angles, angles = (2 * math.pi * (f / size.double()) @ where.T.double() for f in (real, pairs))
        return real_angles.cos(), angles.cos(), angles.sin()

    x, a, minus_b = waves(frequencies)  # the places of a part, as many as frequencies
    b = -minus_b
    w, c, d = waves(places(taps, taps))
    y, cos, sin = waves(places(rows, columns))
    # A frequency of a pair counts twice: the real part of its product times cos, less the imaginary part times sin.
    cos, sin = 2 * cos, 2 * sin
    return (
        torch.cat([x, a + b, a, b]),
        torch.cat([w, c, d - c, c + d]),
        torch.cat([y, cos - sin, -sin, -cos]).T / size.prod(),
    )
