"""What the exercises and predictions of notebook 08 expect."""

from capsule_lib import checks
from capsule_lib.checks.exercises.answer_key import Expected, Truth

EXERCISES = {
    "08.1": checks.agreements,
    "08.2": Expected(
        94.4,
        "12 x 12 places x 32 types, each with 10 votes of 16 numbers of 4 bytes, for each of 32 images",
        within=0.006,
        mistakes={
            23.6: "a quarter of it: a number has 4 bytes, and there are 12 places along a side",
            2.95: "count all 32 types and all 32 images",
            110.8: "the last step of 2 along a side would leave the maps: round down",
            377.5: "the second kernel moves by two pixels at a time",
        },
    ),
    "08.3": checks.derivative,
    "08.4": Expected(
        [40_960, 40_960],
        "32 types x 10 classes x 8 x 16: the picture's size plays no part",
        mistakes={
            (589_824_000, 1_474_560): "these have a matrix for each place; now all places of a type share theirs",
            (4_096, 4_096): "each pair of a type and a *class* has a matrix",
            (320, 320): "these are the matrices; how many numbers has each?",
            (1_280, 1_280): "count the types, too",
        },
    ),
}
PREDICTIONS = {
    "08.1": Truth("convolutions", "counted['stem convolution'] + counted['primary convolution'] > 0.9 * total"),
    "08.2": Truth("more than 25 %", "record[0] / record[1] > 0.25"),
    "08.3": Truth("eight times the votes", "by_copies.bytes == 8 * naive_votes.nbytes"),
    "08.4": Truth("three times as many", "2.5 < adds['without votes'] / adds['with votes'] < 3.5"),
    "08.5": Truth("ten times as fast or more", "recorded('layers', batch=32)['vote-free']['times_faster'] > 10"),
    "08.6": Truth("400", "capsules_at(256) / capsules_at(28) == 400"),
    "08.7": Truth("about the same", "all(0.1 < took[n][0] / took[n][1] < 10 for n in took if n >= 64)"),
    "08.8": Truth("2 and 54", "(rows['naive'][2], rows['vote-free'][2]) == (2, 54)"),
    "08.9": Truth("about 600", "multiplications == 592"),
    "08.10": Truth("less than twice as fast", "max(gain.values()) < 2"),
}
