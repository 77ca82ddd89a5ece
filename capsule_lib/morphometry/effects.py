"""What a capsule's dimensions do to the drawn digit: each is swept, and the drawings at both ends are compared."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from capsule_lib.contract import COUNT, POSITIVE, check_labels, check_pictures
from capsule_lib.model import CapsNet
from capsule_lib.morphometry.measures import MEASURES, measure

LIVE = 0.02  # a dimension is called live when it changes the picture by at least this much; see `dimension_effects`

# An effect is called clear from CLEAR standard deviations on, when the measure goes the same way in SAME_SIGN of the digits.
# If the 16 dimensions of a capsule shared a measure's variance evenly, a sweep over 4 standard deviations of one of them
# would change it by 1: a clear effect is more than a fair share.
CLEAR, SAME_SIGN = 1.0, 0.9


class Effects(NamedTuple):
    """What each dimension of one class capsule does to the drawing: D dimensions x M measures, in the order of `MEASURES`.

    change [D, M]: of each measure in its own unit, mean over the digits, from the sweep's lower to its upper end.
    relative [D, M]: the same in standard deviations of the measure over the class's reconstructions, to compare measures
        with each other; a deviation below the measure's smallest change worth a word counts as that.
    same_sign [D, M]: the share of the digits in which the measure changes in the direction of the mean.
    """

    label: int
    digits: int
    spread: float
    change: Tensor
    relative: Tensor
    same_sign: Tensor

    @property
    def strongest(self) -> list[str]:
        """For each dimension the clear effect with the largest relative change, or 'nothing clear'."""
        clear = (self.relative.abs() >= CLEAR) & (self.same_sign >= SAME_SIGN)
        words = []
        for d, m in enumerate((self.relative.abs() * clear).argmax(dim=1).tolist()):
            name, (unit, _) = list(MEASURES.items())[m]
            change = f"{name} {self.change[d, m]:+.1f}{unit if unit == '°' else ' ' + unit}"
            words.append(change if clear[d, m] else "nothing clear")
        return words

    def table(self) -> tuple[str, list[list[str]], list[list[str]]]:
        """A sentence, the columns' headings (each three words) and the rows."""
        caption = (
            f"What a sweep of each dimension from -{self.spread:g} to +{self.spread:g} standard deviations changes in "
            f"the drawing of class {self.label} (mean of {self.digits} digits)"
        )
        names = [[*["", *name.split()][-2:], unit] for name, (unit, _) in MEASURES.items()]
        rows = [
            [str(d), *(f"{x:+z.1f}" for x in change), words]
            for d, (change, words) in enumerate(zip(self.change.tolist(), self.strongest, strict=True))
        ]
        return caption, [["", "", "dim."], *names, ["", "strongest", "effect"]], rows

    def __repr__(self) -> str:
        caption, heads, rows = self.table()
        lines = [*zip(*heads, strict=True), *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [
            "  ".join(cell.rjust(width) for cell, width in zip(line[:-1], widths, strict=False)) + "   " + line[-1]
            for line in lines
        ]
        return "\n".join([caption, "", *(line.rstrip() for line in aligned)])

    def _repr_html_(self) -> str:
        caption, heads, rows = self.table()
        head = "".join(f'<th scope="col">{" ".join(words).strip()}</th>' for words in heads)
        body = "".join(
            f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
            for row in rows
        )
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@torch.no_grad()
def effects(net: CapsNet, images: Tensor, labels: Tensor, label: int, digits: int = 50, spread: float = 2.0) -> Effects:
    """Measure what each dimension of a class capsule does to the drawing.

    In up to `digits` digits of the class, one dimension at a time is set to `spread` standard deviations below and above its
    mean, and both drawings are measured. Means and deviations are those of all the class's images.

    Args:
        net: with a decoder, on any device.
        images: [N, C, H, W], what the network takes; at least two of the class.
        labels: [N].
        label: the class.

    Raises:
        TypeError, ValueError: no decoder, no such class, fewer than two images of it, or images and labels that don't fit.
    """
    check_pictures(images, net.config.image_shape)
    labels = check_labels(labels, len(images), net.config.classes)
    if not net.decoder:
        raise ValueError("this network has no decoder: there is no drawing to measure")
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < net.config.classes:
        raise ValueError(f"no class {label!r}: this network's classes are 0 to {net.config.classes - 1}")
    COUNT.check("digits", digits)
    POSITIVE.check("spread", spread)
    images = images[(labels == label).to(images.device)]
    if len(images) < 2:
        raise ValueError(f"the spread of class {label} needs at least two of its images; got {len(images)}")
    own = net.encode(images)[:, label]

    def measured(pictures: Tensor) -> Tensor:
        return torch.stack(list(measure(pictures).values()), dim=1).cpu()  # [N, M]

    usual = torch.cat([measured(net.decode(some, label)) for some in own.split(250)]).std(dim=0)
    ends = drawn_ends(net, own[:digits], own, label, spread)
    changes = torch.stack([measured(high) - measured(low) for low, high in ends])  # [D, digits, M]
    change = changes.mean(dim=1)
    least = torch.tensor([least for _, least in MEASURES.values()])
    same_sign = (changes.sign() == change.sign()[:, None]).float().mean(dim=1)
    return Effects(label, min(digits, len(own)), spread, change, change / usual.maximum(least), same_sign)


def drawn_ends(net: CapsNet, capsules: Tensor, own: Tensor, label: int, spread: float = 2.0) -> Iterator[tuple]:
    """For each dimension, what is drawn where it is set to `spread` standard deviations below and above its mean.

    Args:
        capsules: of class `label` [N, D], in which one dimension at a time is set.
        own: capsules [M, D] of the class, M at least 2, whose means and standard deviations count.

    Yields:
        Two batches of pictures [N, C, H, W] per dimension.
    """
    mean, std = own.mean(dim=0), own.std(dim=0)
    for d in range(capsules.shape[1]):
        ends = []
        for value in (mean[d] - spread * std[d], mean[d] + spread * std[d]):
            v = capsules.clone()
            v[:, d] = value
            ends.append(net.decode(v, label))
        yield tuple(ends)


def capsules_by_class(net: CapsNet, images: Tensor, labels: Tensor, least: int = 1) -> list[Tensor]:
    """For each class the capsules [N, D] that its own images have for it; a ValueError where a class has fewer than `least`."""
    v = net.encode(images)
    labels = check_labels(labels, len(images), v.shape[1]).cpu()
    counts = labels.bincount(minlength=v.shape[1])
    if (counts < least).any():
        j = int((counts < least).int().argmax())
        raise ValueError(
            f"class {j} has {counts[j] or 'no'} image, and {least} are needed: measure on images of every class"
        )
    return [v[(labels == j).to(v.device), j] for j in range(v.shape[1])]


def dimension_effects(net: CapsNet, images: Tensor, labels: Tensor, digits: int = 100) -> Tensor:
    """How much each dimension of each class capsule changes the drawn picture: root-mean-square difference per pixel [J, D].

    For every class, the capsules of all its images are measured. Then, in up to `digits` of them, one dimension
    at a time is set to 2 standard deviations below and above its mean, and the two drawings are compared.
    A dimension is called live from `LIVE` on.

    Raises:
        ValueError: a class with fewer than two images, whose spread can't be measured.
    """
    return torch.stack([
        torch.stack([
            (high - low).square().flatten(1).mean(dim=1).sqrt().mean() for low, high in drawn_ends(net, own[:digits], own, j)
        ])
        for j, own in enumerate(capsules_by_class(net, images, labels, least=2))
    ]).cpu()  # fmt: skip
