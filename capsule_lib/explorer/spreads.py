"""How far the capsules of real digits spread along each of their dimensions: what a knob's turn is measured in."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor

from capsule_lib.files import RESTORE, find, read_shipped, write_whole
from capsule_lib.model import CapsNet
from capsule_lib.morphometry import capsules_by_class
from capsule_lib.weights import WEIGHTS, read_card

EDGES = torch.linspace(-4, 4, 25)  # of the histograms' bins, in standard deviations
LIMITS = {"standard deviations": 4.0, "raw": 0.25, "principal axes": 4.0}  # a knob lies between -limit and +limit


class Spreads(NamedTuple):
    """Where the capsules of real digits lie, class by class: what `measure_spreads` returns. Float32, on the CPU.

    mean, std [J, D]; axes [J, D, D], the principal axes as rows of length 1, largest variance first, each with its
    largest entry positive; axis_std [J, D], the standard deviation along them. counts and axis_counts [J, D, 24] say
    how many digits lie between two EDGES, in standard deviations from the mean, along dimensions and along axes;
    digits beyond the outer edges count in the outer bins.
    """

    mean: Tensor
    std: Tensor
    axes: Tensor
    axis_std: Tensor
    counts: Tensor
    axis_counts: Tensor

    def shift(self, knobs: Tensor, label: int, units: str) -> Tensor:
        """What knobs [..., D] in these units add to a capsule of class `label`: [..., D]."""
        if units == "raw":
            return knobs
        if units == "principal axes":
            return (knobs * self.axis_std[label]) @ self.axes[label]
        return knobs * self.std[label]

    def place(self, capsule: Tensor, label: int, units: str) -> Tensor:
        """How many standard deviations a capsule [D] lies from its class's mean, along each dimension or axis: [D]."""
        away = capsule - self.mean[label]
        if units == "principal axes":
            return self.axes[label] @ away / positive(self.axis_std[label])
        return away / positive(self.std[label])


def measure_spreads(net: CapsNet, images: Tensor, labels: Tensor) -> Spreads:
    """Spreads of a network's capsules over images [N, C, H, W] in 0..1 with labels [N]: of each image, the capsule of its label.

    Raises:
        TypeError, ValueError: images or labels that don't fit the network, or a class without an image.
    """
    parts = [_spread(own.cpu().double()) for own in capsules_by_class(net, images, labels)]
    return Spreads(*(torch.stack(part).float() for part in zip(*parts, strict=True)))


def _spread(x: Tensor) -> tuple[Tensor, ...]:
    """The fields of Spreads for one class, from its capsules x [N, D]."""
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)  # not N - 1: a single digit has spread 0, not none
    variances, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))  # smallest first, in columns
    axes, axis_std = vectors.T.flip(0), variances.flip(0).clamp(min=0).sqrt()
    axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()  # v and -v are the same axis: choose
    along = (x - mean) / positive(std), (x - mean) @ axes.T / positive(axis_std)
    return mean, std, axes, axis_std, *(F.one_hot(bins(z), len(EDGES) - 1).sum(dim=0) for z in along)


def bins(z: Tensor) -> Tensor:
    """In which bin of a histogram each number lies."""
    return (torch.bucketize(z, EDGES, right=True) - 1).clamp(0, len(EDGES) - 2)


def positive(std: Tensor) -> Tensor:
    return std.clamp(min=1e-12)  # a dimension in which all digits agree


def save_spreads(spreads: Spreads, weights: str | Path) -> Path:
    """Write spreads beside the weights file that they were measured with, as NAME.spreads.safetensors, whole or not at all."""
    path = find(weights).with_suffix(".spreads.safetensors")
    made_for = {"weights_sha256": read_card(weights)["sha256"]}
    write_whole({path: save({name: t.contiguous() for name, t in spreads._asdict().items()}, made_for)})
    return path


def load_spreads(name: str = "small") -> Spreads:
    """The spreads that ship with the weights of that name, measured on the shipped training digits.

    Raises:
        ValueError: none ship under that name, or the file is damaged or was made for other weights.
    """
    if not isinstance(name, str):
        raise TypeError(f"spreads ship under the name of a network, such as 'small'; got {type(name).__name__}")
    path = WEIGHTS / f"{name}.spreads.safetensors"
    remedy = f"{RESTORE}; or make it again with  python data/weights/make_spreads.py"
    if not path.is_file():
        raise ValueError(f"no spreads ship under the name {name!r} ({path} is missing): {remedy}")
    content = read_shipped(f"weights/{name}.spreads.safetensors")
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])  # safetensors' own, before the numbers
    if header["__metadata__"]["weights_sha256"] != read_card(WEIGHTS / f"{name}.safetensors")["sha256"]:
        raise ValueError(f"{path} was made for other weights than {name}.safetensors: {remedy}")
    return Spreads(**load(content))
