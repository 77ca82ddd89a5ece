"""What makes a drawing look like a digit of MNIST; the explorer's network.js has the same for the page."""

from functools import reduce

import torch
from torch import Tensor

from capsule_lib.contract import COUNT
from capsule_lib.own_pictures.digit import BOX, PEN, SPECK, middle


def mnist_like(strokes: list, size: int = 28) -> Tensor:
    """Draw strokes [[[x, y], ...], ...] as MNIST's digits were made: an image [1, size, size] in 0..1, ink 1.

    The ink fits a square of 20/28 of the size, keeps its proportions and has grey edges, and its centre of mass lies at
    the image's centre (http://yann.lecun.com/exdb/mnist/): in MNIST that is the middle of pixel [14, 14], counted from 0.
    Place and size of the drawing make no difference, so points outside 0..1 are welcome. Every digit gets the same pen,
    round and 2.6 of 28 pixels wide: `shape.measure` then finds MNIST's mean stroke thickness, 2.7 pixels.

    Raises:
        ValueError: nothing is drawn, or only a speck, or a coordinate is not a finite number; or a size below 1.
    """
    COUNT.check("size", size)
    try:
        lines = [torch.tensor(stroke, dtype=torch.float64).reshape(len(stroke), 2) for stroke in strokes if len(stroke)]
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"strokes must be lists of points [x, y], such as [[[0.5, 0.1], [0.5, 0.9]]] ({error})"
        ) from error
    if not lines:
        raise ValueError("nothing is drawn yet: draw a digit first")
    points = torch.cat(lines)
    low, high = points.amin(dim=0), points.amax(dim=0)
    extent = (high - low).max()
    if not extent.isfinite():
        raise ValueError("a coordinate is not a finite number: give points as [x, y], from 0 to 1")
    if extent < SPECK:
        raise ValueError("the drawing is a speck, too small to enlarge: draw the digit across the pad")
    scale = (BOX - PEN) * size / extent  # the ink reaches half a pen beyond the points
    place = size / 2 - scale * (low + high) / 2
    grid = torch.arange(size, dtype=torch.float64) + 0.5
    ink = _ink([scale * line + place for line in lines], grid, PEN * size)
    columns, rows = ink.sum(dim=0), ink.sum(dim=1)
    place += middle(size) - torch.stack([columns @ grid, rows @ grid]) / ink.sum()
    return _ink([scale * line + place for line in lines], grid, PEN * size)[None].float()


def _ink(lines: list[Tensor], grid: Tensor, pen: float) -> Tensor:
    """How much of each pixel a round pen covers that is moved along lines [P, 2]; the pixels' centres are at `grid`."""
    pixels = torch.cartesian_prod(grid, grid).flip(1)  # as [x, y], row by row
    distance = reduce(torch.minimum, (_distance(pixels, line) for line in lines))
    return (pen / 2 + 0.5 - distance).clamp(0, 1).view(len(grid), len(grid))


def _distance(pixels: Tensor, line: Tensor) -> Tensor:
    """From each pixel [N, 2] to the nearest point of a line through points [P, 2]: [N]."""
    start = line[:-1] if len(line) > 1 else line
    step = line[1:] - start if len(line) > 1 else torch.zeros_like(line)
    away = pixels[:, None] - start  # [N, segments, 2]
    along = (away * step).sum(2) / step.square().sum(1).clamp(min=1e-12)  # how far along a segment: 0 start, 1 end
    return (away - along.clamp(0, 1)[:, :, None] * step).norm(dim=2).amin(dim=1)
