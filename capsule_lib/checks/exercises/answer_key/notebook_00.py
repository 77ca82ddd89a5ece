"""What the exercises and predictions of notebook 00 expect."""

from capsule_lib import checks
from capsule_lib.checks.exercises.answer_key import Expected, Truth

EXERCISES: dict = {
    "00.1": Expected(
        0,
        "the brightest pixel is as bright as before: the maximum says that there is a spot, neither where nor how many",
        mistakes={
            1: "that is how much the *sum* changes",
            2: "that is the sum of the two spots",
            5: "that is how far the spots lie apart",
        },
    ),
    "00.2": checks.centre_of_mass,
    "00.3": Expected(
        2,
        "between its two ends dimension 2 changes this 3 by 0.40 per pixel, as a root of the mean square",
        mistakes={5: "very nearly: one other dimension changes this 3 a little more"},
    ),
}
PREDICTIONS: dict = {
    "00.1": Truth("by less than 5 %", "0 < changed['largest'] < 0.05"),
    "00.2": Truth("it turns", "angles.mean() > 15 and lengths[1] > 0.95 * lengths[0]"),
    "00.3": Truth("fewer than 1 in 20", "(longest[1] > 0.8).float().mean() < 0.05"),
}
