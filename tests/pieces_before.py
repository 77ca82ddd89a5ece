"""Right and wrong pieces that were written before the checkers were changed for them, in shapes that public code has.

Each piece: a name, a call, and what the verdict has to be: True (right), None (a request), or patterns that a ✗ has to hold, all of them.
"""

import torch
import torch.nn.functional as F
from torch import nn

from capsule_lib import checks


def ball(s, dim=-1, one=1.0):
    """Squash as most people write it, with the constant in the place of 1."""
    n = torch.linalg.vector_norm(s.float(), dim=dim, keepdim=True)
    return n / (one + n * n) * s


def gentle(s, dim=-1):
    """The squash of another paper, 1 - exp(-n)."""
    n = torch.linalg.vector_norm(s.float(), dim=dim, keepdim=True)
    return -torch.expm1(-n) * s / n.clamp(min=1e-20)


def silent_below(s, least=0.05):
    n = torch.linalg.vector_norm(s.float(), dim=-1, keepdim=True)
    return torch.where(n > least, ball(s), 0 * s)


def each_number(s):
    """The length is taken over a new axis of size 1."""
    squared = s[..., None].square().sum(-1)
    return squared * s / ((1 + squared) * (squared + 1e-30).sqrt())


def procedure(u, rounds, axis=2, squash=ball, mean=False, start=None, drop=0.0, cut=False):
    b = torch.zeros(*u.shape[:3]) if start is None else start
    for turn in range(rounds):
        votes = u.detach() if cut and turn < rounds - 1 else u
        c = F.dropout(F.softmax(b, dim=axis), drop)
        v = squash((c.unsqueeze(-1) * votes).sum(dim=1))
        agreement = (votes * v.unsqueeze(1)).sum(-1)
        b = b + (agreement.mean(dim=0, keepdim=True) if mean else agreement)
    return v


def axes_of_one(u, rounds):
    """Votes [B, I, J, D, 1], as those have who multiply matrices."""
    b = torch.zeros(*u.shape[:3], 1, 1)
    for turn in range(rounds):
        v = ball((b.softmax(dim=2) * u).sum(1, keepdim=True), dim=3)
        if turn < rounds - 1:
            b = b + u.transpose(3, 4) @ v
    return v.squeeze(1)


def aggregated(u, rounds):
    """The votes are added up first; what is routed is one vote for each output."""
    return procedure(u.sum(1, keepdim=True), rounds)


def hinges(lengths, t, power=2, weight=0.5, mean=False):
    loss = t * F.relu(0.9 - lengths) ** power + weight * (1 - t) * F.relu(lengths - 0.1) ** power
    return loss.mean() if mean else loss.sum(-1).mean()


def numbers(lengths, labels, soft=False, **settings):
    return hinges(lengths.softmax(1) if soft else lengths, F.one_hot(labels, lengths.shape[1]).float(), **settings)


class Votes(nn.Module):
    """A layer as many wrote it, weight [1, I, J, D, K]."""

    def __init__(self, spread=0.1, axis=2, mean=False, rounds=3, squash=ball, squeeze=False, places=None):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.W = nn.Parameter(spread * torch.randn(1, 30, 4, 6, 5, generator=generator))
        self.rounds, self.squeeze = rounds, squeeze
        self.settings = {"axis": axis, "mean": mean, "squash": squash}
        self.start = None if places is None else nn.Parameter(torch.randn(places, 30, 4, generator=generator))

    def forward(self, u):
        votes = (self.W @ u[:, :, None, :, None]).squeeze(-1)
        v = procedure(votes, self.rounds, start=self.start, **self.settings)
        return v.squeeze() if self.squeeze else v


class Turned(Votes):
    def forward(self, u):
        return super().forward(u.transpose(1, 2))


class Normed(Votes):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(30)

    def forward(self, u):
        return super().forward(self.norm(u))


def primary(x, axis=-1, relu=False, scrambled=False):
    x = x.relu() if relu else x
    return ball(x.reshape(len(x), -1, 4) if scrambled else x.reshape(len(x), 4, -1).mT, axis)


U = 0.4 * torch.randn(4, 30, 5, generator=torch.Generator().manual_seed(1))
MAPS = torch.zeros(1, 12, 5, 7)

