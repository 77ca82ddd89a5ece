"""Each checker passes what is right, and names the mistake in what is wrong."""

import re

import pytest
import torch
import torch.nn.functional as F

import capsule_lib
from capsule_lib import checks, squash


def length(s, dim=-1):
    return s.norm(dim=dim, keepdim=True)


def safe_squash(s):
    """Right, and written otherwise than the library's: in float64, with the square root kept away from zero."""
    squared = s.double().square().sum(-1, keepdim=True)
    return (squared / (1 + squared) * s / (squared + 1e-30).sqrt()).float()


def fragile_squash(s, half=True):
    """Right wherever the first look goes; `half=False` refuses half precision."""
    if s.dtype == torch.float16 and not half:
        raise TypeError("float32 only")
    return squash(s)


def routing(u_hat, iterations, softmax=2, squash_axis=-1, average=False, extra=0, replace=False, detach=False):
    b = torch.zeros_like(u_hat[..., 0])
    v = torch.zeros_like(u_hat[:, 0])
    for t in range(iterations + extra):
        votes = u_hat.detach() if detach and t < iterations - 1 else u_hat
        s = (b.softmax(softmax)[..., None] * votes).sum(1)
        v = s if squash_axis is None else squash(s, squash_axis)
        a = (votes * v[:, None]).sum(-1)
        b = (0 if replace else b) + (a.mean(0, keepdim=True) if average else a)
    return v


def margin(lengths, labels, power=2, down=0.5, average=False, softmax=False):
    lengths, t = lengths.softmax(1) if softmax else lengths, F.one_hot(labels, lengths.shape[1])
    loss = t * F.relu(0.9 - lengths) ** power + down * (1 - t) * F.relu(lengths - 0.1) ** power
    return loss.mean() if average else loss.sum(1).mean()


def shifted(image, dy, dx):
    """[C, H, W] moved down and right, black moves in."""
    return F.pad(image, (2 + dx, 2 - dx, 2 + dy, 2 - dy))[:, 2:-2, 2:-2]


def each(moves, wrap=False, draw=1):
    """Moves image n of a batch by moves[n]."""
    return lambda x: torch.stack(
        [
            image.roll(moves[n % len(moves)], (1, 2)) if wrap else draw * shifted(image, *moves[n % len(moves)])
            for n, image in enumerate(x)
        ]
    )


ALL_25 = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]


def torn(x):
    """The upper half of every picture moves, the lower stays."""
    moved = each(ALL_25)(x)
    return torch.cat([moved[:, :, :14], x[:, :, 14:]], dim=2)


def without_hinges(lengths, labels):
    t = F.one_hot(labels, lengths.shape[1])
    return (t * (0.9 - lengths) ** 2 + 0.5 * (1 - t) * (lengths - 0.1) ** 2).sum(1).mean()


