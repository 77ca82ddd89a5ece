"""What moves training images: shifts as in the paper, and what networks with smaller errors were trained with besides."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from capsule_lib.contract import WHOLE, check_tensor


def random_shift(images: Tensor, max_shift: int = 2) -> Tensor:
    """Move each image by its own random whole number of pixels, up to `max_shift` both ways (section 5).

    For training images only. Works on any device; what moves in is black.

    Args:
        images: [B, C, H, W].

    Raises:
        TypeError, ValueError: images of another shape or type, or a `max_shift` below 0.
    """
    check_tensor(images, "images", "[B, C, H, W]")
    WHOLE.check("max_shift", max_shift)
    return shift(images, torch.rand(len(images), 2, device=images.device), max_shift)


def shift(images: Tensor, draws: Tensor, max_shift: int = 2) -> Tensor:
    """`random_shift` with the random numbers given: `draws` [B, 2] in 0..1, for the rows and the columns of each image."""
    batch, channels, height, width = images.shape
    padded = F.pad(images, 4 * [max_shift])
    dy, dx = (draws.T[:, :, None] * (2 * max_shift + 1)).long()
    rows = (dy + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (dx + torch.arange(width, device=images.device))[:, None, None, :]
    image = torch.arange(batch, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[image, channel, rows, columns]


def rotate_and_scale(
    images: Tensor, draws: Tensor, rotation: float, scaling: float, rotation_spread: float = 0.0, squeeze: float = 0.0
) -> Tensor:
    """Rotate each image about its centre by up to `rotation` degrees, and change its size by up to the share `scaling`; besides,
    rotate half of the images with a standard deviation of `rotation_spread` degrees, and make each narrower by up to the share
    `squeeze`, with a standard deviation of a third of it.

    Args:
        images: [B, C, H, W].
        draws: [B, 2] in 0..1, how far each image is rotated and scaled: 0.5 is not at all. With the last two [B, 5]: the third in
            0..1, below 0.5 where the image is rotated by the spread; then two normal numbers, cut off at 3: how far it is, and
            how far it is squeezed.
    """
    angle = (2 * draws[:, 0] - 1) * math.radians(rotation)
    width = height = 1 + (2 * draws[:, 1] - 1) * scaling
    if rotation_spread:
        angle = angle + (draws[:, 2] < 0.5) * draws[:, 3].clamp(-3, 3) * math.radians(rotation_spread)
    if squeeze:
        width = width * (1 - draws[:, 4].abs().clamp(max=3) / 3 * squeeze)
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrices = torch.stack([cos / width, -sin / height, none, sin / width, cos / height, none], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def shift_in_margin(images: Tensor, draws: Tensor) -> Tensor:
    """Move each image by whole pixels, no further than the black rows and columns at its edges let all of its ink stay inside.

    Args:
        images: [B, C, H, W].
        draws: [B, 2], standard normal numbers, cut off at 3: a third of how far each image goes, of the free rows or columns on that
            side. Above 0 is down and to the right.
    """
    ink = (images > 0).any(dim=1)
    places = []
    for lines, draw in ((ink.any(dim=2), draws[:, 0]), (ink.any(dim=1), draws[:, 1])):
        free = torch.where(draw < 0, lines.int().argmax(dim=1), lines.flip(1).int().argmax(dim=1))
        steps = (draw.clamp(-2.999, 2.999) / 3 * (free + 1)).long()  # towards 0
        size = lines.shape[1]
        places.append((torch.arange(size, device=images.device) - steps[:, None]) % size)
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return images[image, channel, places[0][:, None, :, None], places[1][:, None, None, :]]


def erase(images: Tensor, draws: Tensor, size: int) -> Tensor:
    """Black out a patch of `size` x `size` pixels, no larger than the images, anywhere in each image.

    Args:
        images: [B, C, H, W].
        draws: [B, 2] in 0..1, the place of the patch: its row and its column.
    """
    inside = []
    for length, draw in zip(images.shape[2:], draws.T, strict=True):
        start = (draw * (length - size + 1)).long()[:, None]
        place = torch.arange(length, device=images.device)
        inside.append((place >= start) & (place < start + size))
    return images * ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])
