"""What the exercises and predictions of notebook 01 expect."""

from capsule_lib import checks
from capsule_lib.checks.exercises.answer_key import Expected, Truth

EXERCISES = {
    "01.1": checks.squash,
    "01.2": Expected(
        [3, 9.95],
        "x = sqrt(y / (1 - y)): the last nine hundredths cost more than twice as much length as all that came before",
        within=0.001,
        mistakes={
            (9, 99): "these are the squares of the lengths: take the root",
            (0.4475, 0.495): "these lengths come out where 0.9 and 0.99 go in: it is asked the other way round",
        },
    ),
    "01.3": Expected(
        1,
        "along the capsules: the six lengths that each image has there are all below 1, and single capsules exceed 1",
        mistakes={
            0: "along axis 0 some lengths of suspect(3 * u) are above 1, so the images don't share one length",
            2: "along axis 2 some lengths of suspect(3 * u) are above 1, so it can't be the dimensions of a capsule",
        },
    ),
    "01.4": checks.overflow,
}
PREDICTIONS = {
    "01.1": Truth("both", "torch.atan2(bent[1, 1], bent[1, 0]).rad2deg() < 50 and bent[1].norm() > 1"),
    "01.2": Truth("no length is enough", "0.999 < length_out[-1] < 1 and (length_out.diff() > 0).all()"),
    "01.3": Truth("between 0 and 1", "0.5 < steepest < 0.65"),
    "01.4": Truth("the long one", "(path[-1, :2] - 0.7).abs().max() < 0.01 and path[-1, 2] > 0.95"),
    "01.5": Truth("more than half", "0.5 < untrained['paper, 1'][2] < 0.99"),
    "01.6": Truth("nan", "blank.isnan().all()"),
    "01.7": Truth("nan", "at_zero(squash_epsilon)[1].isnan().all()"),
    "01.8": Truth("0.00", "halves['squash_cancelled'][2] == 0"),
}
