"""The networks that are compared: capsule networks, the same with a part taken out, and what others would use instead."""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capsule_lib.contract import COUNT, check_pictures
from capsule_lib.losses import margin_loss
from capsule_lib.model import PRESETS, CapsNet, CapsNetOutput

CLASSES = 10
LAST = 160  # width of the CNN's last layer: that of ten class capsules of 16 dimensions


class Classifier(nn.Module):
    """Features [B, width] of pictures [B, 1, H, W], and a linear layer that scores the classes.

    The trainer and `evaluate` take it as they take a CapsNet: the scores [B, 10] stand where a CapsNet has lengths.
    """

    decoder = None

    def __init__(self, features: nn.Module, width: int):
        super().__init__()
        self.features, self.scores = features, nn.Linear(width, CLASSES)
        self.to(memory_format=torch.channels_last)  # convolutions on a CPU are faster so

    def forward(self, images: Tensor, labels: Tensor | None = None) -> CapsNetOutput:
        """`labels` change nothing; a CapsNet takes them."""
        check_pictures(images)
        return CapsNetOutput(self.scores(self.features(images)).float(), None, None)


def small(pixels: int, preset: str = "small", **changes) -> CapsNet:
    """The preset `small`, or another one, for pictures of another size, with other fields of its config."""
    return CapsNet(dataclasses.replace(PRESETS[preset], image_shape=(1, pixels, pixels), **changes))


