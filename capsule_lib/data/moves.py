"""What moves training images: shifts as in the paper, rotations and scalings."""

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


def rotate_and_scale(images: Tensor, draws: Tensor, rotation: float, scaling: float) -> Tensor:
    """Rotate each image about its centre by up to `rotation` degrees, and change its size by up to the share `scaling`.

    Args:
        images: [B, C, H, W].
        draws: [B, 2] in 0..1, how far each image is rotated and scaled: 0.5 is not at all.
    """
    angle = (2 * draws[:, 0] - 1) * math.radians(rotation)
    size = 1 + (2 * draws[:, 1] - 1) * scaling
    cos, sin, none = angle.cos() / size, angle.sin() / size, torch.zeros_like(size)
    matrices = torch.stack([cos, -sin, none, sin, cos, none], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
