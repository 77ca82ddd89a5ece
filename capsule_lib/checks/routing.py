"""Checkers for what happens between two layers of capsules: votes, couplings, routing, agreements."""

from collections.abc import Callable

import torch
from torch import Tensor

from capsule_lib import routing as library
from capsule_lib.checks.verdict import Asked, Unwritten, answered, checker, close, combined, compare, noise, wrong_if
from capsule_lib.device import TorchDispatchMode

# What published routing loops do instead, as changes to `_route`. One of each kind may be made at once.
ROUTING_MISTAKES = [
    [
        ("your softmax sums to one over the inputs i; the paper normalises over the outputs j: each input shares itself out. Use dim={j} of b [{logits}]", {"softmax_dim": 1}),
        ("your softmax runs over the batch; the paper normalises over the outputs j. Use dim={j} of b [{logits}]", {"softmax_dim": 0}),
        ("you take a sigmoid of the logits; the paper takes a softmax over the outputs j, dim={j} of b [{logits}]", {"softmax_dim": None}),
    ],
    [
        ("you squash along the classes, not along the dimensions of one capsule: use dim=-1", {"squash_dim": 1}),
        ("you squash along the batch, not along the dimensions of one capsule: use dim=-1", {"squash_dim": 0}),
        ("the result is not squashed", {"squash_dim": None}),
    ],
    [("you average the routing logits over the batch: the capsules of an image then depend on its batch-mates", {"mean_logits": True})],
    [
        ("you run one iteration too many: a single iteration must be squash of the votes' sum divided by J", {"extra": 1}),
        ("you run one iteration too few", {"extra": -1}),
        ("you always run three iterations, whatever is asked for: loop over range(iterations)", {"always": 3}),
        ("the couplings never change: add the agreement to the logits, inside the loop", {"always": 1}),
    ],
    [("you replace the logits by the agreement; procedure 1 adds it to them", {"replace": True})],
    [
        ("you take the agreement with s, before squash, and squash only what you return; procedure 1 squashes in every iteration and takes the agreement with v", {"agree_with_s": True}),
        ("you average over the dimensions of vote times v; the agreement is a dot product, their sum", {"agreement": torch.Tensor.mean}),
        ("you take the cosine of vote and v; the agreement is a dot product, so that a long vote counts for more", {"cosine": True}),
    ],
    [
        ("you average over the inputs; s is the sum of the votes, each times its coupling", {"total": torch.Tensor.mean}),
        ("you squash the votes; only their sum is squashed", {"squash_votes": True}),
    ],
]  # fmt: skip


def _route(u_hat, iterations, softmax_dim=2, squash_dim=-1, mean_logits=False, extra=0, always=None, replace=False, agree_with_s=False, agreement=torch.Tensor.sum, cosine=False, total=torch.Tensor.sum, squash_votes=False):  # fmt: skip
    u_hat = library.squash(u_hat) if squash_votes else u_hat
    b, v = torch.zeros(u_hat.shape[:3]), torch.zeros_like(u_hat[:, 0])
    for _ in range((always or iterations) + extra):
        c = b.sigmoid() if softmax_dim is None else b.softmax(softmax_dim)
        s = total(c[..., None] * u_hat, 1)
        v = s if squash_dim is None else library.squash(s, squash_dim)
        a = agreement(u_hat * (s if agree_with_s else v)[:, None], -1)
        a = a / (u_hat.norm(dim=3) * v.norm(dim=2)[:, None]) if cosine else a
        a = a.mean(0, keepdim=True).expand_as(b) if mean_logits else a
        b = a if replace else b + a
    return v


