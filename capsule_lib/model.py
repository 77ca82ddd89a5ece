"""The whole network, and the three sizes of it that the course uses."""

import dataclasses
import reprlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from capsule_lib.contract import COUNT, check_labels, check_pictures, check_tensor, check_tuple, present_classes
from capsule_lib.device import exportable
from capsule_lib.layers import Decoder, DigitCaps, PrimaryCaps, check_depthwise
from capsule_lib.routing import length


@dataclass(frozen=True)
class CapsNetConfig:
    """Everything that fixes a network's shape. The defaults are the paper's network for MNIST (section 4, figures 1 and 2).

    Raises:
        ValueError: a field that is not what its comment says, or images too small for the convolutions.
    """

    image_shape: tuple[int, int, int] = (1, 28, 28)  # channels, height, width
    classes: int = 10
    stem_channels: int = 256  # where `stem` gives layers, those of the last
    kernel_size: int = 9  # of the stem (stride 1), unless `stem` gives layers, and of the primary capsules (stride 2)
    types: int = 32  # kinds of primary capsules at each place
    primary_dim: int = 8
    class_dim: int = 16
    iterations: int = 3
    decoder_hidden: tuple[int, ...] | None = (512, 1024)  # None: no decoder
    stem: tuple[tuple[int, int, int], ...] | None = None  # layers (channels, kernel, stride) with batch norm
    depthwise: bool = False  # see PrimaryCaps

    def __post_init__(self):
        for name in (field.name for field in dataclasses.fields(self)):
            value = getattr(self, name)
            if name == "image_shape":  # written on a card, tuples come back as lists
                value = check_tuple(name, value, 3)
            elif name == "stem" and value is not None:
                if not isinstance(value, tuple | list) or not value:
                    raise ValueError(f"stem: expected layers (channels, kernel, stride); got {reprlib.repr(value)}")
                value = tuple(check_tuple("stem", layer, 3) for layer in value)
                object.__setattr__(self, "stem_channels", value[-1][0])
            elif name not in ("decoder_hidden", "stem", "depthwise"):
                value = COUNT.check(name, value)
            elif name == "decoder_hidden" and value is not None:
                value = check_tuple(name, value)
            object.__setattr__(self, name, value)
        check_depthwise(self.depthwise, self.stem_channels, self.types, self.primary_dim)
        smallest = 1
        for kernel, stride in reversed(self._convolutions()):
            smallest = (smallest - 1) * stride + kernel
        if min(self.image_shape[1:]) < smallest:
            kernels = ", ".join(str(kernel) for kernel, _ in self._convolutions())
            raise ValueError(
                f"images of {self.image_shape[1]} x {self.image_shape[2]} pixels are too small: convolutions with kernels "
                f"of {kernels} need at least {smallest} x {smallest}; use larger images or smaller kernels"
            )

    def _convolutions(self) -> list[tuple[int, int]]:
        """Kernel and stride of each convolution, that of the primary capsules last."""
        stem = [layer[1:] for layer in self.stem] if self.stem else [(self.kernel_size, 1)]
        return [*stem, (self.kernel_size, 2)]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of primary capsules of one type."""
        rows, columns = self.image_shape[1:]
        for kernel, stride in self._convolutions():
            rows, columns = (rows - kernel) // stride + 1, (columns - kernel) // stride + 1
        return rows, columns


PRESETS = {
    "paper": CapsNetConfig(),  # 8,215,568 parameters, 6,804,224 of them outside the decoder
    "small": CapsNetConfig(stem_channels=64, types=8),  # 2,117,072; trains in about a minute on two CPU cores
    # The layout of Efficient-CapsNet (Mazzia et al. 2021): 1,572,880, only 161,536 of them outside the decoder.
    "compact": CapsNetConfig(types=16, stem=((32, 5, 1), (64, 3, 1), (64, 3, 1), (128, 3, 2)), depthwise=True),
}


@exportable
class CapsNetOutput(NamedTuple):
    """lengths [B, J] in 0..1; capsules [B, J, D]; reconstruction [B, C, H, W] in 0..1, of sets one per class; None without decoder."""

    lengths: Tensor
    capsules: Tensor
    reconstruction: Tensor | None


class CapsNet(nn.Module):
    """Stem convolution, primary capsules, class capsules and decoder (figures 1 and 2).

        net = CapsNet.from_preset("small")
        out = net(images)             # redraws from the longest capsule: for use
        out = net(images, labels)     # redraws from the label's capsule, or from each of a set: for training
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
        if config.stem is None:
            self.stem = nn.Conv2d(config.image_shape[0], config.stem_channels, config.kernel_size)
        else:
            layers, widths = [], [config.image_shape[0], *(layer[0] for layer in config.stem)]
            for before, (width, kernel, stride) in zip(widths, config.stem, strict=False):
                layers += [nn.Conv2d(before, width, kernel, stride), nn.BatchNorm2d(width), nn.ReLU()]
            self.stem = nn.Sequential(*layers[:-1])  # the last ReLU is that of `primary`, whatever the stem is
        self.primary_caps = PrimaryCaps(
            config.stem_channels, config.types, config.primary_dim, config.kernel_size, 2, config.depthwise
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
        """A freshly initialised network: 'paper', 'small' or 'compact'."""
        if name not in PRESETS:
            raise ValueError(
                f"no preset {name!r}: choose one of {', '.join(map(repr, PRESETS))}, or pass a CapsNetConfig to CapsNet"
            )
        return cls(PRESETS[name])

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        return self.primary_caps.conv.weight.device

    def primary(self, images: Tensor) -> Tensor:
        """Primary capsules u [B, I, K] of images [B, C, H, W]."""
        check_pictures(images, self.config.image_shape)
        if images.device != self.device:
            raise ValueError(f"the network is on {self.device}, the images on {images.device}: images.to(net.device)")
        return self.primary_caps(torch.relu(self.stem(images.to(self.primary_caps.conv.weight.dtype))))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> CapsNetOutput:
        v = self.digit_caps(self.primary(images))
        lengths = length(v)
        if getattr(labels, "ndim", 1) == 2:  # a set of classes: the decoder is run once for each
            rows, chosen = present_classes(labels, *v.shape[:2]).nonzero(as_tuple=True)
        else:
            rows, chosen = slice(None), lengths.argmax(dim=1) if labels is None else check_labels(labels, *v.shape[:2])
        return CapsNetOutput(lengths, v, self.decoder(v[rows], chosen) if self.decoder else None)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Class capsules [N, J, D] of images [N, C, H, W], from any device, a few hundred at a time, in evaluation mode."""
        check_pictures(images, self.config.image_shape)
        training = self.training
        self.eval()
        v = torch.cat([self.digit_caps(self.primary(some.to(self.device))) for some in images.split(250)])
        self.train(training)
        return v

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
        v = torch.zeros(len(capsules), classes, dim, dtype=self.primary_caps.conv.weight.dtype, device=self.device)
        v[torch.arange(len(v), device=self.device), labels] = capsules.to(v)
        return self.decoder(v, labels)
