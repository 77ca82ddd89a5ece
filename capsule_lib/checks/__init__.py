"""Checkers that take your own function and say what is wrong with it, not just that something is.

They know the mistakes that published capsule networks really made. Each checker runs your function on small made-up
inputs, compares it with the paper's formula, and where the two differ compares it with every mistake it knows.

    checks.squash(my_squash)   ->   a Verdict: it prints its message, and is true when your function is right

This file is the room's front door: use what it exports. Behind it lie `verdict`, what all checkers share, one file for each
family of them, and `exercises`, what the course's exercises and predictions need besides. Whatever a checker is given, it
answers in words; only what is no function, layer or tensor is a TypeError.
"""

from capsule_lib.checks.capsules import primary_caps, squash
from capsule_lib.checks.exercises.answers import answer
from capsule_lib.checks.exercises.equivariance import equivariance
from capsule_lib.checks.exercises.formulas import agreements, denormalise, regroup
from capsule_lib.checks.exercises.found import (
    batch_mates,
    derivative,
    diagnosis,
    knobs,
    misleading_loss,
    overflow,
    overtaking,
    repairs,
)
from capsule_lib.checks.exercises.measures import centre_of_mass, effects, flattery, places_seen
from capsule_lib.checks.exercises.predictions import predict
from capsule_lib.checks.exercises.record import progress
from capsule_lib.checks.inputs import images, random_shift
from capsule_lib.checks.layers import capsule_layer, routing_layer, weights
from capsule_lib.checks.losses import margin_loss, mask, reconstruction_loss
from capsule_lib.checks.networks import loader, network
from capsule_lib.checks.reports import Report, report
from capsule_lib.checks.routing import couplings, dynamic_routing
from capsule_lib.checks.verdict import Verdict

__all__ = [
    "Report", "Verdict", "agreements", "answer", "batch_mates", "capsule_layer", "centre_of_mass", "couplings", "denormalise", "derivative",
    "diagnosis", "dynamic_routing", "effects", "equivariance", "flattery", "images", "knobs", "loader", "margin_loss", "mask", "misleading_loss",
    "network",
    "overflow", "overtaking", "places_seen", "predict", "primary_caps", "progress", "random_shift", "reconstruction_loss", "regroup", "repairs", "report",
    "routing_layer", "squash", "weights",
]  # fmt: skip
