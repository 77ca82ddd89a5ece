"""The explorer: turn a capsule's dimensions and watch the digit change, at once.

Two parts: functions from knobs to capsules to pictures, and `CapsuleExplorer`, the widget that shows them.
"""

import asyncio
import contextlib
import functools
import hashlib
import html
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import ipywidgets as widgets
import torch
import traitlets
from PIL import Image
from torch import Tensor

from capsule_lib.contract import check_labels, check_pictures
from capsule_lib.explorer.pictures import (
    HEADINGS,
    PANEL,
    ROW,
    STEPS,
    bars,
    enlarged,
    histogram,
    in_words,
    rgb,
    sheet_picture,
    strip,
)
from capsule_lib.explorer.spreads import LIMITS, Spreads, bins, measure_spreads
from capsule_lib.files import check_new, writable_path, write_whole
from capsule_lib.model import CapsNet
from capsule_lib.morphometry import effects
from capsule_lib.plots import Frame, InWords, png

SLIDER, THUMB = 160, 44  # in pixels: a slider's width, a past picture's height


def lengths_of(net: CapsNet, images: Tensor) -> Tensor:
    """The class lengths [B, J] that the network gives images [B, C, H, W]; on the CPU."""
    return torch.linalg.vector_norm(net.encode(images), dim=2).cpu()


