"""Checkers for what happens between two layers of capsules: votes, couplings, routing, agreements."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from capsule_lib import routing as library
from capsule_lib.checks.verdict import Verdict, call, compare, noise


def dynamic_routing(function: Callable[[Tensor, int], Tensor], layout: str = "bijd") -> Verdict:
    """Check routing by agreement (procedure 1).

    Args:
        function: takes votes and a number of iterations, returns output capsules [B, J, D].
        layout: the order of the votes' axes in *your* function, as letters: b batch, i input, j output, d numbers.
    """
    if sorted(layout) != sorted("bijd"):
        raise ValueError(f"layout names each of the four axes b, i, j and d once; got {layout!r}")
    votes = (1.5 * noise(3, 7, 4, 5)).requires_grad_()

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
    verdict = compare(yours, (votes,), one_and_three(library.dynamic_routing, votes), mistakes)
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
        v = call(layer, u)
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
    u, weight, v = noise(batch, i, k), noise(j, i, k, d, seed=1), noise(batch, j, d, seed=2)
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
        verdict = compare(function, (u, weight, v), right, mistakes)
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


class _LargestTensor(TorchDispatchMode):
    """Listens to every operation and remembers how many numbers the largest tensor in memory has. Views count as what they look at."""

    numbers = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for out in result if isinstance(result, tuple | list) else [result]:
            if isinstance(out, Tensor):
                self.numbers = max(self.numbers, out.untyped_storage().nbytes() // out.element_size())
        return result
