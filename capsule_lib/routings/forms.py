"""Six ways to gather votes, each as published, but for what its docstring names; all between the same two shapes.

Shapes: votes [B, I, J, D]; output capsules v [B, J, D]; couplings [T, B, I, J], those that each of T iterations used.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capsule_lib.routing import dynamic_routing, length, squash


def with_lengths(poses: Tensor, lengths: Tensor) -> Tensor:
    """Capsules in the direction of poses [B, J, D] with lengths [B, J]. A zero pose has none, and stays zero."""
    own = length(poses, keepdim=True)
    return lengths[:, :, None] * poses / torch.where(own > 0, own, 1)


def gathered(couplings: Tensor, votes: Tensor) -> Tensor:
    """s_j, the sum over i of c_ij times vote ij: [B, I, J] and [B, I, J, D] -> [B, J, D]."""
    return torch.einsum("bij,bijd->bjd", couplings, votes)


def agreement(votes: Tensor, wholes: Tensor) -> Tensor:
    """The dot product of each vote [B, I, J, D] with its whole [B, J, D]: [B, I, J]."""
    return torch.einsum("bijd,bjd->bij", votes, wholes)


def recurrent(cell: nn.GRUCell, x: Tensor, state: Tensor) -> Tensor:
    """A gated recurrent unit, cell(x, state), written out: PyTorch's own can't be computed on every accelerator."""
    gates = F.linear(x, cell.weight_ih, cell.bias_ih).chunk(3, dim=-1)
    own = F.linear(state, cell.weight_hh, cell.bias_hh).chunk(3, dim=-1)
    reset, keep = (gates[0] + own[0]).sigmoid(), (gates[1] + own[1]).sigmoid()
    new = (gates[2] + reset * own[2]).tanh()
    return new + keep * (state - new)


class Uniform(nn.Module):
    """No routing: every coupling is 1/J. It is one iteration of dynamic routing."""

    def __init__(self, in_capsules: int, out_capsules: int, dim: int, iterations: int):
        super().__init__()

    def forward(self, votes: Tensor) -> tuple[Tensor, Tensor]:
        couplings = votes.new_full(votes.shape[:3], 1 / votes.shape[2])
        return squash(gathered(couplings, votes)), couplings[None]


class Dynamic(nn.Module):
    """Routing by agreement (Sabour et al. 2017, procedure 1): logits add up, gradients flow through the last iteration alone."""

    def __init__(self, in_capsules: int, out_capsules: int, dim: int, iterations: int):
        super().__init__()
        self.iterations = iterations

    def forward(self, votes: Tensor) -> tuple[Tensor, Tensor]:
        return dynamic_routing(votes, self.iterations, return_couplings=True)


class EM(nn.Module):
    """EM routing (Hinton et al. 2018, procedure 1) for vectors: each whole is a Gaussian of its own, fitted to the votes for it.

    Left out: 4 x 4 matrices as poses, coordinates added to the votes, and the activations of the input capsules, which all count
    as 1. The length of v is the whole's activation, its direction that of the Gaussian's mean.
    """

    def __init__(self, in_capsules: int, out_capsules: int, dim: int, iterations: int):
        super().__init__()
        if min(in_capsules, out_capsules) < 2:
            raise ValueError(
                f"EM routing takes at least 2 input and 2 output capsules; got {in_capsules} and {out_capsules}: of one "
                "vote there is no variance, and with one output nothing is shared out"
            )
        self.iterations = iterations
        self.beta_u, self.beta_a = (nn.Parameter(torch.zeros(out_capsules)) for _ in range(2))
        # The cost is a sum over votes and dimensions. So the inverse temperature goes by their number: activations of an untrained
        # layer are then neither 0 nor 1 at any size. Its rise over the iterations, 1 - 0.95^t, is the authors'.
        self.sharpness = 4 * out_capsules / (in_capsules * dim)

    def forward(self, votes: Tensor) -> tuple[Tensor, Tensor]:
        rounds = [votes.new_full(votes.shape[:3], 1 / votes.shape[2])]
        for t in range(1, self.iterations + 1):
            r = rounds[-1]  # M-step: of each whole its mean, variance and activation
            amount = r.sum(dim=1)[:, :, None] + 1e-8
            mean = gathered(r, votes) / amount
            squares = (votes - mean[:, None]) ** 2
            variance = gathered(r, squares) / amount + 1e-4  # or a whole with a single vote would be sure of everything
            cost = ((self.beta_u[:, None] + variance.log() / 2) * amount).sum(dim=2)
            logits = self.sharpness * (1 - 0.95**t) * (self.beta_a - cost)
            density = -(squares / variance[:, None] + variance.log()[:, None]).sum(dim=3) / 2  # E-step, in logarithms
            rounds.append((density + F.logsigmoid(logits)[:, None]).softmax(dim=2))
        return with_lengths(mean, logits.sigmoid()), torch.stack(rounds[:-1])


class SelfAttention(nn.Module):
    """Self-attention routing (Mazzia et al. 2021): a vote counts by its dot products with all votes for the same whole, once.

    `prior` [I, J] is added to the couplings after their softmax, as in the authors' code: once it has learned, they no longer sum
    to 1 over J. The squash is theirs, with a length of 1 - exp(-‖s‖).
    """

    def __init__(self, in_capsules: int, out_capsules: int, dim: int, iterations: int):
        super().__init__()
        self.prior = nn.Parameter(torch.zeros(in_capsules, out_capsules))

    def forward(self, votes: Tensor) -> tuple[Tensor, Tensor]:
        logits = agreement(votes, votes.sum(dim=1)) / math.sqrt(votes.shape[3])
        couplings = logits.softmax(dim=2) + self.prior
        s = gathered(couplings, votes)
        return with_lengths(s, -torch.expm1(-length(s))), couplings[None]


class InvertedAttention(nn.Module):
    """Inverted dot-product attention (Tsai et al. 2020, procedure 1): attention whose softmax runs over the wholes.

    Logits don't add up, layer norm replaces squash, and gradients flow through all iterations. Left out: the concurrent routing of
    several layers. Layer norm leaves no length to speak of, so, as the authors do, one linear layer for all wholes scores them;
    the sigmoid of the score is the length of v.
    """

    def __init__(self, in_capsules: int, out_capsules: int, dim: int, iterations: int):
        super().__init__()
        self.iterations, self.norm, self.score = iterations, nn.LayerNorm(dim), nn.Linear(dim, 1)

    def forward(self, votes: Tensor) -> tuple[Tensor, Tensor]:
        poses, rounds = torch.zeros_like(votes[:, 0]), []
        for _ in range(self.iterations):
            rounds.append((agreement(votes, poses) / math.sqrt(votes.shape[3])).softmax(dim=2))
            poses = self.norm(gathered(rounds[-1], votes))
        return with_lengths(poses, self.score(poses).squeeze(2).sigmoid()), torch.stack(rounds)


class SlotAttention(nn.Module):
    """Slot attention (Locatello et al. 2020, algorithm 1): inverted attention with learned queries, keys, values and updates.

    A slot is updated from the weighted *mean* of values. Here keys and values come from the votes, which differ from whole to whole; in the
    paper all slots see the same inputs. Classes are not exchangeable, so each slot starts where it has learned to, not at
    random. The length of v is the sigmoid of a score, as in `InvertedAttention`.
    """

    def __init__(self, in_capsules: int, out_capsules: int, dim: int, iterations: int):
        super().__init__()
        self.iterations = iterations
        self.slots = nn.Parameter(torch.randn(out_capsules, dim) / math.sqrt(dim))
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.norm_votes, self.norm_slots, self.norm_update = (nn.LayerNorm(dim) for _ in range(3))
        self.cell, self.score = nn.GRUCell(dim, dim), nn.Linear(dim, 1)
        self.update = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def forward(self, votes: Tensor) -> tuple[Tensor, Tensor]:
        slots, rounds = self.slots.expand(len(votes), -1, -1), []
        keys, values = (layer(self.norm_votes(votes)) for layer in (self.key, self.value))
        for _ in range(self.iterations):
            queries = self.query(self.norm_slots(slots))
            rounds.append((agreement(keys, queries) / math.sqrt(votes.shape[3])).softmax(dim=2))
            weights = rounds[-1] + 1e-8
            mean = gathered(weights / weights.sum(dim=1, keepdim=True), values)
            slots = recurrent(self.cell, mean, slots)
            slots = slots + self.update(self.norm_update(slots))
        return with_lengths(slots, self.score(slots).squeeze(2).sigmoid()), torch.stack(rounds)


ROUTINGS = {
    "uniform": Uniform,
    "dynamic": Dynamic,
    "EM": EM,
    "self-attention": SelfAttention,
    "inverted attention": InvertedAttention,
    "slot attention": SlotAttention,
}
