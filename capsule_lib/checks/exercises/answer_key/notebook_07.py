"""What the exercises and predictions of notebook 07 expect."""

import torch

from capsule_lib import checks
from capsule_lib.checks.exercises.answer_key import Expected, Truth
from capsule_lib.checks.verdict import Asked, checker, compare, noise


def knobs(turns):
    """Whether the notebook's 4, its capsule turned, is read as a 9."""
    from capsule_lib.data import load_digits
    from capsule_lib.weights import load_pretrained

    net = load_pretrained("small")
    fours = {}
    for split in ("train", "test"):
        images, labels = load_digits("shipped", split=split)
        fours[split] = net.encode(images[labels == 4])[:, 4]
    return checks.knobs(turns, net, fours["test"][0], fours["train"].std(dim=0), label=4, wanted=9)


def _distance(capsules, cloud, centre=True, transpose=False, root=True, norm=lambda w: w.norm(dim=1)):
    variances, axes = torch.linalg.eigh(torch.cov(cloud.T))
    w = (capsules - centre * cloud.mean(dim=0)) @ (axes.T if transpose else axes)
    return norm(w / (variances.sqrt() if root else variances))


DISTANCE_MISTAKES = [
    ("you count in standard deviations of each dimension; count along the principal axes", lambda v, cloud: ((v - cloud.mean(0)) / cloud.std(0)).norm(dim=1)),
    ("the cloud's mean is not subtracted", lambda *given: _distance(*given, centre=False)),
    ("this is the ordinary distance: divide by the standard deviation along each axis", lambda v, cloud: (v - cloud.mean(0)).norm(dim=1)),
    ("you divide by the variances; a standard deviation is the root of one", lambda *given: _distance(*given, root=False)),
    ("the eigenvectors are the columns of what eigh returns, and yours are its rows", lambda *given: _distance(*given, transpose=True)),
    ("the root of the sum is missing", lambda *given: _distance(*given, norm=lambda w: w.square().sum(dim=1))),
    ("you take the root of the mean over the axes; take that of the sum", lambda *given: _distance(*given, norm=lambda w: w.square().mean(dim=1).sqrt())),
    ("you add up the sizes; add their squares, and take the root", lambda *given: _distance(*given, norm=lambda w: w.abs().sum(dim=1))),
    ("mean and axes are those of the cloud, not of the capsules that are asked about", lambda v, cloud: _distance(v, v)),
]  # fmt: skip


@checker
def distance(function):
    """Check a distance from a cloud's mean in standard deviations along its principal axes: capsules [N, D], cloud [M, D] -> [N]."""
    asked = Asked(function, "capsules [N, D], cloud [M, D]", "[N]", numbers=True)
    cases = []
    for n, m, d in [(30, 200, 16), (40, 300, 5)]:
        mix = noise(d, d, seed=3) + 0.5 * torch.eye(d)
        cloud = noise(m, d, seed=1) @ mix + noise(d, seed=2)
        cases.append((2 * noise(n, d, seed=4) @ mix, cloud))
    compare(asked, cases, _distance, DISTANCE_MISTAKES, tolerance=0.005)  # a covariance may divide by M or M - 1
    return "distances: from the cloud's mean, in standard deviations along its principal axes"


EXERCISES: dict = {
    "07.1": Expected(
        2,
        "over the sweep dimension 2 makes the strokes of a 3 thicker by 1.4 pixels, the next one by 0.9",
        mistakes={
            9: "nearly: it changes the thickness by 0.9 pixels, another one by more",
            13: "it changes the thickness by 0.8 pixels, another one by more",
        },
    ),
    "07.2": knobs,
    "07.3": checks.effects,
    "07.4": distance,
}
PREDICTIONS: dict = {
    "07.1": Truth(
        "clearly visible",
        "(turned[-1] - turned[0]).square().mean().sqrt() > 0.1 and (net(turned).lengths.argmax(dim=1) == 4).all()",
    ),
    "07.2": Truth("1.5 to 2 times", "1.5 < sd.max() / sd.min() < 2"),
    "07.3": Truth("about 40", "35 < holds.all(dim=2).all(dim=1).sum() < 45"),
    "07.4": Truth("93 to 96 %", "0.93 < is_four(made_up['each dimension by itself']).float().mean() < 0.96"),
    "07.5": Truth("slant", "morphometry.measure(sweep['0'])['slant'][[0, -1]].diff().abs() > 30"),
    "07.6": Truth("about 50", "40 < (counts == 0).sum() < 60"),
}
