"""What a notebook displays: a picture on a white card with its caption, and numbers in a table."""

import io
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from numbers import Integral, Real

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, display
from IPython.lib.pretty import pretty
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

CARD = 10  # pixels of white round a picture, and the radius of its corners


def show(picture: Figure | Image.Image, caption: str) -> None:
    """Display a picture with a caption, also its alternative text: what is to be seen. Line breaks in it count as spaces."""
    caption, words = " ".join(caption.split()), pretty(picture)
    content = png(card(picture, bbox_inches="tight"))
    display({"image/png": content, "text/plain": words}, raw=True, metadata={"image/png": {"alt": caption}})
    display(HTML(f"<em>{escape(caption, quote=False)}</em>"))


def table(rows: Mapping | Sequence[Sequence], columns: Sequence[str] = (), digits: int = 2) -> None:
    """Display numbers in aligned columns, as text and as HTML.

    Args:
        rows: a dict from a row's name to its value or values (a list, or a tensor [N]), or a list of rows [name, value, ...].
            A value is a number, a tensor of one number, a truth value, or words.
        columns: headings; that of the names may be left out.
        digits: decimals of a number that is not an integer. For any other form write words: f"{x:.1e}".
    """
    named = rows.items() if isinstance(rows, Mapping) else [(name, values) for name, *values in rows]
    cells = [[str(name), *_in_words(values, digits)] for name, values in named]
    width = max(map(len, cells), default=0)
    heads = [[""] * (len(columns) == width - 1) + list(map(str, columns))] if len(columns) else []
    if wrong := {len(row) for row in heads + cells} - {width}:
        raise ValueError(f"the longest row has {width} cells with its name; another row or `columns` has {wrong.pop()}")
    sizes = [max(map(len, column)) for column in zip(*heads, *cells, strict=True)]
    plain, page = [], ""
    for n, (name, *words) in enumerate(heads + cells):
        plain.append("  ".join([name.ljust(sizes[0]), *map(str.rjust, words, sizes[1:])]).rstrip())
        tag = "th" if n < len(heads) else "td"
        right = "".join(f'<{tag} style="text-align: right">{escape(word)}</{tag}>' for word in words)
        page += f'<tr><{tag} style="text-align: left">{escape(name)}</{tag}>{right}</tr>'
    display({"text/html": f"<table>{page}</table>", "text/plain": "\n".join(plain)}, raw=True)


def _in_words(values, digits: int) -> Iterator[str]:
    values = values.reshape(-1).tolist() if isinstance(values, Tensor | np.ndarray) else values
    for value in values if isinstance(values, list | tuple) else [values]:
        value = value.item() if isinstance(value, Tensor | np.ndarray | np.generic) else value
        if isinstance(value, bool) or not isinstance(value, Real):
            yield ("no", "yes")[value] if isinstance(value, bool) else str(value)
        else:  # 0 is added because -0.001 would become -0.00
            yield f"{value:,}" if isinstance(value, Integral) else f"{round(value, digits) + 0.0:,.{digits}f}"


def png(picture: Figure | Image.Image, **how) -> bytes:
    """The bytes of a PNG file. A figure is closed; `how` goes to its savefig."""
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", **how)
        plt.close(picture)
    else:
        picture.save(buffer, format="png", compress_level=1)
    return buffer.getvalue()


def card(picture: Figure | Image.Image, **how) -> Image.Image:
    """The picture on white with round corners: dark ink stays legible on a dark page."""
    if isinstance(picture, Figure):
        picture = Image.open(io.BytesIO(png(picture, **how)))
    white = Image.new("RGBA", (picture.width + 2 * CARD, picture.height + 2 * CARD))
    ImageDraw.Draw(white).rounded_rectangle((0, 0, white.width - 1, white.height - 1), CARD, fill="white")
    white.paste(picture, (CARD, CARD))
    return white