RIGHT = [
    (checks.squash, squash),
    (checks.dynamic_routing, capsule_lib.dynamic_routing),
    (checks.squash, safe_squash),
    (checks.dynamic_routing, routing),
    (checks.dynamic_routing, lambda u, n: routing(u, n, detach=True)),
    (checks.dynamic_routing, lambda u, n: capsule_lib.dynamic_routing(u, n, detach=False)),
    (checks.mask, lambda v, y: v * F.one_hot(y, v.shape[1])[..., None]),
    (checks.reconstruction_loss, lambda a, b: 0.392 * F.mse_loss(a, b)),
    (checks.random_shift, lambda x: torch.stack([shifted(image, *torch.randint(-2, 3, (2,)).tolist()) for image in x])),
    (checks.margin_loss, capsule_lib.margin_loss),
    (checks.margin_loss, margin),
    (checks.reconstruction_loss, capsule_lib.reconstruction_loss),
    (checks.mask, lambda v, y: (v * F.one_hot(y, v.shape[1])[..., None]).flatten(1)),
    (checks.random_shift, capsule_lib.random_shift),
    (checks.images, torch.rand(2, 1, 4, 4)),
    (checks.couplings, torch.rand(2, 5, 3).softmax(2)),
]
WRONG = [
    (checks.squash, lambda s: squash(s, 1), "along the capsules"),
    (checks.squash, lambda s: squash(s, 0), "along the batch"),
    (checks.squash, lambda s: s / length(s), "kept the direction but lost the length"),
    (checks.squash, torch.tanh, "each number by itself"),
    (checks.squash, lambda s: squash(s.relu()), "orthant"),
    (checks.squash, lambda s: length(s) / (1 + length(s) ** 2) * s / length(s), "one power"),
    (checks.squash, lambda s: length(s) / (1 + length(s) ** 2) * length(s) * s / length(s), "zero vector"),
    (checks.squash, lambda s: (n := (s**2).sum(-1, keepdim=True)) / (1 + n) * s / (n.sqrt() + 1e-8), "gradient there"),
    (checks.squash, lambda s: (n := (s**2).sum(-1, keepdim=True)) / (1 + n) * s / (n + 1e-8).sqrt(), "float16"),
    (checks.squash, lambda s: 0.9 * squash(s), "differs"),
    (checks.squash, lambda s: squash(s.flatten(), 0).view_as(s), "whole tensor"),
    (checks.squash, lambda s: s**2 / (1 + s**2) * s.sign(), "each number by itself"),
    (checks.squash, torch.sigmoid, "sigmoid"),
    (checks.squash, lambda s: length(s) ** 2 / (1 + length(s) ** 2) * s, "long vectors stay long"),
    (checks.squash, lambda s: s / (1 + length(s)), "without the squares"),
    (checks.squash, lambda s: length(s), "shape"),
    (checks.squash, lambda s: s / 0, "not finite"),
    (checks.squash, lambda s: squash(s.detach()), "gradient"),
    (checks.squash, lambda s: fragile_squash(s, half=False), "TypeError"),
    (checks.dynamic_routing, lambda u, n: routing(u, n, softmax=1), "over the inputs"),
    (checks.dynamic_routing, lambda u, n: routing(u, n, softmax=0), "over the batch"),
    (checks.dynamic_routing, lambda u, n: routing(u, n, squash_axis=1), "along the classes"),
    (checks.dynamic_routing, lambda u, n: routing(u, n, average=True), "average the routing logits"),
    (checks.dynamic_routing, lambda u, n: routing(u, n, extra=1), "too many"),
    (checks.dynamic_routing, lambda u, n: routing(u, n, softmax=1, average=True), "inputs.*average"),
    (checks.dynamic_routing, lambda u, n: routing(u, n).detach(), "no gradient"),
    (checks.dynamic_routing, lambda u, n: 0.9 * routing(u, n), "differs"),
    (checks.dynamic_routing, lambda u, n: routing(u, n, squash_axis=None), "not squashed"),
    (checks.dynamic_routing, lambda u, n: routing(u, n, extra=-1), "too few"),
    (checks.dynamic_routing, lambda u, n: routing(u, n, replace=True), "adds it"),
    (checks.dynamic_routing, lambda u, n: routing(u, n, softmax=1, extra=1), "inputs.*too many"),
    (checks.dynamic_routing, lambda u, n: routing(u, 3), "differs"),
    (checks.dynamic_routing, lambda u, n: routing(u, n)[..., None], "shape"),
    (checks.dynamic_routing, lambda u, n: 2 * routing(u, n) - routing(u, n).detach(), "neither of the two"),
    (checks.margin_loss, lambda a, y: margin(a, y, power=1), "not squared"),
    (checks.margin_loss, lambda a, y: margin(a, y, average=True), "average over the classes"),
    (checks.margin_loss, lambda a, y: margin(a, y, power=1, average=True), "not squared, and you average"),
    (checks.margin_loss, lambda a, y: margin(a, y, softmax=True), "softmax"),
    (checks.margin_loss, lambda a, y: margin(a, y, down=1), "lambda"),
    (checks.margin_loss, lambda a, y: margin(a, y) + 0.01, "differs"),
    (checks.margin_loss, lambda a, y: margin(a, y) * len(a), "sum over the batch"),
    (checks.margin_loss, lambda a, y: margin(a, y, softmax=True, average=True), "softmax.*average over the classes"),
    (checks.margin_loss, lambda a, y: 0.5 * margin(a, y, down=2), "belongs to the absent"),
    (checks.margin_loss, lambda a, y: capsule_lib.margin_loss(a, y, 0.1, 0.9), "swapped"),
    (checks.margin_loss, lambda a, y: capsule_lib.margin_loss(a, y, 0.5, 0.5), "both margins are 0.5"),
    (checks.margin_loss, lambda a, y: capsule_lib.margin_loss(a, 1 - F.one_hot(y, 5)), "present and absent"),
    (checks.margin_loss, without_hinges, "max"),
    (checks.margin_loss, lambda a, y: F.cross_entropy(a, y), "differs"),
    (checks.margin_loss, lambda a, y: margin(a, y).item(), "should return a tensor; it returns float"),
    (checks.reconstruction_loss, lambda a, b: 0.0005 * F.mse_loss(a, b), "mean"),
    (checks.reconstruction_loss, lambda a, b: 0.0005 * F.mse_loss(a, b, reduction="sum"), "batch"),
    (checks.reconstruction_loss, F.mse_loss, "mean squared error itself"),
    (checks.reconstruction_loss, lambda a, b: 0.5 * F.mse_loss(a, b), "near the paper's term"),
    (checks.reconstruction_loss, lambda a, b: F.mse_loss(a, b, reduction="sum") / len(a), "0.0005 is missing"),
    (checks.reconstruction_loss, lambda a, b: 0.392 * F.l1_loss(a, b), "absolute"),
    (checks.reconstruction_loss, F.binary_cross_entropy, "differs"),
    (checks.mask, lambda v, y: v * length(v).softmax(1), "nothing is masked out"),
    (checks.mask, lambda v, y: v * (1 - F.one_hot(y, v.shape[1]))[..., None], "other way round"),
    (checks.mask, lambda v, y: v[range(len(v)), y], "shape"),
    (checks.mask, lambda v, y: 2 * v * F.one_hot(y, v.shape[1])[..., None], "differs"),
    (checks.mask, lambda v, y: v * F.one_hot(length(v)[..., 0].argmax(1), v.shape[1])[..., None], "longest"),
    (checks.mask, lambda v, y: v * length(v).softmax(0), "batch"),
    (checks.mask, lambda v, y: v * ((w := length(v).softmax(0)) == w.amax(1, keepdim=True)), "batch-mates"),
    (checks.mask, lambda v, y: v, "nothing is masked"),
    (checks.random_shift, lambda x: x.roll(tuple(torch.randint(-2, 3, (2,)).tolist()), (2, 3)), "same move"),
    (checks.random_shift, lambda x: x, "same move"),
    (checks.random_shift, each(ALL_25, wrap=True), "comes back"),
    (checks.random_shift, each(ALL_25, draw=0.9), "whole pixels"),
    (checks.random_shift, each([(0, 0), (1, 0), (0, 1)]), "of the 25 moves.*only 3"),
    (checks.random_shift, each([(dy, dx) for dy, dx in ALL_25 if dy >= 0 and dx >= 0]), "of the 25 moves.*only 9"),
    (checks.random_shift, lambda x: F.pad(each(ALL_25)(x), (0, 0, 1, -1)), "more than 2"),
    (checks.random_shift, torn, "move differently"),
    (checks.random_shift, lambda x: x[:, :, 2:-2, 2:-2], "shape"),
    (checks.images, torch.randn(2, 1, 9, 9), "normalisation"),
    (checks.images, torch.rand(2, 1, 9, 9) - 0.1, "normalisation"),
    (checks.images, 255 * torch.rand(2, 1, 9, 9), "255|normalisation"),
    (checks.couplings, torch.rand(2, 5, 3).softmax(1), "over the 5 inputs.*over the 3 outputs"),
    (checks.couplings, torch.rand(2, 5, 3).softmax(0), "images of the batch"),
    (checks.couplings, torch.rand(2, 5, 3), "no axis"),
]


