"""What a capsule's numbers do to the drawn digit, measured in pixels and degrees instead of judged by eye."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from capsule_lib.model import CapsNet

# Each measure's unit, and the smallest change worth a word: digits of MNIST are centred, so that without it a shift by half a
# pixel, which nobody sees, would count as more than one standard deviation.
MEASURES = {
    "stroke thickness": ("px", 0.5),
    "slant": ("°", 5.0),
    "width": ("px", 1.0),
    "height": ("px", 1.0),
    "horizontal position": ("px", 1.0),
    "vertical position": ("px", 1.0),
    "loop area": ("px²", 5.0),
    "tail area": ("px²", 5.0),
    "total ink": ("px²", 5.0),
}

# An effect is called clear from CLEAR standard deviations on, when the measure goes the same way in SAME_SIGN of the digits.
# If the 16 dimensions of a capsule shared a measure's variance evenly, a sweep over 4 standard deviations of one of them
# would change it by 1: a clear effect is more than a fair share.
CLEAR, SAME_SIGN = 1.0, 0.9


def measure(images: Tensor) -> dict[str, Tensor]:
    """Measure bright digits on black, by moments and areas that follow the smallest change of a grey picture.

    Args:
        images: [N, C, H, W], 0 paper and 1 ink; colours are averaged.

    Returns:
        For each name of `MEASURES` a tensor [N]; without any ink slant and position are NaN, the others 0.

        - total ink A: the sum over the pixels, in pixels of full ink.
        - stroke thickness: that of a round pen's line which has the area A and the boundary P, (P - sqrt(P² - 4πA)) / π.
          P is the picture's total variation, the sum of the gradients' lengths. Within 4 % for a line
          of 2.5 pixels or more that doesn't meet itself, 11 % for 2 pixels; a ring seems 3 % thicker, a disc 10 % thinner.
        - slant: atan of the covariance of x and y over the variance of y, the angle of the shear that set the digit
          upright; positive when it leans to the right.
        - width, height: of the box round the ink. A column counts as much as its darkest pixel.
        - horizontal, vertical position: the centre of mass, from the image's centre to the right and upwards.
        - loop area: paper that no path of paper leads out of, sideways, up or down; grey counts in proportion.
        - tail area: the ink in the lowest third of the box.

    Raises:
        ValueError: not four axes, or values outside 0..1.
    """
    if images.dim() != 4:
        raise ValueError(f"measure takes images [N, C, H, W]; got shape {list(images.shape)}")
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"images must lie in 0..1; got {images.min():.2f}..{images.max():.2f}")
    ink = images.float().mean(dim=1)  # [N, H, W]
    height, width = ink.shape[1:]
    x = torch.arange(width, device=ink.device) - (width - 1) / 2
    y = (height - 1) / 2 - torch.arange(height, device=ink.device)[:, None]  # upwards
    area = ink.sum((1, 2))
    share = ink / area[:, None, None]
    right, up = (share * x).sum((1, 2)), (share * y).sum((1, 2))
    x, y = x - right[:, None, None], y - up[:, None, None]
    slant = (share * x * y).sum((1, 2)).atan2((share * y * y).sum((1, 2)))
    boundary = _boundary(ink)
    # The boundary is at least a disc's, so the root is real, but for the grid's last percent.
    thickness = (boundary - (boundary**2 - 4 * math.pi * area).clamp(min=0).sqrt()) / math.pi
    columns, rows = _covered(ink.amax(1)), _covered(ink.amax(2))
    tall = rows.sum(1, keepdim=True)
    below = ((rows.cumsum(1) - 2 / 3 * tall) / rows.clamp(min=1e-9)).clamp(0, 1)  # each row's part in the lowest third
    values = (
        thickness,
        slant.rad2deg(),
        columns.sum(1),
        tall[:, 0],
        right,
        up,
        _enclosed(1 - ink),
        (below * ink.sum(2)).sum(1),
        area,
    )
    return dict(zip(MEASURES, values, strict=True))


def _boundary(ink: Tensor) -> Tensor:
    """The total variation [N] of pictures [N, H, W], from the gradient in the middle of each 2 x 2 pixels."""
    ink = F.pad(ink, (1, 1, 1, 1))
    across, down = ink.diff(dim=2), ink.diff(dim=1)
    return torch.hypot((across[:, 1:] + across[:, :-1]) / 2, (down[:, :, 1:] + down[:, :, :-1]) / 2).sum((1, 2))


def _covered(profile: Tensor) -> Tensor:
    """[N, L], the darkest pixel of each column or row -> how far each lies within the ink's extent, in 0..1."""
    before = profile.cummax(1).values
    after = profile.flip(1).cummax(1).values.flip(1)
    return torch.minimum(before, after)


