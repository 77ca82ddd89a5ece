"""From a photo of a digit to a picture as MNIST's: ink found, cut out, its stroke made as thick, scaled and centred."""

from operator import itemgetter

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from capsule_lib.morphometry import measure

BOX = 20 / 28  # the digit's longer side, as a share of the image's
PEN = 2.6 / 28  # the pen's width, likewise; `morphometry.measure` then finds MNIST's mean stroke thickness, 2.7 pixels
SPECK = 0.03  # what is smaller than this share of the paper is a speck or a slip of the hand, not a digit
PENS = 2.3 / 28, 4 / 28  # a stroke between these two widths stays as it is, a thinner or thicker one becomes so
SIDE = 384  # pixels of the photo's longer side while the ink is looked for
CELL = 4  # pixels of a cell in which parts are joined
GRID = 112  # pixels of a side while the stroke is measured
FINE = 4  # samples per pixel and axis in the finished image: grey edges
FAINTEST, NOISIEST = 0.1, 0.25  # ink lacks at least this share of the paper's light: without noise, and with much
PALE = 0.3  # what is paler than this share of the darkest ink is a ruled line that touches the digit, not a stroke


def middle(size: int) -> float:
    """Where the digit's centre of mass lies on both axes, in pixels: in MNIST the middle of pixel 14, counted from 0."""
    return size // 2 + 0.5


def mnist_like_photo(photo: Image.Image, size: int) -> Tensor:
    """One digit, dark on light paper or light on dark, as an image [1, size, size] in 0..1 like MNIST's, ink 1.

    Raises:
        ValueError: no ink.
    """
    return _redrawn(_digit(_ink(photo)), size)


