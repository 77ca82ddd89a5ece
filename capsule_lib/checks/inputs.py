"""Checkers for the images that go in: their range, and the shifts of training."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from capsule_lib.checks.verdict import Verdict, call


def random_shift(function: Callable[[Tensor], Tensor]) -> Verdict:
    """Check the training shifts (section 5). `function` takes images [B, C, H, W] and returns them moved by up to 2 pixels."""
    images = torch.zeros(400, 1, 28, 28)
    images[:, :, 2, 2] = 1.0
    images[:, :, 20, 14] = 0.5
    images[:, :, 0, 14] = images[:, :, 14, 27] = 0.25  # at the edges: they may leave the picture, never come back
    out = call(function, images)
    if isinstance(out, Verdict):
        return out
    if out.shape != images.shape:
        return Verdict(False, f"images should keep their shape {list(images.shape)}, got {list(out.shape)}")
    moves, wraps = set(), False
    for picture in out[:, 0]:
        dot = (picture == 1).nonzero()
        spot = (picture == 0.5).nonzero()
        if len(dot) != 1 or len(spot) != 1:
            return Verdict(
                False,
                "a picture of two dots comes back changed: shift by whole pixels, fill with 0, and let nothing wrap round the edge",
            )
        move, other = (dot[0] - 2).tolist(), (spot[0] - torch.tensor([20, 14])).tolist()
        if move != other:
            return Verdict(False, "two dots of one picture move differently: shift the whole picture")
        dy, dx = move
        wraps |= not torch.equal(picture, F.pad(images[0, 0], (dx, -dx, dy, -dy)))
        moves.add(tuple(move))
    if max(max(map(abs, move)) for move in moves) > 2:
        return Verdict(False, "a picture moved by more than 2 pixels")
    if len(moves) == 1:
        return Verdict(False, "every picture of the batch makes the same move: draw a shift for each image by itself")
    if wraps:
        return Verdict(False, "what leaves a picture comes back on the other side, or not black: fill with 0")
    if len(moves) < 25:
        return Verdict(
            False, f"of the 25 moves from -2 to 2 in both directions only {len(moves)} occur in 400 pictures"
        )
    return Verdict(True, "random_shift: each image by itself, all 25 moves occur, nothing wraps round")


def images(batch: Tensor) -> Verdict:
    """Check that images can be redrawn by a decoder that ends in a sigmoid: values in 0..1."""
    low, high = batch.min().item(), batch.max().item()
    if low < 0 or high > 1:
        return Verdict(
            False,
            f"values run from {low:.2f} to {high:.2f}, and a sigmoid reaches 0..1 only: leave out the normalisation to mean 0",
        )
    return Verdict(True, f"images: {low:.2f} to {high:.2f}, all within the sigmoid's reach")
