"""A strided convolution from few multiplications, for processors.

The 9 x 9 convolution of the primary capsules is nearly all that is left to compute once routing is lean. Done directly,
each of its 6 x 6 outputs asks for 81 multiplications, for each pair of channels: 2,916. Here it takes 592.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad


def convolve(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """What `torch.nn.functional.conv2d(x, weight, bias, stride)` gives, to rounding, in three matrix products.

    A step of two pixels splits image and kernel into four: even and odd rows, even and odd columns. In each the kernel
    moves by one pixel at a time, and that is a product in the Fourier domain. The transforms are small enough to be
    matrices, so that gradients follow by themselves. It pays for many images at a time: the kernels are transformed anew
    in each call.

    Args:
        x: [B, C, H, W].
        weight: [O, C, k, k].
        bias: [O].

    Returns:
        [B, O, rows, columns], as many as fit.
    """
    (batch, channels, *size), (out, _, kernel, _) = x.shape, weight.shape
    taps = -(-kernel // stride)
    rows, columns = ((length - kernel) // stride + 1 for length in size)
    height, width = rows + taps - 1, columns + taps - 1  # of one part, of `stride` squared
    of_image, of_kernel, to_output = (t.to(x) for t in _transforms(rows, columns, taps))

    x = pad(x, (0, stride * width - size[1], 0, stride * height - size[0]))
    x = x.permute(2, 3, 0, 1).reshape(height, stride, width, stride, batch, channels)
    x = x.permute(0, 2, 4, 1, 3, 5).reshape(height * width, -1)
    weight = pad(weight, 2 * (0, stride * taps - kernel)).view(out, channels, taps, stride, taps, stride)
    weight = weight.permute(0, 3, 5, 1, 2, 4).reshape(-1, taps * taps)

    image_side = (of_image @ x).view(len(of_image), batch, -1)  # [P, B, 4 C] with a stride of 2
    kernel_side = (of_kernel @ weight.T).view(len(of_kernel), out, -1)  # [P, O, 4 C]
    products = image_side @ kernel_side.mT
    y = to_output @ products.view(len(products), -1)
    return y.view(rows, columns, batch, out).permute(2, 3, 0, 1) + bias[:, None, None]


@lru_cache
def _transforms(rows: int, columns: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices A, B, C with C @ (A x * B w) = the correlation of an image x with a kernel w, both written as columns.

    A and C hold the discrete Fourier transform and its inverse; B the conjugate of the kernel's transform. Of each pair of
    conjugate frequencies one is enough, and (a + bi)(c + di) takes three multiplications, not four (Gauss):
    (a + b)c - b(c + d) + i((a + b)c + a(d - c)).
    """
    sizes = torch.tensor([rows + taps - 1, columns + taps - 1])

    def places(rows: int, columns: int) -> Tensor:
        return torch.cartesian_prod(torch.arange(rows), torch.arange(columns))

    frequencies = places(*sizes)
    number = frequencies @ torch.tensor([sizes[1], 1])
    of_conjugate = (-frequencies % sizes) @ torch.tensor([sizes[1], 1])
    real, pairs = frequencies[number == of_conjugate], frequencies[number < of_conjugate]

    def angles(frequencies: Tensor, places: Tensor) -> Tensor:
        return 2 * math.pi * (frequencies / sizes.double()) @ places.T.double()

    of_image = angles(real, frequencies).cos()
    a, b = angles(pairs, frequencies).cos(), -angles(pairs, frequencies).sin()
    kernel = places(taps, taps)
    of_kernel = angles(real, kernel).cos()
    c, d = angles(pairs, kernel).cos(), angles(pairs, kernel).sin()
    outputs = places(rows, columns)
    to_output = angles(real, outputs).cos()
    e, f = 2 * angles(pairs, outputs).cos(), -2 * angles(pairs, outputs).sin()
    return (
        torch.cat([of_image, a + b, a, b]),
        torch.cat([of_kernel, c, d - c, c + d]),
        torch.cat([to_output, e + f, f, -e]).T / sizes.prod(),
    )
