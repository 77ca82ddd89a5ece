"""Two digits on top of each other, made on the fly (section 5.3)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from capsule_lib.contract import SEED, check_labels, check_pictures, present_classes
from capsule_lib.data.moves import shift

MARGIN = 4  # pixels by which each digit is moved at most, and by which the canvas is larger on every side


class OverlappingDigits(NamedTuple):
    """images [N, C, H + 8, W + 8] of two digits each; labels [N, J], True for the two classes that are there; originals
    [N, 2, C, H + 8, W + 8], each digit alone, where it lies, in the order of the classes."""

    images: Tensor
    labels: Tensor
    originals: Tensor


def overlapping_digits(images: Tensor, labels: Tensor, seed: int = 0) -> OverlappingDigits:
    """Lay a digit of another class over each digit: as many pairs as there are digits, on their device (section 5.3).

    Which one is drawn from `seed`, all digits of other classes being equally likely. Both are moved by up to 4 pixels each way, each by itself, on
    a canvas with room for it, and ink on ink adds up to 1 at most.

    Args:
        images: [N, C, H, W] in 0..1. Training pairs are made of training digits, test pairs of test digits.
        labels: [N] class numbers, of two classes at least.

    Raises:
        TypeError, ValueError: not pictures with labels, or all of one class.
    """
    check_pictures(images)
    labels = check_labels(labels, len(images), None)
    draws = torch.rand(len(images), 5, generator=torch.Generator().manual_seed(SEED.check("seed", seed)))
    others = partners(labels.cpu(), draws[:, 4]).to(images.device)
    classes = max(10, int(labels.max()) + 1)
    return overlay(images, labels, images[others], labels[others], draws.to(images.device), classes)


def partners(labels: Tensor, draws: Tensor) -> Tensor:
    """For each digit the index of one of another class [N], from labels [N] and even random numbers [N] in 0..1, all equally likely.

    Raises:
        ValueError: all labels are the same.
    """
    counts = labels.bincount()
    if counts.max() == len(labels):
        raise ValueError(f"two overlapping digits are of different classes; all labels here are {int(labels[0])}")
    order, ends = labels.argsort(stable=True), counts.cumsum(0)
    # In a circle that begins after a digit's own class, that class comes last, and is not reached.
    place = ends[labels] + (draws * (len(labels) - counts[labels])).long()
    return order[place % len(labels)]


def overlay(
    images: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, draws: Tensor, classes: int
) -> OverlappingDigits:
    """Images [B, C, H, W] and the others that lie over them, each moved by its own two of draws [B, 4] in 0..1."""
    first, second = (
        shift(F.pad(x, 4 * [MARGIN]), d, MARGIN) for x, d in ((images, draws[:, :2]), (others, draws[:, 2:4]))
    )
    both = torch.stack([first, second], dim=1)
    swapped = (labels > other_labels)[:, None, None, None, None]
    present = present_classes(labels, len(labels), classes) | present_classes(other_labels, len(labels), classes)
    return OverlappingDigits((first + second).clamp(max=1), present, torch.where(swapped, both.flip(1), both))
