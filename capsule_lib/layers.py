"""The layers of a capsule network: primary capsules, class capsules, and the decoder that redraws the image."""

import itertools
import math

import torch
from torch import Tensor, nn

from capsule_lib.contract import COUNT, check_sizes, check_tensor, check_tuple, present_classes
from capsule_lib.routing import check_shapes, route, squash, without_autocast


class PrimaryCaps(nn.Module):
    """A convolution whose channels are read as vectors, then squashed (section 4).

    [B, C, H, W] -> [B, I, K] with I = types x H' x W' capsules of K = `dim` dimensions. The K dimensions of a capsule
    all come from one place of the feature map. Capsules are ordered by type, then row, then column.

    There is no ReLU: it would confine the vectors to one orthant. With `depthwise` each dimension comes from a
    channel of its own, C = types x K, so that the layer has C times fewer weights (Mazzia et al. 2021).
    """

    def __init__(
        self, in_channels: int, types: int, dim: int, kernel_size: int = 9, stride: int = 2, depthwise: bool = False
    ):
        super().__init__()
        check_sizes(in_channels=in_channels, types=types, dim=dim, kernel_size=kernel_size, stride=stride)
        check_depthwise(depthwise, in_channels, types, dim)
        self.dim = dim
        groups = in_channels if depthwise else 1  # no bias: the stem's batch norm has shifted each channel already
        self.conv = nn.Conv2d(in_channels, dim * types, kernel_size, stride, groups=groups, bias=not depthwise)

    def forward(self, x: Tensor) -> Tensor:
        # Channel k * types + t is dimension k of type t. So a view separates the K dimensions of a capsule from everything
        # that tells capsules apart (type, row, column), and nothing moves in memory: [B, K*types, H', W'] -> [B, K, I].
        check_tensor(x, "feature maps", "[B, C, H, W]")
        if x.shape[1] != self.conv.in_channels or min(x.shape[2:]) < self.conv.kernel_size[0]:
            raise ValueError(
                f"these primary capsules take feature maps [B, {self.conv.in_channels}, H, W] of at least "
                f"{self.conv.kernel_size[0]} x {self.conv.kernel_size[0]}; got {list(x.shape)}"
            )
        if self.conv.groups > 1:  # in bfloat16 a CPU takes several times as long for the gradient of a depthwise one
            with without_autocast(x):
                x = self.conv(x.to(self.conv.weight.dtype))
        else:
            x = self.conv(x)
        return squash(x.unflatten(1, (self.dim, -1)).flatten(2).transpose(1, 2))


def check_depthwise(depthwise: object, channels: int, types: int, dim: int) -> None:
    """Raise a ValueError unless `depthwise` is False, or True where each dimension has a channel of its own."""
    if not isinstance(depthwise, bool) or (depthwise and channels != types * dim):
        wanted = f"True with {types} x {dim} channels, one for each dimension of each type, or False"
        raise ValueError(f"depthwise: expected {wanted}; got {depthwise!r} with {channels} channels")


class DigitCaps(nn.Module):
    """Class capsules: a learned matrix for each pair (i, j) turns input capsule i into a vote for output capsule j,
    and routing by agreement gathers the votes (equations 2 and 3, procedure 1).

    [B, I, K] -> [B, J, D]. `weight` is [J, K, I, D], in the order that `routing.route` explains. With `detach=False` the
    gradient runs through every iteration, as an attack or a saliency map needs; see `routing.dynamic_routing`.
    """

    def __init__(
        self,
        in_capsules: int,
        in_dim: int,
        out_capsules: int,
        out_dim: int,
        iterations: int = 3,
        *,
        detach: bool = True,
    ):
        super().__init__()
        check_sizes(in_capsules=in_capsules, in_dim=in_dim, out_capsules=out_capsules, out_dim=out_dim)
        self.iterations, self.detach = COUNT.check("iterations", iterations), detach
        # At a standard deviation of 0.1 the untrained classes of the paper's network are short; at 1 more than half of them
        # would be longer than 0.9, where squash is flat. Before squash a length grows as 0.1 sqrt(I K D) / J, which is 1.92 in
        # `small` and 3.84 in `paper`. Layers of other sizes are kept within the same bounds, so that neither many input
        # capsules nor a stack of layers saturates.
        unit = out_capsules / math.sqrt(in_capsules * in_dim * out_dim)
        spread = min(max(0.1, 1.9 * unit), 3.9 * unit)
        self.weight = nn.Parameter(spread * torch.randn(out_capsules, in_dim, in_capsules, out_dim))

    def votes(self, u: Tensor) -> Tensor:
        """The votes u_hat [B, I, J, D] of input capsules u [B, I, K]: to look at. The forward pass never builds them."""
        u, weight = check_shapes(u, self.weight)
        with without_autocast(u):
            return torch.einsum("bik,jkid->bijd", u, weight)

    def forward(self, u: Tensor, return_couplings: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Output capsules [B, J, D]; with `return_couplings` also the couplings [iterations, B, I, J]."""
        return route(u, self.weight, self.iterations, detach=self.detach, return_couplings=return_couplings)


class Decoder(nn.Module):
    """Redraws the image from one class capsule, the others masked to zero (section 4.1, figure 2).

    Capsules [B, J, D] and classes [B] -> images [B, C, H, W] in 0..1.
    """

    def __init__(self, capsules: int, dim: int, hidden: tuple[int, ...], image_shape: tuple[int, int, int]):
        super().__init__()
        self.capsules, self.dim = check_sizes(capsules=capsules, dim=dim)
        self.hidden, self.image_shape = check_tuple("hidden", hidden), check_tuple("image_shape", image_shape, 3)
        sizes = [capsules * dim, *self.hidden, math.prod(self.image_shape)]
        layers = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1], nn.Sigmoid(), nn.Unflatten(1, self.image_shape))

    def forward(self, v: Tensor, classes: Tensor) -> Tensor:
        check_tensor(v, "capsules", "[B, J, D]")
        if v.shape[1:] != (self.capsules, self.dim):
            raise ValueError(f"this decoder takes capsules [B, {self.capsules}, {self.dim}]; got {list(v.shape)}")
        keep = present_classes(classes, v.shape[0], self.capsules)
        # Autocast's half precision would draw in steps of 1/256, and save little time.
        with without_autocast(v):
            return self.layers((v * keep[:, :, None]).flatten(1).to(self.layers[0].weight.dtype))
