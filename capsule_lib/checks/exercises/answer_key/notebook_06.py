"""What the exercises and predictions of notebook 06 expect."""

from capsule_lib import checks
from capsule_lib.checks.exercises.answer_key import Expected, Truth

EXERCISES = {
    "06.1": Expected(
        "d",
        "it compares with the images before their move, so the decoder would have to undo what it can't know",
        mistakes={
            "a": "each training image should move by a step of its own: see what is then done with the moved ones",
            "b": "the moved images go in, and in training the label says which capsule is redrawn",
            "c": "a digit's class doesn't move with it: lengths and labels are all that this loss needs",
        },
    ),
    "06.2": Expected(
        1_891_792,
        "2,117,072 - 288 × 5 × 8 × 16 - 5 × 16 × 512: fewer matrices, and fewer inputs of the decoder",
        mistakes={
            1_932_752: "the votes' matrices are right; the decoder, too, has fewer inputs",
            2_076_112: "the decoder is right; there are also fewer matrices for votes",
            225_280: "that is how many there are fewer: what is left?",
        },
    ),
    "06.3": checks.random_shift,
    "06.4": checks.flattery,
}
PREDICTIONS = {
    "06.1": Truth("the decoder", "small['decoder'] > sum(small.values()) / 2"),
    "06.2": Truth("about 0.8", "0.7 < steps[0][0] < 0.9"),
    "06.3": Truth("on training digits", "curves[0][0] > 1.5 * curves[0][1]"),
    "06.4": Truth("as the wrong class", 'shares["winner\'s"][1] > 0.6'),
    "06.5": Truth("more than half", "avoided > 0.5"),
    "06.6": Truth("fewer than 1 in 20", "sure[1, 1] < 0.05"),
    "06.7": Truth("about 9 in 10", "strange.error > 80"),
}
