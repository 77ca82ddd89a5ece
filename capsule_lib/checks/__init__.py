"""Checkers that take your own function and say what is wrong with it, not just that something is.

They know the mistakes that published capsule networks really made. Each checker runs your function on a small made-up
input, compares it with the paper's formula, and where the two differ compares it with every mistake it knows.

    checks.squash(my_squash)   ->   a Verdict: it prints its message, and is true when your function is right
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from capsule_lib import losses as library_losses
from capsule_lib import routing as library


class Verdict(NamedTuple):
    """passed is None while the function is still a stub."""

    passed: bool | None
    message: str

    def __repr__(self) -> str:
        return f"{ {True: '✓', False: '✗', None: '…'}[self.passed] } {self.message}"

    def __bool__(self) -> bool:
        return bool(self.passed)


def squash(function: Callable[[Tensor], Tensor]) -> Verdict:
    """Check squash (equation 1). `function` takes capsules [..., D] and returns them with lengths below 1."""
    s = _noise(3, 6, 4) * torch.linspace(0.2, 3, 6)[:, None]
    n = s.norm(dim=-1, keepdim=True)
    mistakes = [
        (library.squash(s, 1), "you squash along the capsules, not along the numbers of one capsule: use dim=-1. The lengths of single capsules show it: some exceed 1"),
        (library.squash(s, 0), "you squash along the batch, not along the numbers of one capsule: use dim=-1"),
        (library.squash(s.flatten(), 0).view_as(s), "you take one length over the whole tensor: each capsule has its own, over dim=-1, with keepdim=True"),
        (s**2 / (1 + s**2) * s.sign(), "you squash each number by itself. That bends the vector: take the length of the whole vector and keep its direction"),
        (torch.sigmoid(s), "you squash each number by itself, with a sigmoid. That bends the vector: scale the whole vector instead"),
        (torch.tanh(s), "you squash each number by itself, with tanh. That bends the vector: scale the whole vector instead"),
        (s / n, "every length is now exactly 1: you kept the direction but lost the length. The factor |s|^2 / (1 + |s|^2) is missing"),
        (n**2 / (1 + n**2) * s, "the factor |s|^2 / (1 + |s|^2) belongs before the *unit* vector s/|s|, and you multiply s itself: long vectors stay long"),
        (s / (1 + n), "this is |s| / (1 + |s|), without the squares: short vectors are not pushed towards zero as the paper wants"),
        (s / (1 + n**2), "the length goes up and then down again: you have |s| / (1 + |s|^2), one power of |s| short"),
        (library.squash(s.relu()), "a ReLU before squash removes all negative numbers: the capsules are confined to one orthant"),
    ]  # fmt: skip
    verdict = _compare(function, (s,), library.squash(s), mistakes)
    if not verdict:
        return verdict
    zero = torch.zeros(2, 4, requires_grad=True)
    out = _call(function, zero)
    if isinstance(out, Verdict):
        return out
    if not (out == 0).all():
        return Verdict(
            False,
            f"a zero vector should stay zero; yours gives {_short(out[0])}: 0/0 is not a number. Avoid dividing by the length",
        )
    if not out.requires_grad:
        return Verdict(False, "the lengths are right but no gradient reaches the capsules: nothing could be learned")
    (gradient,) = torch.autograd.grad(out.sum(), zero)
    if not gradient.isfinite().all():
        return Verdict(
            False,
            "the value at zero is right but the gradient there is not a number: the square root of 0 has an infinite slope. Use torch.linalg.vector_norm, or add the epsilon inside the root",
        )
    for what, value in [("a zero vector", 0.0), ("a short vector (0.001)", 0.001), ("a long vector (300)", 300.0)]:
        half = torch.tensor([[value, 0.0, 0.0, 0.0]], dtype=torch.float16)
        got, right = _call(function, half), library.squash(half)
        if isinstance(got, Verdict):
            return got
        if not torch.allclose(got.float(), right, rtol=0.02, atol=1e-6):
            return Verdict(
                False,
                f"in float16 {what} gives {_short(got[0])} where {_short(right[0])} is right: 1e-8 rounds to zero there, and |s|^2 overflows above a length of about 256. Compute in float32",
            )
    return Verdict(
        True, "squash: direction kept, lengths right, and zero is safe, forward and backward, in float32 and float16"
    )


def primary_caps(
    layer: Callable[[Tensor], Tensor], maps: Tensor, *, kernel_size: int = 1, squashed: bool = True
) -> Verdict:
    """Check that each capsule's numbers come from one place of the feature map.

    Every place of `maps` is changed in turn, and the capsules that notice are noted. It needs no look inside the layer.

    Args:
        layer: turns feature maps [B, C, H, W] into capsules [B, I, K]; your own or someone else's.
        maps: an example of its input, [1, C, H, W].
        kernel_size: of the layer's convolution; 1 for a function that only regroups.
        squashed: whether the layer ends in squash.
    """
    maps = maps.detach()
    _, channels, height, width = maps.shape
    noise = _noise(1, channels, height, width)
    with torch.no_grad():
        before = _call(layer, noise)
        if isinstance(before, Verdict):
            return before
        if before.dim() != 3:
            return Verdict(False, f"capsules should come as [B, I, K], got shape {list(before.shape)}")
        places = [(y, x) for y in range(height) for x in range(width)]
        notices = []
        for chunk in range(0, len(places), 50):
            changed = noise.repeat(len(places[chunk : chunk + 50]), 1, 1, 1)
            for n, (y, x) in enumerate(places[chunk : chunk + 50]):
                changed[n, :, y, x] += 3 + _noise(channels)
            notices.append((layer(changed) - before).abs().amax(dim=2) > 1e-6)
    seen = torch.cat(notices).view(height, width, -1)  # [H, W, I]: does capsule i depend on this place?
    rows, columns = seen.any(dim=1), seen.any(dim=0)
    intact = (_extent(rows) <= kernel_size) & (_extent(columns) <= kernel_size)
    if not intact.all():
        if (seen == seen[..., :1]).all():
            return Verdict(
                False,
                f"every capsule depends on the same {int(seen[..., 0].sum())} pixels: you squash along the capsules, not along the numbers of one "
                "capsule. Use dim=-1",
            )
        area = int(seen.sum(dim=(0, 1)).median())
        return Verdict(
            False,
            f"{int(intact.sum())} of {len(intact):,} capsules look at one place; the others mix several (a typical one "
            f"depends on {area} pixels of the input, a {kernel_size} x {kernel_size} window has {kernel_size**2}). You regroup the numbers in "
            "memory order, where neighbours are places, not channels: move the K channels of a capsule last before you flatten",
        )
    lengths = before.norm(dim=2)
    if squashed and not (lengths < 1).all():
        return Verdict(
            False,
            f"each capsule keeps to one place, but lengths reach {lengths.max():.2f}: squash along the capsule's numbers, dim=-1",
        )
    if (before >= 0).all():
        return Verdict(
            False, "no capsule has a negative number: a ReLU confines the vectors to one orthant. Leave it out"
        )
    return Verdict(
        True, f"primary capsules: all {len(intact):,} keep to one place{', lengths below 1' if squashed else ''}"
    )


def dynamic_routing(function: Callable[[Tensor, int], Tensor], layout: str = "bijd") -> Verdict:
    """Check routing by agreement (procedure 1).

    Args:
        function: takes votes and a number of iterations, returns output capsules [B, J, D].
        layout: the order of the votes' axes in *your* function, as letters: b batch, i input, j output, d numbers.
    """
    if sorted(layout) != sorted("bijd"):
        raise ValueError(f"layout names each of the four axes b, i, j and d once; got {layout!r}")
    votes = (1.5 * _noise(3, 7, 4, 5)).requires_grad_()

    def one_and_three(route: Callable, u_hat: Tensor, **changes) -> Tensor:
        results = [route(u_hat, iterations, **changes) for iterations in (1, 3)]
        return torch.stack(results) if all(isinstance(v, Tensor) for v in results) else results[0]

    def yours(u_hat: Tensor) -> Tensor:
        return one_and_three(lambda u, n: function(u.permute(["bijd".index(axis) for axis in layout]), n), u_hat)

    kinds = [[(None, {}), *((says, change) for says, change in options)] for options in _ROUTING_MISTAKES]
    combinations = [[mistake for mistake in chosen if mistake[0]] for chosen in itertools.product(*kinds)]
    with torch.no_grad():
        mistakes = [
            (one_and_three(_route, votes, **{k: v for _, change in chosen for k, v in change.items()}), "; and ".join(says for says, _ in chosen))
            for chosen in sorted(combinations, key=len)[1:]
        ]  # fmt: skip
    verdict = _compare(yours, (votes,), one_and_three(library.dynamic_routing, votes), mistakes)
    if not verdict:
        return verdict
    out = yours(votes)
    if not out.requires_grad:
        return Verdict(
            False,
            "the capsules are right but no gradient reaches the votes: nothing could be learned. Detach only the votes of the inner iterations",
        )
    (gradient,) = torch.autograd.grad(out[1].square().sum(), votes)
    for detach, says in [(True, "the inner iterations are constants"), (False, "through every iteration")]:
        (reference,) = torch.autograd.grad(library.dynamic_routing(votes, 3, detach=detach).square().sum(), votes)
        if torch.allclose(gradient, reference, atol=1e-4):
            return Verdict(
                True,
                f"dynamic_routing: the capsules of procedure 1 with 1 and with 3 iterations. The gradient: {says} (both are in use)",
            )
    return Verdict(
        False,
        "the capsules are right but the gradient is neither of the two in use: detach the votes in all but the last iteration, or nothing",
    )


def couplings(c: Tensor, layout: str = "bij") -> Verdict:
    """Check which axis the couplings of any routing layer were normalised over (equation 3).

    Args:
        c: couplings with the axes of `layout`: b batch, i input, j output. Those of an untrained network will do.
    """
    if sorted(layout) != sorted("bij") or c.dim() != 3:
        raise ValueError(
            f"give couplings with three axes and a layout that names b, i and j once; got {list(c.shape)} and {layout!r}"
        )
    sums = {axis: c.detach().float().sum(dim=layout.index(axis)) for axis in "jib"}
    over = next(
        (axis for axis, total in sums.items() if torch.allclose(total, torch.ones_like(total), atol=1e-3)), None
    )
    count = c.shape[layout.index(over)] if over else 0
    if over == "j":
        return Verdict(True, f"couplings: each input capsule shares 1 among its {count} outputs")
    if over is None:
        return Verdict(False, "the couplings sum to 1 over no axis: take the softmax of the logits over the outputs j")
    what = {"i": "inputs", "b": "images of the batch"}[over]
    return Verdict(
        False,
        f"your softmax sums to one over the {count} {what}; the paper normalises over the {c.shape[layout.index('j')]} outputs: each input shares itself out",
    )


def capsule_layer(layer: Callable[[Tensor], Tensor], u: Tensor) -> Verdict:
    """Check an untrained capsule layer from outside, whatever its weights look like.

    Args:
        layer: takes input capsules [B, I, K], returns output capsules [B, J, D].
        u: an example of its input; at least two images that differ.
    """
    with torch.no_grad():
        v = _call(layer, u)
        if isinstance(v, Verdict):
            return v
        if v.dim() != 3 or len(v) != len(u):
            return Verdict(
                False, f"output capsules should come as [B, J, D] with B = {len(u)}, got shape {list(v.shape)}"
            )
        lengths = v.norm(dim=2)
        if not torch.allclose(layer(u[:1]), v[:1], atol=1e-5):
            return Verdict(
                False,
                "the capsules of an image change with its batch-mates: average no logits and take no softmax over the batch",
            )
        if not (lengths < 1).all():
            return Verdict(
                False,
                f"lengths reach {lengths.max():.2f}: squash along the numbers of a capsule, not along the classes",
            )
        if lengths.median() > 0.9:
            return Verdict(
                False,
                f"before any training the median length is {lengths.median():.3f}: every class is 'present', and squash is flat there, so hardly any gradient flows. Draw the weights with a standard deviation of 0.1 or less, not 1",
            )
    return Verdict(
        True,
        f"capsule layer: images do not disturb each other, untrained lengths are moderate (median {lengths.median():.3f})",
    )


def agreements(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Verdict:
    """Check agreements a_ij = (u_i W_ij) . v_j that are computed without votes.

    `function` takes capsules u [B, I, K], a weight [J, I, K, D] and class capsules v [B, J, D], and returns a [B, I, J].
    Every tensor that it makes is looked at: with these sizes, only votes or copies of the weight have B x I x J x D numbers.
    """
    batch, i, j, k, d = 12, 6, 3, 4, 16
    u, weight, v = _noise(batch, i, k), _noise(j, i, k, d, seed=1), _noise(batch, j, d, seed=2)
    votes = torch.einsum("bik,jikd->bijd", u, weight)
    right = torch.einsum("bijd,bjd->bij", votes, v)
    mistakes = [
        (right / k, "you average over the numbers of a part; a dot product adds them up"),
        (right / d, "you average over the numbers of a class; a dot product adds them up"),
        (right.mean(0, keepdim=True).expand_as(right), "you average over the batch: the agreements of an image then depend on its batch-mates"),
        (right / votes.norm(dim=3), "you divide by the length of the vote. That is a cosine: in the paper a long vote counts for more"),
        (right.softmax(2), "these are already couplings: leave the softmax to the routing"),
        (torch.einsum("bijd,bjd->bij", library.squash(votes), v), "you squash the votes; only sums of votes are squashed"),
    ]  # fmt: skip
    with _LargestTensor() as largest:
        verdict = _compare(function, (u, weight, v), right, mistakes)
    if not verdict:
        return verdict
    if largest.numbers >= batch * weight.numel():
        return Verdict(
            False,
            f"the numbers are right, but a tensor of {largest.numbers:,} numbers was made: the whole weight once for each image. Multiply with torch.einsum or a matrix product that has j as its batch",
        )
    if largest.numbers >= votes.numel():
        return Verdict(
            False,
            f"the numbers are right, but a tensor of {largest.numbers:,} numbers was made, as many as there are votes (B x I x J x D). Turn v by the weight first, then multiply by u",
        )
    return Verdict(
        True, f"agreements: right, and no tensor above {largest.numbers:,} numbers; votes would be {votes.numel():,}"
    )


def margin_loss(function: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check the margin loss (equation 4). `function` takes lengths [B, J] and labels [B], returns a scalar."""
    lengths, labels = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 4, 2, 1, 3, 2])
    lengths[0, 0], lengths[1, 0] = 0.98, 0.02  # one of each beyond its margin, where the loss is flat
    right, t = library_losses.margin_loss, F.one_hot(labels, 5)
    up, down = F.relu(0.9 - lengths), F.relu(lengths - 0.1)
    mistakes = [
        ((t * up + 0.5 * (1 - t) * down).sum(1).mean(), "the hinges are not squared"),
        (right(lengths, labels) / 5, "you average over the classes; the paper sums over them, and averages over the batch only"),
        ((t * up + 0.5 * (1 - t) * down).mean(), "the hinges are not squared, and you average over the classes where the paper sums"),
        (right(lengths, labels) * 6, "you sum over the batch: the loss would grow with the batch size. Sum over classes, average over the batch"),
        (right(lengths.softmax(1), labels), "you take a softmax of the lengths first: lengths are already in 0..1, and classes do not compete"),
        (right(lengths.softmax(1), labels) / 5, "you take a softmax of the lengths first, and average over the classes where the paper sums"),
        (right(lengths, labels, down_weight=1.0), "the down-weighting lambda = 0.5 of the absent classes is missing"),
        ((0.5 * t * up**2 + (1 - t) * down**2).sum(1).mean(), "lambda = 0.5 belongs to the absent classes, not to the present one"),
        (right(lengths, labels, 0.1, 0.9), "m+ and m- are swapped: m+ = 0.9 is for the class that is present"),
        (right(lengths, labels, 0.5, 0.5), "both margins are 0.5, as in the authors' code; the paper's are 0.9 and 0.1"),
        ((t * (0.9 - lengths) ** 2 + 0.5 * (1 - t) * (lengths - 0.1) ** 2).sum(1).mean(), "max(0, ...) is missing: a length beyond its margin should cost nothing"),
        ((right(lengths, 1 - t)), "present and absent classes are swapped"),
    ]  # fmt: skip
    praise = f"margin_loss: {right(lengths, labels):.4f} on six made-up images, as by hand"
    return _compare(function, (lengths, labels), right(lengths, labels), mistakes, praise)


