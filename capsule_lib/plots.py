"""Pictures that say in words what they show, pictures that move, and tables."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from numbers import Integral, Real

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML, display
from IPython.lib.pretty import pretty
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

CARD = 10  # pixels of white round a picture, and the radius of its corners
INTERACTIVE = "Interactive: run this notebook to see it move. The picture beside it shows one position."


def show(picture: Figure | Image.Image, caption: str) -> None:
    """Display a picture with a caption, also its alternative text: what is to be seen. Line breaks in it count as spaces."""
    caption, words = " ".join(caption.split()), pretty(picture)
    card = png(_card(picture, bbox_inches="tight"))
    display({"image/png": card, "text/plain": words}, raw=True, metadata={"image/png": {"alt": caption}})
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


def live(draw: Callable[..., Figure | Image.Image], **controls: widgets.Widget) -> widgets.VBox:
    """A picture that is drawn again whenever a control, such as a slider, moves; `draw` gets their values by name."""
    frame = Frame()
    message = widgets.HTML()

    def update(_=None):
        try:
            frame.draw(_card(draw(**{name: control.value for name, control in controls.items()})))
            message.value = ""
        except Exception as error:  # an error in a callback would otherwise end in a log that nobody reads
            message.value = f"This position can't be drawn: {type(error).__name__}: {error}"

    for name, control in controls.items():
        control.description = control.description or name.replace("_", " ")
        control.style.description_width = "initial"
        control.layout.width = "480px"
        control.observe(update, "value")
    update()
    return _Live([*controls.values(), frame, message])


class _InWords:  # says what a widget is where no kernel runs: on a code host, on paper, in a screen reader
    def _repr_mimebundle_(self, **kwargs):
        return super()._repr_mimebundle_(**kwargs) | {"text/plain": INTERACTIVE}


class Frame(_InWords, widgets.Image):
    """A place on the page for a picture that changes: display it once, then `draw` into it."""

    def __init__(self):
        super().__init__(format="png", layout=widgets.Layout(object_fit="contain", align_self="flex-start"))

    def draw(self, picture: Figure | Image.Image) -> None:
        self.value = png(picture)


class _Live(_InWords, widgets.VBox):
    pass


def png(picture: Figure | Image.Image, **how) -> bytes:
    """The bytes of a PNG file. A figure is closed; `how` goes to its savefig."""
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", **how)
        plt.close(picture)
    else:
        picture.save(buffer, format="png", compress_level=1)
    return buffer.getvalue()


def _card(picture: Figure | Image.Image, **how) -> Image.Image:
    """The picture on white with round corners: dark ink stays legible on a dark page."""
    picture = Image.open(io.BytesIO(png(picture, **how)))
    card = Image.new("RGBA", (picture.width + 2 * CARD, picture.height + 2 * CARD))
    ImageDraw.Draw(card).rounded_rectangle((0, 0, card.width - 1, card.height - 1), CARD, fill="white")
    card.paste(picture, (CARD, CARD))
    return card


def digit_image(image: Tensor, size: int = 280) -> Image.Image:
    """One grey image, [H, W] or [1, H, W] in 0..1, as ink on paper, enlarged to `size` pixels of height."""
    grey = (255 * (1 - image.detach().cpu().reshape(image.shape[-2:]).clamp(0, 1))).byte().numpy()
    height, width = grey.shape
    return Image.fromarray(grey).resize((size * width // height, size), Image.Resampling.NEAREST)


def digit_rows(rows: dict[str, Tensor], titles: Sequence = (), size: float = 0.9) -> Figure:
    """Rows of grey images [N, 1, H, W] in 0..1, each row with its name, each column with its title; `size`: inches per image."""
    count = max(len(images) for images in rows.values())
    figure, axes = plt.subplots(len(rows), 1, figsize=(size * count + 1.6, size * len(rows) + 0.4), squeeze=False)
    for axis, (name, images) in zip(axes[:, 0], rows.items(), strict=True):
        padded = torch.nn.functional.pad(images.detach().cpu()[:, 0], (1, 1, 1, 1))
        axis.imshow(
            np.hstack(list(padded.numpy())), vmin=0, vmax=1
        )  # one picture: one for each takes 100 times as long
        axis.axis("off")
        axis.text(-0.01, 0.5, name, transform=axis.transAxes, ha="right", va="center")
    for n, title in enumerate(titles):
        axes[0, 0].text((n + 0.5) * padded.shape[-1] - 1, -3, title, ha="center", va="bottom")
    return figure


def confusion(predictions: Tensor, labels: Tensor, classes: int = 10) -> Figure:
    """Rows: the true class; columns: the predicted one. The diagonal is left white, so that the mistakes stand out."""
    counts = (classes * labels.long() + predictions).cpu().bincount(minlength=classes**2).view(classes, classes)
    figure, axis = plt.subplots(figsize=(6.5, 6))
    mistakes = counts - counts.diag().diag()
    # The darkest colour is not used: black numbers could not be read on it.
    axis.imshow(mistakes.numpy(), cmap="Oranges", vmin=0, vmax=max(1.6 * mistakes.max(), 1))
    for true, predicted in counts.nonzero().tolist():
        colour = "black" if true != predicted else "0.55"
        axis.text(predicted, true, counts[true, predicted].item(), ha="center", va="center", color=colour)
    axis.set(xlabel="predicted", ylabel="true", xticks=range(classes), yticks=range(classes))
    return figure
