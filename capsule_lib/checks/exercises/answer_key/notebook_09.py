"""What the exercises and predictions of notebook 09 expect."""

import torch

from capsule_lib import checks
from capsule_lib.checks.exercises.answer_key import Expected, Truth
from capsule_lib.checks.verdict import Asked, Verdict, checker, compare, noise


def turn_invariant(function) -> Verdict:
    """Whether a function of a picture stays when the picture turns, and differs between pictures."""
    verdict = checks.equivariance(function, "turn", wanted="invariant")
    if verdict.passed and "the same of every picture" in verdict.message:
        return Verdict(False, "it is invariant because it says the same of every picture: let it say something")
    return verdict


def _r2(said, true, of=lambda true: true - true.mean(), root=False):
    share = (true - said).square().sum() / of(true).square().sum()
    return 1 - (share.sqrt() if root else share)


R2_MISTAKES = [
    ("this is the squared correlation, which does not see an offset or a wrong scale", lambda said, true: torch.corrcoef(torch.stack([said, true]))[0, 1] ** 2),
    ("the two are exchanged: the mean and the variance are those of the true values", lambda said, true: _r2(true, said)),
    ("this is the share that is not explained: take it from 1", lambda said, true: 1 - _r2(said, true)),
    ("the true values' mean is not subtracted in the denominator", lambda said, true: _r2(said, true, of=lambda y: y)),
    ("the root of the share is not needed: both sums are of squares", lambda said, true: _r2(said, true, root=True)),
    ("the variance of what was *said* is in the denominator; take that of the true values", lambda said, true: 1 - (true - said).square().sum() / (said - said.mean()).square().sum()),
]  # fmt: skip


@checker
def r2(function):
    """Check R²: what was said [N], what was true [N] -> a number."""
    asked = Asked(function, "said [N], true [N]", "a number", numbers=True)
    cases = []
    for n, scale, offset in [(30, 0.8, 0.7), (50, 1.3, -2.0)]:
        true = 4 * noise(n, seed=1) + 2
        cases.append((scale * true + offset + noise(n, seed=2), true))
    compare(asked, cases, _r2, R2_MISTAKES)
    return "R²: the share of the true values' variance that is explained"


EXERCISES = {
    "09.1": turn_invariant,
    "09.2": r2,
    "09.3": Expected(
        "b",
        "the CNN is worse upright, so it would be worse turned even if both were equally robust",
        mistakes={
            "a": "more seeds would make both figures firmer, and they would still compare a good network with a worse one",
            "c": "at other angles the two would differ too, and for the same reason",
            "d": "a larger test set would make both figures firmer, and they would still compare a good network with a worse one",
        },
    ),
    "09.4": Expected(
        -31,
        "clockwise, the way in which handwriting leans already; the other way it takes more than twice as much",
        within=0.04,
        mistakes={
            31: "by that much the other way it is still a 3",
            74: "that is the smallest turn anticlockwise; try the other way, too",
        },
    ),
}
PREDICTIONS = {
    "09.1": Truth(
        "only the brightness", "brightest(four) == brightest(moved) and (centre(moved) - centre(four)).min() > 2"
    ),
    "09.2": Truth(
        "at about 30°", "min(curve['30°'][0], curve['-30°'][0]) > 10 > max(curve['15°'][0], curve['-15°'][0])"
    ),
    "09.3": Truth("the noise", "found['noise 0.3'][0] > 4 * max(found['slanted 17°'][0], found['thickened 2 px'][0])"),
    "09.4": Truth("about as far", "0.8 < way[[0, -1]].min() / between and way[[0, -1]].max() / between < 1.25"),
    "09.5": Truth("about half", "0.45 < from_capsule < 0.7"),
    "09.6": Truth("nearly as much", "0.85 < from_pixels / from_capsule < 1.15"),
    "09.7": Truth(
        "the CNN", "max(('small', 'uniform couplings', 'CNN', 'pixels'), key=lambda n: linear['angle'][n][0]) == 'CNN'"
    ),
    "09.8": Truth("neither", "abs(sum(over[n]['small'][0] - over[n]['CNN'][0] for n in (1, -2)) / 2) < 5"),
    "09.9": Truth(
        "it hardly moves", "0.9 < controls['30°']['uniform couplings'][0] / controls['30°']['small'][0] < 1.1"
    ),
    "09.10": Truth(
        "capsules",
        "min(on_all[100], key=lambda n: on_all[100][n][0]) in ('small', 'uniform couplings', 'no reconstruction')",
    ),
}