def _ink(photo: Image.Image) -> Tensor:
    """How much of the paper's light is missing in each pixel, [H, W] in 0..1; or of its darkness, where the paper is dark."""
    scale = SIDE / max(photo.size)
    photo = photo.resize([max(1, round(n * scale)) for n in photo.size], Image.Resampling.BICUBIC, reducing_gap=3)
    colours = torch.from_numpy(np.array(photo)).movedim(2, 0).float() / 255
    # A pen of any colour is dark in one of three.
    greys = [_mean(light.amin(dim=0), 3) for light in (colours, 1 - colours)]
    # Light ink on dark paper is turned round. The wrong way round all the paper about the ink lacks light: more than the ink.
    grey = min(greys, key=lambda grey: (1 - grey / _highest(grey, SIDE // 4).clamp(min=0.05)).sum())
    # The paper is as light as the lightest near by. Closing leaves the edge of a shadow where it is.
    reach = SIDE // 8
    beyond = F.pad(_mean(grey, 5)[None], 4 * [reach], "replicate")[0]  # a shadow goes on where the picture ends
    paper = -_highest(-_highest(beyond, 2 * reach), 2 * reach)[reach:-reach, reach:-reach]
    return (1 - grey / paper.clamp(min=0.05)).clamp(0, 1)


def _digit(ink: Tensor) -> Tensor:
    """The digit's ink alone, cut out [h, w]: no specks, no ruled lines, nothing that comes in at the picture's edge."""
    low = min(max(FAINTEST, 6 * ink.median().item()), NOISIEST)
    values = ink[ink > low]
    high = values.mean()
    for _ in range(8):  # halfway between the means of what is darker and of what is lighter (Ridler and Calvard, 1978)
        high = (values[values > high].mean() + values[values <= high].mean()) / 2
    # Above the low threshold a digit keeps its faint strokes; above the high one it comes off pale lines that run through it.
    _, ink = max((_largest(ink * (ink > level)) for level in (high.nan_to_num(low), low)), key=itemgetter(0))
    if not ink.any():
        raise ValueError(
            f"no digit is found: expected dark ink on light paper or light on dark, larger than {SPECK:.0%} of the picture"
        )
    rows, columns = (torch.nonzero(ink.amax(dim=axis)).flatten() for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _largest(ink: Tensor) -> tuple[float, Tensor]:
    """The ink [H, W] of the largest connected part and of those close to it, and how much is in that part.

    Parts that the picture's edge cuts come in question only where there is no other; as much as 0 is then said to be in it.
    """
    cells = F.pad(F.avg_pool2d(ink[None, None], CELL, ceil_mode=True)[0, 0], (1, 1, 1, 1))
    number, before = torch.arange(float(cells.numel())).view(cells.shape) * (cells > 0), None
    while before is None or not torch.equal(number, before):  # a part's highest number spreads through it, in leaps
        before = number
        number = F.max_pool2d(number[None, None], 3, 1, 1)[0, 0] * (cells > 0)
        number = number.flatten()[number.long()]
    _, number = number.unique(return_inverse=True)  # 0 is the paper
    place = torch.cartesian_prod(*map(torch.arange, cells.shape))
    whose, none = number.view(-1, 1).expand(-1, 2), torch.zeros(int(number.max()) + 1, 2, dtype=torch.long)
    low = none.scatter_reduce(0, whose, place, "amin", include_self=False)  # [parts, 2], row and column
    high = none.scatter_reduce(0, whose, place, "amax", include_self=False) + 1
    extent = (high - low).amax(dim=1)
    weight = torch.bincount(number.flatten(), cells.flatten())
    weight *= extent - 2 >= SPECK * max(cells.shape)  # a part may hardly touch the cells in which it begins and ends
    inside = (low > 1).all(dim=1) & (high < torch.tensor(cells.shape) - 1).all(dim=1)
    amount = (weight * inside).max().item()
    weight = weight * inside if amount else weight
    main = weight.argmax()
    close = (low <= high[main] + extent[main] / 3) & (high >= low[main] - extent[main] / 3)
    kept = (weight > 0) & close.all(dim=1) & (extent >= extent[main] / 8)
    pixels = kept[number].repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)[CELL:, CELL:]
    ink = ink * pixels[: ink.shape[0], : ink.shape[1]]
    return amount, ink * (ink > PALE * ink.max())


def _redrawn(ink: Tensor, size: int) -> Tensor:
    """Cut out ink [h, w] as an image [1, size, size]: the box, the pen and the place of MNIST's digits."""
    box = BOX * GRID
    shape = [max(1, round(n * box / max(ink.shape))) for n in ink.shape]
    ink = F.interpolate(ink[None, None], shape, mode="bilinear", antialias=True)[0, 0]
    top, left = ((GRID - n) // 2 for n in shape)
    ink = F.pad(ink, (left, GRID - shape[1] - left, top, GRID - shape[0] - top))
    # The edge is where the ink falls to half of what it is near by: a stroke may be fainter in one place than in another.
    solid = (ink > 0) & (ink > _highest(ink, GRID // 14) / 2)
    distance = _distance(solid) - _distance(~solid)  # to the edge, negative inside
    distance -= distance.sign() / 2
    spots = torch.nonzero(solid)
    low, high = spots.amin(dim=0), spots.amax(dim=0) + 1
    longer = (high - low).max().item()
    stroke = measure(solid[None, None].float())["stroke thickness"].item()
    pen = min(max(stroke * box / longer, PENS[0] * GRID), PENS[1] * GRID)
    # The line within the stroke is scaled, then the pen is drawn along it.
    scale = (box - pen) / max(longer - stroke, 1)
    centre = (low + high).flip(0) / GRID - 1  # what of the grid comes to the image's middle: [x, y] from -1 to 1
    side, place = FINE * size, torch.arange(size) + 0.5

    def drawn() -> Tensor:
        matrix = torch.cat([torch.eye(2) / scale, centre[:, None]], dim=1)
        where = F.affine_grid(matrix[None], [1, 1, side, side], align_corners=False)
        outside = scale * F.grid_sample(distance[None, None], where, padding_mode="border", align_corners=False)
        covered = 0.5 + side / GRID * ((pen - scale * stroke) / 2 - outside)
        return F.avg_pool2d(covered.clamp(0, 1), FINE)[0]

    image = drawn()
    mass = torch.stack([image[0].sum(0) @ place, image[0].sum(1) @ place]) / image.sum()
    centre += (mass - middle(size)) * 2 / size / scale
    return drawn()


def _distance(mask: Tensor) -> Tensor:
    """From each pixel to the nearest of a square mask, in pixels: first within its column, then over the columns."""
    squared = torch.where(mask, 0.0, 1e6)
    steps = torch.arange(float(len(mask)))
    apart = (steps[:, None] - steps).square()[:, :, None]
    for _ in range(2):
        squared = (squared + apart).amin(dim=1).T
    return squared.sqrt()


def _highest(x: Tensor, window: int) -> Tensor:
    """The highest value in a square window about each pixel of x [H, W]."""
    reach = window // 2
    for _ in range(2):
        x, width = F.pad(x, (0, 0, reach, reach), value=-torch.inf), 1
        while width <= 2 * reach:  # a window of twice the width from two windows
            step = min(width, 2 * reach + 1 - width)
            x, width = torch.maximum(x[:-step], x[step:]), width + step
        x = x.T
    return x


def _mean(x: Tensor, window: int) -> Tensor:
    """The mean in a square window about each pixel of x [H, W]."""
    return F.avg_pool2d(x[None], window, 1, window // 2, count_include_pad=False)[0]
