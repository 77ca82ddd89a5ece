"""Checkers for formulas of single exercises: the paper's regrouping, a normalisation undone, agreements without votes."""

from collections.abc import Callable

import torch
from torch import Tensor

from capsule_lib import routing as library
from capsule_lib.checks.capsules import places
from capsule_lib.checks.verdict import Asked, checker, close, compare, noise, wrong_if
from capsule_lib.device import TorchDispatchMode


@checker
def regroup(function: Callable[[Tensor], Tensor]):
    """Check the regrouping of the paper's maps [B, 256, 6, 6] into 1,152 capsules [B, 1152, 8], each from one place, unsquashed.

    Either way of dealing out the channels counts as right.
    """
    asked, x = Asked(function, "x [B, C, H, W]", "[B, 1152, 8]"), noise(2, 256, 6, 6)
    out = asked.capsules(x)
    shape, numbers = tuple(out.shape[1:]), [t.flatten(1).sort().values for t in (out, x)]
    wrong_if(
        (shape == (8, 1152), "a transpose is missing: you return [B, 8, 1152], one row per dimension. Turn it round with .transpose(1, 2)"),
        (shape != (1152, 8), f"there should be 1,152 capsules of 8 dimensions, [B, 1152, 8]; yours are {shape[0]:,} of {shape[1]:,}"),
        (not close(*numbers), "the capsules don't hold the numbers of the maps, each of them once: some are missing, changed or repeated. Only move them"),
    )  # fmt: skip
    return places(asked, x, 1, False)


DENORMALISE_MISTAKES = [
    ("clamping keeps the range and loses grey values: undo the two steps of the normalisation, in reverse order", lambda x, mean, sd: x.clamp(0, 1)),
    ("stretching to 0..1 keeps the range and changes the grey values: undo the two steps of the normalisation, in reverse order", lambda x, mean, sd: (x - x.min()) / (x.max() - x.min())),
    ("a sigmoid keeps the range and bends the grey values: undo the two steps of the normalisation, in reverse order", lambda x, mean, sd: x.sigmoid()),
    ("the order is the wrong one: dividing came last, so multiply first, then add the mean", lambda x, mean, sd: (x + mean) * sd),
    ("you add the mean and forget the standard deviation", lambda x, mean, sd: x + mean),
    ("you multiply by the standard deviation and forget the mean", lambda x, mean, sd: x * sd),
    ("you subtract the mean once more: add it", lambda x, mean, sd: x * sd - mean),
    ("you divide by the standard deviation once more: multiply by it", lambda x, mean, sd: x / sd + mean),
    ("you normalise once more: undo the two steps, in reverse order", lambda x, mean, sd: (x - mean) / sd),
]  # fmt: skip


@checker
def denormalise(function: Callable[[Tensor, Tensor, Tensor], Tensor]):
    """Check that a normalisation is undone. `function` takes normalised images [B, C, H, W], mean and standard deviation; it returns the images."""
    asked = Asked(function, "normalised [B, C, H, W], mean, deviation", "[B, C, H, W]")
    originals = [0.05 + 0.9 * noise(*shape).sigmoid() for shape in [(4, 1, 28, 28), (2, 3, 9, 11)]]
    cases = [((x - x.mean()) / x.std(), x.mean(), x.std()) for x in originals]
    compare(asked, cases, lambda x, mean, sd: x * sd + mean, DENORMALISE_MISTAKES)
    return "denormalise: every grey value is the old one, all within the sigmoid's reach"


def _votes(u, weight):
    return torch.einsum("bik,jikd->bijd", u, weight)


def _agreements(u, weight, v):
    return torch.einsum("bijd,bjd->bij", _votes(u, weight), v)


AGREEMENT_MISTAKES = [
    ("you average over the dimensions of a part; a dot product adds them up", lambda u, w, v: _agreements(u, w, v) / u.shape[2]),
    ("you average over the dimensions of a class; a dot product adds them up", lambda u, w, v: _agreements(u, w, v) / v.shape[2]),
    ("you average over the batch: the agreements of an image then depend on its batch-mates", lambda u, w, v: _agreements(u, w, v).mean(0, keepdim=True).expand(len(u), -1, -1)),
    ("you divide by the length of the vote. That is a cosine: in the paper a long vote counts for more", lambda u, w, v: _agreements(u, w, v) / _votes(u, w).norm(dim=3)),
    ("these are already couplings: leave the softmax to the routing", lambda u, w, v: _agreements(u, w, v).softmax(2)),
    ("you squash the votes; only sums of votes are squashed", lambda u, w, v: torch.einsum("bijd,bjd->bij", library.squash(_votes(u, w)), v)),
]  # fmt: skip


@checker
def agreements(function: Callable[[Tensor, Tensor, Tensor], Tensor]):
    """Check agreements a_ij = (u_i W_ij) . v_j that are computed without votes.

    `function` takes capsules u [B, I, K], a weight [J, I, K, D] and class capsules v [B, J, D], and returns a [B, I, J].
    Every tensor that it makes is looked at: with these sizes, only votes or copies of the weight have B × I × J × D numbers.
    """
    asked = Asked(function, "u [B, I, K], weight [J, I, K, D], v [B, J, D]", "[B, I, J]")
    sizes = [(12, 6, 3, 4, 16), (5, 4, 7, 3, 6)]
    cases = [(noise(b, i, k), noise(j, i, k, d, seed=1), noise(b, j, d, seed=2)) for b, i, j, k, d in sizes]
    compare(asked, cases, _agreements, AGREEMENT_MISTAKES)
    with LargestTensor() as largest:
        asked(*cases[0])
    b, i, j, k, d = sizes[0]
    wrong_if(
        (largest.numbers >= b * j * i * k * d, f"the numbers are right, but a tensor of {largest.numbers:,} numbers was made: the whole weight once for each image. Multiply with torch.einsum or a matrix product that has j as its batch"),
        (largest.numbers >= b * i * j * d, f"the numbers are right, but a tensor of {largest.numbers:,} numbers was made, as many as there are votes (B × I × J × D). Turn v by the weight first, then multiply by u"),
    )  # fmt: skip
    return f"agreements: right, and no tensor above {largest.numbers:,} numbers; votes would be {b * i * j * d:,}"


class LargestTensor(TorchDispatchMode):
    """Listens to every operation and remembers how many numbers the largest tensor in memory has. Views count as what they look at."""

    numbers = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # else the first operation imports the compiler, which takes seconds
        return False

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for out in result if isinstance(result, tuple | list) else [result]:
            if isinstance(out, Tensor):
                self.numbers = max(self.numbers, out.untyped_storage().nbytes() // out.element_size())
        return result
