"""Checkers for the images that go in: their range, and the shifts of training."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from capsule_lib.checks.verdict import Asked, Wrong, answered, checker, close, wrong_if


@checker
def random_shift(function: Callable[[Tensor], Tensor]):
    """Check the training shifts (section 5). `function` takes images [B, C, H, W] and returns them moved by up to 2 pixels."""
    asked = Asked(function, "images [B, C, H, W]", "[B, C, H, W]")
    moves, black = _moves(asked, torch.zeros(400, 1, 28, 28))
    furthest = max(max(map(abs, move)) for move in moves)
    never = [f"{n:+d}" for n in (-2, 2) if not any(n in move for move in moves)]
    ends = f": moves of {' and '.join(never)} never occur (torch.randint leaves out its upper end)" * bool(never)
    wrong_if(
        (furthest > 2, f"pictures move by up to {furthest} pixels; the paper moves them by at most 2"),
        (not black and len(moves) > 1, "what leaves a picture comes back on the other side, or not black: fill with 0"),
        (len(moves) == 1, "every picture of the batch makes the same move: draw a shift for each image by itself"),
        (all(dy == dx for dy, dx in moves), "every picture moves by as much down as to the right: draw two numbers for each image"),
        (len(moves) < 25, f"of the 25 moves from -2 to 2 in both directions only {len(moves)} occur in 400 pictures{ends}"),
    )  # fmt: skip
    try:
        _moves(asked, torch.zeros(20, 3, 20, 24))
    except Wrong as error:
        raise Wrong(f"right for images of 28 × 28 pixels, but not for others: {error}. Is 28 written into your code?") from None  # fmt: skip
    asked.check_inputs()
    return "random_shift: each image by itself, all 25 moves occur, nothing wraps round"


def _moves(asked: Asked, images: Tensor) -> tuple[set[tuple[int, int]], bool]:
    """The moves (down, right) that the function makes with pictures of two dots, and whether black moves in.

    `Wrong` where it does more than move.
    """
    row = images.shape[2] - 8
    images[:, :, 8, 8], images[:, :, row, 14] = 1.0, 0.5
    images[:, :, 0, 14] = images[:, :, 14, -1] = 0.25  # at the edges: they may leave the picture, never come back
    out = asked.shaped(asked(images), images.shape, [images]).detach().cpu().float()
    moves, black = set(), True
    for picture in out:
        dot, spot = ((picture[0] - grey).abs().lt(1e-3).nonzero().tolist() for grey in (1, 0.5))
        wrong_if((len(dot) != 1 or len(spot) != 1, "a picture of two dots comes back changed: shift by whole pixels, fill with 0, and let nothing wrap round the edge"))  # fmt: skip
        dy, dx = dot[0][0] - 8, dot[0][1] - 8
        whole = [dy, dx] == [spot[0][0] - row, spot[0][1] - 14] and close(picture[:1].expand_as(picture), picture, 1e-3)
        wrong_if((not whole, "parts or channels of one picture move differently: shift the whole picture"))
        black &= bool((picture - F.pad(images[0], (dx, -dx, dy, -dy))).abs().lt(1e-3).all())
        moves.add((dy, dx))
    return moves, black


@checker
def images(batch: Tensor):
    """Check that images can be redrawn by a decoder that ends in a sigmoid: values in 0..1."""
    batch = answered(batch, "[B, C, H, W]")
    low, high = batch.min().item(), batch.max().item()
    grey = not batch.is_floating_point() or (low >= 0 and high > 2)
    wrong_if(
        (grey, f"values run from {low:g} to {high:g}, as grey values of 0..255 do: divide by 255, so that a sigmoid reaches them"),
        (low < 0 or high > 1, f"values run from {low:.2f} to {high:.2f}, and a sigmoid reaches 0..1 only: leave out the normalisation to mean 0"),
    )  # fmt: skip
    return f"images: {low:.2f} to {high:.2f}, all within the sigmoid's reach"
