"""Every setting of a training, in one record."""

import dataclasses
from dataclasses import dataclass, field

from capsule_lib.contract import COUNT, DEGREES, POSITIVE, SEED, SHARE, WEIGHT, WHOLE
from capsule_lib.data import MARGIN
from capsule_lib.model import PRESETS


def _setting(default, kind, words: str):
    """A field of `TrainingConfig`: its default, which values fit (a kind, a list of choices, or any text), and what it means."""
    return field(default=default, metadata={"kind": kind, "words": words})


@dataclass(frozen=True)
class TrainingConfig:
    """Every setting of a training: what the command takes, and what a checkpoint and a card record.

    The same network, images, settings and thread count give the same weights, bit for bit.

    Raises:
        ValueError: a value that does not fit. It is named, with what was expected.
    """

    preset: str = _setting(
        "small", PRESETS, "the network: the paper's, a quarter of its size, or a fifth, with batch norm"
    )
    data: str = _setting(
        "shipped",
        str,
        "the 4,000 'shipped' digits, 'mnist', 'fashion', or a folder of your own pictures; 'overlapping', two of MNIST's digits on top "
        "of each other, or 'overlapping shipped', two of the shipped ones",
    )
    epochs: int = _setting(20, COUNT, "passes over the training images")
    batch_size: int = _setting(128, COUNT, "images per step, over all processes together")
    learning_rate: float = _setting(2e-3, POSITIVE, "the highest one: it rises to it and falls again")
    weight_decay: float = _setting(
        0.0, WEIGHT, "each step takes this much times the learning rate off every weight (AdamW); 0: plain Adam"
    )
    reconstruction_scale: float | None = _setting(
        None, WEIGHT, "weight of the squared error, summed over an image's pixels; the paper's is 0.0005; "
        "by default 0.01 at 784 pixels, and so much at other sizes that the mean has the same weight",
    )  # fmt: skip
    max_shift: int = _setting(2, WHOLE, "shift each training image by up to so many pixels, both ways")
    shift: str = _setting(
        "pixels", ("pixels", "margin"), "of training images: by up to max_shift 'pixels', all as likely; or within the black 'margin' of "
        "each, with a standard deviation of a third of it",
    )  # fmt: skip
    rotation: float = _setting(0.0, DEGREES, "rotate each training image by up to so many degrees, both ways")
    scaling: float = _setting(0.0, SHARE, "change the size of each training image by up to this share, both ways")
    rotation_spread: float = _setting(
        0.0,
        DEGREES,
        "rotate half of the training images with this standard deviation, in degrees, by at most three of it",
    )
    squeeze: float = _setting(
        0.0, SHARE, "make each training image narrower by up to this share, with a standard deviation of a third of it"
    )
    erase: int = _setting(0, WHOLE, "black out a patch of so many by so many pixels, anywhere in each training image")
    ema_decay: float = _setting(
        0.0, SHARE, "decay of an exponential moving average of the weights, which is what is evaluated and saved; "
        "0.999 averages over about 1,000 steps; 0: no average",
    )  # fmt: skip
    start: str | None = _setting(
        None, str, "weights.safetensors of an earlier run, to start from instead of random weights"
    )
    iterations: int = _setting(3, COUNT, "routing iterations")
    seed: int = _setting(0, SEED, "of the first weights, the split, the order and the moves of the images")
    precision: str = _setting("float32", ("float32", "bfloat16"), "of the convolutions; all else stays in float32")

    def __post_init__(self):
        for each in dataclasses.fields(self):
            name, value, kind = each.name, getattr(self, each.name), each.metadata["kind"]
            if isinstance(kind, tuple | dict):
                if value not in kind:
                    raise ValueError(f"{name}: expected one of {', '.join(map(repr, kind))}; got {value!r}")
            elif kind is not str and not (value is None and each.default is None):
                object.__setattr__(self, name, kind.check(name, value))
            elif kind is str and not ((isinstance(value, str) and value) or value is each.default):
                raise ValueError(f"{name}: expected a text; got {value!r}")

    @property
    def margin(self) -> int:
        """Pixels by which the canvas of two overlapping digits is larger on every side than a digit's; 0 for single digits."""
        return MARGIN if self.data.startswith("overlapping") else 0

    def scale_for(self, pixels: int) -> float:
        """The reconstruction's weight for images of so many pixels, counted over all channels."""
        return 0.01 * (784 / pixels) if self.reconstruction_scale is None else self.reconstruction_scale
