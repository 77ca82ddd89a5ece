"""The whole network, and the two sizes of it that the course uses."""

import dataclasses
import reprlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from capsule_lib.contract import COUNT, check_labels, check_pictures, check_tensor, check_tuple
from capsule_lib.device import exportable
from capsule_lib.layers import Decoder, DigitCaps, PrimaryCaps
from capsule_lib.routing import length


@dataclass(frozen=True)
class CapsNetConfig:
    """Everything that fixes a network's shape. The defaults are the paper's network for MNIST (section 4, figures 1 and 2).

    Raises:
        ValueError: a field that is not what its comment says, or images too small for two convolutions.
    """

    image_shape: tuple[int, int, int] = (1, 28, 28)  # channels, height, width
    classes: int = 10
    stem_channels: int = 256
    kernel_size: int = 9  # of the stem (stride 1) and of the primary capsules (stride 2)
    types: int = 32  # kinds of primary capsules at each place
    primary_dim: int = 8
    class_dim: int = 16
    iterations: int = 3
    decoder_hidden: tuple[int, ...] | None = (512, 1024)  # None: no decoder

    def __post_init__(self):
        for name in (field.name for field in dataclasses.fields(self)):
            value = getattr(self, name)
            if name == "image_shape":  # written on a card, tuples come back as lists
                value = check_tuple(name, value, 3)
            elif name != "decoder_hidden":
                value = COUNT.check(name, value)
            elif value is not None:
                value = check_tuple(name, value)
            object.__setattr__(self, name, value)
        smallest = 2 * self.kernel_size - 1
        if min(self.image_shape[1:]) < smallest:
            raise ValueError(
                f"images of {self.image_shape[1]} x {self.image_shape[2]} pixels are too small: two convolutions with kernels "
                f"of {self.kernel_size} need at least {smallest} x {smallest}; use larger images or a smaller kernel_size"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of primary capsules of one type."""
        rows, columns = ((size - self.kernel_size + 1 - self.kernel_size) // 2 + 1 for size in self.image_shape[1:])
        return rows, columns


PRESETS = {
    "paper": CapsNetConfig(),  # 8,215,568 parameters, 6,804,224 of them outside the decoder
    "small": CapsNetConfig(stem_channels=64, types=8),  # 2,117,072; trains in about a minute on two CPU cores
}


@exportable
class CapsNetOutput(NamedTuple):
    """lengths [B, J] in 0..1; capsules [B, J, D]; reconstruction [B, C, H, W] in 0..1, or None without a decoder."""

    lengths: Tensor
    capsules: Tensor
    reconstruction: Tensor | None


class CapsNet(nn.Module):
    """Stem convolution, primary capsules, class capsules and decoder (figures 1 and 2).

        net = CapsNet.from_preset("small")
        out = net(images)             # redraws from the longest capsule: for use
        out = net(images, labels)     # redraws from the label's capsule: for training
        v = net.encode(images)        # class capsules [N, J, D] of many images, without gradients
        net.decode(v[:, 4] + 0.1, 4)  # what the decoder draws from capsules [N, D] of class 4

    Images [B, C, H, W] have values in 0..1. `out` is a CapsNetOutput. The prediction is `out.lengths.argmax(1)`.

    Raises:
        TypeError, ValueError: images or labels that don't fit, on every call: see `capsule_lib.contract`.
    """

    def __init__(self, config: CapsNetConfig):
        super().__init__()
        if not isinstance(config, CapsNetConfig):
            raise TypeError(
                f"a CapsNet is built from a CapsNetConfig; got {reprlib.repr(config)}: or use CapsNet.from_preset"
            )
        self.config = config
        self.stem = nn.Conv2d(config.image_shape[0], config.stem_channels, config.kernel_size)
        self.primary_caps = PrimaryCaps(
            config.stem_channels, config.types, config.primary_dim, config.kernel_size, stride=2
        )
        rows, columns = config.grid
        in_capsules = config.types * rows * columns
        self.digit_caps = DigitCaps(
            in_capsules, config.primary_dim, config.classes, config.class_dim, config.iterations
        )
        self.decoder = None
        if config.decoder_hidden is not None:
            self.decoder = Decoder(config.classes, config.class_dim, config.decoder_hidden, config.image_shape)
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

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        return self.stem.weight.device

    def primary(self, images: Tensor) -> Tensor:
        """Primary capsules u [B, I, K] of images [B, C, H, W]."""
        check_pictures(images, self.config.image_shape)
        if images.device != self.device:
            raise ValueError(f"the network is on {self.device}, the images on {images.device}: images.to(net.device)")
        return self.primary_caps(torch.relu(self.stem(images.to(self.stem.weight.dtype))))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> CapsNetOutput:
        v = self.digit_caps(self.primary(images))
        lengths = length(v)
        chosen = lengths.argmax(dim=1) if labels is None else check_labels(labels, *v.shape[:2])
        return CapsNetOutput(lengths, v, self.decoder(v, chosen) if self.decoder else None)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Class capsules [N, J, D] of images [N, C, H, W], from any device to the network's, a few hundred at a time."""
        check_pictures(images, self.config.image_shape)
        return torch.cat([self.digit_caps(self.primary(some.to(self.device))) for some in images.split(250)])

    @torch.no_grad()
    def decode(self, capsules: Tensor, label: int | Tensor) -> Tensor:
        """Pictures [N, C, H, W] in 0..1 that the decoder draws from capsules [N, D] of class `label`, or of classes [N].

        Raises:
            ValueError: no decoder, capsules of another size, or a class that the network does not have.
        """
        if not self.decoder:
            raise ValueError("this network has no decoder, so it can't draw: build it with decoder_hidden")
        check_tensor(capsules, "capsules", "[N, D]")
        classes, dim = self.config.classes, self.config.class_dim
        if isinstance(self.decoder, Decoder):  # another one than that of the config, for other classes
            classes, dim = self.decoder.capsules, self.decoder.dim
        if capsules.shape[1] != dim:
            raise ValueError(f"capsules of this network are [N, {dim}]; got {list(capsules.shape)}")
        labels = torch.full((len(capsules),), label) if isinstance(label, int) else label
        labels = check_labels(labels, len(capsules), classes).to(self.device)
        v = torch.zeros(len(capsules), classes, dim, dtype=self.stem.weight.dtype, device=self.device)
        v[torch.arange(len(v), device=self.device), labels] = capsules.to(v)
        return self.decoder(v, labels)
