"""The contract at every door: what counts as pictures, labels and settings, and what to do where something else comes.

Pictures are floating-point tensors [N, C, H, W] with values in 0..1. Labels are integer tensors [N] of any integer type, or the set
of classes that are present, [N, J] of 0 and 1. Whatever takes them asks here, so the same input gets the same answer everywhere.
"""

import numbers
import reprlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 1e-4  # how far a value may lie outside its range: a turned or scaled picture is interpolated


@dataclass(frozen=True)
class Kind:
    """A kind of setting: what it is in words, its type, and which values fit."""

    words: str
    type: type
    fits: Callable[[float], bool]

    def check(self, name: str, value: object) -> float:
        """The value as this kind's type; else a ValueError that says what was expected of the setting `name`."""
        number = numbers.Integral if self.type is int else numbers.Real
        if isinstance(value, bool) or not isinstance(value, number) or not self.fits(value):
            raise ValueError(f"{name}: expected {self.words}; got {reprlib.repr(value)}")
        return self.type(value)


COUNT = Kind("a whole number from 1 on", int, lambda n: n >= 1)
WHOLE = Kind("0 or a whole number above it", int, lambda n: n >= 0)
POSITIVE = Kind("a number above 0", float, lambda x: 0 < x < float("inf"))
WEIGHT = Kind("0 or a number above it", float, lambda x: 0 <= x < float("inf"))
SHARE = Kind("a share of 1, from 0 to less than 1", float, lambda x: 0 <= x < 1)
DEGREES = Kind("degrees from 0 to 180", float, lambda x: 0 <= x <= 180)
# A seed times a million still fits into 64 bits.
SEED = Kind("a whole number from 0 to 2**40 - 1", int, lambda n: 0 <= n < 2**40)


def check_sizes(**sizes: object) -> tuple[int, ...]:
    """The sizes of a layer by name, each a whole number from 1 on; else a ValueError names the one that is not."""
    return tuple(COUNT.check(name, size) for name, size in sizes.items())


def check_tuple(name: str, sizes: object, count: int | None = None) -> tuple[int, ...]:
    """Several sizes as a tuple, `count` of them where it is given; a list is welcome."""
    if not isinstance(sizes, tuple | list) or count not in (None, len(sizes)):
        many = f"{count} " if count else ""
        raise ValueError(f"{name}: expected a tuple of {many}whole numbers; got {reprlib.repr(sizes)}")
    return tuple(COUNT.check(name, size) for size in sizes)


def check_tensor(x: object, what: str, axes: str, floating: bool = True) -> Tensor:
    """`x`, if it is a tensor with as many axes as `axes` names, such as '[B, J]', not empty, and of real numbers.

    Raises:
        TypeError: not a tensor.
        ValueError: another number of axes, nothing in it, or numbers of another type: floating-point ones are wanted, or whole ones.
    """
    if not isinstance(x, Tensor):
        remedy = "convert it with torch.as_tensor" if hasattr(x, "__array__") or isinstance(x, list | tuple) else ""
        remedy = "take its batches one by one: for images, labels in loader" if hasattr(x, "dataset") else remedy
        raise TypeError(f"{what} must be a tensor {axes}; got {type(x).__name__}: {remedy or 'give a tensor'}")
    if x.layout != torch.strided:
        raise ValueError(f"{what} must be dense; got a {x.layout} tensor: convert it with .to_dense()")
    if x.dim() != axes.count(",") + 1:
        raise ValueError(f"{what} must be {axes}; got a tensor of shape {list(x.shape)}{_missing_axis(x, axes)}")
    if x.is_complex() or x.is_floating_point() != floating or (x.dtype == torch.bool and not floating):
        wanted, call = ("floating-point", ".float()") if floating else ("whole", ".long()")
        call = ".real" if x.is_complex() else ".float() / 255" if x.dtype == torch.uint8 and "H" in axes else call
        raise ValueError(f"{what} must be {wanted} numbers; got {x.dtype}: convert with {call}")
    if 0 in x.shape:
        raise ValueError(f"{what} must not be empty; got a tensor of shape {list(x.shape)}: give at least one")
    return x


