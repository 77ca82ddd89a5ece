"""A checker for functions of a picture: does what they say stay, move along, or neither, when the picture moves?"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from capsule_lib.checks.verdict import Asked, Wrong, checker, wrong_if

FAMILIES = ("shift", "turn", "scale", "slant")
KINDS = ("invariant", "equivariant", "neither")
MOST = 32  # numbers whose way of moving along is found out by trying
LOST = {True: 0.003, False: 0.02}  # share of the variance that may be lost between pixels: of pictures, of numbers


class Affine(NamedTuple):
    """A move of the plane, counted from the middle to the right and down: what comes to x was at matrix (x - offset)."""

    matrix: Tensor
    offset: tuple[int, int] = (0, 0)

    def origin(self) -> tuple[Tensor, Tensor]:
        """Where each of 28 x 28 pixels was, [28, 28] to the right and down."""
        axis = torch.arange(28) - 13.5
        x, y = axis[None, :] - self.offset[0], axis[:, None] - self.offset[1]
        return self.matrix[0, 0] * x + self.matrix[0, 1] * y, self.matrix[1, 0] * x + self.matrix[1, 1] * y

    def __call__(self, picture: Tensor) -> Tensor:
        grid = torch.stack(self.origin(), dim=2)[None] / 14
        return F.grid_sample(picture[None, None].float(), grid, mode="bicubic", align_corners=False)[0, 0]


@checker
def equivariance(
    function: Callable[[Tensor], Tensor], family: str | Sequence[Callable] = "shift", wanted: str | None = None
):
    """Check what a function of a picture [H, W] does under a family of moves g.

    - invariant: f(g x) = f(x). What it says stays.
    - equivariant: f(g x) = A f(x) + b, with A and b that depend on g alone. What it says moves along. Where it returns a picture of
      the same size, that picture has to make the move itself: f(g x) = g f(x).
    - neither: pictures of which it said the same are told apart once they have moved.

    A and b are fitted on made-up pictures, and tried on others. An angle that jumps from 180 to -180 degrees fits no such
    formula: give its cosine and sine.

    Args:
        function: returns numbers, up to 32 of them, or a picture of the same size.
        family: 'shift', 'turn', 'scale' or 'slant'; or functions, each of which moves a picture [H, W] in one way.
        wanted: what the function has to be, one of the three; by default anything but neither. An invariant function does
            not count as an equivariant one here, though A = 1 and b = 0 make it one.
    """
    asked = Asked(function, "picture [H, W]", "numbers, or a picture [H, W]", numbers=True)
    moves = _moves(family)
    wrong_if((wanted not in (None, *KINDS), f"wanted is one of {', '.join(map(repr, KINDS))}; got {wanted!r}"))
    pictures = _pictures(2)
    width = _numbers(asked, pictures).shape[1]
    pictures = _pictures(max(40, 6 * (width + 1)) if width <= MOST else 40)
    before = _numbers(asked, pictures)
    wrong_if((not torch.equal(before[:1], _numbers(asked, pictures[:1])), "your function says two different things of one picture: nothing can be said of moved ones"))  # fmt: skip
    asked.check_inputs()
    kind, because = _judge(asked, pictures, before, moves)
    family = f"under {family!r}" if isinstance(family, str) else "under these moves"
    says = {"invariant": f"invariant {family}: it stays", "equivariant": f"equivariant {family}: it moves along", "neither": f"neither invariant nor equivariant {family}"}[kind]  # fmt: skip
    wrong_if(
        (
            kind != wanted if wanted else kind == "neither",
            f"your function is {says}{because}" + f"; {wanted} is wanted" * bool(wanted),
        )
    )
    return f"your function is {says}{because}"


def _judge(asked: Asked, pictures: Tensor, before: Tensor, moves: Sequence[tuple[str, Callable]]) -> tuple[str, str]:
    """Which of `KINDS` the function is, and what shows it."""
    is_picture = asked(pictures[0]).shape == pictures[0].shape
    wrong_if((not is_picture and before.shape[1] > MOST, f"your function returns {before.shape[1]} numbers: up to {MOST} can be judged, or a picture of the same size"))  # fmt: skip
    limit, stays, worst, culprit = LOST[is_picture], True, 0.0, ""
    for name, move in moves:
        if isinstance(move, Affine):
            moved = _pictures(len(pictures), move)
        else:
            moved = torch.stack([_moved(move, p, name) for p in pictures])
        wrong_if((torch.equal(moved, pictures), f"the move {name} leaves every picture as it is: nothing can be learned from it"))  # fmt: skip
        after = _numbers(asked, moved)
        usual = torch.cat([before, after])
        stays &= _unexplained(after, before, usual) < limit
        if is_picture:
            along = torch.stack([_moved(move, row.view_as(p), name).flatten() for row, p in zip(before, pictures, strict=True)])  # fmt: skip
            share = _unexplained(after.flatten()[:, None], along.flatten()[:, None], after.flatten()[:, None])
        else:
            half = len(before) // 2
            scale = before.std(0).clamp(min=1e-12)
            inputs = torch.cat([(before - before.mean(0)) / scale, torch.ones(len(before), 1).double()], 1)
            fitted = torch.linalg.lstsq(inputs[:half], after[:half], driver="gelsd").solution
            share = _unexplained(after[half:], inputs[half:] @ fitted, usual)
        if share > worst:
            worst, culprit = share, name
    if stays:
        same = torch.allclose(before, before[:1].expand_as(before))
        return "invariant", ". But it says the same of every picture, moved or not" * same
    if worst < limit:
        return "equivariant", ""
    return (
        "neither",
        f": after the move {culprit}, {min(worst, 1):.0%} of how much it varies does not follow from what it said before",
    )


def _unexplained(after: Tensor, expected: Tensor, usual: Tensor) -> float:
    """The largest share, over the numbers of a row, of the usual variance that is off from what was expected."""
    variance = usual.var(0)
    varies = variance > 1e-10 * usual.square().mean(0).max()
    if not varies.any():
        return 0.0
    return ((after - expected).square().mean(0)[varies] / variance[varies]).max().item()


def _moves(family: str | Sequence[Callable]) -> list[tuple[str, Callable | Affine]]:
    """The moves of a family, each with its name."""
    if not isinstance(family, str):
        fits = isinstance(family, Sequence) and len(family) and all(map(callable, family))
        wrong_if((not fits, f"a family of moves is a name, or a list of functions that take a picture [H, W] and return it moved; got {type(family).__name__}"))  # fmt: skip
        return [(f"number {n}", move) for n, move in enumerate(family)]
    wrong_if((family not in FAMILIES, f"no family {family!r}: choose one of {', '.join(map(repr, FAMILIES))}, or give a list of functions that move a picture"))  # fmt: skip
    if family == "shift":
        return [(f"by {dx} to the right and {dy} down", Affine(torch.eye(2), (dx, dy))) for dx, dy in ((3, 0), (0, -3), (-2, 3))]  # fmt: skip
    if family == "turn":
        angles = {a: torch.tensor(a).deg2rad() for a in (25.0, -50.0, 90.0)}
        return [(f"by {a:g}°", Affine(torch.stack([r.cos(), -r.sin(), r.sin(), r.cos()]).view(2, 2))) for a, r in angles.items()]  # fmt: skip
    if family == "scale":
        return [(f"by {a}", Affine(torch.eye(2) / a)) for a in (0.8, 1.4)]
    return [(f"by {a}°", Affine(torch.tensor([[1, torch.tensor(a).deg2rad().tan()], [0, 1]]))) for a in (25, -20)]


def _moved(move: Callable, picture: Tensor, name: str) -> Tensor:
    try:
        moved = move(picture.clone())
    except Exception as error:
        raise Wrong(f"the move {name} stops with {type(error).__name__}: {error}") from None
    fits = isinstance(moved, Tensor) and moved.shape == picture.shape
    wrong_if((not fits, f"the move {name} should return a picture {list(picture.shape)}; it returns {list(moved.shape) if isinstance(moved, Tensor) else type(moved).__name__}"))  # fmt: skip
    return moved


def _pictures(count: int, moved: Affine | None = None) -> Tensor:
    """Made-up pictures [count, 28, 28]: three soft spots each, near the middle, of different places, sizes and brightness.

    They are formulas, so that moved ones are drawn anew, and nothing is lost between pixels.
    """
    generator = torch.Generator().manual_seed(0)
    draws, light = torch.rand(count, 3, 4, 1, 1, generator=generator), torch.rand(count, 1, 1, generator=generator)
    x, y = (moved or Affine(torch.eye(2))).origin()
    far = (x - 8 * draws[:, :, 0] + 4) ** 2 + (y - 8 * draws[:, :, 1] + 4) ** 2
    spots = (0.1 + 0.9 * draws[:, :, 3]) * (-far / (2 * (1.8 + 0.6 * draws[:, :, 2]) ** 2)).exp()
    return (0.4 + 0.6 * light) * F.relu(spots.amax(1) - 0.01)


def _numbers(asked: Asked, pictures: Tensor) -> Tensor:
    """What the function says of each picture, [N, numbers]."""
    out = [asked(p).detach().cpu().double() for p in pictures]
    wrong_if(
        (any(o.shape != out[0].shape for o in out), "your function returns numbers of different shapes for pictures of one size"),
        (not out[0].numel(), "your function returns an empty tensor"),
        (not all(o.isfinite().all() for o in out), "some results are not finite numbers"),
    )  # fmt: skip
    return torch.stack([o.flatten() for o in out])
