"""Capsule networks after Sabour, Frosst and Hinton, 'Dynamic Routing Between Capsules' (2017).

The data's way through the package: images -> `data` -> `layers` (with `routing`) -> `model` -> `losses` -> `training` -> `weights`.
Below them `contract`, which says what counts as pictures, labels and settings, `files` and `device`. Larger things have rooms of
their own, each with a front door that says what may be used from outside: `plots`, `checks` and `routings` for the notebooks,
`morphometry`, `explorer`, and the commands `python -m capsule_lib.train`, `capsule_lib.experiments` and `capsule_lib.bench`.

Shape letters, the same everywhere:

    B  images in the batch            C, H, W  channels, height, width of an image
    I  input capsules                 K        dimensions of an input capsule
    J  output capsules (classes)      D        dimensions of an output capsule
"""

import os

# Between two operations the threads of OpenMP, which PyTorch computes with, wait for each other by spinning, 300,000 times
# before they sleep. Beside other programs they take processors from those they wait for, and everything takes ten times as
# long; if they slept at once, waking them would cost as much as the work between. It is read once, when torch is loaded:
# where torch comes first, set it in the shell. (It is read by libgomp, on Linux.)
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

from capsule_lib.data import digit_sets, load_digits, random_shift
from capsule_lib.device import set_up
from capsule_lib.layers import Decoder, DigitCaps, PrimaryCaps
from capsule_lib.losses import margin_loss, reconstruction_loss
from capsule_lib.model import CapsNet, CapsNetConfig
from capsule_lib.own_pictures import load_pictures
from capsule_lib.routing import dynamic_routing, squash
from capsule_lib.training import evaluate
from capsule_lib.weights import load_pretrained, load_weights, save_weights

__all__ = [
    "CapsNet",
    "CapsNetConfig",
    "Decoder",
    "DigitCaps",
    "PrimaryCaps",
    "digit_sets",
    "dynamic_routing",
    "evaluate",
    "load_digits",
    "load_pictures",
    "load_pretrained",
    "load_weights",
    "margin_loss",
    "random_shift",
    "reconstruction_loss",
    "save_weights",
    "set_up",
    "squash",
]
