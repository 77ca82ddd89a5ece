"""What the explorer shows, as pictures for Python: side by side, and in sheets."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from capsule_lib.explorer.spreads import LIMITS

PANEL = 196  # the height of a picture in pixels
STEPS = torch.arange(-5, 6) / 5  # of a sweep, as shares of the knobs' limit: 11 columns, as in the paper's figure 4


def strip(original: Tensor, reconstruction: Tensor, changed: Tensor, height: int) -> Image.Image:
    """Three images [C, H, W] in 0..1 and the signed difference of the last two, side by side, about `height` pixels high.

    Grey images are shown as ink on paper, those of three channels in their colours; others as their channels' mean.
    In the difference, red is where `changed` has more and blue where it has less.
    """
    panels = [
        *rgb(torch.stack([original, reconstruction, changed])),
        _diverging((changed - reconstruction).mean(dim=0)),
    ]
    gap = np.full((len(panels[0]), 1, 3), 255, np.uint8)
    return enlarged(np.hstack([part for panel in panels for part in (panel, gap)][:-1]), height)


def rgb(images: Tensor) -> np.ndarray:
    """Images [N, C, H, W] in 0..1 as bytes [N, H, W, 3]."""
    if images.shape[1] != 3:
        images = 1 - images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    return (255 * images.clamp(0, 1)).round().byte().movedim(1, 3).numpy()


def _diverging(difference: Tensor) -> np.ndarray:
    """A difference [H, W] in -1..1 as bytes [H, W, 3]: blue, white at 0, red."""
    red, blue = torch.tensor([178.0, 24, 43]), torch.tensor([33.0, 102, 172])
    end = torch.where(difference[..., None] > 0, red, blue)
    return (255 + difference.abs()[..., None].clamp(max=1) * (end - 255)).round().byte().numpy()


def enlarged(pixels: np.ndarray, height: int) -> Image.Image:
    """As a picture, each pixel a square of whole size, so that the picture is about `height` high."""
    scale = max(1, round(height / len(pixels)))
    return Image.fromarray(pixels).resize((pixels.shape[1] * scale, len(pixels) * scale), Image.Resampling.NEAREST)


def sheet_picture(images: Tensor, dimensions: Sequence[int], units: str) -> Image.Image:
    """A sweep's pictures [rows, 11, C, H, W] as a sheet with the rows' dimensions and the columns' knobs written beside them."""
    rows, columns, _, height, width = images.shape
    tiles = np.full((rows, columns, height + 1, width + 1, 3), 255, np.uint8)
    tiles[:, :, :height, :width] = rgb(images.flatten(0, 1)).reshape(rows, columns, height, width, 3)
    pixels = enlarged(tiles.transpose(0, 2, 1, 3, 4).reshape(rows * (height + 1), -1, 3), 58 * rows)
    margin = 24
    page = Image.new("RGB", (pixels.width + margin, pixels.height + margin), "white")
    page.paste(pixels, (margin, margin))
    write = functools.partial(ImageDraw.Draw(page).text, fill="black", font=_font(), anchor="mm")
    for row, d in enumerate(dimensions):
        write((margin / 2, margin + (row + 0.5) * pixels.height / rows), str(d))
    for column, knob in enumerate((LIMITS[units] * STEPS).tolist()):
        write((margin + (column + 0.5) * pixels.width / columns, margin / 2), f"{knob:+.2g}")
    return page


@functools.cache
def _font() -> ImageFont.ImageFont:
    return ImageFont.load_default(13)
