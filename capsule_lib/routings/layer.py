"""The one door of the family: checks, precision, and class capsules that use one of its members."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from capsule_lib.contract import COUNT, check_sizes, check_tensor
from capsule_lib.layers import DigitCaps
from capsule_lib.routing import without_autocast
from capsule_lib.routings.forms import ROUTINGS


class Routing(nn.Module):
    """One of `ROUTINGS`, for votes of a fixed size.

        v, couplings = Routing("EM", in_capsules=16, out_capsules=10, dim=16)(votes)

    Votes u_hat [B, I, J, D] -> output capsules v [B, J, D] with lengths in 0..1, and the couplings of each iteration [T, B, I, J].
    Half precision is promoted to float32, whatever autocast says; float64 stays. `iterations` counts for all but 'uniform' and
    'self-attention', which have one.

    Raises:
        ValueError: an unknown routing, sizes that are not whole numbers from 1 on, EM between fewer than two capsules; votes of
            another shape.
        TypeError: votes that are not a tensor.
    """

    def __init__(self, name: str, in_capsules: int, out_capsules: int, dim: int, iterations: int = 3):
        super().__init__()
        if name not in [*ROUTINGS]:  # a list, so that what can't be hashed is refused too
            raise ValueError(f"no routing {name!r}: choose one of {', '.join(map(repr, ROUTINGS))}")
        COUNT.check("iterations", iterations)
        self.sizes = check_sizes(in_capsules=in_capsules, out_capsules=out_capsules, dim=dim)
        self.form = ROUTINGS[name](*self.sizes, iterations)

    def forward(self, votes: Tensor) -> tuple[Tensor, Tensor]:
        check_tensor(votes, "votes", "[B, I, J, D]")
        if tuple(votes.shape[1:]) != self.sizes:
            raise ValueError(
                f"this routing takes votes {['B', *self.sizes]}; got a tensor of shape {list(votes.shape)}"
            )
        dtypes = [p.dtype for p in self.form.parameters()]
        for dtype in (votes.dtype, *dtypes):
            votes = votes.to(torch.promote_types(torch.promote_types(votes.dtype, dtype), torch.float32))
        learned = {name: p.to(votes.dtype) for name, p in self.form.named_parameters()}
        with without_autocast(votes):
            return functional_call(self.form, learned, (votes,))


class RoutedCaps(DigitCaps):
    """Class capsules [B, I, K] -> [B, J, D] whose votes are made as those of DigitCaps, and gathered by any of `ROUTINGS`.

    net.digit_caps = RoutedCaps(16, 8, 10, 16, "slot attention")  # in `compact`
    """

    def __init__(
        self, in_capsules: int, in_dim: int, out_capsules: int, out_dim: int, routing: str, iterations: int = 3
    ):
        # Uniform couplings are those of one iteration, and so is what a card says of them.
        super().__init__(in_capsules, in_dim, out_capsules, out_dim, 1 if routing == "uniform" else iterations)
        self.routing = Routing(routing, in_capsules, out_capsules, out_dim, iterations)

    def forward(self, u: Tensor, return_couplings: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Output capsules [B, J, D]; with `return_couplings` also the couplings [T, B, I, J]."""
        v, couplings = self.routing(self.votes(u))
        return (v, couplings) if return_couplings else v
