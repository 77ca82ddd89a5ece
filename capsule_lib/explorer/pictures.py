"""What the explorer shows: capsules' pictures side by side and in sheets, and lengths, knobs and spreads as HTML."""

import functools
import html
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from capsule_lib.explorer.spreads import EDGES, LIMITS

PANEL, ROW = 196, 38  # heights in pixels: about that of a picture, and that of a knob's row
STEPS = torch.arange(-5, 6) / 5  # of a sweep, as shares of the knobs' limit: 11 columns, as in the paper's figure 4
HEADINGS = (  # what the four pictures are, above each of them
    '<div style="display:flex;height:24px;font-size:14px;line-height:20px;white-space:nowrap">'
    + "".join(
        f'<span style="flex:1;overflow:hidden">{words}</span>'
        for words in ("the digit", "its reconstruction", "changed", "difference (red: more)")
    )
    + "</div>"
)


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


def histogram(counts: Tensor, place: float, limit: float, std: float, width: int, words: str) -> str:
    """An SVG of how many real digits [24] lie where a slider from -limit to +limit, 0 at `place`, would take this digit.

    Args:
        place: where the digit lies, in standard deviations.
        std: one standard deviation in the slider's units.
        words: what it shows, for those who can't see it.
    """
    inset, height = 6, 16  # a slider's handle goes from 6 pixels after its box begins to 6 before it ends
    x = inset + ((EDGES - place) * std / limit + 1) / 2 * (width - 2 * inset)
    y = height - height * counts / counts.max().clamp(min=1)
    steps = "".join(f"V{level:.1f}H{right:.1f}" for level, right in zip(y.tolist(), x[1:].tolist(), strict=True))
    return (
        f'<svg role="img" aria-label="{html.escape(words)}" width="{width}" height="{height}" style="display:block">'
        f'<title>{html.escape(words)}</title><path d="M{x[0]:.1f},{height}{steps}V{height}Z" fill="#9ab"/>'
        f'<path d="M{width / 2},0V{height}" stroke="#d60"/></svg>'
    )


def bars(lengths: Tensor) -> str:
    """The class lengths [J] as bars, the longest in orange, with their values."""
    longest = int(lengths.argmax())
    rows = "".join(
        f'<div style="display:flex;gap:4px;height:19.6px"><span style="width:20px">{j}</span>'
        f'<span style="width:120px;height:15px;margin-top:2px;background:rgba(128,128,128,.15)"><span style="display:block;'
        f'height:15px;width:{100 * length:.0f}%;background:{"#d60" if j == longest else "#9ab"}"></span></span>'
        f"<span>{length:.2f}</span></div>"
        for j, length in enumerate(lengths.tolist())
    )
    return (
        f'<div style="font-size:16px;line-height:19.6px"><div style="height:24px"><b>read as {longest}</b></div>'
        f'<div style="height:{PANEL}px;overflow:auto">{rows}</div></div>'
    )


def in_words(knob: float, units: str, inside: bool) -> str:
    """A knob's value, on a colour that says how far it is turned; `inside`: some real digit has such a value."""
    turned = f"{knob:+.3g}" + (" sd" if units != "raw" else "") if knob else "its own value"
    far = abs(knob) / LIMITS[units]
    return (
        f'<div style="height:{ROW - 8}px;line-height:15px;padding:0 4px;display:flex;align-items:center;'
        f'background:rgba(221,102,0,{0.6 * far:.2f})">{turned}{"" if inside else "<br>no digit there"}</div>'
    )