@pytest.mark.parametrize(("check", "given"), RIGHT)
def test_right_answers_pass(check, given):
    state = torch.get_rng_state()
    assert check(given).passed is True
    assert check is checks.random_shift or torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("check", "given", "names"), WRONG)
def test_wrong_answers_are_named(check, given, names):
    verdict = check(given)
    assert verdict.passed is False and not verdict and re.search(names, verdict.message), verdict


FUNCTIONS = [
    checks.squash,
    checks.dynamic_routing,
    checks.margin_loss,
    checks.reconstruction_loss,
    checks.mask,
    checks.random_shift,
]


def unwritten(*_):
    raise NotImplementedError


@pytest.mark.parametrize("check", FUNCTIONS)
def test_stubs_and_crashes(check):
    for stub in (lambda *_: None, lambda *_: ..., unwritten):
        verdict = check(stub)
        assert verdict.passed is None and not verdict and "write the function" in verdict.message
    crash = check(lambda *_: 1 / 0)
    assert crash.passed is False and "ZeroDivisionError" in crash.message and "shapes [" in crash.message
    assert "returns str" in check(lambda *_: "done").message


def test_a_verdict_shows_its_sign_and_its_message():
    assert [repr(checks.Verdict(passed, "so")) for passed in (True, False, None)] == ["✓ so", "✗ so", "… so"]


def test_other_layouts():
    assert checks.dynamic_routing(lambda u, n: routing(u.permute(3, 1, 0, 2), n), layout="jidb")
    assert checks.couplings(torch.rand(3, 2, 5).softmax(0), layout="jbi")
    assert "over the 5 inputs" in checks.couplings(torch.rand(3, 2, 5).softmax(2), layout="jbi").message
    with pytest.raises(ValueError, match="'bij'"):
        checks.dynamic_routing(routing, layout="bij")
    for c, layout in ((torch.rand(2, 5, 3), "bii"), (torch.rand(2, 5, 3, 1), "bij")):
        with pytest.raises(ValueError, match="three axes"):
            checks.couplings(c, layout)


