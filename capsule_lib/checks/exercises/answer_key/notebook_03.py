"""What the exercises and predictions of notebook 03 expect."""

from capsule_lib import checks
from capsule_lib.checks.exercises.answer_key import Expected, Truth

EXERCISES = {
    "03.1": lambda function: checks.dynamic_routing(function, layout="bjid"),
    "03.2": Expected(
        0.99,
        "1,152 votes of length 0.1, each times 1/10, add up to 11.52, and squash makes that 0.99",
        within=0.006,
        mistakes={
            11.52: "that is how long the sum s is; a capsule is squashed",
            115.2: "each vote counts only as far as its coupling, 1/10, says; then squash",
            0.01: "that is one vote, squashed: first add up 1,152 votes, each times its coupling",
            0.92: "squash divides by 1 + the square of the length, not by 1 + the length",
        },
    ),
    "03.3": lambda votes: checks.overtaking(votes),
    "03.4": Expected(
        "B",
        "over the 10 wholes each part's couplings sum to 1",
        mistakes={
            "A": "these sum to 1 over the 288 parts: every whole receives 1, and a part gives next to nothing",
            "C": "these sum to 1 over the 2 images: what an image's parts give depends on its batch-mates",
        },
    ),
}
PREDICTIONS = {
    "03.1": Truth("it shrinks", "steps[0][1] > steps[1][1] > steps[2][1]"),
    "03.2": Truth("shorter wholes", "first_iteration(1)[1] < 0.5 * first_iteration(2)[1]"),
    "03.3": Truth("almost 1", "medians[1.0][0] > 0.95"),
    "03.4": Truth("about 0.1", "0.1 < to_true[:, 2].mean() < 0.2"),
    "03.5": Truth("about 0.9", "true_lengths[2] > 0.85"),
    "03.6": Truth("about half", "0.4 < (moved > 0.1).float().mean() < 0.6"),
    "03.7": Truth("it grows to 0.9", "rows[10][1] > 0.9"),
    "03.8": Truth("twice as many", "errors[10] > 1.7 * errors[3]"),
}