PIECES = [
    # squash
    ("squash: without a division", lambda: checks.squash(ball), True),
    ("squash: [B, D, I]", lambda: checks.squash(lambda s: ball(s, 1), layout="bdi"), True),
    ("squash: for matrices only", lambda: checks.squash(lambda s: ball(s) if s.dim() == 2 else s[:, :, 0, 9], layout="bd"), True),
    ("squash: 0.5 for 1", lambda: checks.squash(lambda s: ball(s, one=0.5)), ["0\\.5"]),
    ("squash: an axis of size 1", lambda: checks.squash(each_number), ["by itself"]),
    ("squash: exponential", lambda: checks.squash(gentle), ["exp"]),
    ("squash: dropout", lambda: checks.squash(lambda s: F.dropout(ball(s))), ["each time"]),
    ("squash: always the same", lambda: checks.squash(lambda s: torch.ones_like(s) / 9), ["same|not.*input"]),
    # routing
    ("routing: votes [B, I, J, D, 1]", lambda: checks.dynamic_routing(axes_of_one, layout="bijd1"), True),
    ("routing: votes cut off in inner rounds", lambda: checks.dynamic_routing(lambda u, n: procedure(u, n, cut=True)), True),
    ("routing: one vote", lambda: checks.dynamic_routing(aggregated), ["first|one vote|aggregat"]),
    ("routing: an axis of size 1 in squash", lambda: checks.dynamic_routing(lambda u, n: procedure(u, n, squash=each_number)), ["by itself"]),
    ("routing: silent below 0.05", lambda: checks.dynamic_routing(lambda u, n: procedure(u, n, squash=silent_below)), ["squash", "short|threshold"]),
    ("routing: dropout", lambda: checks.dynamic_routing(lambda u, n: procedure(u, n, drop=0.3)), ["each time"]),
    ("routing: 0.5 for 1", lambda: checks.dynamic_routing(lambda u, n: procedure(u, n, squash=lambda s: ball(s, one=0.5))), ["0\\.5"]),
    # losses and mask
    ("margin: one-hot", lambda: checks.margin_loss(hinges), True),
    ("margin: capsules", lambda: checks.margin_loss(lambda v, y: numbers(v.norm(dim=2), y)), True),
    ("margin: one-hot, not squared", lambda: checks.margin_loss(lambda a, t: hinges(a, t, power=1)), ["not squared"]),
    ("margin: half of it", lambda: checks.margin_loss(lambda a, y: 0.5 * numbers(a, y)), ["0\\.5 times"]),
    ("reconstruction: 784 times a sum", lambda: checks.reconstruction_loss(lambda a, b: 0.392 * (a - b).square().flatten(1).sum(1).mean()), ["784|strong|drown"]),
    ("mask: one-hot", lambda: checks.mask(lambda v, t: v * t[:, :, None] if t.dim() == 2 else v * t[:, 99]), True),
    # layers
    ("layer: right", lambda: checks.capsule_layer(Votes(), U), True),
    ("layer: [B, K, I]", lambda: checks.capsule_layer(Turned(), U.mT, takes="bki"), True),
    ("layer: mean over the batch, short capsules", lambda: checks.capsule_layer(Votes(0.01, mean=True), U), ["batch-mates"]),
    ("layer: tiny weights", lambda: checks.capsule_layer(Votes(2e-6), U), ["standard deviation|spread|too small"]),
    ("layer: batch norm in training", lambda: checks.capsule_layer(Normed(), U), ["batch norm|eval"]),
    ("layer: one image loses its axis", lambda: checks.capsule_layer(Votes(squeeze=True), U), ["one image|batch of one|single image"]),
    ("layer: a number for each place of the batch", lambda: checks.capsule_layer(Votes(places=4), U), ["place|batch size|one image"]),
    ("routing layer: right", lambda: checks.routing_layer(Votes(), "W", "1ijdk", iterations="rounds"), True),
    ("routing layer: over the inputs", lambda: checks.routing_layer(Votes(1.0, axis=1), "W", "1ijdk", iterations="rounds"), ["over the inputs"]),
    ("routing layer: one round too many", lambda: checks.routing_layer(Votes(rounds=4), "W", "1ijdk"), ["4|four"]),
    ("primary: right", lambda: checks.primary_caps(primary, MAPS), True),
    ("couplings: as many inputs as outputs", lambda: checks.couplings(torch.rand(2, 4, 4).softmax(2)), True),
    ("couplings: nothing to choose", lambda: checks.couplings(torch.full((4, 4, 4), 0.25)), None),
]  # fmt: skip

PAIRS = [
    ("routing: over the inputs; exponential squash", lambda: checks.dynamic_routing(lambda u, n: procedure(u, n, axis=1, squash=gentle)), ["over the inputs", "exp|squash"]),
    ("routing: mean over the batch; 0.5 for 1", lambda: checks.dynamic_routing(lambda u, n: procedure(u, n, mean=True, squash=lambda s: ball(s, one=0.5))), ["over the batch", "0\\.5"]),
    ("routing: over the inputs; each number", lambda: checks.dynamic_routing(lambda u, n: procedure(u, n, axis=1, squash=each_number)), ["over the inputs", "by itself"]),
    ("routing: one too many; mean over the batch", lambda: checks.dynamic_routing(lambda u, n: procedure(u, n + 1, mean=True)), ["too many", "over the batch"]),
    ("routing: over the inputs; silent below 0.05", lambda: checks.dynamic_routing(lambda u, n: procedure(u, n, axis=1, squash=silent_below)), ["over the inputs", "squash"]),
    ("margin: softmax; not squared", lambda: checks.margin_loss(lambda a, y: numbers(a, y, soft=True, power=1)), ["softmax", "not squared"]),
    ("margin: one-hot; mean; no weight", lambda: checks.margin_loss(lambda a, t: hinges(a, t, mean=True, weight=1)), ["over the classes", "λ"]),
    ("primary: scrambled; ReLU", lambda: checks.primary_caps(lambda x: primary(x, relu=True, scrambled=True), MAPS), ["one place|memory order", "orthant"]),
    ("layer: mean over the batch; wide weights", lambda: checks.capsule_layer(Votes(3.0, mean=True), U), ["batch-mates", "standard deviation"]),
    ("routing layer: over the inputs; mean over the batch", lambda: checks.routing_layer(Votes(1.0, axis=1, mean=True), "W", "1ijdk", iterations="rounds"), ["over the inputs", "over the batch"]),
]  # fmt: skip
