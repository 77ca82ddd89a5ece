"""The checker for invariant and equivariant functions tells each from the other and from what is neither."""

import pytest
import torch
import torch.nn.functional as F

from capsule_lib import checks
from capsule_lib.checks.exercises.equivariance import FAMILIES

AXIS = torch.arange(28.0)


def centre(p):
    return torch.stack([(p.sum(1) * AXIS).sum() / p.sum(), (p.sum(0) * AXIS).sum() / p.sum()])


def second(p):
    """How far the ink reaches from its centre, and how elongated it is, in two directions."""
    row, column = centre(p)
    y, x, w = AXIS[:, None] - row, AXIS[None] - column, p / p.sum()
    return (w * (x * x + y * y)).sum(), (w * (x * x - y * y)).sum(), (w * 2 * x * y).sum()


def convolved(kernel):
    kernel = torch.tensor(kernel)
    return lambda p: F.conv2d(p[None, None], kernel[None, None], padding=1)[0, 0]


def random_kernel(seed):
    return torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)).tolist()


FUNCTIONS = {  # what each is under shift, turn, scale, slant: invariant, equivariant, neither; '?' where it hangs on the pixels
    "sum": (lambda p: p.sum(), "iiei"),
    "largest": (lambda p: p.max(), "iiii"),
    "a Python number": (lambda p: float(p.sum()), "iiei"),
    "NumPy": (lambda p: p.numpy().sum(), "iiei"),
    "the same of all": (lambda p: torch.tensor(3.0), "iiii"),
    "ink near the edge": (lambda p: p[:, 25].sum(), "n???"),
    "sum, and ink near the edge": (lambda p: (p.sum(), p[:, 25].sum()), "n???"),
    "standard deviation": (lambda p: p.std(), "ii?i"),
    "area": (lambda p: (p > 0.1).sum(), "ii?i"),
    "centre": (centre, "eeee"),
    "a tuple": (lambda p: (p.sum(), *centre(p)), "eeee"),
    "centre row": (lambda p: centre(p)[0], "enei"),
    "sum of rows": (lambda p: (p.sum(1) * AXIS).sum(), "?n??"),
    "brightest row": (lambda p: p.sum(1).argmax(), "en??"),
    "reach": (lambda p: second(p)[0], "iien"),
    "elongation": (lambda p: torch.stack(second(p)[1:]), "ieen"),
    "one elongation": (lambda p: second(p)[1], "inen"),
    "a pixel": (lambda p: p[10, 19], "nnnn"),
    "left half": (lambda p: p[:, :14].sum(), "nnen"),
    "distance to the middle": (lambda p: (p * ((AXIS - 13.5) ** 2 + (AXIS[:, None] - 13.5) ** 2)).sum(), "ni?n"),
    "pooled by 7": (lambda p: F.max_pool2d(p[None, None], 7)[0, 0], "nnnn"),
    "the picture": (lambda p: p, "eeee"),
    "squared": (lambda p: p**2, "eeee"),
    "blurred": (convolved([[1 / 16, 1 / 8, 1 / 16], [1 / 8, 1 / 4, 1 / 8], [1 / 16, 1 / 8, 1 / 16]]), "ee??"),
    "edges": (convolved([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]), "enn?"),
    "random filter": (convolved(random_kernel(0)), "enn?"),
    "another random filter": (convolved(random_kernel(1)), "enn?"),
    "moved by one": (convolved([[0.0, 0, 0], [0, 0, 1], [0, 0, 0]]), "enn?"),
    "transposed": (lambda p: p.T, "nnen"),
    "flipped": (lambda p: p.flip(1), "nnen"),
    "brighter to the right": (lambda p: p * AXIS / 28, "nnnn"),
    "pooled by 2 and drawn large": (lambda p: F.interpolate(F.max_pool2d(p[None, None], 2), scale_factor=2.0)[0, 0], "nnnn"),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_is_what_it_is(name):
    function, kinds = FUNCTIONS[name]
    for family, kind in zip(FAMILIES, kinds, strict=True):
        if kind == "?":
            continue
        word = next(k for k in ("invariant", "equivariant", "neither") if k[0] == kind)
        verdict = checks.equivariance(function, family)
        assert verdict.message.startswith(f"your function is {word} "), (family, verdict)
        assert verdict.passed == (kind != "n")
        for wanted in ("invariant", "equivariant", "neither"):
            assert checks.equivariance(function, family, wanted).passed == (wanted == word), (family, wanted)


def test_a_family_can_be_ones_own():
    mirrored = [lambda p: p.flip(0), lambda p: p.flip(1)]
    assert checks.equivariance(lambda p: p.max(), mirrored, "invariant")
    assert checks.equivariance(centre, mirrored, "equivariant")
    assert checks.equivariance(lambda p: p.roll(1, 0), mirrored, "neither")
    assert checks.equivariance(lambda p: p * 2, mirrored, "equivariant")
    across = [lambda p: p.roll(3, 0), lambda p: p.roll(3, 1)]  # the second moves no row
    assert checks.equivariance(lambda p: centre(p)[0], across, "equivariant")


@pytest.mark.parametrize(
    ("function", "family", "wanted", "words"),
    [
        (lambda p: torch.rand(()), "shift", None, "two different things of one picture"),
        (lambda p: p.sum().log() * float("nan"), "shift", None, "not finite"),
        (lambda p: p[:14, :14], "shift", None, "returns 196 numbers: up to 32"),
        (lambda p: p[p > 0.5], "shift", None, "of different shapes"),
        (lambda p: p.mul_(0).sum(), "shift", None, "changes its input picture in place"),
        (lambda p: p.nope(), "shift", None, "AttributeError"),
        (lambda p: "far", "shift", None, "returns str"),
        (lambda p: p.sum(), "flight", None, "no family 'flight': choose one of 'shift', 'turn'"),
        (lambda p: p.sum(), [], None, "a family of moves is a name, or a list of functions"),
        (lambda p: p.sum(), [3], None, "a family of moves is a name, or a list of functions"),
        (lambda p: p.sum(), 3, None, "a family of moves is a name, or a list of functions"),
        (lambda p: p.sum(), [lambda p: p[:3]], None, r"the move number 0 should return a picture \[28, 28\]; it returns \[3, 28\]"),
        (lambda p: p.sum(), [lambda p: 1 / 0], None, "the move number 0 stops with ZeroDivisionError"),
        (lambda p: p.sum(), [lambda p: p.T, lambda p: p], None, "the move number 1 leaves every picture as it is"),
        (lambda p: p.sum(), "shift", "stable", "wanted is one of 'invariant', 'equivariant', 'neither'; got 'stable'"),
        (centre, "shift", "invariant", "equivariant under 'shift': it moves along; invariant is wanted"),
        (lambda p: p.sum(), "turn", "equivariant", "invariant under 'turn': it stays; equivariant is wanted"),
        (torch.zeros(3), "shift", None, "this is a result"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_words(function, family, wanted, words):
    verdict = checks.equivariance(function, family, wanted)
    assert verdict.passed is False
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(verdict.message)


def test_a_stub_is_nothing_to_check_yet():
    def stub(picture): ...

    for nothing in (stub, None, ...):
        assert checks.equivariance(nothing).passed is None