def sweep(
    capsule: Tensor, knobs: Tensor, dimensions: Sequence[int], label: int, units: str, spreads: Spreads
) -> Tensor:
    """Capsules for the paper's figure 4: each dimension in turn goes through its whole range, the other knobs stay.

    Args:
        capsule, knobs: [D], the capsule as the network gave it, and what is added to it.

    Returns:
        [len(dimensions), 11, D].
    """
    turned = knobs.repeat(len(dimensions), len(STEPS), 1)
    for row, d in enumerate(dimensions):
        turned[row, :, d] = LIMITS[units] * STEPS
    return capsule + spreads.shift(turned, label, units)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """For one picture's work: several threads would hardly be faster, and 20 times slower where another program runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


OWN = -1  # stands for None in a drop-down list, which would show None as an empty line
NOTHING = Image.new("RGBA", (1, 1))  # a picture that isn't there yet: without one, pages show a torn image
TOOLTIPS = {
    "source": "the set that the digits are chosen from",
    "label": "the class of the digit",
    "index": "which digit of its class",
    "units": "what the knobs are measured in",
    "shown_class": "the class whose capsule is decoded",
    "morph": "how far the capsule is moved to that of another digit of the class, from 0 to 1",
    "partner": "the digit of the same class that morph leads to",
}
PICTURES = {  # in words, by the class that each has on the page
    "capsule-pictures": "the digit, its reconstruction, the changed picture, and where it has more or less ink",
    "capsule-sweep": "the sweep: in each row one knob goes through its range",
    "capsule-past": "a past picture; the button after it goes back there",
}
PAD_HELP = (
    '<div style="padding:8px;line-height:20px">Draw with mouse, pen or finger.<br>After each stroke, the drawing is '
    "centred and scaled as MNIST's digits were,<br>and becomes the digit above, of the class that the network reads.</div>"
)


class _Knob(NamedTuple):
    box: widgets.HBox
    name: widgets.Text
    histogram: widgets.HTML
    slider: widgets.FloatSlider
    value: widgets.HTML


def _fixed(width: str, height: str | None = None) -> widgets.Layout:
    """A size that no content changes, so that nothing on the page jumps."""
    return widgets.Layout(width=width, height=height, flex="0 0 auto", margin="0 2px")


def _frame(kind: str) -> Frame:
    """An empty frame, which the page knows by its class."""
    frame = Frame()
    frame.add_class(f"capsule-{kind}")
    frame.draw(NOTHING)
    return frame


def _wrapped(children: list) -> widgets.HBox:
    """Side by side, in several rows where the page is narrow."""
    return widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap"))


def _check(model: CapsNet, images: Tensor, labels: Tensor, spreads: Spreads | None) -> None:
    """Whether the explorer can show these digits with this network."""
    if not model.decoder:
        raise ValueError("this network has no decoder, so it can't redraw a capsule: build it with decoder_hidden")
    config = model.config
    check_pictures(images, config.image_shape)
    check_labels(labels, len(images), config.classes)
    wanted = [config.classes, config.class_dim]
    if spreads is not None and list(spreads.mean.shape) != wanted:
        raise ValueError(
            f"this network's spreads are {wanted}, these are {list(spreads.mean.shape)}: measure them on it"
        )


class _View(NamedTuple):
    """What the explorer shows in one state. Tensors are on the CPU; capsule [D], lengths [J], pictures [C, H, W]."""

    state: dict
    capsule: Tensor
    original: Tensor
    reconstruction: Tensor
    changed: Tensor
    lengths: Tensor


class CapsuleExplorer(InWords, widgets.VBox):
    """Turn the dimensions of a class capsule and watch the digit change; the class lengths are those of the changed picture.

        CapsuleExplorer(load_pretrained("small"), load_digits("shipped", "test"), load_spreads("small"))

    Args:
        model: any CapsNet with a decoder, on any device.
        digits: images [N, C, H, W] in 0..1 and their labels [N]; or several such sets for a menu: a dict of pairs,
            or of functions that load them, such as that of `digit_sets`.
        spreads: of `measure_spreads` or `load_spreads`; None measures them on the (first) digits, which need every class.
        names_file: the JSON file that keeps the reader's names of dimensions: capsule_names.json, here, unless said.
        state: any of the traits below, to begin with.

    Its state, to be set at any time; a wrong value raises TraitError and changes nothing:
        source: which set of digits, by its name in the dict. Another one puts all else back, but for the label.
        label, index: the digit, number `index` of class `label`. A new label puts all else back.
        strokes: a drawing that stands in for that digit; see `draw`. An empty list: none.
        shown_class: the class whose capsule is decoded; None is that of the label.
        partner, morph: 0..1 of the way from the digit's capsule to that of number `partner` of its class.
        units: of the knobs: 'standard deviations' (of real digits, dimension by dimension), 'raw', or
            'principal axes' (standard deviations along them). New units or another shown class put the knobs to 0.
        knobs: D numbers that are added to the capsule, each within -4..4, or -0.25..0.25 if raw.

    What it then shows, to be read: capsule [D], original, reconstruction, changed [C, H, W], lengths [J].

    Raises:
        ValueError: no decoder, or digits or spreads that don't fit the network.
    """

    source = traitlets.Unicode()
    label = traitlets.Int()
    strokes = traitlets.List()
    index = traitlets.Int()
    partner = traitlets.Int()
    shown_class = traitlets.Int(None, allow_none=True)
    units = traitlets.Enum(list(LIMITS), "standard deviations")
    morph = traitlets.Float(0.0)
    knobs = traitlets.List(traitlets.Float())
    # In this order they can be set: label is judged by source, index by label, knobs by units.
    STATE = "source", "label", "strokes", "index", "partner", "shown_class", "units", "morph", "knobs"

    capsule = property(lambda self: self._now().capsule)
    original = property(lambda self: self._now().original)
    reconstruction = property(lambda self: self._now().reconstruction)
    changed = property(lambda self: self._now().changed)
    lengths = property(lambda self: self._now().lengths)

    def __init__(
        self,
        model: CapsNet,
        digits: tuple | dict,
        spreads: Spreads | None = None,
        names_file: str | Path | None = None,
        **state,
    ):
        self._setting = True  # nothing is drawn until everything is there
        super().__init__()
        if unknown := state.keys() - set(self.STATE):
            raise ValueError(f"the explorer's state has no {unknown.pop()!r}: it has {', '.join(self.STATE)}")
        self.model, self.spreads, self._spreads_given = model, spreads, spreads is not None
        sets = digits if isinstance(digits, dict) else {"given": digits}
        self._sets = {name: one if callable(one) else lambda one=one: one for name, one in sets.items()}
        self._take(next(iter(self._sets)))
        self.spreads = spreads or measure_spreads(model, self._images, self._labels)
        self._names_file = writable_path(names_file or "capsule_names.json")
        weight = model.digit_caps.weight.detach().float().cpu().numpy()
        # Each network's dimensions have their own names.
        self._network = hashlib.sha256(weight.tobytes()).hexdigest()[:8]
        self._digit = self._view = self._shown = self._timer = self._hand = None
        self._soonest = self._latest = 0.0  # when the next picture may be drawn, and when it must
        self._in_hand = self._slot = 0
        self._history: list[_View | None] = [None] * 8
        self._size = functools.cache(_fixed)  # widgets of one size share its layout: there are hundreds
        self._build()
        self._say("")
        self._put(**{"source": self._taken, "label": next(iter(self._members)), "knobs": self._zeros} | state)

    def _take(self, source: str) -> None:
        """Load a set of digits, from which they are then chosen."""
        try:
            images, labels = self._sets[source]()
        except (TypeError, ValueError) as error:
            raise type(error)(f"digits are a pair (images, labels), or a dict of such pairs ({error})") from error
        _check(self.model, images, labels, self.spreads)
        self._images, self._labels, self._taken = images, labels, source
        self._members = {j: (labels == j).nonzero()[:, 0].tolist() for j in sorted(set(labels.tolist()))}

    # State

    @traitlets.validate("source")
    def _at_hand(self, proposal):
        if proposal.value not in self._sets:
            known = ", ".join(map(repr, self._sets))
            raise traitlets.TraitError(f"there are no digits {proposal.value!r} here: choose from {known}")
        if proposal.value != self._taken:
            try:
                self._take(proposal.value)
            except (TypeError, ValueError, OSError) as error:
                raise traitlets.TraitError(f"the digits {proposal.value!r} can't be had: {error}") from error
        return proposal.value

    @traitlets.validate("label")
    def _known(self, proposal):
        if proposal.value not in self._members:
            known = ", ".join(map(str, self._members))
            raise traitlets.TraitError(f"there is no digit of class {proposal.value} here: choose one of {known}")
        return proposal.value

    @traitlets.validate("index", "partner")
    def _counted(self, proposal):
        count = len(self._members[self.label])
        if not 0 <= proposal.value < count:
            raise traitlets.TraitError(
                f"class {self.label} has digits 0 to {count - 1}; got {proposal.trait.name} {proposal.value}"
            )
        return proposal.value

    @traitlets.validate("shown_class")
    def _exists(self, proposal):
        if proposal.value is not None and not 0 <= proposal.value < self.model.config.classes:
            last = self.model.config.classes - 1
            raise traitlets.TraitError(f"this network has classes 0 to {last}; got shown_class {proposal.value}")
        return proposal.value

    @traitlets.validate("morph")
    def _share(self, proposal):
        if not 0 <= proposal.value <= 1:
            raise traitlets.TraitError(f"morph goes from 0 to 1; got {proposal.value}")
        return proposal.value

    @traitlets.validate("knobs")
    def _fit(self, proposal):
        wanted, limit = self.model.config.class_dim, LIMITS[self.units]
        if len(proposal.value) != wanted:
            raise traitlets.TraitError(f"a capsule of this network takes {wanted} knobs; got {len(proposal.value)}")
        if not all(abs(knob) <= limit for knob in proposal.value):  # a nan too
            raise traitlets.TraitError(f"knobs in {self.units} lie in -{limit:g}..{limit:g}; got {proposal.value}")
        return proposal.value

    @traitlets.observe(*STATE)
    def _follow(self, change):
        if self._setting:
            return
        self._say("")
        hand = change.name
        if change.name == "knobs":
            turned = [d for d, (a, b) in enumerate(zip(change.old, change.new, strict=True)) if a != b]
            hand, self._in_hand = ("knobs", turned), turned[0]
        # What a control led to is worth coming back to, but not every step of a slider that is dragged.
        if hand != self._hand or change.name not in ("knobs", "morph"):
            self._remember()
        self._hand = hand
        unturned = {"knobs": self._zeros}
        label = self.label if self.label in self._members else next(iter(self._members))
        also = {
            "source": {"label": label} | self._fresh,
            "label": self._fresh,
            "index": {"strokes": []},
            "shown_class": unturned,
            "units": unturned,
        }
        self._put(**also.get(change.name, {}))

    def _put(self, **state) -> None:
        """Set several traits and draw once."""
        self._setting = True
        try:
            for name in self.STATE:
                if name in state:
                    setattr(self, name, state[name])
        finally:
            self._setting = False
        self._digit = self._digit if self._digit and self._digit[0] == self._chosen else None
        self._view = None
        self._draw_soon()

    # What is shown

    @property
    def _state(self) -> dict:
        return {name: getattr(self, name) for name in self.STATE}

    @property
    def _zeros(self) -> list[float]:
        return [0.0] * self.model.config.class_dim

    @property
    def _fresh(self) -> dict:
        """What a digit of another set or class begins with."""
        return {"strokes": [], "index": 0, "partner": 0, "shown_class": None, "morph": 0.0, "knobs": self._zeros}

    @property
    def _chosen(self) -> tuple:
        return self.source, self.label, self.index, self.partner, self.strokes

    @property
    def _kind(self) -> str:
        return "axis" if self.units == "principal axes" else "dimension"

    @property
    def _shown_label(self) -> int:
        return self.label if self.shown_class is None else self.shown_class

    @_one_thread()
    def _now(self) -> _View:
        """What the present state shows: worked out once, and only when asked for."""
        if self._view is None:
            if self._digit is None:
                members = self._members[self.label]
                original = self._drawn(self.strokes) if self.strokes else self._images[members[self.index]].cpu()
                both = self.model.encode(torch.stack([original, self._images[members[self.partner]].cpu()])).cpu()
                self._digit = self._chosen, original, both, self.model.decode(both[:1, self.label], self.label)[0].cpu()
            _, original, both, reconstruction = self._digit
            capsule = torch.lerp(*both[:, self._shown_label], self.morph)
            capsule = capsule + self.spreads.shift(torch.tensor(self.knobs), self._shown_label, self.units)
            changed = self.model.decode(capsule[None], self._shown_label).cpu()
            lengths = lengths_of(self.model, changed)[0]
            self._view = _View(self._state, capsule, original, reconstruction, changed[0], lengths)
        return self._view

    def _draw_soon(self) -> None:
        """Draw now, or, while a picture would follow the last one too closely, when events pause for 5 ms.

        So the kernel keeps up with a burst, and ends it with the last position. It draws on the way, too, but spends
        at most half its time on that, a sixth while events pour in. Without a running loop, as in a script, it draws now.
        """
        now = time.perf_counter()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return self._draw()
        if self._timer is not None:
            self._timer.cancel()
        elif now >= self._soonest:
            return self._draw()
        self._timer = loop.call_later(min(max(self._soonest, now + 0.005), self._latest) - now, self._draw)

    @_one_thread()
    def _draw(self) -> None:
        self._timer, begun = None, time.perf_counter()
        self._setting = True  # the controls follow the state here, not the other way round
        try:
            self._paint(self._now())
        except Exception as error:  # here it would otherwise end in a log that nobody reads
            self._say(f"This can't be drawn: {error}")
        finally:
            self._setting = False
        now = time.perf_counter()
        self._soonest, self._latest = now + (now - begun), now + 5 * (now - begun)

    def _paint(self, view: _View) -> None:
        self._picture.draw(strip(view.original, view.reconstruction, view.changed, PANEL))
        self._bars.value = bars(view.lengths)
        scene = self._chosen, self.shown_class, self.units, self.morph
        if self._shown is None or scene != self._scene:
            self._scene = scene
            self._set_scene()
        for name, control in self._controls.items():
            control.value = OWN if view.state[name] is None else view.state[name]
        own = self.spreads.place(view.capsule, self._shown_label, self.units)
        real = self._counts.gather(1, bins(own)[:, None])[:, 0] > 0
        for row, knob, inside in zip(self._rows, self.knobs, real.tolist(), strict=True):
            row.slider.value = knob
            row.value.value = in_words(knob, self.units, inside)
        self._shown = view

    def _set_scene(self) -> None:
        """Fit controls and histograms to another digit, class or unit."""
        label, limit, last = self._shown_label, LIMITS[self.units], len(self._members[self.label]) - 1
        if self._controls["label"].options != (classes := tuple(self._members)):
            self._controls["label"].options = classes
        self._controls["index"].max = self._controls["partner"].max = last
        self._counts = (self.spreads.axis_counts if self._kind == "axis" else self.spreads.counts)[label]
        base = self._now().capsule - self.spreads.shift(torch.tensor(self.knobs), label, self.units)
        places = self.spreads.place(base, label, self.units).tolist()
        for d, (row, place) in enumerate(zip(self._rows, places, strict=True)):
            std = self.spreads.std[label, d].item() if self.units == "raw" else 1.0
            words = f"{self._kind} {d}: this digit lies {place:+.1f} standard deviations from the mean of class {label}"
            row.histogram.value = histogram(self._counts[d], place, limit, std, SLIDER, words)
            row.slider.min, row.slider.max, row.slider.step = -limit, limit, limit / 40
            row.slider.tooltip = f"change {self._kind} {d}, {self.units}, from {-limit:g} to {limit:g}"
        self._read_names()

    # What can be done

    @_one_thread()
    def draw(self, strokes: list) -> "CapsuleExplorer":
        """Make a drawing, strokes [[[x, y], ...], ...] in 0..1, the current digit, of the class that the network reads.

        Raises:
            ValueError: nothing is drawn, the network takes no grey square images, or there is no digit of that class here.
        """
        lengths = lengths_of(self.model, self._drawn(strokes)[None])[0]
        label = int(lengths.argmax())
        self._leap(**self._fresh | {"label": label, "strokes": strokes})
        self._say(f"The network reads your drawing as class {label}, with a length of {lengths[label]:.2f}.")
        return self

    def _drawn(self, strokes: list) -> Tensor:
        from capsule_lib.explorer.drawing import mnist_like  # here, because the pad's anywidget may be missing

        channels, height, width = self.model.config.image_shape
        if channels != 1 or height != width:
            raise ValueError(f"a drawing is grey and square; this network takes {channels} x {height} x {width}")
        return mnist_like(strokes, height)

    def sheet(self) -> Image.Image:
        """The paper's figure 4 for this digit: a row for each dimension or axis, which goes through its whole range."""
        return self._sweep(range(self.model.config.class_dim))

    def row(self, d: int) -> Image.Image:
        """The sheet's row for dimension or axis d alone."""
        return self._sweep([d])

    @_one_thread()
    def _sweep(self, dimensions: Sequence[int]) -> Image.Image:
        label, knobs = self._shown_label, torch.tensor(self.knobs)
        base = self.capsule - self.spreads.shift(knobs, label, self.units)
        capsules = sweep(base, knobs, dimensions, label, self.units, self.spreads)
        images = self.model.decode(capsules.flatten(0, 1), label).cpu().unflatten(0, capsules.shape[:2])
        return sheet_picture(images, dimensions, self.units)

    def save(self, path: str | Path) -> Path:
        """Write the pictures that are shown, side by side, as a PNG file, whole or not at all; returns where.

        A relative path that leads into a read-only folder goes to `capsule_home()` instead. A FileExistsError says that there is
        something already: it is left as it is.
        """
        view, path = self._now(), check_new(writable_path(path))
        write_whole({path: png(strip(view.original, view.reconstruction, view.changed, 2 * PANEL))})
        return path

    def as_python(self) -> str:
        """A line of Python that rebuilds what is shown, given the same `model`, `digits` and, if there were any, `spreads`."""
        fresh = {"source": next(iter(self._sets)), "units": "standard deviations"} | self._fresh
        given = ["model", "digits", *["spreads"] * self._spreads_given]
        given += [f"{name}={value!r}" for name, value in self._state.items() if name == "label" or value != fresh[name]]
        return f"CapsuleExplorer({', '.join(given)})"

    def _leap(self, **state) -> None:
        """Go to another state at once, and leave the present picture in the history."""
        self._remember()
        self._hand = None
        self._put(**state)

    def _remember(self) -> None:
        """Put the last picture into the history, in the place of the oldest, unless it is there."""
        if self._shown is None or any(view and view.state == self._shown.state for view in self._history):
            return
        self._history[self._slot] = view = self._shown
        frame, button = self._slots[self._slot].children
        frame.draw(enlarged(rgb(view.changed[None])[0], THUMB))
        button.disabled = False
        button.tooltip = f"back to this picture of class {view.state['label']}"
        self._slot = (self._slot + 1) % len(self._history)

    def _say(self, text: str) -> None:
        self._message.value = f'<div role="status" style="min-height:28px;line-height:28px">{html.escape(text)}</div>'

    # The reader's names of dimensions

    def _key(self, d: int) -> str:
        return f"network {self._network}, class {self._shown_label}, {self._kind} {d}"

    def _names(self) -> dict[str, str]:
        try:
            names = json.loads(self._names_file.read_text()) if self._names_file.exists() else {}
            if not (isinstance(names, dict) and all(isinstance(name, str) for name in names.values())):
                raise ValueError("it should be an object of texts")
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{self._names_file} is no file of names ({error}). It is left as it is, and new names are not kept: "
                "repair it, or move it away"
            ) from error
        return names

    def _read_names(self) -> None:
        try:
            names = self._names()
        except ValueError as error:
            self._say(str(error))
            names = {}
        for d, row in enumerate(self._rows):
            row.name.value = names.get(self._key(d), "")

    def _name(self, d: int, name: str) -> None:
        names = self._names() | {self._key(d): name}  # read again: another explorer may have written meanwhile
        kept = json.dumps({key: name for key, name in names.items() if name}, indent=2, ensure_ascii=False)
        write_whole({self._names_file: (kept + "\n").encode()})

    # The controls

    def _build(self) -> None:
        word = {"description_width": "initial"}
        shown = [("the digit's own", OWN), *((str(j), j) for j in range(self.model.config.classes))]
        wide, narrow = self._size("235px"), self._size("165px")
        self._controls = {
            "source": widgets.Dropdown(options=list(self._sets), description="from", layout=self._size("175px")),
            "label": widgets.Dropdown(options=list(self._members), description="digit of class", layout=narrow),
            "index": widgets.BoundedIntText(description="its number", layout=narrow),
            "units": widgets.Dropdown(options=list(LIMITS), description="knobs in", layout=wide),
            "shown_class": widgets.Dropdown(options=shown, description="what if it were a", layout=wide),
            "morph": widgets.FloatSlider(min=0, max=1, step=0.01, description="morph", layout=wide),
            "partner": widgets.BoundedIntText(description="towards number", layout=narrow),
        }
        for name, control in self._controls.items():
            control.style, control.tooltip = word, TOOLTIPS[name]
            self._when(control, lambda value, name=name: setattr(self, name, None if value == OWN else value))
        self._message = widgets.HTML(layout=widgets.Layout(flex="1 1 400px", margin="2px 8px"))
        self._bars, self._caption = widgets.HTML(layout=self._size("205px")), widgets.HTML()
        self._picture, self._sheet, self._effects = _frame("pictures"), _frame("sweep"), widgets.HTML()
        self._rows = [self._knob(d) for d in range(self.model.config.class_dim)]
        half = math.ceil(len(self._rows) / 2)
        self._slots = [self._slot_box(n) for n in range(len(self._history))]
        source, label, index, units, shown_class, morph, partner = self._controls.values()
        button = self._button
        which_digit = [
            label,
            index,
            *[source] * (len(self._sets) > 1),
            button("next", "the next digit of this class", lambda: self._another(self.index + 1)),
            button("random", "a random digit of this class", self._any, "75px"),
            morph,
            partner,
        ]
        which_knobs = [
            shown_class,
            units,
            button("random knobs", "turn every knob, by up to half its range", self._scatter, "115px"),
            button("reset all", "every knob back to the digit's own value", self._reset, "85px"),
        ]
        sweeps = [
            button("all knobs", "sweep every knob", lambda: self._show_sweep(None), "85px"),
            button("last knob", "sweep the knob that was turned last", lambda: self._show_sweep(self._in_hand), "85px"),
        ]
        path = widgets.Text("picture.png", description="file", tooltip="where to save the pictures, as a PNG file")
        saves = [
            path,
            button("save", "save the pictures", lambda: self._say(f"saved as {self.save(path.value)}")),
            button("Python", "the setting as a line of Python", lambda: self._say(self.as_python()), "75px"),
        ]
        panes = {
            "knobs": _wrapped([self._column(self._rows[:half]), self._column(self._rows[half:])]),
            "draw a digit": widgets.HBox([self._pad(), widgets.HTML(PAD_HELP)]),
            "sweep": widgets.VBox([widgets.HBox(sweeps), self._caption, self._sheet]),
            "measure": widgets.VBox(
                [button("measure", "what each dimension does to the drawing", self._measure, "90px"), self._effects]
            ),
            "save": _wrapped(saves),
        }
        tabs = widgets.ToggleButtons(options=list(panes), tooltips=[f"below: {name}" for name in panes])
        tabs.style.button_width = "auto"

        def turn_to(chosen: str) -> None:  # hidden, not taken away: 16 knobs are slow to make again
            for name, pane in panes.items():
                pane.layout.display = None if name == chosen else "none"

        self._when(tabs, turn_to)
        turn_to("knobs")
        self._picture.layout.width = "100%"
        pictures = widgets.VBox([widgets.HTML(HEADINGS), self._picture])
        # As large as they are where there is room; on a small screen somewhat smaller, beside the lengths.
        blank = torch.zeros(self.model.config.image_shape)
        full = strip(blank, blank, blank, PANEL).width
        pictures.layout = widgets.Layout(flex=f"1 1 {0.7 * full:.0f}px", max_width=f"{full}px")
        past = widgets.HTML("the last pictures", layout=self._size("110px"))
        self.children = [
            _wrapped(which_digit),
            _wrapped(which_knobs),
            _wrapped([pictures, self._bars]),
            _wrapped([tabs, self._message]),
            widgets.VBox(list(panes.values()), layout=widgets.Layout(min_height=f"{8 * ROW + 8}px")),
            _wrapped([past, *self._slots]),
            *self._labels_for_screen_readers(),
        ]
        self.add_class("capsule-explorer")

    def _column(self, rows: list["_Knob"]) -> widgets.VBox:
        """Knobs one below the other; two columns fit beside each other in JupyterLab on a small screen."""
        return widgets.VBox([row.box for row in rows], layout=widgets.Layout(flex="1 1 420px", max_width="530px"))

    def _slot_box(self, n: int) -> widgets.HBox:
        """A place in the history: a picture, and beside it the button that goes back to it."""
        frame = _frame("past")
        frame.layout = self._size(f"{THUMB}px", f"{THUMB}px")
        back = self._button(str(n + 1), "no picture here yet", lambda: self._leap(**self._history[n].state), "30px")
        back.disabled = True
        return widgets.HBox([frame, back])

    def _knob(self, d: int) -> "_Knob":
        name = widgets.Text(description=str(d), placeholder="name it", continuous_update=False)
        name.layout = widgets.Layout(flex="1 1 100px", min_width="0", margin="0 2px")
        name.style = {"description_width": "20px"}
        name.tooltip = f"what you call number {d}, such as stroke thickness; it is kept in {self._names_file}"
        slider = widgets.FloatSlider(readout=False, layout=self._size(f"{SLIDER}px", "20px"))
        above, value = widgets.HTML(layout=self._size(f"{SLIDER}px", "16px")), widgets.HTML(layout=self._size("108px"))
        reset = self._button("↺", f"number {d} back to the digit's own value", lambda: self._reset(d), "32px")
        self._when(name, lambda text: self._name(d, text.strip()))
        self._when(slider, lambda knob: setattr(self, "knobs", [*self.knobs[:d], knob, *self.knobs[d + 1 :]]))
        middle = widgets.VBox([above, slider], layout=self._size("auto"))
        box = widgets.HBox([name, middle, value, reset], layout=self._size("auto", f"{ROW}px"))
        return _Knob(box, name, above, slider, value)

    def _button(self, text: str, tooltip: str, action: Callable[[], object], width: str = "65px") -> widgets.Button:
        button = widgets.Button(description=text, tooltip=tooltip, layout=self._size(width))
        button.on_click(lambda _: self._safely(action))
        return button

    def _when(self, control: widgets.Widget, action: Callable[[object], object]) -> None:
        """Call `action` with a control's new value when the reader, not the explorer, has changed it."""
        control.observe(lambda change: self._setting or self._safely(action, change.new), "value")

    def _safely(self, action: Callable, *args) -> None:
        self._say("")
        try:
            action(*args)
        except Exception as error:  # a callback's error would otherwise end in a log that nobody reads
            self._say(str(error) or type(error).__name__)
            self._draw_soon()  # a control that was turned in vain goes back

    def _another(self, index: int) -> None:
        self._leap(strokes=[], index=index % len(self._members[self.label]))

    def _any(self) -> None:
        self._another(random.randrange(len(self._members[self.label])))

    def _scatter(self) -> None:
        self._leap(knobs=[LIMITS[self.units] * random.randint(-20, 20) / 40 for _ in self.knobs])

    def _reset(self, d: int | None = None) -> None:
        self._leap(knobs=self._zeros if d is None else [*self.knobs[:d], 0.0, *self.knobs[d + 1 :]])

    def _show_sweep(self, d: int | None) -> None:
        self._sheet.draw(self.sheet() if d is None else self.row(d))
        rows = f"Each row turns one {self._kind}" if d is None else f"{self._kind.capitalize()} {d} is turned"
        self._caption.value = f"{rows} of a digit of class {self.label} through its whole range, in {self.units}."

    def _measure(self) -> None:
        label = self._shown_label
        some = self._members.get(label, [])[:400]  # more would take longer and say the same
        if not some:
            raise ValueError(f"there is no digit of class {label} in this set to measure")
        self._effects.value = effects(self.model, self._images[some], self._labels[some], label)._repr_html_()

    def _labels_for_screen_readers(self) -> list[widgets.Widget]:
        try:
            from capsule_lib.explorer.labels import Labels

            return [Labels(pictures=PICTURES)]
        except Exception:  # the pad is an anywidget too, and says why it can't be loaded
            return []

    def _pad(self) -> widgets.Widget:
        try:
            from capsule_lib.explorer.drawing import DrawingPad

            pad = DrawingPad()
        except Exception as error:  # whatever ails the pad, the rest of the explorer needs none of it
            return widgets.HTML(f"The drawing pad can't be loaded: {html.escape(str(error))}")
        pad.observe(lambda change: self._safely(self.draw, change.new), "strokes")
        return pad