def check_pictures(images: object, shape: tuple[int, int, int] | None = None) -> Tensor:
    """`images`, if they are pictures [N, C, H, W] in 0..1, and of this (C, H, W) where it is given.

    Raises:
        TypeError: not a tensor.
        ValueError: another shape or type, an empty batch, or values that are not finite or outside 0..1.
    """
    images = check_tensor(images, "images", "[N, C, H, W]")
    if shape is not None and tuple(images.shape[1:]) != tuple(shape):
        raise ValueError(
            f"this network takes images {['B', *shape]}; got {list(images.shape)}: {_reshaping(images.shape, shape)}"
        )
    in_unit_range(images, "images", "leave out the normalisation to mean 0, and limit added noise with .clamp(0, 1)")
    return images


def in_unit_range(x: Tensor, what: str, remedy: str, nan: bool = False) -> None:
    """Raise a ValueError unless all values lie in 0..1 (`nan`: or are not a number, which is another check's matter)."""
    if _holds(lambda: (((x >= -ROUNDING) & (x <= 1 + ROUNDING)) | (nan & x.isnan())).all()):
        return
    low, high, finite = x.min().item(), x.max().item(), x.isfinite().flatten(1).all(dim=1)
    if not finite.all() and not nan:
        got, remedy = (
            f"values that are not finite, first in number {int(finite.int().argmin())}",
            "repair it, or leave it out",
        )
    else:
        got = f"{low:.2f}..{high:.2f}"
        remedy = "divide by 255, the largest value of a byte" if low >= 0 and high > 2 and what == "images" else remedy
    raise ValueError(f"{what} must lie in 0..1; got {got}: {remedy}")


def check_labels(labels: object, count: int | None, classes: int | None) -> Tensor:
    """Class numbers [count] as int64, if they are integers in 0..classes-1 (None: not known yet).

    Raises:
        TypeError: not a tensor.
        ValueError: not integers, not one label per image, or a label that is not a class.
    """
    labels = check_tensor(labels, "labels", "[N]", floating=False)
    if count is not None and labels.shape[0] != count:
        raise ValueError(f"{count} images need as many labels, one per image; got {labels.shape[0]}")
    if not _holds(lambda: (labels.amin() >= 0) & (classes is None or labels.amax() < classes)):
        raise ValueError(
            f"labels must lie in 0..{classes - 1 if classes else ''}; got {int(labels.min())}..{int(labels.max())}: "
            "count classes from 0, and give the network as many classes as the data has"
        )
    return labels.long()


def present_classes(labels: object, count: int, classes: int) -> Tensor:
    """The classes present in each image, [count, classes] of False and True, from class numbers or from a set [count, classes].

    Raises:
        TypeError, ValueError: as `check_labels`; or a set that holds anything but 0 and 1.
    """
    if not isinstance(labels, Tensor) or labels.dim() != 2:
        labels = check_labels(labels, count, classes)
        return labels[:, None] == torch.arange(classes, device=labels.device)
    if labels.shape != (count, classes) or labels.is_complex() or labels.layout != torch.strided:
        raise ValueError(f"a set of classes is [{count}, {classes}], 0 or 1 per class; got {list(labels.shape)}")
    if not _holds(lambda: ((labels == 0) | (labels == 1)).all()):
        low, high = labels.min().item(), labels.max().item()
        raise ValueError(f"a set of classes holds 0 and 1 only; got values in {low:g}..{high:g}: give labels == 1, say")
    return labels == 1


def _holds(condition: Callable[[], Tensor]) -> bool:
    """Whether a condition on values holds. While a graph is traced, under vmap and on the meta device there are no values: True."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    try:
        return bool(condition())
    except RuntimeError:
        return True


def _missing_axis(x: Tensor, axes: str) -> str:
    if "H" not in axes:
        return ""
    views = {3: "images[:, None] adds an axis of channels, images[None] one of images", 2: "images.view(-1, 1, H, W)"}
    return f": {views[x.dim()]}" if x.dim() in views else ""


def _reshaping(got: torch.Size, wanted: tuple[int, int, int]) -> str:
    """How pictures of one shape become pictures of another."""
    channels, height, width = wanted
    if tuple(got[1:]) == (height, width, channels):
        return "move the channels to the front with images.permute(0, 3, 1, 2)"
    if tuple(got[2:]) == (height, width) and 1 in (channels, got[1]):
        grey = "images.mean(1, keepdim=True)" if channels == 1 else f"images.expand(-1, {channels}, -1, -1)"
        return f"give them {channels} channel{'s' * (channels > 1)} with {grey}"
    return "resize them, or build a CapsNet with this image_shape"
