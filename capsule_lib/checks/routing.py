"""Checkers for routing by agreement: a function of votes, and couplings."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from capsule_lib import routing as library
from capsule_lib.checks.capsules import SQUASH_MISTAKES, lengths_of_squash
from capsule_lib.checks.verdict import (
    Asked,
    Mistake,
    Unwritten,
    Wrong,
    answered,
    arrange,
    checker,
    close,
    combined,
    compare,
    in_words,
    layout_of,
    noise,
    restore,
    wrong_if,
)

# What published routing loops do instead, as changes to `route`. One of each kind may be made at once.
ROUTING_MISTAKES = [
    [
        ("your softmax sums to one over the inputs i; the paper normalises over the outputs j: each input shares itself out{at}", {"softmax_dim": 1}),
        ("your softmax sums to one over the inputs i in all iterations but the last; the paper normalises over the outputs j in each of them{at}", {"softmax_dim": 1, "last_dim": 2}),
        ("your softmax runs over the batch; the paper normalises over the outputs j{at}", {"softmax_dim": 0}),
        ("you take a sigmoid of the logits; the paper takes a softmax over the outputs j{at}", {"softmax_dim": None}),
    ],
    [
        ("you squash along the classes, not along the dimensions of one capsule: use dim=-1", {"squash": lambda s: library.squash(s, 1)}),
        ("you squash along the batch, not along the dimensions of one capsule: use dim=-1", {"squash": lambda s: library.squash(s, 0)}),
        ("the result is not squashed", {"squash": lambda s: s}),
    ],
    [
        ("you average the routing logits over the batch: the capsules of an image then depend on its batch-mates", {"share": torch.mean}),
        ("you add the routing logits up over the batch: the capsules of an image then depend on its batch-mates", {"share": torch.sum}),
    ],
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
        ("you average over the inputs; s is the sum of the votes, each times its coupling", {"mean": True}),
        ("you squash the votes; only their sum is squashed", {"squash_votes": True}),
        ("you add the votes up first and route their one sum: there is nothing left to agree. Each input has a coupling of its own", {"aggregate": True}),
    ],
]  # fmt: skip
OTHER_SQUASHES = [(f"in your squash, {says}", {"squash": formula}) for says, formula in SQUASH_MISTAKES[2:]]


def route(u_hat, iterations, softmax_dim=2, last_dim=None, squash=library.squash, share=None, extra=0, always=None, replace=False, agree_with_s=False, agreement=torch.Tensor.sum, cosine=False, mean=False, squash_votes=False, aggregate=False, silent=0):  # fmt: skip
    """Procedure 1 with mistakes. `silent`: how many inputs there are besides, all of whose votes are 0."""
    u_hat = library.squash(u_hat) if squash_votes else u_hat
    u_hat = u_hat.sum(1, keepdim=True) if aggregate else u_hat
    b, v, silent = torch.zeros_like(u_hat[..., 0]), torch.zeros_like(u_hat[:, 0]), 0 if aggregate else silent
    rounds = (always or iterations) + extra
    for turn in range(rounds):
        dim = softmax_dim if last_dim is None or turn < rounds - 1 else last_dim
        c = b.sigmoid() if dim is None else b.softmax(dim)
        if silent and dim == 1:  # their logits stay 0
            c = c * (b.logsumexp(1, keepdim=True) - math.log(silent)).sigmoid()
        s = torch.einsum("bij,bijd->bjd", c, u_hat) / (b.shape[1] + silent if mean else 1)
        v = squash(s)
        a = agreement(u_hat * (s if agree_with_s else v)[:, None], -1)
        a = a / (u_hat.norm(dim=3) * v.norm(dim=2)[:, None]) if cosine else a
        a = share(a, 0, keepdim=True).expand_as(a) if share else a
        b = a if replace else b + a
    return v


def routing_mistakes(logits: str = "", rounds: int | None = None) -> Iterator[Mistake]:
    """All mistakes of `route`, and two and three at once.

    logits: the axes of the logits as letters, where they are known. rounds: how many iterations there should be, where nobody
    can choose.
    """
    kinds = kinds_of_mistakes(logits)
    if rounds:
        kinds[3] = [
            (f"it runs {n} iteration{'s' * (n > 1)}, not {rounds}", {"always": n}) for n in range(1, 6) if n != rounds
        ]
    squashes = [*kinds[1], *OTHER_SQUASHES]
    yield from combined(route, [kinds[0], squashes, *kinds[2:]], (1, 2))
    yield from combined(route, [kinds[0], squashes, kinds[2]], (3,))
    yield from combined(route, kinds, (3,))


def kinds_of_mistakes(logits: str = "") -> list[list[tuple[str, dict]]]:
    at = f". Use dim={logits.index('j')} of b {in_words(logits)}" if logits else ""
    return [[(says.format(at=at), change) for says, change in kind] for kind in ROUTING_MISTAKES]


@checker
def dynamic_routing(function: Callable[[Tensor, int], Tensor], layout: str = "bijd", returns: str = "bjd"):
    """Check routing by agreement (procedure 1).

    Args:
        function: takes votes and a number of iterations, returns output capsules.
        layout: the order of the votes' axes in *your* function, as letters: b batch, i input, j output, d dimensions, 1 an axis of size 1.
        returns: the same for what it returns.
    """
    layout, returns = layout_of(layout, "bijd"), layout_of(returns, "bjd")
    cases = [(1.5 * noise(*sizes), n) for *sizes, n in [(3, 7, 4, 5, 3), (3, 7, 4, 5, 1), (2, 3, 6, 4, 2)]]
    asked = _routing_in(layout, returns, function)
    logits = layout.replace("d", "")
    mistake, said = library.dynamic_routing, ""
    try:
        compare(asked, cases, library.dynamic_routing, routing_mistakes(logits))
    except Wrong as problem:
        for other in ["bijd1", "bjid", "bij1d", "b1ijd"] if layout == "bijd" and not problem.known else []:
            with contextlib.suppress(Wrong):
                compare(_routing_in(other, returns, function), cases, library.dynamic_routing, ())
                raise Unwritten(f"your function doesn't take votes [B, I, J, D]. Say what it takes, as in layout={other!r}: then it can be looked at") from None  # fmt: skip
        if problem.known == 1 and not asked.changed:
            problem = _with_own_squash(asked, cases, logits) or problem
        if not problem.mistake:
            raise problem from None
        mistake, said = problem.mistake, str(problem)
        yield said
    yield from beyond(asked, mistake, said, (0.05 * cases[2][0], 2))
    if said:
        return None
    gradient = ["the inner iterations are constants", "through every iteration"]
    references = [lambda u, n, d=d: library.dynamic_routing(u, n, detach=d) for d in (True, False)]
    number = asked.check_gradient(cases[0], *references)
    return f"dynamic_routing: the capsules of procedure 1 with 1, 2 and 3 iterations. The gradient: {gradient[number]} (both are in use)"


def beyond(asked: Asked, mistake: Callable, said: str, small: tuple) -> Iterator[str]:
    """What else is wrong with code that does what `mistake` does, with short votes and with none."""
    while mistake(*small).norm(dim=-1).median() < 3e-4 and small[0].abs().max() < 1e4:  # before squash about 0.02
        small = (3 * small[0], *small[1:])
    wanted = mistake(*small)
    out = asked.shaped(asked(*small), wanted.shape, small)
    if not (close(out, wanted, 0.02) or "in your squash" in said):
        yield "short vectors come out wrong, in your squash or before it: " + (lengths_of_squash(out, wanted) or "try votes as short as 0.05")  # fmt: skip
    if not asked(0 * small[0], *small[1:]).isfinite().all():
        yield "votes of zero give results that are not finite: your squash divides by a length of 0"


def _routing_in(layout: str, returns: str, function: Callable) -> Asked:
    def undress(out: Tensor, u_hat: Tensor, iterations: int) -> Tensor:
        return restore(out, "bjd", returns, dict(zip("bijd", u_hat.shape, strict=True)))

    takes = f"u_hat {in_words(layout)}, iterations"
    return Asked(
        function, takes, in_words(returns), dress=lambda u, n: (arrange(u, "bijd", layout), n), undress=undress
    )


def _with_own_squash(asked: Asked, cases: Sequence[tuple], logits: str) -> Wrong | None:
    """What else is wrong where squash is a formula that no checker knows: a single vote shows what it does to each length."""
    lengths, unit = torch.logspace(-3, 1.5, 180), noise(2, cases[0][0].shape[3], seed=5)
    unit = unit / unit.norm(dim=1, keepdim=True)
    with contextlib.suppress(Wrong):
        single = torch.stack([asked(n * unit[k % 2, None, None, None], 1).flatten() for k, n in enumerate(lengths)])
        along = (single * unit[torch.arange(len(lengths)) % 2]).sum(1)
        if not close(along[:, None] * unit[torch.arange(len(lengths)) % 2], single, 1e-3):
            return None  # it bends vectors

        def squash(s: Tensor) -> Tensor:
            n = s.norm(dim=-1, keepdim=True).clamp(1e-3, 31)
            place = ((n.log() - lengths[0].log()) / (lengths[1] / lengths[0]).log()).clamp(0, 178.999).nan_to_num()
            low = place.long()
            return torch.lerp(along[low], along[low + 1], place - low) * s / n

        says = "in your squash stands another formula than equation 1: " + (lengths_of_squash(single[None], library.squash(lengths[None, :, None] * unit[0])) or "print the length that it gives to vectors of length 0.1, 1 and 10")  # fmt: skip
        kinds = kinds_of_mistakes(logits)
        kinds = [kinds[0], *kinds[2:]]
        results = [asked(*case) for case in cases]
        for words, make in [
            ("", functools.partial(route, squash=squash)),
            *combined(route, kinds, (1, 2), squash=squash),
        ]:
            if all(close(out, make(*case), 0.01) for out, case in zip(results, cases, strict=True)):
                return Wrong("; and ".join(filter(None, [says, words])), mistake=make)
    return None


@checker
def couplings(c: Tensor, layout: str = "bij"):
    """Check which axis the couplings of any routing layer were normalised over (equation 3).

    Args:
        c: couplings with the axes of `layout`: b batch, i input, j output. Those of an untrained network will do.
    """
    layout = layout_of(layout, "bij", may="")
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
