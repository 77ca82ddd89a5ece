"""Plumbing of the notebooks' pages: pictures that say in words what they show, pictures that move, and tables.

From outside: `show` and `table` display; `live` and `Frame` are pictures that move, and `InWords` says what a widget is where no
kernel runs; `digit_image`, `digit_rows`, `confusion` and `spreads` draw; `png` makes a file's bytes.
"""

from capsule_lib.plots.digits import confusion, digit_image, digit_rows
from capsule_lib.plots.figures import spreads
from capsule_lib.plots.moving import INTERACTIVE, Frame, InWords, live
from capsule_lib.plots.page import card, png, show, table

__all__ = [
    "INTERACTIVE",
    "Frame",
    "InWords",
    "card",
    "confusion",
    "digit_image",
    "digit_rows",
    "live",
    "png",
    "show",
    "spreads",
    "table",
]
