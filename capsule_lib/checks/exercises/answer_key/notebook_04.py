"""What the exercises and predictions of notebook 04 expect."""

from capsule_lib import checks
from capsule_lib.checks.exercises.answer_key import Expected, Truth

EXERCISES = {
    "04.1": checks.reconstruction_loss,
    "04.2": checks.margin_loss,
    "04.3": Expected(
        0.88,
        "0.4² for the class that is present, and nine times half of 0.4²",
        mistakes={
            1.6: "the absent classes count half: λ = 0.5",
            0.24: "nine classes are absent, not one",
            2.2: "the hinges are squared: 0.4²",
            4.0: "the hinges are squared, and the absent classes count half",
            0.088: "sum over the ten classes; you averaged over them",
            0.72: "that is what the nine absent classes cost: add the one that is present",
            0.16: "that is what the present class costs: add the nine that are absent",
            0.8: "λ = 0.5 belongs to the absent classes only: the present one counts fully",
            1.52: "λ = 0.5 belongs to the absent classes, not to the present one",
            1.375: "that is the squared distance to 1 and 0: the margins are 0.9 and 0.1, so both hinges are 0.4",
        },
    ),
    "04.4": lambda lengths: checks.misleading_loss(lengths),
    "04.5": lambda letters: checks.repairs(letters),
}
PREDICTIONS = {
    "04.1": Truth("the nine absent ones", "cost[1:].sum() > 2 * cost[0] > 0"),
    "04.2": Truth("near 5 and growing", "4.5 < to_one[-1] < 5.5 and to_one[-1] > to_one[-100] + 0.01"),
    "04.3": Truth("about 0.2", "0.15 < cheapest < 0.25"),
    "04.4": Truth("about one in 4", "0.2 < counts['true class below 0.9'] / counts['read correctly'] < 0.3"),
    "04.5": Truth("0.23", "abs(share - 0.232) < 0.001"),
    "04.6": Truth("it stays the same", "rows['margin loss'][0] == rows['margin loss'][2]"),
    "04.7": Truth("a twentieth", "abs(ratio - 20) < 0.01"),
}
