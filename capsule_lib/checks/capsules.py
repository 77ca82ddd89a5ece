"""Checkers for single capsules: squash, and how primary capsules are cut out of feature maps."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from capsule_lib.checks.verdict import (
    TOLERANCES,
    Asked,
    Unwritten,
    Wrong,
    arrange,
    checker,
    close,
    compare,
    in_words,
    layout_of,
    noise,
    restore,
    wrong_if,
)
from capsule_lib.routing import squash as right_squash


def _length(s: Tensor) -> Tensor:
    return s.norm(dim=-1, keepdim=True)


SQUASH_MISTAKES = [
    ("you squash along the capsules, not along the dimensions of one capsule: use dim=-1. The lengths of single capsules show it: some exceed 1", lambda s: right_squash(s, 1)),
    ("you squash along the batch, not along the dimensions of one capsule: use dim=-1", lambda s: right_squash(s, 0)),
    ("you take one length over the whole tensor: each capsule has its own, over dim=-1, with keepdim=True", lambda s: right_squash(s.flatten(), 0).view_as(s)),
    ("you squash each dimension by itself. That bends the vector: take the length of the whole vector and keep its direction", lambda s: s**2 / (1 + s**2) * s.sign()),
    ("you squash each dimension by itself, with a sigmoid. That bends the vector: scale the whole vector instead", torch.sigmoid),
    ("you squash each dimension by itself, with tanh. That bends the vector: scale the whole vector instead", torch.tanh),
    ("every length is now exactly 1: you kept the direction but lost the length. The factor ‖s‖² / (1 + ‖s‖²) is missing", lambda s: s / _length(s)),
    ("the factor ‖s‖² / (1 + ‖s‖²) belongs before the *unit* vector s/‖s‖, and you multiply s itself: long vectors stay long", lambda s: _length(s)**2 / (1 + _length(s)**2) * s),
    ("this is ‖s‖ / (1 + ‖s‖), without the squares: short vectors are not pushed towards zero as the paper wants", lambda s: s / (1 + _length(s))),
    ("the length goes up and then down again: you have ‖s‖ / (1 + ‖s‖²), one power of ‖s‖ short", lambda s: s / (1 + _length(s)**2)),
    ("the constant is 0.5 where equation 1 has 1: every vector comes out longer", lambda s: s * _length(s) / (0.5 + _length(s)**2)),
    ("this is (1 - exp(-‖s‖)) s/‖s‖, the squash of other papers: short vectors keep their length, where equation 1 pushes them towards zero", lambda s: -torch.expm1(-_length(s)) * s / _length(s)),
    ("a ReLU before squash removes all negative numbers: the capsules are confined to one orthant", lambda s: right_squash(s.relu())),
    ("you squash twice: once is enough", lambda s: right_squash(right_squash(s))),
    *((f"parentheses are missing: Python reads your formula as {formula}. Write ‖s‖² / (1 + ‖s‖²) * s / ‖s‖", missing) for formula, missing in [
        ("‖s‖²/1 + ‖s‖² s/‖s‖", lambda s: _length(s)**2 + _length(s) * s),
        ("‖s‖² / (1 + ‖s‖² s/‖s‖)", lambda s: _length(s)**2 / (1 + _length(s) * s)),
        ("(‖s‖²/1 + ‖s‖²) s/‖s‖", lambda s: 2 * _length(s) * s),
    ]),
]  # fmt: skip


@checker
def squash(function: Callable[[Tensor], Tensor], layout: str = "bid"):
    """Check squash (equation 1). `function` takes capsules and returns them with lengths below 1.

    Args:
        layout: the axes that *your* function takes, as letters: b batch, i capsules, d dimensions, 1 an axis of size 1. "bd" for
            a function of matrices, "bdi" where the dimensions come before the capsules.
    """
    if isinstance(layout, str) and "i" not in layout.lower():
        layout = layout.lower().replace("b", "(bi)")
    layout = layout_of(layout, "bid")
    asked = _squash_in(layout, function)
    try:
        asked(noise(3, 6, 4))
    except Wrong:
        for other in ["(bi)d", "bi1d", "bid1"] if layout == "bid" else []:
            with contextlib.suppress(Wrong):
                list(_squash(_squash_in(other, function)))
                raise Unwritten(f"your function doesn't take capsules [B, I, D]. Say what it takes, as in layout={other.replace('(bi)', 'b')!r}: then it can be looked at") from None  # fmt: skip
        raise
    yield from _squash(asked)
    return "squash: direction kept, lengths right, and zero is safe, forward and backward, in float32 and float16"


def _squash_in(layout: str, function: Callable) -> Asked:
    def undress(out: Tensor, s: Tensor) -> Tensor:
        return restore(out, "bid", layout, dict(zip("bid", s.shape, strict=True)))

    named = in_words(layout.replace("(bi)", "b"))
    return Asked(function, f"s {named}", named, dress=lambda s: (arrange(s, "bid", layout),), undress=undress)


def _squash(asked: Asked) -> Iterator[str]:
    cases = [(noise(b, i, d) * torch.linspace(0.2, 3, i)[:, None],) for b, i, d in [(3, 6, 4), (2, 5, 7)]]
    mistaken = False
    try:
        compare(asked, cases, right_squash, SQUASH_MISTAKES, gradient=True, explain=lengths_of_squash)
    except Wrong as problem:
        if problem.known < 2:
            raise
        mistaken = True
        yield str(problem)
    zero = torch.zeros(2, 3, 4)
    out = asked(zero)
    if out.any():  # NaN counts as well
        yield f"a zero vector should stay zero; yours gives {_short(out[0, 0])}: 0/0 is not a number. Avoid dividing by the length"
    elif not asked.gradient([zero])[0].isfinite().all():
        yield "the value at zero is right but the gradient there is not a number: the square root of 0 has an infinite slope. Use torch.linalg.vector_norm, or add the epsilon inside the root"
    if mistaken:
        return
    vectors = torch.tensor([1e-3, 1e-2])[None, :, None] * torch.tensor([0.0, 0.6, 0.0, -0.8])
    got, right = asked(vectors), right_squash(vectors)
    if not close(got, right, max(0.02, 10 * TOLERANCES.get(got.dtype, 0))):
        yield lengths_of_squash(got, right) or "short vectors come out wrong"
        return
    for what, value in [("a zero vector", 0.0), ("a short vector (0.001)", 0.001), ("a long vector (300)", 300.0)]:
        half = torch.tensor([[[value, 0.0, 0.0, 0.0]]], dtype=torch.float16)
        got, right = asked(half).float(), right_squash(half)
        if not torch.allclose(got, right, rtol=0.1 if value < 1 else 0.02, atol=1e-7) and (value or not out.any()):
            yield f"in float16 {what} gives {_short(got)} where {_short(right)} is right: 1e-8 rounds to zero there, and ‖s‖² overflows above a length of about 256. Compute in float32"
            return


def lengths_of_squash(out: Tensor, right: Tensor) -> str:
    """What is wrong where the directions are right, and which epsilon does that, if one does."""
    got, wanted = (x.double().norm(dim=-1).flatten() for x in (out, right))
    if not close(out.double().flatten(0, 1) * wanted[:, None], right.double().flatten(0, 1) * got[:, None], 0.01):
        return ""
    n = (got / wanted - 1).abs().argmax()
    length = (wanted / (1 - wanted)).sqrt()
    says = f"the directions are right, the lengths are not: a vector of length {length[n]:.3g} should come out with {wanted[n]:.5g}, yours has {got[n]:.5g}"
    below, ratio = length < 1, wanted / got  # where an epsilon shows
    epsilons = {"added to the length": length * (ratio - 1), "under the root": length**2 * (ratio**2 - 1)}
    for where, epsilon in epsilons.items():
        mean = epsilon[below].mean()
        if mean > 0 and close(epsilon[below], mean.expand_as(epsilon[below]), 0.05):
            return f"{says}: an epsilon of about {mean:.0e} {where} is large beside a short vector"
    return says + ": a threshold, a large epsilon and 1 - 1/(1 + ‖s‖²) all fail for short vectors" * bool(
        length.max() < 1
    )


def _short(vector: Tensor) -> str:
    return "[" + ", ".join(f"{x:.3g}" for x in vector.flatten().tolist()) + "]"


@checker
def primary_caps(layer: Callable[[Tensor], Tensor], maps: Tensor, *, kernel_size: int = 1, squashed: bool = True, returns: str = "bik"):  # fmt: skip
    """Check that the dimensions of each capsule come from one place of the feature map.

    Every row and every column of `maps` is changed in turn, and the capsules that notice are noted. It needs no look inside.

    Args:
        layer: turns feature maps [B, C, H, W] into capsules [B, I, K]; your own or someone else's.
        maps: an example of its input, [1, C, H, W].
        kernel_size: of the layer's convolution; 1 for a function that only regroups.
        squashed: whether the layer ends in squash.
        returns: the axes of what the layer returns, as letters: b batch, i capsules, k dimensions, 1 an axis of size 1.
    """
    returns = layout_of(returns, "bik")
    fits = isinstance(maps, Tensor) and maps.dim() == 4
    wrong_if((not fits, "give an example of the layer's input too: feature maps [1, C, H, W]"))
    asked = Asked(layer, "maps [B, C, H, W]", in_words(returns), undress=lambda out, x: restore(out, "bik", returns, dict(zip(returns, out.shape, strict=False))))  # fmt: skip
    return places(asked, maps, kernel_size, squashed)


@torch.no_grad()
def places(asked: Asked, maps: Tensor, kernel_size: int, squashed: bool) -> Iterator[str]:
    _, channels, height, width = maps.shape
    given = noise(1, channels, height, width).to(maps)
    lines = torch.zeros(height + width, 1, height, width)  # 1 where a row, then where a column is changed
    lines[torch.arange(height), 0, torch.arange(height)] = 1
    lines[height + torch.arange(width), 0, :, torch.arange(width)] = 1
    changed = given + lines.to(maps) * (3 + noise(1, channels, height, width, seed=1).to(maps))
    before, again, alone = (asked.capsules(x) for x in (given, given, changed[:1]))
    after = torch.cat([asked.capsules(some) for some in changed.split(50)])  # [H + W, I, K]
    wrong_if(
        (not before.isfinite().all(), "some capsules are not finite numbers"),
        (not close(again, before), "the same input gives other capsules each time: call layer.eval() first, or take the randomness out"),
        (not close(after[:1], alone, 1e-3), "the capsules of an image change with its batch-mates: squash along the dimensions of a capsule, dim=-1, and not along the batch"),
    )  # fmt: skip

    def at_one_place(seen: Tensor) -> Tensor:
        """[H + W, N]: does number n depend on this line? -> [N]: do these lines cross within one window of the kernel?"""
        return (_extent(seen[:height]) <= kernel_size) & (_extent(seen[height:]) <= kernel_size)

    size = before.abs().amax(dim=2, keepdim=True)  # of each capsule: short ones are looked at as closely as long ones
    seen = (after - before).abs() > 1e-5 * size
    wrong_if((not seen.any(), "no capsule changes when the maps do: the layer doesn't look at its input"))
    # A squash along the wrong axis multiplies the numbers along it by a common factor. Who depends on what without it?
    common = [_shared(after / before, axis) for axis in (1, 2)]
    capsules, rows = ((after - factor * before).abs() > 1e-3 * factor.abs() * size for factor in common)
    turned = before.shape[1] < before.shape[2] and any(at_one_place(x.any(dim=1)).all() for x in (seen, rows))
    if turned:
        raise Unwritten(f"a transpose is missing: you return {before.shape[1]} rows of {before.shape[2]:,} numbers, [B, K, I], one per dimension. Turn them round with .transpose(1, 2), before squash; or say returns='bki', if that is meant")  # fmt: skip
    if capsules.float().mean() < 0.8 * seen.float().mean():
        yield "you squash along the capsules, not along the dimensions of one capsule: all capsules change when one place does. Use dim=-1"
        seen, squashed = capsules, False
    intact = at_one_place(seen.any(dim=2))
    if not intact.all():
        rows, columns = (int(x.any(dim=2).sum(dim=0).median()) for x in (seen[:height], seen[height:]))
        yield f"{int(intact.sum()):,} of {len(intact):,} capsules look at one place; the others mix several (a typical one depends on {rows} rows and {columns} columns of the input, where a window has {kernel_size} of each). You regroup the numbers in memory order, where neighbours are places, not channels: move the K channels of a capsule last before you flatten"
    lengths = before.norm(dim=2)
    if squashed and intact.all() and not (lengths < 1).all():
        yield f"each capsule keeps to one place, but lengths reach {lengths.max():.2f}: squash along the capsule's dimensions, dim=-1"
    if (before >= 0).all():
        yield "no capsule has a negative number: a ReLU confines the vectors to one orthant. Leave it out"
    asked.check_inputs()
    return f"primary capsules: all {len(intact):,} keep to one place{', lengths below 1' if squashed else ''}"


def _shared(ratio: Tensor, axis: int) -> Tensor:
    """The number that most of the ratios along an axis share: the middle of where they lie closest together."""
    values, some = ratio.nan_to_num().sort(dim=axis).values, max(1, ratio.shape[axis] // 8)
    count = values.shape[axis] - some
    gaps = values.narrow(axis, some, count) - values.narrow(axis, 0, count)
    return values.gather(axis, gaps.argmin(dim=axis, keepdim=True) + some // 2)


def _extent(seen: Tensor) -> Tensor:
    """[N, I] of bools -> how far the first and the last True of each column lie apart, both counted."""
    index = torch.arange(1, len(seen) + 1, device=seen.device)[:, None]
    last = (seen * index).amax(0)
    first = len(seen) + 1 - (seen * index.flip(0)).amax(0)
    return last - first + 1