def reconstruction_loss(function: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check the paper's reconstruction loss (section 4.1). `function` takes two batches of images [B, C, H, W], returns a scalar."""
    a, b = _noise(3, 1, 28, 28).sigmoid(), _noise(3, 1, 28, 28, seed=1).sigmoid()
    right = library_losses.reconstruction_loss(a, b)
    mistakes = [
        (0.0005 * F.mse_loss(a, b), "you multiply the *mean* over the pixels by 0.0005; the paper multiplies their sum, 784 times as much. Reconstructions would stay blurred means"),
        (F.mse_loss(a, b), "this is the mean squared error itself: the paper's term is 0.0005 times the sum over the pixels, 0.392 times the mean"),
        (0.5 * F.mse_loss(a, b), "0.5 times the mean is near the paper's term but not it: 0.0005 times the sum is 0.392 times the mean"),
        (3 * right, "you sum over the batch too: sum over the pixels of an image, average over the batch"),
        (right / 0.0005, "the weight 0.0005 is missing: the reconstruction would drown the margin loss"),
        (0.0005 * (a - b).abs().flatten(1).sum(1).mean(), "the paper takes the squared difference, not the absolute one"),
    ]  # fmt: skip
    return _compare(
        function, (a, b), right, mistakes, "reconstruction_loss: 0.0005 times the squared error summed over the pixels"
    )


def mask(function: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check the mask before the decoder, as training needs it (section 4.1).

    `function` takes capsules [B, J, D] and labels [B]; it returns them with all but the label's zeroed, as [B, J, D] or [B, J * D].
    """
    v, labels = 0.3 * _noise(4, 5, 3), torch.tensor([2, 2, 0, 2])
    length = v.norm(dim=2)

    def unflattened(v: Tensor, labels: Tensor) -> Tensor:
        out = function(v, labels)
        return out.view_as(v) if isinstance(out, Tensor) and out.shape == (4, 15) else out

    def keep(weights: Tensor) -> Tensor:
        return v * weights[:, :, None]

    mistakes = [
        (
            keep(F.one_hot(length.argmax(1), 5)),
            "you keep the longest capsule: in training keep the label's, or the decoder learns to draw the network's mistakes",
        ),
        (
            keep(F.one_hot(length.softmax(0).argmax(0), 4).T),
            "your mask is one over the batch, not over the classes: it keeps one image for each class",
        ),
        (
            keep(length.softmax(0) == length.softmax(0).amax(1, keepdim=True)),
            "you choose the class after a softmax over the batch: what an image keeps depends on its batch-mates. Take the label's class",
        ),
        (
            keep(length.softmax(0)),
            "you weight by a softmax over the batch: with every image of one class, the mask would still spread over images",
        ),
        (keep(length.softmax(1)), "you weight by a softmax of the lengths: nothing is masked out"),
        (keep(1 - F.one_hot(labels, 5)), "you zero the label's capsule and keep the others: it is the other way round"),
        (v, "nothing is masked"),
    ]
    return _compare(
        unflattened,
        (v, labels),
        keep(F.one_hot(labels, 5)),
        mistakes,
        "mask: the label's capsule passes, the others are zero, whatever their lengths",
    )


def random_shift(function: Callable[[Tensor], Tensor]) -> Verdict:
    """Check the training shifts (section 5). `function` takes images [B, C, H, W] and returns them moved by up to 2 pixels."""
    images = torch.zeros(400, 1, 28, 28)
    images[:, :, 2, 2] = 1.0
    images[:, :, 20, 14] = 0.5
    images[:, :, 0, 14] = images[:, :, 14, 27] = 0.25  # at the edges: they may leave the picture, never come back
    out = _call(function, images)
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


# What published routing loops do instead, as changes to `_route`. One of each kind may be made at once.
_ROUTING_MISTAKES = [
    [
        ("your softmax sums to one over the inputs i; the paper normalises over the outputs j: each input shares itself out. Use dim=2 of b [B, I, J]", {"softmax_dim": 1}),
        ("your softmax runs over the batch; the paper normalises over the outputs j", {"softmax_dim": 0}),
    ],
    [("you squash along the classes, not along the numbers of one capsule: use dim=-1", {"squash_dim": 1}), ("the result is not squashed", {"squash_dim": None})],
    [("you average the routing logits over the batch: the capsules of an image then depend on its batch-mates", {"mean_logits": True})],
    [("you run one iteration too many: a single iteration must be squash of the votes' sum divided by J", {"extra": 1}), ("you run one iteration too few", {"extra": -1})],
    [("you replace the logits by the agreement; procedure 1 adds it to them", {"replace": True})],
]  # fmt: skip


def _route(u_hat, iterations, softmax_dim=2, squash_dim=-1, mean_logits=False, extra=0, replace=False):
    b, v = torch.zeros(u_hat.shape[:3]), torch.zeros_like(u_hat[:, 0])
    for _ in range(iterations + extra):
        v = (b.softmax(softmax_dim)[..., None] * u_hat).sum(1)
        v = v if squash_dim is None else library.squash(v, squash_dim)
        agreement = (u_hat * v[:, None]).sum(-1)
        agreement = agreement.mean(0, keepdim=True).expand_as(b) if mean_logits else agreement
        b = agreement if replace else b + agreement
    return v


def _call(function: Callable, *inputs: Tensor) -> Tensor | Verdict:
    """The function's result, or a verdict where there is none."""
    try:
        out = function(*(x.clone() if isinstance(x, Tensor) else x for x in inputs))
    except NotImplementedError:
        out = None
    except Exception as error:
        shapes = ", ".join(str(list(x.shape)) for x in inputs if isinstance(x, Tensor))
        return Verdict(False, f"your function stops with {type(error).__name__}: {error} (called with shapes {shapes})")
    if out is None or out is NotImplemented or out is ...:
        return Verdict(None, "nothing to check yet: write the function, then run this cell again")
    if not isinstance(out, Tensor):
        return Verdict(False, f"your function should return a tensor; it returns {type(out).__name__}")
    return out


def _compare(
    function: Callable, inputs: tuple[Tensor, ...], right: Tensor, mistakes: list[tuple[Tensor, str]], praise: str = ""
) -> Verdict:
    """Whether the function is right, and what is wrong with it where it is not."""
    out = _call(function, *inputs)
    if isinstance(out, Verdict):
        return out
    if out.shape != right.shape:
        return Verdict(False, f"the result should have shape {list(right.shape)}; yours has {list(out.shape)}")
    if torch.allclose(out, right, rtol=1e-4, atol=1e-5):
        return Verdict(True, praise)
    for wrong, says in mistakes:
        if torch.allclose(out, wrong.to(out.dtype), rtol=1e-4, atol=1e-5):
            return Verdict(False, says)
    if not out.isfinite().all():
        return Verdict(False, "some results are not finite numbers")
    return Verdict(
        False,
        f"the result differs from the paper's formula, by up to {(out - right).abs().max():.3g}, and not in a way that this checker knows. Try an input small enough to work out by hand",
    )


class _LargestTensor(TorchDispatchMode):
    """Listens to every operation and remembers how many numbers the largest tensor in memory has. Views count as what they look at."""

    numbers = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for out in result if isinstance(result, tuple | list) else [result]:
            if isinstance(out, Tensor):
                self.numbers = max(self.numbers, out.untyped_storage().nbytes() // out.element_size())
        return result


def _noise(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers that are the same every time, and leave the reader's own random state alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _extent(seen: Tensor) -> Tensor:
    """[N, I] of bools -> how far the first and the last True of each column lie apart, both counted."""
    index = torch.arange(1, len(seen) + 1)[:, None]
    last = (seen * index).amax(0)
    first = len(seen) + 1 - (seen * index.flip(0)).amax(0)
    return last - first + 1


def _short(vector: Tensor) -> str:
    return "[" + ", ".join(f"{x:.3g}" for x in vector.flatten().tolist()) + "]"


# Last, because these use Verdict.
from capsule_lib.checks.answers import answer  # noqa: E402, F401
from capsule_lib.checks.predictions import predict  # noqa: E402, F401
from capsule_lib.checks.record import progress  # noqa: E402, F401
