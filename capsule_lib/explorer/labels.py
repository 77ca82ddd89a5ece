"""Names for a screen reader: Jupyter's own sliders, pictures and buttons without a word have none."""

from pathlib import Path

import anywidget
import traitlets


class Labels(anywidget.AnyWidget):
    """Put it anywhere into a widget of the class `capsule-explorer`; it takes no room.

    Sliders and buttons get the words of their tooltips, pictures those of `pictures`: words for each of their classes.
    """

    _esm = Path(__file__).with_suffix(".js")
    pictures = traitlets.Dict(key_trait=traitlets.Unicode(), value_trait=traitlets.Unicode()).tag(sync=True)
