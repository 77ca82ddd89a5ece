"""Checkers for single capsules: squash, and how primary capsules are cut out of feature maps."""

from collections.abc import Callable

import torch
from torch import Tensor

from capsule_lib import routing as library
from capsule_lib.checks.verdict import Verdict, call, compare, noise, short


def squash(function: Callable[[Tensor], Tensor]) -> Verdict:
    """Check squash (equation 1). `function` takes capsules [..., D] and returns them with lengths below 1."""
    s = noise(3, 6, 4) * torch.linspace(0.2, 3, 6)[:, None]
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
    verdict = compare(function, (s,), library.squash(s), mistakes)
    if not verdict:
        return verdict
    zero = torch.zeros(2, 4, requires_grad=True)
    out = call(function, zero)
    if isinstance(out, Verdict):
        return out
    if not (out == 0).all():
        return Verdict(
            False,
            f"a zero vector should stay zero; yours gives {short(out[0])}: 0/0 is not a number. Avoid dividing by the length",
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
        got, right = call(function, half), library.squash(half)
        if isinstance(got, Verdict):
            return got
        if not torch.allclose(got.float(), right, rtol=0.02, atol=1e-6):
            return Verdict(
                False,
                f"in float16 {what} gives {short(got[0])} where {short(right[0])} is right: 1e-8 rounds to zero there, and |s|^2 overflows above a length of about 256. Compute in float32",
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
    given = noise(1, channels, height, width)
    with torch.no_grad():
        before = call(layer, given)
        if isinstance(before, Verdict):
            return before
        if before.dim() != 3:
            return Verdict(False, f"capsules should come as [B, I, K], got shape {list(before.shape)}")
        places = [(y, x) for y in range(height) for x in range(width)]
        notices = []
        for chunk in range(0, len(places), 50):
            changed = given.repeat(len(places[chunk : chunk + 50]), 1, 1, 1)
            for n, (y, x) in enumerate(places[chunk : chunk + 50]):
                changed[n, :, y, x] += 3 + noise(channels)
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


def _extent(seen: Tensor) -> Tensor:
    """[N, I] of bools -> how far the first and the last True of each column lie apart, both counted."""
    index = torch.arange(1, len(seen) + 1)[:, None]
    last = (seen * index).amax(0)
    first = len(seen) + 1 - (seen * index.flip(0)).amax(0)
    return last - first + 1
