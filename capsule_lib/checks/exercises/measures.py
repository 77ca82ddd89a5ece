"""Checkers for measurements that readers write: where a part is, what a capsule sees, what a dimension draws, what luck does."""

from collections.abc import Callable

import torch
from torch import Tensor

from capsule_lib.checks.verdict import Asked, checker, compare, noise
from capsule_lib.routing import squash


def _centre(picture, order=(0, 1, 2), strength=torch.sum, divide=True, start=0, scale=False):
    rows, columns = (torch.arange(start, n + start) / (n - 1 if scale else 1) for n in picture.shape)
    total = picture.sum() if divide else 1
    row, column = (picture.sum(1) * rows).sum() / total, (picture.sum(0) * columns).sum() / total
    return torch.stack([(strength(picture), row, column)[n] for n in order])


CENTRE_MISTAKES = [
    ("the rows and columns are weighed by the picture and not divided by its sum: a mean divides by the total weight", lambda p: _centre(p, divide=False)),
    ("row and column are swapped: a picture is [H, W], so summing over dim=1 leaves the rows", lambda p: _centre(p, order=(0, 2, 1))),
    ("the strength should be the sum over the picture, not its maximum", lambda p: _centre(p, strength=torch.max)),
    ("the strength should be the sum over the picture, not its mean", lambda p: _centre(p, strength=torch.mean)),
    ("rows and columns count from 0, and yours from 1", lambda p: _centre(p, start=1)),
    ("rows and columns are counted in pixels, not as shares of the picture's size", lambda p: _centre(p, scale=True)),
    ("these are the place of the brightest pixel; the mean row and column weigh every pixel", lambda p: torch.stack([p.sum(), p.argmax() // p.shape[1], p.argmax() % p.shape[1]])),
]  # fmt: skip


@checker
def centre_of_mass(function: Callable[[Tensor], Tensor]):
    """Check a pooled feature that knows where its part is: of a picture [H, W] the strength (sum), the mean row and the mean column."""
    asked = Asked(function, "picture [H, W]", "[3]", numbers=True)
    spot = torch.zeros(8, 9)
    spot[2, 7] = 0.5
    compare(asked, [(spot,), (noise(5, 7).sigmoid(),)], _centre, CENTRE_MISTAKES)
    return "strength, row and column, of one spot and of a whole picture"


def _effects(
    draw, capsules, own=False, sides=(-2, 2), step=None, size=lambda x: x.square().flatten(1).mean(1).sqrt().mean()
):
    mean, sd = capsules.mean(0), capsules.std(0)
    changes = []
    for d in range(capsules.shape[1]):
        low, high = capsules.clone(), capsules.clone()
        for side, moved in zip(sides, (low, high), strict=True):
            moved[:, d] = (capsules[:, d] if own else mean[d]) + side * (sd[d] if step is None else step)
        changes.append(size(draw(high) - draw(low)))
    return torch.stack(changes)


EFFECTS_MISTAKES = [
    ("you add to each digit's own entry; set it to the *mean* of all digits, plus and minus 2 standard deviations", lambda *given: _effects(*given, own=True)),
    ("all dimensions move by 0.25: use 2 of each dimension's own standard deviations", lambda *given: _effects(*given, step=0.125)),
    ("you move by 1 standard deviation to each side; 2 are asked for", lambda *given: _effects(*given, sides=(-1, 1))),
    ("you compare the mean with +2 standard deviations; compare -2 with +2", lambda *given: _effects(*given, sides=(0, 2))),
    ("the root is missing: root-mean-square is the square root of the mean square", lambda *given: _effects(*given, size=lambda x: x.square().mean())),
    ("you take the mean absolute difference; root-mean-square is asked for", lambda *given: _effects(*given, size=lambda x: x.abs().mean())),
    ("you sum over the pixels; take their mean, then the root", lambda *given: _effects(*given, size=lambda x: x.square().flatten(1).sum(1).sqrt().mean())),
    ("you take one root over all digits; take each digit's root first, then their mean", lambda *given: _effects(*given, size=lambda x: x.square().mean().sqrt())),
    ("you add the digits up; take their mean", lambda *given: _effects(*given, size=lambda x: x.square().flatten(1).mean(1).sqrt().sum())),
]  # fmt: skip


@checker
def effects(function: Callable[[Callable, Tensor], Tensor]):
    """Check how much each dimension changes a drawing. `function` takes a drawing function and capsules [N, D], returns [D].

    For each dimension it is the mean, over the capsules, of the root-mean-square difference between the drawings with this
    entry 2 standard deviations below and above its mean. The drawing function takes capsules [N, D] and returns [N, C, H, W].
    """
    asked = Asked(function, "draw, capsules [N, D]", "[D]", numbers=True)
    cases = []
    for n, d in [(200, 16), (300, 5)]:
        to_picture, spread = noise(d, 42) * torch.linspace(0.3, 1.5, d)[:, None], torch.linspace(0.3, 1.5, d)
        capsules = noise(n, d, seed=1) * spread + noise(d, seed=2)
        cases.append((lambda v, a=to_picture: (v @ a).sigmoid().view(-1, 1, 6, 7), capsules))
    compare(asked, cases, _effects, EFFECTS_MISTAKES, tolerance=0.005)  # a standard deviation may divide by N or N - 1
    return "effects: each dimension by its own standard deviation, root-mean-square, averaged over the digits"


def _places_seen(layer, maps, capsule, reduce=lambda seen: seen.any(dim=0).sum(), pick=lambda u, n: u[0, n]):
    maps = maps.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(pick(layer(maps), capsule).sum(), maps)
    return reduce(gradient[0] != 0)


PLACES_MISTAKES = [
    ("you count a place once for each of its channels: count it once, whichever of its channels matters", lambda *given: _places_seen(*given, reduce=torch.sum)),
    ("you differentiate all capsules, not the one that is asked for", lambda *given: _places_seen(*given, pick=lambda u, n: u)),
    ("you always look at capsule 0, not at the one that is asked for", lambda *given: _places_seen(*given, pick=lambda u, n: u[0, 0])),
    ("a place counts where *any* channel's gradient is not zero, and you ask for all of them", lambda *given: _places_seen(*given, reduce=lambda seen: seen.all(dim=0).sum())),
    ("you count all places of the maps, not only those whose gradient is not zero", lambda layer, maps, n: torch.tensor(maps[0, 0].numel())),
]  # fmt: skip


@checker
def places_seen(function: Callable[[Callable, Tensor, int], float]):
    """Check a detector. `function` takes a layer, its input maps [1, C, H, W] and a capsule's number.

    It returns how many places (row and column, over all channels) of the maps this capsule depends on.
    """
    asked = Asked(function, "layer, maps [B, C, H, W], capsule", "one number", numbers=True)
    cases = []
    for channels, height, width, kernel, capsule in [(16, 20, 20, 9, 4), (3, 17, 14, 5, 13)]:
        weight = noise(32, channels, kernel, kernel)
        weight[:, 0, :, 0] = 0  # some places count, though not in each of their channels
        scrambled, intact = (
            lambda x, w=weight, order=order: squash(order(torch.conv2d(x, w, stride=2)))
            for order in (lambda x: x.reshape(len(x), -1, 8), lambda x: x.reshape(len(x), 8, -1).mT)
        )
        cases += [(layer, noise(1, channels, height, width, seed=1), capsule) for layer in (scrambled, intact)]
    compare(asked, cases, _places_seen, PLACES_MISTAKES)
    return "places_seen: one window's places where a capsule keeps to one, several windows' where it is scrambled"


def _flattery(passes: int, pick: str = "min") -> Tensor:
    """2 % minus the expected smallest (or largest) error of this many passes over 1,000 digits, in percentage points."""
    at_most = (
        torch.distributions.Binomial(1000, torch.tensor(0.02).double()).log_prob(torch.arange(1000)).exp().cumsum(0)
    )
    beyond = (1 - at_most) ** passes if pick == "min" else 1 - at_most**passes  # P(more than n digits are misread)
    return 2 - beyond.sum() / 10


FLATTERY_MISTAKES = [
    ("this is a share; percentage points are asked for, 100 times as much", lambda n: _flattery(n) / 100),
    ("these are digits; percentage points are asked for: 10 digits of 1,000 are 1 %", lambda n: _flattery(n) * 10),
    ("the sign is wrong: take the true error minus the reported one", lambda n: -_flattery(n)),
    ("this is the reported error itself: take the true error minus the reported one", lambda n: 2 - _flattery(n)),
    ("this is for 30 passes, whatever is asked for: use `passes`", lambda n: _flattery(30)),
    ("the largest error of the passes is not the one reported: take the minimum", lambda n: _flattery(n, pick="max")),
]


@checker
def flattery(function: Callable[[int], float]):
    """Check how much the best of several passes flatters. `function` takes the number of passes.

    It returns the mean, over 500 trainings, of the true error of 2 % minus the smallest error measured on 1,000 test
    digits in any of the passes, in percentage points.
    """
    asked = Asked(function, "passes", "one number", numbers=True)
    hint = "the smallest of many noisy numbers lies well below their mean. Average over 500 trainings"
    cases, within = [(30,), (6,)], 0.1  # five times the spread of such a mean
    compare(asked, cases, _flattery, FLATTERY_MISTAKES, tolerance=within, explain=lambda out, right: f"{out:.2f} is not it: {hint}")  # fmt: skip
    return f"the reported error is {_flattery(30):.1f} percentage points too good after 30 passes, {_flattery(6):.1f} after 6"
