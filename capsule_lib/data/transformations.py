"""What a picture can be put through to ask what a network makes of it: turned, moved, thickened, blurred, and affNIST's recipe."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from capsule_lib.contract import check_pictures


class Transformation(NamedTuple):
    """unit of the amount; the amount that changes nothing, the lowest, the highest; what it does, with the direction that is positive."""

    unit: str
    none: float
    low: float
    high: float
    words: str


TRANSFORMATIONS = {
    "turn": Transformation("°", 0, -180, 180, "turned about the centre, anticlockwise"),
    "scale": Transformation("times", 1, 0.5, 2, "made larger or smaller about the centre"),
    "slant": Transformation("°", 0, -45, 45, "sheared so that uprights lean to the right"),
    "shift": Transformation("px", 0, -14, 14, "moved to the right"),
    "raise": Transformation("px", 0, -14, 14, "moved upwards"),
    "thicken": Transformation("px", 0, -2, 4, "strokes made wider by so much, or narrower"),
    "blur": Transformation("px", 0, 0, 3, "blurred with a Gaussian of this standard deviation"),
    "noise": Transformation("", 0, 0, 1, "Gaussian noise of this standard deviation added, then limited to 0..1"),
}


def transform(images: Tensor, name: str, amount: float | Tensor, seed: int = 0) -> Tensor:
    """Put pictures through one of `TRANSFORMATIONS`. What moves in is black; places between pixels are interpolated linearly.

    Args:
        images: [N, C, H, W] in 0..1, on any device.
        amount: one for all pictures, or one for each, [N]; in the transformation's unit and range. Strokes are widened by 2 px by
            the maximum over 3 x 3 pixels, narrowed by 1 px by the minimum over 2 x 2; between whole numbers the two are mixed.
        seed: of the noise; the others have no need of it.

    Returns:
        [N, C, H, W] in 0..1.

    Raises:
        TypeError, ValueError: not pictures, an unknown transformation, an amount out of range or not one for each picture.
    """
    check_pictures(images)
    if name not in TRANSFORMATIONS:
        raise ValueError(f"no transformation {name!r}: choose one of {', '.join(map(repr, TRANSFORMATIONS))}")
    unit, _, low, high, _ = TRANSFORMATIONS[name]
    amounts = torch.as_tensor(amount, dtype=images.dtype, device=images.device)
    if amounts.shape not in ((), (len(images),)):
        raise ValueError(f"{name}: expected one amount, or {len(images)}, one per picture; got {list(amounts.shape)}")
    if not ((amounts >= low) & (amounts <= high)).all():
        got = next(a for a in amounts.flatten().tolist() if not low <= a <= high)
        raise ValueError(f"{name}: expected {low:g} to {high:g} {unit}".rstrip() + f"; got {got:g}")
    a = amounts.expand(len(images))
    if name == "thicken":
        return _thickened(images, a)
    if name == "blur":
        return _blurred(images, a)
    if name == "noise":
        drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images)
        return (images + a[:, None, None, None] * drawn).clamp(0, 1)
    one, none = torch.ones_like(a), torch.zeros_like(a)
    cos, sin = a.deg2rad().cos(), a.deg2rad().sin()
    matrix = {"turn": (cos, -sin, sin, cos), "scale": (1 / a, none, none, 1 / a), "slant": (one, a.deg2rad().tan(), none, one)}  # fmt: skip
    offset = {"shift": (a, none), "raise": (none, -a)}
    return _warped(images, matrix.get(name, (one, none, none, one)), offset.get(name, (none, none)))


def affnist(images: Tensor, seed: int = 0) -> Tensor:
    """Digits as affNIST has them: [N, C, 28, 28] -> [N, C, 40, 40].

    Each by itself is turned by up to 20 degrees, sheared by up to 0.2, scaled by 0.8 to 1.2 in width and in height, each way
    as likely, and put anywhere in the frame where all its ink fits.

    Raises:
        TypeError, ValueError: not pictures of 28 x 28 pixels.
    """
    check_pictures(images, (images.shape[1], 28, 28) if getattr(images, "ndim", 0) == 4 else None)
    images = F.pad(images, 4 * [6])
    draws = torch.rand(6, len(images), generator=torch.Generator().manual_seed(seed)).to(images)
    angle, shear = (2 * draws[0] - 1) * math.radians(20), (2 * draws[1] - 1) * 0.2
    width, height = 0.8 + 0.4 * draws[2], 0.8 + 0.4 * draws[3]
    cos, sin = angle.cos(), angle.sin()
    # An output pixel is turned back, then sheared back, then scaled back.
    matrix = ((cos + shear * sin) / width, (shear * cos - sin) / width, sin / height, cos / height)
    none = torch.zeros_like(angle)
    ink = _warped(images, matrix, (none, none)).amax(1) > 0.02  # [N, 40, 40]
    offset = []
    for profile, draw in ((ink.any(1), draws[4]), (ink.any(2), draws[5])):  # columns, then rows
        before, after = profile.int().argmax(1), profile.flip(1).int().argmax(1)
        offset.append((draw * (before + after + 1)).floor() - before)
    return _warped(images, matrix, tuple(offset))


def _warped(images: Tensor, matrix: tuple[Tensor, ...], offset: tuple[Tensor, Tensor]) -> Tensor:
    """Pixel (x, y) of the result, counted from the centre to the right and down, is read at matrix ((x, y) - offset).

    matrix: its four entries, row by row, each [N]. offset: two, each [N], in pixels.
    """
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device, dtype=images.dtype) - (width - 1) / 2
    y = torch.arange(height, device=images.device, dtype=images.dtype)[:, None] - (height - 1) / 2
    x, y = (axis - o[:, None, None] for axis, o in zip((x, y), offset, strict=True))
    a, b, c, d = (entry[:, None, None] for entry in matrix)
    grid = torch.stack([(a * x + b * y) * 2 / width, (c * x + d * y) * 2 / height], dim=3)  # [N, H, W, 2]
    return F.grid_sample(images, grid, align_corners=False).clamp(0, 1)


def _thickened(images: Tensor, amounts: Tensor) -> Tensor:
    """Each picture mixed of the two whole numbers of pixels next to its amount; the maximum over k + 1 pixels adds k to a stroke."""
    sign = torch.where(amounts < 0, -1.0, 1.0)[:, None, None, None].to(images)
    mixed = torch.zeros_like(images)
    for k in range(int(amounts.abs().max().ceil()) + 1):
        share = (1 - (amounts.abs() - k).abs()).clamp(min=0)[:, None, None, None]
        before, after = (k + 1) // 2, k // 2
        mixed += share * sign * F.max_pool2d(F.pad(sign * images, (before, after, before, after)), k + 1, 1)
    return mixed


def _blurred(images: Tensor, deviations: Tensor) -> Tensor:
    """Each picture with its own Gaussian, in rows and then in columns."""
    reach = 9  # three of the largest standard deviations
    x = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.softmax(-0.5 * (x / deviations.clamp(min=1e-3)[:, None]) ** 2, dim=1)  # [N, 19]
    batch, channels, height, width = images.shape
    for size, pad in (((1, -1), (reach, reach, 0, 0)), ((-1, 1), (0, 0, reach, reach))):
        weight = kernel.repeat_interleave(channels, 0).view(
            batch * channels, 1, *((2 * reach + 1) if n < 0 else 1 for n in size)
        )
        flat = F.pad(images.reshape(1, batch * channels, height, width), pad)
        images = F.conv2d(flat, weight, groups=batch * channels).view(batch, channels, height, width)
    return images