def _enclosed(paper: Tensor) -> Tensor:
    """The paper [N, H, W] that can't be reached from outside, summed: [N]. A path is as white as its darkest pixel."""
    reached = paper.clone()
    inside = reached[:, 1:-1, 1:-1]
    inside.zero_()
    before = None
    while before is None or not torch.equal(before, reached):
        before = reached.clone()  # slices of it are nine times as fast as max_pool2d
        sideways = torch.maximum(before[:, 1:-1, 2:], before[:, 1:-1, :-2])
        upright = torch.maximum(before[:, 2:, 1:-1], before[:, :-2, 1:-1])
        inside.copy_(torch.maximum(sideways, upright).minimum(paper[:, 1:-1, 1:-1]))
    return (paper - reached).sum((1, 2))


class Effects(NamedTuple):
    """What each number of one class capsule does to the drawing: D dimensions x M measures, in the order of `MEASURES`.

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

    def _table(self) -> tuple[str, list[list[str]], list[list[str]]]:
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
        caption, heads, rows = self._table()
        lines = [*zip(*heads, strict=True), *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [
            "  ".join(cell.rjust(width) for cell, width in zip(line[:-1], widths, strict=False)) + "   " + line[-1]
            for line in lines
        ]
        return "\n".join([caption, "", *(line.rstrip() for line in aligned)])

    def _repr_html_(self) -> str:
        caption, heads, rows = self._table()
        head = "".join(f'<th scope="col">{" ".join(words).strip()}</th>' for words in heads)
        body = "".join(
            f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
            for row in rows
        )
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@torch.no_grad()
def effects(net: CapsNet, images: Tensor, labels: Tensor, label: int, digits: int = 50, spread: float = 2.0) -> Effects:
    """Measure what each number of a class capsule does to the drawing.

    In up to `digits` digits of the class, one number at a time is set to `spread` standard deviations below and above its
    mean, and both drawings are measured. Means and deviations are those of all the class's images.

    Args:
        net: with a decoder, on any device.
        images: [N, C, H, W], what the network takes; at least two of the class.
        labels: [N].
        label: the class.

    Raises:
        ValueError: no decoder, no such class, fewer than two images of it, or shapes that don't fit.
    """
    if not net.decoder:
        raise ValueError("this network has no decoder: there is no drawing to measure")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{len(images)} images need as many labels; got labels of shape {list(labels.shape)}")
    if not 0 <= label < net.config.classes:
        raise ValueError(f"no class {label}: this network's classes are 0 to {net.config.classes - 1}")
    own = images[(labels == label).to(images.device)]
    if len(own) < 2 or digits < 1:
        raise ValueError(
            f"the spread of class {label} needs at least two of its images, and the sweep one digit; "
            f"got {len(own)} images and digits={digits}"
        )
    device = next(net.parameters()).device
    v = torch.cat([net(x.to(device)).capsules for x in own.split(250)])
    mean, sd = v[:, label].mean(dim=0), v[:, label].std(dim=0)

    def shapes(v: Tensor) -> Tensor:
        drawn = net.decoder(v, torch.full((len(v),), label, device=device))
        return torch.stack(list(measure(drawn).values()), dim=1).cpu()  # [N, M]

    usual = torch.cat([shapes(part) for part in v.split(250)]).std(dim=0)
    v = v[:digits]
    changes = []
    for d in range(v.shape[2]):
        low, high = v.clone(), v.clone()
        low[:, label, d], high[:, label, d] = mean[d] - spread * sd[d], mean[d] + spread * sd[d]
        changes.append(shapes(high) - shapes(low))
    changes = torch.stack(changes)  # [D, digits, M]
    change = changes.mean(dim=1)
    least = torch.tensor([least for _, least in MEASURES.values()])
    same_sign = (changes.sign() == change.sign()[:, None]).float().mean(dim=1)
    return Effects(label, len(v), spread, change, change / usual.maximum(least), same_sign)
