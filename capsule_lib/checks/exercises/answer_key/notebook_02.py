"""What the exercises and predictions of notebook 02 expect."""

from capsule_lib import checks
from capsule_lib.checks.exercises.answer_key import Expected, Truth

EXERCISES: dict = {
    "02.1": checks.regroup,
    "02.2": Expected(
        4608,
        "32 places along a side after the stem, 12 after the primary convolution: 12 x 12 places of 32 types",
        mistakes={
            1152: "that many there are at 28 x 28 pixels",
            5408: "(32 - 9) / 2 is rounded down, not up",
            5000: "(32 - 9) / 2 is rounded down: a window fits or it doesn't",
            144: "so many places there are; each has 32 types of capsule",
            36864: "so many numbers there are; eight of them make a capsule",
            384: "these are the places along one side, for all types: square them first",
        },
    ),
    "02.3": lambda answers: checks.diagnosis(answers, {"A": "scrambled", "B": "right", "C": "one orthant"}),
    "02.4": checks.places_seen,
}
PREDICTIONS: dict = {
    "02.1": Truth("1,152", "answers.numel() // 8 == 1152"),
    "02.2": Truth("8 places of a channel", "(scrambled[0, 0] // 36).unique().numel() == 1"),
    "02.3": Truth("none", "not count(scrambled)['one place'].any()"),
    "02.4": Truth("less than 3", "accuracies[0] - accuracies[1] < 0.03"),
    "02.5": Truth("17", "all(right - left + 1 == 17 for _, _, left, right in spans.values())"),
    "02.6": Truth("they move on by one place", "next_place.max() < 0.001 and same_place.mean() > 0.1"),
    "02.7": Truth("alike within each type", "within.max() < 0.001 and blank.min() > 0.1"),
    "02.8": Truth("directions alone", "all(float(x[1][:-1]) > 90 > 50 > float(x[2][:-1]) for x in shares.values())"),
}
