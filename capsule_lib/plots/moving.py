"""Pictures that move: drawn again whenever a control does."""

from collections.abc import Callable
from html import escape

import ipywidgets as widgets
from matplotlib.figure import Figure
from PIL import Image

from capsule_lib.plots.page import card, png

INTERACTIVE = "Interactive: run this notebook, and the controls appear here."


def live(draw: Callable[..., Figure | Image.Image], **controls: widgets.Widget) -> widgets.VBox:
    """A picture that is drawn again whenever a control, such as a slider, moves; `draw` gets their values by name."""
    frame = Frame()
    message = widgets.HTML()

    def update(_=None):
        try:
            frame.draw(card(draw(**{name: control.value for name, control in controls.items()})))
            message.value = ""
        except Exception as error:  # an error in a callback would otherwise end in a log that nobody reads
            message.value = escape(f"This position can't be drawn: {type(error).__name__}: {error}")

    for name, control in controls.items():
        control.description = control.description or name.replace("_", " ")
        control.style.description_width = "initial"
        control.layout.width = "480px"
        control.observe(update, "value")
    update()
    return _Live([*controls.values(), frame, message])


class InWords:  # says what a widget is where no kernel runs: on a code host, on paper, in a screen reader
    def _repr_mimebundle_(self, **kwargs):
        return super()._repr_mimebundle_(**kwargs) | {"text/plain": INTERACTIVE}


class Frame(InWords, widgets.Image):
    """A place on the page for a picture that changes: display it once, then `draw` into it."""

    def __init__(self):
        super().__init__(format="png", layout=widgets.Layout(object_fit="contain", align_self="flex-start"))

    def draw(self, picture: Figure | Image.Image) -> None:
        self.value = png(picture)


class _Live(InWords, widgets.VBox):
    pass