@checker
def dynamic_routing(function: Callable[[Tensor, int], Tensor], layout: str = "bijd"):
    """Check routing by agreement (procedure 1).

    Args:
        function: takes votes and a number of iterations, returns output capsules [B, J, D].
        layout: the order of the votes' axes in *your* function, as letters: b batch, i input, j output, d dimensions.
    """
    layout = _layout(layout, "bijd")
    order = ["bijd".index(axis) for axis in layout]
    asked = Asked(function, f"u_hat [{', '.join(layout.upper())}], iterations", "[B, J, D]")
    cases = [(1.5 * noise(*sizes), n) for *sizes, n in [(3, 7, 4, 5, 3), (3, 7, 4, 5, 1), (2, 3, 6, 4, 2)]]
    laid_out = [(votes.permute(order), n) for votes, n in cases]
    back = [layout.index(axis) for axis in "bijd"]
    logits = layout.replace("d", "")
    words = {"j": logits.index("j"), "logits": ", ".join(logits.upper())}
    kinds = [[(says.format(**words), change) for says, change in kind] for kind in ROUTING_MISTAKES]
    mistakes = [(says, lambda u, n, make=make: make(u.permute(back), n)) for says, make in combined(_route, kinds)]
    compare(asked, laid_out, lambda u, n: library.dynamic_routing(u.permute(back), n), mistakes)
    gradient = ["the inner iterations are constants", "through every iteration"]
    references = [lambda u, n, d=d: library.dynamic_routing(u.permute(back), n, detach=d) for d in (True, False)]
    number = asked.check_gradient(laid_out[0], *references)
    return f"dynamic_routing: the capsules of procedure 1 with 1, 2 and 3 iterations. The gradient: {gradient[number]} (both are in use)"


@checker
def couplings(c: Tensor, layout: str = "bij"):
    """Check which axis the couplings of any routing layer were normalised over (equation 3).

    Args:
        c: couplings with the axes of `layout`: b batch, i input, j output. Those of an untrained network will do.
    """
    layout = _layout(layout, "bij")
    c = answered(c, f"[{', '.join(layout.upper())}], the couplings of one iteration", [None] * 3).double()
    sums = {axis: c.sum(dim=layout.index(axis)) for axis in "jib"}
    over = [axis for axis, total in sums.items() if ((total - 1).abs() < 5e-3).all()]
    what = {axis: f"{c.shape[layout.index(axis)]} {word}" for axis, word in [("j", "outputs"), ("i", "inputs"), ("b", "images of the batch")]}  # fmt: skip
    if len(over) > 1:
        raise Unwritten(f"can't tell: these couplings sum to 1 over the {' and over the '.join(what[a] for a in over)}. Give some that have another number of outputs than of inputs and images")  # fmt: skip
    wrong_if(
        (not over, "the couplings sum to 1 over no axis: take the softmax of the logits over the outputs j"),
        ((c < 0).any(), "some couplings are negative: take the softmax of the logits over the outputs j"),
        (over != ["j"], f"your softmax sums to one over the {what[(over or 'j')[0]]}; the paper normalises over the {what['j']}: each input shares itself out"),
    )  # fmt: skip
    return f"couplings: each input capsule shares 1 among its {what['j']}"


@checker
def capsule_layer(layer: Callable[[Tensor], Tensor], u: Tensor):
    """Check an untrained capsule layer from outside, whatever its weights look like.

    Args:
        layer: takes input capsules [B, I, K], returns output capsules [B, J, D].
        u: an example of its input; at least two images that differ.
    """
    asked = Asked(layer, "u [B, I, K]", "[B, J, D]")
    fits = isinstance(u, Tensor) and u.dim() == 3 and len(u) > 1 and not close(u[:1], u[1:2])
    wrong_if((not fits, "give an example of the input too: capsules [B, I, K] of at least two images that differ"))
    v, again, alone = (asked.capsules(x) for x in (u, u, u[:1]))
    wrong_if(
        (not v.isfinite().all(), "some capsules are not finite numbers"),
        (not close(again, v), "the same input gives other capsules each time: call layer.eval() first, or take the randomness out"),
        (close(v[1:2], v[:1], 1e-6), "two different images give the same capsules: the layer doesn't look at its input"),
    )  # fmt: skip
    if not close(alone, v[:1], 1e-3):
        yield "the capsules of an image change with its batch-mates: average no logits and take no softmax over the batch"
    lengths = v.norm(dim=2)
    if not (lengths < 1).all():
        yield f"lengths reach {lengths.max():.2f}: squash along the dimensions of a capsule, not along the classes"
    elif lengths.median() > 0.9:
        yield f"before any training the median length is {lengths.median():.3f}: every class is 'present', and squash is flat there, so hardly any gradient flows. Draw the weights with a standard deviation of 0.1 or less, not 1"
    asked.check_inputs()
    return f"capsule layer: images do not disturb each other, untrained lengths are moderate (median {lengths.median():.3f})"


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


def _layout(layout: str, axes: str) -> str:
    fits = isinstance(layout, str) and sorted(layout.lower()) == sorted(axes)
    wrong_if((not fits, f"layout names each of the axes {', '.join(axes)} once, such as {axes!r}; got {layout!r}"))
    return layout.lower()