def test_primary_capsules_from_outside():
    layer, maps = capsule_lib.PrimaryCaps(3, 4, 8, 5, 2), torch.zeros(1, 3, 12, 12)
    state = torch.get_rng_state()
    assert checks.primary_caps(layer, maps, kernel_size=5)
    assert torch.equal(torch.get_rng_state(), state)
    for given, names in [
        (lambda x: squash(layer.conv(x).reshape(len(x), -1, 8)), "move the K channels"),
        (lambda x: squash(layer.conv(x).permute(0, 2, 1, 3).reshape(len(x), -1, 8)), "move the K channels"),
        (lambda x: layer(x).relu(), "orthant"),
        (lambda x: squash(layer.conv(x).relu().reshape(len(x), 8, -1).mT), "orthant"),
        (lambda x: 20 * layer.conv(x).reshape(len(x), 8, -1).mT, "squash along"),
        (lambda x: 9 * squash(layer.conv(x).reshape(len(x), 8, -1).mT, 1), "squash along"),
        (layer.conv, r"\[B, I, K\], got shape"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
    ]:
        verdict = checks.primary_caps(given, maps, kernel_size=5)
        assert verdict.passed is False and re.search(names, verdict.message), verdict
    assert checks.primary_caps(lambda x: None, maps).passed is None


def test_regrouping_alone_is_checked_without_squash():
    maps = torch.zeros(1, 256, 6, 6)
    for function in (
        lambda x: x.reshape(len(x), 8, -1).mT,
        lambda x: x.permute(0, 2, 3, 1).reshape(len(x), -1, 8),  # channels last: another order, and right as well
    ):
        assert "all 1,152" in checks.primary_caps(function, maps, squashed=False).message
        assert not checks.primary_caps(function, maps)
    scrambled = checks.primary_caps(lambda x: x.reshape(len(x), -1, 8), maps, squashed=False)
    assert not scrambled and "0 of 1,152" in scrambled.message


def test_capsule_layers_from_outside():
    layer, u = capsule_lib.DigitCaps(50, 8, 10, 16), squash(torch.randn(4, 50, 8))
    state = torch.get_rng_state()
    assert checks.capsule_layer(layer, u)
    assert torch.equal(torch.get_rng_state(), state)
    for given, names in [
        (lambda x: layer(x - x.mean(0)), "batch-mates"),
        (lambda x: 30 * layer(x), "squash along the numbers"),
        (lambda x: layer(x).norm(dim=2), r"\[B, J, D\] with B = 4, got shape"),
        (lambda x: layer(x)[:2], r"B = 4, got shape"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
    ]:
        verdict = checks.capsule_layer(given, u)
        assert verdict.passed is False and re.search(names, verdict.message), verdict
    assert checks.capsule_layer(lambda x: None, u).passed is None
    layer.weight.data *= 20  # mistake 3
    assert "standard deviation" in checks.capsule_layer(layer, u).message


def turned(u, weight, v):
    return torch.einsum("bik,bijk->bij", u, torch.einsum("bjd,jikd->bijk", v, weight))


def class_by_class(u, weight, v):
    """Right, and written with matrix products."""
    parts = [(v[:, j] @ w.flatten(0, 1).T).unflatten(1, u.shape[1:]) for j, w in enumerate(weight)]
    return torch.stack([(part * u).sum(2) for part in parts], dim=2)


def votes(u, weight):
    return torch.einsum("bik,jikd->bijd", u, weight)


@pytest.mark.parametrize("function", [turned, class_by_class])
def test_agreements_without_votes_pass(function):
    assert checks.agreements(function)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda u, w, v: (votes(u, w) * v[:, None]).sum(3), "as many as there are votes"),
        (lambda u, w, v: torch.einsum("bik,jikd,bjd->bij", u, w, v), "as many as there are votes"),
        (lambda u, w, v: ((u[:, None, :, None] @ w).squeeze(3) * v[:, :, None]).sum(3).mT, "once for each image"),
        (lambda u, w, v: turned(u, w, v) / 4, "numbers of a part"),
        (lambda u, w, v: turned(u, w, v) / 16, "numbers of a class"),
        (lambda u, w, v: turned(u, w, v).mean(0, keepdim=True).repeat(12, 1, 1), "over the batch"),
        (lambda u, w, v: turned(u, w, v) / votes(u, w).norm(dim=3), "cosine"),
        (lambda u, w, v: turned(u, w, v).softmax(2), "couplings"),
        (lambda u, w, v: (squash(votes(u, w)) * v[:, None]).sum(3), "squash the votes"),
        (lambda u, w, v: turned(u, w, v).mT, "should have shape [12, 6, 3]"),
        (lambda u, w, v: -turned(u, w, v), "differs from the paper's formula"),
    ],
)
def test_agreements_that_are_wrong_or_build_votes_are_told_apart(function, says):
    verdict = checks.agreements(function)
    assert verdict.passed is False and says in verdict.message


def test_a_stub_of_agreements_is_no_answer():
    assert checks.agreements(lambda u, weight, v: ...).passed is None