def cnn(pixels: int) -> Classifier:
    """An ordinary CNN with as many parameters, to within 1 %, as `small` has without its decoder."""

    def layers(width: int) -> list[nn.Module]:
        blocks = []
        for before, after in [(1, 32), (32, 32), (32, width), (width, width)]:
            blocks += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            blocks += [nn.MaxPool2d(2)] if before == after else []
        return [*blocks, nn.Flatten(), nn.Linear(width * (pixels // 4) ** 2, LAST), nn.ReLU()]

    def excess(width: int) -> int:
        with torch.device("meta"):
            return abs(parameters(Classifier(nn.Sequential(*layers(width)), LAST)) - wanted)

    with torch.device("meta"):
        wanted = parameters(small(pixels, decoder_hidden=None))
    return Classifier(nn.Sequential(*layers(min(range(64, 128), key=excess))), LAST)


def pooling(pixels: int) -> Classifier:
    """Both convolutions of `small`, and then the mean over all places instead of the capsules."""
    channels, kernel = PRESETS["small"].stem_channels, PRESETS["small"].kernel_size
    width = PRESETS["small"].types * PRESETS["small"].primary_dim
    stem = [nn.Conv2d(1, channels, kernel), nn.ReLU(), nn.Conv2d(channels, width, kernel, stride=2), nn.ReLU()]
    return Classifier(nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten()), width)


def resnet_18(pixels: int) -> Classifier:
    """torchvision's. Its first layer, 7 x 7 with stride 2 and then pooled by 2, made for 224 pixels, becomes 3 x 3 with stride 2."""
    from torchvision.models import resnet18  # here, as below: it takes longer to import than all else

    net = resnet18()
    net.conv1, net.maxpool, net.fc = nn.Conv2d(1, 64, 3, stride=2, padding=1, bias=False), nn.Identity(), nn.Identity()
    return Classifier(net, 512)


def vgg_11(pixels: int) -> Classifier:
    """torchvision's, with batch norm. Its first layer pads by 3, so that 28 pixels can be halved five times; its three linear layers,
    made for 7 x 7 places and 1,000 classes, become the one that scores."""
    from torchvision.models import vgg11_bn

    with torch.device("meta"):  # no random numbers are drawn for the 120 million weights of the linear layers
        layers = vgg11_bn(init_weights=False).features
    for layer in layers.to_empty(device="cpu"):
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    layers[0] = nn.Conv2d(1, 64, 3, padding=3)
    return Classifier(nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 512)


def vit(pixels: int) -> Classifier:
    """torchvision's VisionTransformer, small: patches of 4 x 4 pixels, 6 layers, 4 heads, 128 wide."""
    from torchvision.models import VisionTransformer

    net = VisionTransformer(image_size=pixels, patch_size=4, num_layers=6, num_heads=4, hidden_dim=128, mlp_dim=256)
    net.conv_proj, net.heads = nn.Conv2d(1, 128, 4, stride=4), nn.Identity()
    return Classifier(net, 128)


class Enlarged(nn.Module):
    """Grey pictures [B, 1, H, W] in 0..1 as networks that were trained on ImageNet expect them: [B, 3, 224, 224], in its mean and spread."""

    def forward(self, images: Tensor) -> Tensor:
        mean, spread = images.new_tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
        large = F.interpolate(images, size=224, mode="bilinear", antialias=True)
        return (large - mean) / spread


def pretrained_vit(pixels: int, weights: str | None = "IMAGENET1K_V1") -> Classifier:
    """torchvision's ViT-B/16 with its ImageNet weights, 330 MB that are downloaded once, to be trained on. `pixels` may be any."""
    from torchvision.models import vit_b_16

    try:
        net = vit_b_16(weights=weights)
    except OSError as error:  # among them what urllib raises
        raise OSError(
            f"{PRETRAINED_VIT!r} needs weights that could not be downloaded ({error}): connect once, or leave this network out"
        ) from error
    net.heads = nn.Identity()
    return Classifier(nn.Sequential(Enlarged(), net), 768)


PRETRAINED_VIT = "pretrained ViT"
# Another network is one more line. Each is built for square pictures of so many pixels, with 10 classes.
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "small": small,
    "uniform couplings": lambda pixels: small(pixels, iterations=1),
    "no reconstruction": lambda pixels: small(pixels, decoder_hidden=None),
    "CNN": cnn,
    "global pooling": pooling,
    "ResNet-18": resnet_18,
    "VGG-11": vgg_11,
    "ViT": vit,
    "compact": lambda pixels: small(pixels, "compact"),
    "compact, uniform couplings": lambda pixels: small(pixels, "compact", iterations=1),
    "compact, no reconstruction": lambda pixels: small(pixels, "compact", decoder_hidden=None),
    PRETRAINED_VIT: pretrained_vit,
}
OFFLINE = [name for name in NETWORKS if name != PRETRAINED_VIT]  # what is run where nothing else is asked for


def build(name: str, pixels: int = 28) -> nn.Module:
    """A freshly initialised network of `NETWORKS` for pictures [B, 1, pixels, pixels], in evaluation mode.

    Raises:
        ValueError: an unknown network, or one that does not fit pictures of this size.
    """
    if name not in NETWORKS:
        raise ValueError(f"no network {name!r}: choose from {', '.join(map(repr, NETWORKS))}")
    COUNT.check("pixels", pixels)
    try:
        net = NETWORKS[name](pixels).eval()
        with torch.no_grad():
            scores = list(net(torch.zeros(2, 1, pixels, pixels)).lengths.shape)
        if scores != [2, CLASSES]:
            raise ValueError(f"its scores of 2 pictures should be [2, {CLASSES}] and are {scores}")
    except (ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise ValueError(
            f"{name} does not fit pictures of {pixels} x {pixels} pixels ({error}): it is meant for 28 and 40; "
            "change its first layer in capsule_lib/experiments/networks.py"
        ) from error
    return net


def loss_of(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """What a network is trained with: the margin loss (equation 4) for class capsules, cross-entropy for all others."""
    return margin_loss if isinstance(net, CapsNet) else F.cross_entropy


def parameters(net: nn.Module | None) -> int:
    """How many numbers are learned."""
    return sum(p.numel() for p in net.parameters()) if net else 0


@torch.no_grad()
def last_features(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """What a network knows of pictures [N, 1, H, W] just before it scores them: [N, width] on the CPU.

    Of a CapsNet it is the capsule of the label, so labels [N] count; of a `Classifier` what its last layer takes.
    """
    device = next(net.parameters()).device
    if isinstance(net, CapsNet):
        return net.encode(images).cpu()[torch.arange(len(labels)), labels]
    return torch.cat([net.features(some.to(device)).cpu() for some in images.split(250)])
