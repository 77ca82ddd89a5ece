"""The whole network, and the two sizes of it that the course uses."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from capsule_lib.layers import Decoder, DigitCaps, PrimaryCaps
from capsule_lib.routing import length


@dataclass(frozen=True)
class CapsNetConfig:
    """Everything that fixes a network's shape. The defaults are the paper's network for MNIST (section 4, figures 1 and 2)."""

    image_shape: tuple[int, int, int] = (1, 28, 28)  # channels, height, width
    classes: int = 10
    stem_channels: int = 256
    kernel_size: int = 9  # of the stem (stride 1) and of the primary capsules (stride 2)
    types: int = 32  # kinds of primary capsules at each place
    primary_dim: int = 8
    class_dim: int = 16
    iterations: int = 3
    decoder_hidden: tuple[int, ...] | None = (512, 1024)  # None: no decoder

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of primary capsules of one type."""
        rows, columns = ((size - self.kernel_size + 1 - self.kernel_size) // 2 + 1 for size in self.image_shape[1:])
        return rows, columns


PRESETS = {
    "paper": CapsNetConfig(),  # 8,215,568 parameters, 6,804,224 of them outside the decoder
    "small": CapsNetConfig(stem_channels=64, types=8),  # 2,117,072; trains in about a minute on two CPU cores
}


class CapsNetOutput(NamedTuple):
    """lengths [B, J] in 0..1; capsules [B, J, D]; reconstruction [B, C, H, W] in 0..1, or None without a decoder."""

    lengths: Tensor
    capsules: Tensor
    reconstruction: Tensor | None


class CapsNet(nn.Module):
    """Stem convolution, primary capsules, class capsules and decoder (figures 1 and 2).

        net = CapsNet.from_preset("small")
        out = net(images)          # redraws from the longest capsule: for use
        out = net(images, labels)  # redraws from the label's capsule: for training

    Images [B, C, H, W] have values in 0..1. `out` is a CapsNetOutput. The prediction is `out.lengths.argmax(1)`.
    """

    def __init__(self, config: CapsNetConfig):
        super().__init__()
        channels, height, width = config.image_shape
        smallest = 2 * config.kernel_size - 1
        if min(height, width) < smallest:
            raise ValueError(
                f"images of {height} x {width} pixels are too small: two convolutions with kernels of "
                f"{config.kernel_size} need at least {smallest} x {smallest}; use larger images or a smaller kernel_size"
            )
        self.config = config
        self.stem = nn.Conv2d(channels, config.stem_channels, config.kernel_size)
        self.primary_caps = PrimaryCaps(
            config.stem_channels, config.types, config.primary_dim, config.kernel_size, stride=2
        )
        rows, columns = config.grid
        in_capsules = config.types * rows * columns
        self.digit_caps = DigitCaps(
            in_capsules, config.primary_dim, config.classes, config.class_dim, config.iterations
        )
        self.decoder = config.decoder_hidden and Decoder(
            config.classes, config.class_dim, config.decoder_hidden, config.image_shape
        )
        for convolution in (self.stem, self.primary_caps):  # on a CPU they then take about two thirds of the time
            convolution.to(memory_format=torch.channels_last)

    @classmethod
    def from_preset(cls, name: str) -> "CapsNet":
        """A freshly initialised network: 'paper' or 'small'."""
        if name not in PRESETS:
            raise ValueError(
                f"no preset {name!r}: choose one of {', '.join(map(repr, PRESETS))}, or pass a CapsNetConfig to CapsNet"
            )
        return cls(PRESETS[name])

    def primary(self, images: Tensor) -> Tensor:
        """Primary capsules u [B, I, K] of images [B, C, H, W]."""
        if images.dim() != 4 or images.shape[1:] != self.config.image_shape:
            raise ValueError(
                f"this network takes images {['B', *self.config.image_shape]}; got {list(images.shape)}: "
                "resize them, or build a CapsNet with this image_shape"
            )
        return self.primary_caps(torch.relu(self.stem(images)))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> CapsNetOutput:
        v = self.digit_caps(self.primary(images))
        lengths = length(v)
        chosen = lengths.argmax(dim=1) if labels is None else labels
        return CapsNetOutput(lengths, v, self.decoder(v, chosen) if self.decoder else None)
