"""The explorer's Python side: its state, what the page asks for, and what it shows as tensors and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import anywidget
import torch
import traitlets
from PIL import Image
from torch import Tensor
from traitlets import Bool, Bytes, Dict, Float, Int, List, TraitError, Unicode

from capsule_lib.contract import check_labels, check_pictures
from capsule_lib.explorer.names import called, keep_names, read_names
from capsule_lib.explorer.page import digits_for_page, for_page, module, spreads_for_page, style
from capsule_lib.explorer.pictures import PANEL, STEPS, sheet_picture, strip
from capsule_lib.explorer.spreads import LIMITS, Spreads, measure_spreads
from capsule_lib.files import check_new, writable_path, write_whole
from capsule_lib.model import CapsNet
from capsule_lib.morphometry import effects
from capsule_lib.own_pictures import mnist_like
from capsule_lib.plots import INTERACTIVE, png

SENT = 100  # digits of each class that go to the page at once; it asks for others one by one


class _View(NamedTuple):
    """What one state shows, on the CPU: capsule [D], three pictures [C, H, W], lengths [J] of the changed one."""

    capsule: Tensor
    original: Tensor
    reconstruction: Tensor
    changed: Tensor
    lengths: Tensor


class CapsuleExplorer(anywidget.AnyWidget):
    """Turn the dimensions of a class capsule and watch the digit change; the class lengths are those of the changed picture.

        CapsuleExplorer(load_pretrained("small"), load_digits("shipped", "test"), load_spreads("small"))

    The network runs in the page, which goes on working when the kernel has gone.

    Args:
        model: any CapsNet with a decoder, on any device.
        digits: images [N, C, H, W] in 0..1 and their labels [N]; or several such sets for a menu: a dict of pairs,
            or of functions that load them, such as that of `digit_sets`.
        spreads: of `measure_spreads` or `load_spreads`; None measures them on the (first) digits, which need every class.
        names_file: the JSON file that keeps the reader's names of dimensions: capsule_names.json, here, unless said.
        pad: begin with the pad as the large picture, to draw on.
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
        ValueError: no decoder, layers that the page can't run, or digits or spreads that don't fit the network.
    """

    _esm, _css = module(), style()
    source, label, strokes = Unicode().tag(sync=True), Int().tag(sync=True), List().tag(sync=True)
    index, partner, shown_class = Int().tag(sync=True), Int().tag(sync=True), Int(None, allow_none=True).tag(sync=True)
    units = traitlets.Enum(list(LIMITS), "standard deviations").tag(sync=True)
    morph, knobs = Float(0.0).tag(sync=True), List(Float()).tag(sync=True)
    # In this order they can be set: label is judged by source, index by label, knobs by units.
    STATE = "source", "label", "strokes", "index", "partner", "shown_class", "units", "morph", "knobs"

    pad, _config, _names = Bool(False).tag(sync=True), Dict().tag(sync=True), Dict().tag(sync=True)
    _weights, _spreads, _digits = (Bytes().tag(sync=True) for _ in range(3))  # as safetensors
    _sources, _counts = List().tag(sync=True), List().tag(sync=True)
    _network, _called, _notice = (Unicode().tag(sync=True) for _ in range(3))

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
        pad: bool = False,
        **state,
    ):
        self._setting, self._from_page, self._view = True, False, None
        if unknown := state.keys() - set(self.STATE):
            raise ValueError(f"the explorer's state has no {unknown.pop()!r}: it has {', '.join(self.STATE)}")
        super().__init__(pad=pad, **for_page(model))
        self.model, self.spreads, self._given = model, spreads, (model, digits, spreads)
        sets = digits if isinstance(digits, dict) else {"given": digits}
        self._sets = {name: one if callable(one) else lambda one=one: one for name, one in sets.items()}
        self._sources, self._called = list(sets), called(*self._given)
        self._take(self._sources[0])
        self.spreads = spreads or measure_spreads(model, self._images, self._labels)
        self._spreads = spreads_for_page(self.spreads)
        self._names_file = writable_path(names_file or "capsule_names.json")
        try:
            self._names = read_names(self._names_file)
        except ValueError as error:
            self._notice = str(error)
        self._put(**{"source": self._taken, "label": next(iter(self._members)), "knobs": self._zeros} | state)
        self.on_msg(self._answer)

    def __repr__(self) -> str:  # what stands on a page where no kernel runs
        return INTERACTIVE

    def _take(self, source: str) -> None:
        """Load a set of digits, from which they are then chosen, and send some to the page."""
        try:
            images, labels = self._sets[source]()
        except (TypeError, ValueError) as error:
            raise type(error)(f"digits are a pair (images, labels), or a dict of such pairs ({error})") from error
        config, spreads = self.model.config, self.spreads
        check_pictures(images, config.image_shape)
        check_labels(labels, len(images), config.classes)
        if spreads is not None and list(spreads.mean.shape) != (wanted := [config.classes, config.class_dim]):
            raise ValueError(
                f"this network's spreads are {wanted}, these are {list(spreads.mean.shape)}: measure them on it"
            )
        self._images, self._labels, self._taken = images, labels, source
        self._members = {j: (labels == j).nonzero()[:, 0].tolist() for j in sorted(set(labels.tolist()))}
        some = [n for members in self._members.values() for n in members[:SENT]]
        with self.hold_sync():
            self._counts = [len(self._members.get(j, [])) for j in range(config.classes)]
            self._digits = digits_for_page(images[some], labels[some])

    # The state

    @traitlets.validate(*STATE)
    def _fit(self, proposal):
        if fault := self._fault(proposal.trait.name, proposal.value):
            raise TraitError(fault)
        return proposal.value

    def _fault(self, name: str, value) -> str | None:
        """What is wrong with a value of this trait, or None; a new set of digits is loaded."""
        config, limit = self.model.config, LIMITS[self.units]
        if name == "source" and value not in self._sets:
            return f"there are no digits {value!r} here: choose from {', '.join(map(repr, self._sets))}"
        if name == "source" and value != self._taken:
            try:
                self._take(value)
            except (TypeError, ValueError, OSError) as error:
                return f"the digits {value!r} can't be had: {error}"
        if name == "label" and value not in self._members:
            return f"there is no digit of class {value} here: choose one of {', '.join(map(str, self._members))}"
        if name in ("index", "partner") and value not in range(count := len(self._members[self.label])):
            return f"class {self.label} has digits 0 to {count - 1}; got {name} {value}"
        if name == "shown_class" and value is not None and not 0 <= value < config.classes:
            return f"this network has classes 0 to {config.classes - 1}; got shown_class {value}"
        if name == "morph" and not 0 <= value <= 1:
            return f"morph goes from 0 to 1; got {value}"
        if name == "knobs" and len(value) != config.class_dim:
            return f"a capsule of this network takes {config.class_dim} knobs; got {len(value)}"
        if name == "knobs" and not all(abs(knob) <= limit for knob in value):  # a nan too
            return f"knobs in {self.units} lie in -{limit:g}..{limit:g}; got {value}"
        if name == "strokes" and value:
            try:
                self._drawn(value)
            except ValueError as error:
                return str(error)
        return None

    @traitlets.observe(*STATE)
    def _follow(self, change):
        if not self._setting:
            unturned = {"knobs": self._zeros}
            label = self.label if self.label in self._members else next(iter(self._members))
            also = {"source": {"label": label} | self._fresh, "label": self._fresh, "index": {"strokes": []}}
            self._put(**(also | {"shown_class": unturned, "units": unturned}).get(change.name, {}))

    def _put(self, **state) -> None:
        """Set several traits, and tell the page of them at once."""
        self._setting = True
        try:
            with self.hold_sync():
                for name in self.STATE:
                    if name in state:
                        setattr(self, name, state[name])
        finally:
            self._setting = False

    def set_state(self, sync_data: dict) -> None:
        """What the page sends: states that are whole already; but of another set of digits it knows nothing."""
        self._from_page, self._setting = True, "source" not in sync_data
        try:
            super().set_state(sync_data)
        except TraitError as error:
            self._notice = str(error)
            self.send_state(list(self.STATE))
        finally:
            self._from_page = self._setting = False

    @traitlets.observe("_names")
    def _keep(self, change) -> None:
        if self._from_page:
            try:
                keep_names(self._names_file, change.old, change.new)
            except (ValueError, OSError) as error:
                self._notice = str(error)

    def _answer(self, _, asked: dict, __) -> None:
        """What only Python has: a digit of a large set, measures."""
        try:
            if "digit" in asked:
                label, index = asked["digit"]
                self.send(asked, [self._images[self._members[label][index]].float().cpu().numpy().tobytes()])
            if "measure" in asked:
                label = asked["measure"]
                some = self._members.get(label, [])[:400]  # more would take longer and say the same
                if not some:
                    raise ValueError(f"there is no digit of class {label} in this set to measure")
                self.send(asked | {"table": effects(self.model, self._images[some], self._labels[some], label).table()})
        except Exception as error:  # it would otherwise end in a log that nobody reads
            self.send(asked | {"fault": str(error) or type(error).__name__})

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
    def _shown(self) -> int:
        return self.label if self.shown_class is None else self.shown_class

    def _now(self) -> _View:
        """What the present state shows: worked out once, and only when Python asks."""
        if self._view is None or self._view[0] != self._state:
            members = self._members[self.label]
            original = self._drawn(self.strokes) if self.strokes else self._images[members[self.index]].cpu()
            both = self.model.encode(torch.stack([original, self._images[members[self.partner]].cpu()])).cpu()
            capsule = torch.lerp(*both[:, self._shown], self.morph)
            capsule = capsule + self.spreads.shift(torch.tensor(self.knobs), self._shown, self.units)
            changed = self.model.decode(capsule[None], self._shown).cpu()
            redrawn = self.model.decode(both[:1, self.label], self.label)[0].cpu()
            self._view = self._state, _View(capsule, original, redrawn, changed[0], self._lengths(changed))
        return self._view[1]

    def _lengths(self, images: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self.model.encode(images), dim=2)[0].cpu()

    def _drawn(self, strokes: list) -> Tensor:
        channels, height, width = self.model.config.image_shape
        if channels != 1 or height != width:
            raise ValueError(f"a drawing is grey and square; this network takes {channels} x {height} x {width}")
        return mnist_like(strokes, height)

    def draw(self, strokes: list) -> "CapsuleExplorer":
        """Make a drawing, strokes [[[x, y], ...], ...] in 0..1, the current digit, of the class that the network reads.

        Raises:
            ValueError: nothing is drawn, the network takes no grey square images, or there is no digit of that class here.
        """
        label = int(self._lengths(self._drawn(strokes)[None]).argmax())
        self._put(**self._fresh | {"label": label, "strokes": strokes})
        return self

    def sheet(self, dimensions: Sequence[int] | None = None) -> Image.Image:
        """The paper's figure 4 for this digit: a row for each dimension or axis (all of them), through its whole range."""
        knobs, label = torch.tensor(self.knobs), self._shown
        rows = range(len(knobs)) if dimensions is None else dimensions
        turned = knobs.repeat(len(rows), len(STEPS), 1)
        for row, d in enumerate(rows):
            turned[row, :, d] = LIMITS[self.units] * STEPS
        capsules = self.capsule + self.spreads.shift(turned - knobs, label, self.units)
        images = self.model.decode(capsules.flatten(0, 1), label).cpu().unflatten(0, capsules.shape[:2])
        return sheet_picture(images, rows, self.units)

    def save(self, path: str | Path) -> Path:
        """Write the pictures that are shown, side by side, as a PNG file, whole or not at all; returns where.

        A relative path that leads into a read-only folder goes to `capsule_home()` instead. A FileExistsError says that there is
        something already: it is left as it is.
        """
        view, path = self._now(), check_new(writable_path(path))
        write_whole({path: png(strip(view.original, view.reconstruction, view.changed, 2 * PANEL))})
        return path

    def as_python(self) -> str:
        """A line of Python that rebuilds what is shown, with what the notebook calls the network, the digits and the spreads."""
        fresh = {"source": self._sources[0], "units": "standard deviations"} | self._fresh
        given = [f"{name}={value!r}" for name, value in self._state.items() if name == "label" or value != fresh[name]]
        return f"CapsuleExplorer({', '.join([called(*self._given), *given])})"
