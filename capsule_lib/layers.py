"""The layers of a capsule network: primary capsules, class capsules, and the decoder that redraws the image."""

import itertools
import math

import torch
from torch import Tensor, nn

from capsule_lib.losses import one_hot
from capsule_lib.routing import fitting, route, squash, without_autocast


class PrimaryCaps(nn.Module):
    """A convolution whose channels are read as vectors, then squashed (section 4).

    [B, C, H, W] -> [B, I, K] with I = types x H' x W' capsules of K = `dim` numbers. The K numbers of a capsule
    all come from one place of the feature map. Capsules are ordered by type, then row, then column.

    There is no ReLU: it would confine the vectors to one orthant.
    """

    def __init__(self, in_channels: int, types: int, dim: int, kernel_size: int = 9, stride: int = 2):
        super().__init__()
        self.dim = dim
        self.conv = nn.Conv2d(in_channels, dim * types, kernel_size, stride)

    def forward(self, x: Tensor) -> Tensor:
        # Channel k * types + t is number k of type t. So a view separates the K numbers of a capsule from everything
        # that tells capsules apart (type, row, column), and no number moves: [B, K*types, H', W'] -> [B, K, I].
        u = self.conv(x).unflatten(1, (self.dim, -1)).flatten(2).transpose(1, 2)
        return squash(u)


class DigitCaps(nn.Module):
    """Class capsules: a learned matrix for each pair (i, j) turns input capsule i into a vote for output capsule j,
    and routing by agreement gathers the votes (equations 2 and 3, procedure 1).

    [B, I, K] -> [B, J, D]. `weight` is [J, K, I, D], in the order that `routing.route` explains. With `detach=False` the
    gradient runs through every iteration, as an attack or a saliency map needs; see `routing.dynamic_routing`.
    """

    def __init__(
        self, in_capsules: int, in_dim: int, out_capsules: int, out_dim: int, iterations: int = 3, *, detach: bool = True
    ):
        super().__init__()
        self.iterations, self.detach = iterations, detach
        # At standard deviation 0.1 untrained classes start short; at 1 every length would saturate near 1.
        self.weight = nn.Parameter(0.1 * torch.randn(out_capsules, in_dim, in_capsules, out_dim))

    def votes(self, u: Tensor) -> Tensor:
        """The votes u_hat [B, I, J, D] of input capsules u [B, I, K]: to look at. The forward pass never builds them."""
        with without_autocast(u):
            return torch.einsum("bik,jkid->bijd", *fitting(u, self.weight))

    def forward(self, u: Tensor, return_couplings: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Output capsules [B, J, D]; with `return_couplings` also the couplings [iterations, B, I, J]."""
        return route(u, self.weight, self.iterations, detach=self.detach, return_couplings=return_couplings)


class Decoder(nn.Module):
    """Redraws the image from one class capsule, the others masked to zero (section 4.1, figure 2).

    Capsules [B, J, D] and classes [B] -> images [B, C, H, W] in 0..1.
    """

    def __init__(self, capsules: int, dim: int, hidden: tuple[int, ...], image_shape: tuple[int, int, int]):
        super().__init__()
        self.capsules, self.image_shape = capsules, image_shape
        sizes = [capsules * dim, *hidden, math.prod(image_shape)]
        layers = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1], nn.Sigmoid(), nn.Unflatten(1, image_shape))

    def forward(self, v: Tensor, classes: Tensor) -> Tensor:
        keep = one_hot(classes, v.shape[0], self.capsules)
        # Autocast's half precision would draw in steps of 1/256, and save little time.
        with without_autocast(v):
            return self.layers((v * keep[:, :, None]).flatten(1).to(self.layers[0].weight.dtype))
