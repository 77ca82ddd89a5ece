"""Checkers that take your own function and say what is wrong with it, not just that something is.

They know the mistakes that published capsule networks really made. Each checker runs your function on a small made-up
input, compares it with the paper's formula, and where the two differ compares it with every mistake it knows.

    checks.squash(my_squash)   ->   a Verdict: it prints its message, and is true when your function is right

This file is the room's front door: use what it exports. One file for each family lies behind it.
"""

from capsule_lib.checks.answers import answer
from capsule_lib.checks.capsules import primary_caps, squash
from capsule_lib.checks.inputs import images, random_shift
from capsule_lib.checks.losses import margin_loss, mask, reconstruction_loss
from capsule_lib.checks.predictions import predict
from capsule_lib.checks.record import progress
from capsule_lib.checks.routing import agreements, capsule_layer, couplings, dynamic_routing
from capsule_lib.checks.verdict import Verdict

__all__ = [
    "Verdict",
    "agreements",
    "answer",
    "capsule_layer",
    "couplings",
    "dynamic_routing",
    "images",
    "margin_loss",
    "mask",
    "predict",
    "primary_caps",
    "progress",
    "random_shift",
    "reconstruction_loss",
    "squash",
]
