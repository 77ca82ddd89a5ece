"""Each checker passes what is right, and names the mistake in what is wrong."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import capsule_lib
from capsule_lib import checks, losses, squash


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


def said(verdict):
    """The message without the reader's own line, which in this file holds the pattern that is looked for."""
    return re.sub("`.*`", "", verdict.message)


RIGHT = [
    (checks.squash, squash),
    (checks.dynamic_routing, capsule_lib.dynamic_routing),
    (checks.squash, safe_squash),
    (checks.dynamic_routing, routing),
    (checks.dynamic_routing, lambda u, n: routing(u, n, detach=True)),
    (checks.dynamic_routing, lambda u, n: capsule_lib.dynamic_routing(u, n, detach=False)),
    (checks.mask, lambda v, y: v * F.one_hot(y, v.shape[1])[..., None]),
    (checks.reconstruction_loss, lambda a, b: 0.0005 * a[0].numel() * F.mse_loss(a, b)),
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
    (checks.squash, torch.tanh, "each dimension by itself"),
    (checks.squash, lambda s: squash(s.relu()), "orthant"),
    (checks.squash, lambda s: length(s) / (1 + length(s) ** 2) * s / length(s), "one power"),
    (checks.squash, lambda s: length(s) / (1 + length(s) ** 2) * length(s) * s / length(s), "zero vector"),
    (checks.squash, lambda s: (n := (s**2).sum(-1, keepdim=True)) / (1 + n) * s / (n.sqrt() + 1e-8), "gradient there"),
    (checks.squash, lambda s: (n := (s**2).sum(-1, keepdim=True)) / (1 + n) * s / (n + 1e-8).sqrt(), "float16"),
    (checks.squash, lambda s: 0.9 * squash(s), "0.9 times"),
    (checks.squash, lambda s: squash(s.flatten(), 0).view_as(s), "whole tensor"),
    (checks.squash, lambda s: s**2 / (1 + s**2) * s.sign(), "each dimension by itself"),
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
    (checks.dynamic_routing, lambda u, n: 0.9 * routing(u, n), "0.9 times"),
    (checks.dynamic_routing, lambda u, n: routing(u, n, squash_axis=None), "not squashed"),
    (checks.dynamic_routing, lambda u, n: routing(u, n, extra=-1), "too few"),
    (checks.dynamic_routing, lambda u, n: routing(u, n, replace=True), "adds it"),
    (checks.dynamic_routing, lambda u, n: routing(u, n, softmax=1, extra=1), "inputs.*too many"),
    (checks.dynamic_routing, lambda u, n: routing(u, 3), "always run three"),
    (checks.dynamic_routing, lambda u, n: routing(u, n)[..., None, :], r"shape \[B, J, 1, D\]"),
    (checks.dynamic_routing, lambda u, n: 2 * routing(u, n) - routing(u, n).detach(), "neither of the two"),
    (checks.margin_loss, lambda a, y: margin(a, y, power=1), "not squared"),
    (checks.margin_loss, lambda a, y: margin(a, y, average=True), "average over the classes"),
    (checks.margin_loss, lambda a, y: margin(a, y, power=1, average=True), "not squared; and you average"),
    (checks.margin_loss, lambda a, y: margin(a, y, softmax=True), "softmax"),
    (checks.margin_loss, lambda a, y: margin(a, y, down=1), "λ = 0.5 of the absent"),
    (checks.margin_loss, lambda a, y: margin(a, y) + 0.01, "differs"),
    (checks.margin_loss, lambda a, y: margin(a, y) * len(a), "sum over the batch"),
    (checks.margin_loss, lambda a, y: margin(a, y, softmax=True, average=True), "average over the classes.*softmax"),
    (checks.margin_loss, lambda a, y: 0.5 * margin(a, y, down=2), "belongs to the absent"),
    (checks.margin_loss, lambda a, y: capsule_lib.margin_loss(a, y, 0.1, 0.9), "swapped"),
    (checks.margin_loss, lambda a, y: capsule_lib.margin_loss(a, y, 0.5, 0.5), "both margins are 0.5"),
    (checks.margin_loss, lambda a, y: capsule_lib.margin_loss(a, 1 - F.one_hot(y, a.shape[1])), "present and absent"),
    (checks.margin_loss, without_hinges, "max"),
    (checks.margin_loss, lambda a, y: F.cross_entropy(a, y), "differs"),
    (checks.margin_loss, lambda a, y: margin(a, y).item(), "should return a tensor; it returns float: .*item"),
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
    (checks.mask, lambda v, y: 2 * v * F.one_hot(y, v.shape[1])[..., None], "2 times"),
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
    (checks.random_shift, lambda x: F.pad(each(ALL_25)(x), (0, 0, 1, -1)), "up to 3 pixels"),
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
    assert verdict.passed is False and not verdict and re.search(names, said(verdict)), verdict


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
    assert crash.passed is False and "ZeroDivisionError" in crash.message and "called with" in crash.message
    assert "returns str" in check(lambda *_: "done").message


def test_a_verdict_shows_its_sign_and_its_message():
    assert [repr(checks.Verdict(passed, "so")) for passed in (True, False, None)] == ["✓ so", "✗ so", "… so"]


def test_other_layouts():
    assert checks.dynamic_routing(lambda u, n: routing(u.permute(3, 1, 0, 2), n), layout="jidb")
    assert checks.couplings(torch.rand(3, 2, 5).softmax(0), layout="jbi")
    assert "over the 5 inputs" in checks.couplings(torch.rand(3, 2, 5).softmax(2), layout="jbi").message
    assert checks.couplings(torch.rand(3, 2, 5).softmax(0), layout="JBI")
    for verdict in (
        checks.dynamic_routing(routing, layout="bij"),
        checks.dynamic_routing(routing, layout=4),
        checks.couplings(torch.rand(2, 5, 3), "bii"),
    ):
        assert verdict.passed is False and "layout names each of the axes" in verdict.message


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
        (layer.conv, r"\[B, I, K\].*got shape"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
    ]:
        verdict = checks.primary_caps(given, maps, kernel_size=5)
        assert verdict.passed is False and re.search(names, said(verdict)), verdict
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
        (lambda x: layer(x * (1 + x.mean())), "batch-mates"),
        (lambda x: 30 * layer(x), "squash along the dimensions"),
        (lambda x: layer(x).norm(dim=2), r"\[B, J, D\] with B = 4, got shape"),
        (lambda x: layer(x)[:2], r"B = 4, got shape"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
    ]:
        verdict = checks.capsule_layer(given, u)
        assert verdict.passed is False and re.search(names, said(verdict)), verdict
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
        (lambda u, w, v: turned(u, w, v) / 4, "dimensions of a part"),
        (lambda u, w, v: turned(u, w, v) / 16, "dimensions of a class"),
        (lambda u, w, v: turned(u, w, v).mean(0, keepdim=True).repeat(12, 1, 1), "over the batch"),
        (lambda u, w, v: turned(u, w, v) / votes(u, w).norm(dim=3), "cosine"),
        (lambda u, w, v: turned(u, w, v).softmax(2), "couplings"),
        (lambda u, w, v: (squash(votes(u, w)) * v[:, None]).sum(3), "squash the votes"),
        (lambda u, w, v: turned(u, w, v).mT, "should have shape [B, I, J] = [12, 6, 3]; yours has shape [B, J, I]"),
        (lambda u, w, v: -turned(u, w, v), "-1 times"),
        (lambda u, w, v: turned(u, w, v).square(), "differs from what is right"),
    ],
)
def test_agreements_that_are_wrong_or_build_votes_are_told_apart(function, says):
    verdict = checks.agreements(function)
    assert verdict.passed is False and says in said(verdict)


def test_a_stub_of_agreements_is_no_answer():
    assert checks.agreements(lambda u, weight, v: ...).passed is None


# What an ordinary reader writes, by the kinds of trouble it once made. Each piece: checker, what it is given, what it says
# (True: right; None: nothing to check yet; else a pattern for the message of a ✗).


def decorated(check, **settings):
    """A checker with settings, as one of the answer key."""
    return lambda given: check(given, **settings)


def squash_in_place(s):
    s *= length(s) / (1 + length(s) ** 2)
    return s


def squash_in_place_late(s):
    n = torch.linalg.vector_norm(s, dim=-1, keepdim=True)
    factor = n / (1 + n * n)
    s *= factor
    return s


def prints(s):
    print(squash(s).shape)


def forgets_return(s):
    v = squash(s)  # noqa: F841


def only_a_docstring(s):
    """Squash."""


def only_pass(s):
    pass


def to_be_done(s):
    raise NotImplementedError("your turn")


def half_done(s):
    n = s.norm(dim=-1)
    raise NotImplementedError(n)


class Stub(nn.Module):
    def forward(self, s): ...


class Layer(nn.Module):
    def forward(self, s):
        return squash(s)


def stops(s):
    n = s.norm(dim=7)
    return n


def divided_by(s, add=0.0, inside=0.0):
    """Squash with an epsilon beside the length or under the root, in float32 whatever comes."""
    squared = s.float().square().sum(-1, keepdim=True)
    return squared / (1 + squared) * s.float() / ((squared + inside).sqrt() + add)


def cancels(s):
    n = torch.linalg.vector_norm(s.float(), dim=-1, keepdim=True)
    return (1 - 1 / (1 + n * n)) * s / n.clamp(min=1e-30)


def loop(u, n, softmax=2, agree_with_s=False, end=False, fixed=None, mean=False, start=0.0, total="sum", average=False):
    """Routing with slips that readers make."""
    b = torch.full_like(u[..., 0], start)
    for _ in range(fixed or n):
        s = getattr(b.softmax(softmax)[..., None] * u, total)(1)
        v = s if end else squash(s)
        a = (u * (s if agree_with_s else v)[:, None]).sum(-1)
        a = a / u.shape[-1] if mean else a
        b = b + (a.mean(0, keepdim=True) if average else a)
    return squash(v) if end else v


def changes_votes(u, n):
    v = loop(u, n)
    u *= 2
    return v


def four_classes(u, n):
    b = torch.zeros(*u.shape[:2], 4)
    for _ in range(n):
        v = squash((b.softmax(2)[..., None] * u).sum(1))
        b = b + (u * v[:, None]).sum(-1)
    return v


def by_hand(lengths, labels, classes=None, reduce=None, present=0.9, absent=0.1, down=0.5, hinge=F.relu, power=2):
    t = F.one_hot(labels, classes or lengths.shape[1])
    loss = t * hinge(present - lengths) ** power + down * (1 - t) * hinge(lengths - absent) ** power
    return reduce(loss) if reduce else loss.sum(1).mean()


def without_one_hot(lengths, labels, take_back=1.0, own=None):
    charged = 0.5 * F.relu(lengths - 0.1) ** 2
    own = own or (torch.arange(len(labels)), labels)
    return (charged.sum(1) - take_back * charged[own] + F.relu(0.9 - lengths[own]) ** 2).mean()


def every_label(lengths, labels):
    return without_one_hot(lengths, labels, own=(slice(None), labels))


def keep_label(v, labels, classes=None):
    return v * F.one_hot(labels, classes or v.shape[1])[..., None]


def mask_in_place(v, labels):
    v[F.one_hot(labels, v.shape[1]) == 0] = 0
    return v


def mover(most, to=None, same=False, size=None):
    """Moves each picture by -most..to, down and right; `size` is written into the code."""

    def move(images):
        height, width = size or images.shape[2:]
        moved = []
        for image in F.pad(images, (most,) * 4):
            dy, dx = torch.randint(most + (most if to is None else to) + 1, (2,)).tolist()
            dx = dy if same else dx
            moved.append(image[:, dy : dy + height, dx : dx + width])
        return torch.stack(moved)

    return move


def moves_the_dataset(images):
    images[:] = mover(2)(images)
    return images


def each_channel_by_itself(images):
    return torch.cat([mover(2)(channel) for channel in images.split(1, dim=1)], dim=1)


maps, stem = torch.zeros(1, 256, 6, 6), torch.zeros(1, 16, 20, 20)
convolution = nn.Conv2d(16, 32, 9, stride=2)
regrouped = decorated(checks.primary_caps, maps=maps, squashed=False)
of_maps = decorated(checks.primary_caps, maps=maps)
of_stem = decorated(checks.primary_caps, maps=stem, kernel_size=9)


def rows(x):
    return x.reshape(len(x), 8, -1)


def neighbours(x):
    return x.reshape(len(x), -1, 8)


digit_caps, u = capsule_lib.DigitCaps(50, 8, 10, 16), squash(torch.randn(4, 50, 8))
layer_check = decorated(checks.capsule_layer, u=u)
votes_in_place = decorated(checks.dynamic_routing, layout="bjid")
SOFTMAXED = torch.rand(2, 5, 3).softmax(2)

ORDINARY = {
    "another precision": [
        (checks.squash, lambda s: squash(s.double()), True),
        (checks.squash, lambda s: squash(s).half(), True),
        (checks.squash, lambda s: squash(s).bfloat16(), True),
        (checks.squash, lambda s: squash(s).int(), "whole numbers"),
        (checks.dynamic_routing, lambda u, n: loop(u.double(), n), True),
        (checks.dynamic_routing, lambda u, n: loop(u, n).half(), True),
        (checks.dynamic_routing, lambda u, n: loop(u, n, fixed=3).double(), "always"),
        (checks.margin_loss, lambda a, y: by_hand(a.double(), y), True),
        (checks.margin_loss, lambda a, y: by_hand(a, y).bfloat16(), True),
        (checks.margin_loss, lambda a, y: by_hand(a.double(), y, down=1), "λ"),
        (checks.reconstruction_loss, lambda a, b: 5e-4 * ((a - b).double() ** 2).sum() / len(a), True),
        (checks.mask, lambda v, y: keep_label(v.double(), y), True),
        (checks.random_shift, lambda x: mover(2)(x.double()), True),
        (checks.random_shift, lambda x: mover(2)(x.half()), True),
        (regrouped, lambda x: rows(x).mT.double(), True),
        (layer_check, lambda x: digit_caps(x).double(), True),
        (checks.agreements, lambda u, w, v: turned(u.double(), w.double(), v.double()), True),
        (checks.couplings, SOFTMAXED.half(), True),
        (checks.images, torch.rand(2, 1, 4, 4).half(), True),
    ],
    "another dress": [
        (checks.squash, lambda s: (squash(s),), True),
        (checks.squash, Layer(), True),
        (checks.dynamic_routing, lambda u, n: (loop(u, n), None), True),
        (checks.dynamic_routing, lambda u, n: loop(u, n)[..., None], True),
        (checks.dynamic_routing, lambda u, n: loop(u, n, start=1.0), True),
        (decorated(checks.dynamic_routing, layout="BJID"), lambda u, n: loop(u.permute(0, 2, 1, 3), n), True),
        (checks.margin_loss, lambda a, y: by_hand(a, y)[None], True),
        (checks.margin_loss, without_one_hot, True),
        (checks.reconstruction_loss, lambda a, b: 5e-4 * ((a - b) ** 2).sum(dim=(1, 2, 3)).mean(), True),
        (checks.mask, lambda v, y: torch.where(F.one_hot(y, v.shape[1])[..., None] == 1, v, 0.0), True),
        (checks.random_shift, lambda x: mover(2)(x).requires_grad_(), True),
        (regrouped, lambda x: (rows(x).mT,), True),
        (of_stem, lambda x: squash(rows(convolution(x)).mT)[..., None], True),
        (layer_check, lambda x: digit_caps(x)[..., None], True),
        (layer_check, lambda x: (digit_caps(x), "couplings"), True),
        (checks.agreements, lambda u, w, v: turned(u, w, v)[..., None], True),
        (decorated(checks.couplings, layout="BIJ"), SOFTMAXED, True),
        (checks.couplings, [[[0.5, 0.5]] * 3], True),
        (checks.couplings, SOFTMAXED[..., None, None], True),
        (checks.images, torch.rand(2, 1, 4, 4).numpy(), True),
    ],
    "another kind of result": [
        (checks.squash, lambda s: {"v": squash(s)}, "returns dict: return the tensor alone"),
        (checks.squash, lambda s: list(squash(s)), "returns list: .*torch.stack"),
        (checks.squash, lambda s: squash(s).detach().numpy(), "returns NumPy array.*gradient"),
        (checks.squash, lambda s: torch.view_as_complex(s[..., :2].contiguous()), "complex"),
        (checks.squash, squash(torch.ones(2, 3, 4)), "give the function itself"),
        (checks.margin_loss, lambda a, y: float(by_hand(a, y)), "returns float: .*gradient"),
        (checks.margin_loss, lambda a, y: by_hand(a, y, reduce=lambda x: x.sum(1)), r"one number; yours has shape \[B\] = \[6\]"),
        (checks.dynamic_routing, lambda u, n: loop(u, n).sum(-1), r"should have shape \[B, J, D\].*yours has shape \[B, J\]"),
        (checks.dynamic_routing, lambda u, n: loop(u, n).mT, r"yours has shape \[B, D, J\]"),
        (checks.dynamic_routing, lambda u, n: {"v": loop(u, n)}, "returns dict"),
        (checks.random_shift, lambda x: list(mover(2)(x)), "returns list"),
        (checks.couplings, torch.rand(3, 2, 5, 3).softmax(3), "couplings of one iteration"),
        (checks.couplings, lambda: SOFTMAXED, "give a tensor.*this is function"),
        (checks.images, "digits", "give a tensor.*this is str"),
        (decorated(checks.capsule_layer, u=u[:1]), digit_caps, "at least two images"),
        (decorated(checks.capsule_layer, u=u[:1].repeat(3, 1, 1)), digit_caps, "two images that differ"),
        (decorated(checks.primary_caps, maps=None), squash, "give an example"),
    ],
    "a stub, or not": [
        *((checks.squash, stub, None) for stub in (only_a_docstring, only_pass, to_be_done, Stub(), None, ...)),
        *((checks.squash, unfinished, "returned None: did you forget return") for unfinished in (prints, forgets_return)),
        (checks.squash, half_done, "line .*raise NotImplementedError"),
        (checks.margin_loss, lambda a, y: print(by_hand(a, y)), "did you forget return"),
        (checks.agreements, lambda u, w, v: print(end=""), "did you forget return"),
        (regrouped, lambda x: print(end=""), "did you forget return"),
        (layer_check, lambda x: print(end=""), "did you forget return"),
        (checks.couplings, None, None),
    ],
    "a crash at any call": [
        (checks.squash, stops, r"line \d+, `n = s.norm\(dim=7\)`, with IndexError.*s \[B, I, D\] = \[3, 6, 4\]"),
        (checks.squash, lambda s: squash(s) if s.shape[2] == 4 else 1 / 0, "right with.*other sizes.*ZeroDivisionError"),
        (checks.squash, lambda s: squash(s) if s.any() else 1 / 0, "ZeroDivisionError"),
        (checks.squash, lambda s: fragile_squash(s, half=False), "float16"),
        (checks.squash, lambda s: s / torch.ones(4, device="meta"), "where the input is"),
        (checks.squash, lambda: None, r"It is called with \(s \[B, I, D\]\)"),
        (checks.dynamic_routing, lambda u: loop(u, 3), r"called with \(u_hat \[B, I, J, D\], iterations\)"),
        (checks.mask, lambda v, y: v * F.one_hot(y, v.shape[1]), "RuntimeError.*v \\[B, J, D\\] = "),
        (regrouped, lambda x: rows(x).mT if len(x) == 1 else 1 / 0, "ZeroDivisionError"),
        (layer_check, lambda x: digit_caps(x) if len(x) == 4 else 1 / 0, "ZeroDivisionError"),
        (checks.random_shift, lambda x: mover(2)(x) if x.shape[1] == 1 else 1 / 0, "28 × 28.*ZeroDivisionError"),
    ],
    "the input is changed": [
        (checks.squash, squash_in_place, "in place"),
        (checks.squash, squash_in_place_late, "in place"),
        (checks.dynamic_routing, changes_votes, "right, but your function changes its input u_hat in place"),
        (checks.margin_loss, lambda a, y: by_hand(a, y) + 0 * a.sub_(0.5).sum(), "in place"),
        (checks.margin_loss, lambda a, y: by_hand(a.clamp_(0.3), y), "in place: that may be why"),
        (checks.margin_loss, lambda a, y: by_hand(a.sub_(0), y), True),  # it does not matter
        (checks.reconstruction_loss, lambda a, b: 5e-4 * a.sub_(b).square().flatten(1).sum(1).mean(), "reconstruction in place"),
        (checks.mask, mask_in_place, "input v in place"),
        (checks.random_shift, moves_the_dataset, "in place"),
        (checks.denormalise, lambda x, mean, sd: x.mul_(sd).add_(mean), "in place"),
        (regrouped, lambda x: rows(x.mul_(2)).mT, "in place"),
        (layer_check, lambda x: digit_caps(x.mul_(1.1)), "in place"),
        (checks.agreements, lambda u, w, v: turned(u.mul_(2), w, v) / 2, "in place"),
    ],
    "no gradient, or half of one": [
        (checks.squash, torch.no_grad()(squash), "no gradient reaches s"),
        (checks.dynamic_routing, torch.no_grad()(loop), "no gradient reaches u_hat"),
        (checks.margin_loss, lambda a, y: by_hand(a.detach(), y), "no gradient reaches lengths"),
        (checks.margin_loss, torch.no_grad()(by_hand), "no gradient reaches lengths"),
        (checks.margin_loss, lambda a, y: torch.tensor(by_hand(a, y).item()), "no gradient"),
        (checks.margin_loss, lambda a, y: 0.5 * by_hand(a, y) + 0.5 * by_hand(a.detach(), y), "gradient is not"),
        (checks.reconstruction_loss, lambda a, b: losses.reconstruction_loss(a.detach(), b), "no gradient reaches reconstruction"),
        (checks.mask, lambda v, y: keep_label(v.data, y), "no gradient reaches v"),
    ],
    "a size written into the code": [
        (checks.dynamic_routing, four_classes, "size written into your code"),
        (checks.margin_loss, lambda a, y: by_hand(a, y, classes=10), "size written into your code"),
        (checks.reconstruction_loss, lambda a, b: 0.392 * F.mse_loss(a, b), "784"),
        (checks.reconstruction_loss, lambda a, b: 5e-4 * ((a - b) ** 2).reshape(-1, 784).sum(1).mean(), "size written into your code"),
        (checks.reconstruction_loss, lambda a, b: 5e-4 * a[0, 0].numel() * F.mse_loss(a, b), "colour channels"),
        (checks.mask, lambda v, y: keep_label(v, y, classes=10), "size written into your code"),
        (checks.mask, lambda v, y: keep_label(v, y).reshape(len(v), 160), "size written into your code"),
        (checks.random_shift, mover(2, size=(28, 28)), "28 written into your code"),
        (checks.agreements, lambda u, w, v: turned(u.view(12, 6, 4), w, v), "size written into your code"),
        (regrouped, lambda x: x.reshape(1, 8, -1).mT, "batch size written into your code"),
    ],
    "slips in squash": [
        (checks.squash, lambda s: length(s) ** 2 / 1 + length(s) ** 2 * s / length(s), "parentheses are missing"),
        (checks.squash, lambda s: length(s) ** 2 / (1 + length(s) ** 2 * s / length(s)), "parentheses are missing"),
        (checks.squash, lambda s: (length(s) ** 2 / 1 + length(s) ** 2) * s / length(s), "parentheses are missing"),
        (checks.squash, lambda s: divided_by(s, add=1e-4), "epsilon of about 1e-04 added to the length"),
        (checks.squash, lambda s: divided_by(s, inside=1e-4), "epsilon of about 1e-04 under the root"),
        (checks.squash, lambda s: divided_by(s, inside=1e-6), "epsilon of about 1e-06 under the root"),
        (checks.squash, lambda s: torch.where(length(s) < 0.05, 0 * squash(s), squash(s)), "threshold"),
        (checks.squash, cancels, "fail for short vectors"),
        (checks.squash, lambda s: squash(squash(s)), "twice"),
    ],
    "slips in routing": [
        (checks.dynamic_routing, lambda u, n: loop(u, n, agree_with_s=True), "agreement with s"),
        (checks.dynamic_routing, lambda u, n: loop(u, n, end=True), "squash only what you return"),
        (checks.dynamic_routing, lambda u, n: loop(u, n, fixed=3), "always run three"),
        (checks.dynamic_routing, lambda u, n: loop(u, 1), "never change"),
        (checks.dynamic_routing, lambda u, n: loop(u, n, mean=True), "dot product"),
        (checks.dynamic_routing, lambda u, n: loop(u, n, total="mean"), "average over the inputs"),
        (votes_in_place, lambda u, n: loop(u.permute(0, 2, 1, 3), n, softmax=1), r"Use dim=1 of b \[B, J, I\]"),
        (decorated(checks.dynamic_routing, layout="jibd"), lambda u, n: loop(u.permute(2, 1, 0, 3), n, softmax=1), r"dim=0 of b \[J, I, B\]"),
        (checks.dynamic_routing, lambda u, n: loop(u, n, softmax=1, agree_with_s=True), "over the inputs.*agreement with s"),
        (checks.dynamic_routing, lambda u, n: loop(u, n, average=True, fixed=3), "over the batch.*always run three"),
        (checks.dynamic_routing, lambda u, n: routing(u, n, softmax=1, squash_axis=1, average=True), "inputs.*classes.*batch"),
    ],
    "slips in the losses and the mask": [
        (checks.margin_loss, lambda a, y: without_one_hot(a, y, take_back=0), "take that back"),
        (checks.margin_loss, lambda a, y: without_one_hot(a, y, take_back=2), "take back too much"),
        (checks.margin_loss, every_label, r"lengths\[torch.arange\(B\), labels\]"),
        (checks.margin_loss, lambda a, y: by_hand(a, y, present=0.5, absent=0.5), "both margins are 0.5(?!.*authors)"),
        (checks.margin_loss, lambda a, y: by_hand(a, y, power=1, down=1), "not squared.*λ"),
        (checks.margin_loss, lambda a, y: by_hand(a, y, reduce=torch.mean, hinge=lambda x: x), "average over the classes.*max"),
        (checks.margin_loss, lambda a, y: by_hand(a, y, reduce=torch.mean, present=0.5, absent=0.5, down=1), "classes.*λ.*margins"),
        (checks.reconstruction_loss, lambda a, b: 5e-4 * a.numel() * F.mse_loss(a, b), "sum over the batch too"),
        (checks.reconstruction_loss, lambda a, b: 5e-4 * (a - b).flatten(1).norm(dim=1).mean(), "not its square root"),
        (checks.mask, lambda v, y: v * F.one_hot(y, v.shape[1]).amax(0)[None, :, None], "every label's class"),
    ],
    "slips in the inputs": [
        (checks.random_shift, mover(3), "up to 3 pixels"),
        (checks.random_shift, mover(4), "up to 4 pixels"),
        (checks.random_shift, mover(1), "only 9 occur"),
        (checks.random_shift, mover(2, to=1), r"moves of \+2 never occur|moves of -2 never occur"),
        (checks.random_shift, mover(2, same=True), "draw two numbers"),
        (checks.random_shift, each_channel_by_itself, "channels of one picture move differently"),
        (checks.images, torch.rand(2, 1, 4, 4) * float("nan"), "not finite"),
        (checks.images, (255 * torch.rand(2, 1, 4, 4)).byte(), "divide by 255"),
        (checks.images, torch.zeros(0, 1, 4, 4), "yours has shape"),
        (checks.couplings, SOFTMAXED * float("nan"), "not finite"),
        (checks.couplings, torch.full((2, 4, 4), 0.25), None),  # over the outputs or over the inputs: it can't tell
    ],
    "layers from outside": [
        (regrouped, rows, None),
        (of_maps, lambda x: squash(rows(x)), None),
        (of_stem, lambda x: squash(rows(convolution(x))), None),
        (regrouped, neighbours, "memory order"),
        (of_maps, lambda x: squash(rows(x).mT, 1), "along the capsules"),
        (of_stem, lambda x: squash(rows(convolution(x)).mT, 1), "along the capsules"),
        (of_stem, lambda x: squash(neighbours(convolution(x)), 1), "along the capsules.*memory order"),
        (of_stem, lambda x: squash(rows(convolution(x)).mT, 0), "not along the batch"),
        (of_stem, lambda x: F.dropout(squash(rows(convolution(x)).mT)), r"layer.eval\(\)"),
        (regrouped, lambda x: rows(x).mT / 0, "not finite"),
        (layer_check, lambda x: 1e-4 * digit_caps(x * (1 + 0.3 * x.mean(0))), "batch-mates"),  # short capsules hide nothing
        (layer_check, lambda x: 30 * digit_caps(x * (1 + 0.3 * x.mean(0))), "batch-mates.*squash along"),
        (layer_check, lambda x: digit_caps(torch.ones_like(x)), "doesn't look at its input"),
        (layer_check, lambda x: F.dropout(digit_caps(x)), r"layer.eval\(\)"),
        (layer_check, lambda x: digit_caps(x) / 0, "not finite"),
        (layer_check, lambda x: squash(100 * digit_caps(x)), "standard deviation"),
    ],
}  # fmt: skip


# The checkers of single exercises: their right answers, in several dresses, and their wrong ones.


def centre(p, divide=True):
    row, column = (p.sum(1) * torch.arange(p.shape[0])).sum(), (p.sum(0) * torch.arange(p.shape[1])).sum()
    total = p.sum()
    return total, row / (total if divide else 1), column / (total if divide else 1)


def places(layer, maps, capsule, own=True, channels=False):
    maps = maps.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((layer(maps)[0, capsule] if own else layer(maps)).sum(), maps)
    return (gradient[0] != 0).sum() if channels else (gradient[0] != 0).any(dim=0).sum()


def errors(passes):
    return torch.distributions.Binomial(1000, torch.tensor(0.02)).sample((500, passes)) / 10


def flattery(passes):
    return (2 - errors(passes).amin(1)).mean()


def dimension_effects(draw, capsules, far=2, own=False, unbiased=True):
    mean, sd, result = capsules.mean(0), capsules.std(0, unbiased=unbiased), torch.empty(capsules.shape[1])
    for d in range(len(result)):
        low, high = capsules.clone(), capsules.clone()
        low[:, d] = (low[:, d] if own else mean[d]) - far * sd[d]
        high[:, d] = (high[:, d] if own else mean[d]) + far * sd[d]
        result[d] = (draw(high) - draw(low)).square().flatten(1).mean(1).sqrt().mean()
    return result


VOTES = torch.zeros(1, 5, 2, 2)
VOTES[0, :4, 0, 0], VOTES[0, 4, 1, 0] = 0.55, 2.0
MISLEADING = torch.full((2, 10), 0.6)
MISLEADING[0, 0], MISLEADING[1] = 0.61, torch.tensor([0.8, 0.82] + [0.0] * 8)
MATES = torch.tensor([[0.9, 0.2, 0.05], [0.95, 0.05, 0.05]])
TRUTH = {"A": "scrambled", "B": "right", "C": "one orthant"}
diagnosed = decorated(checks.diagnosis, truth=TRUTH)

EXERCISES = {
    "centre_of_mass": [
        (checks.centre_of_mass, centre, True),
        (checks.centre_of_mass, lambda p: list(centre(p)), True),
        (checks.centre_of_mass, lambda p: torch.stack(centre(p.double())), True),
        (checks.centre_of_mass, lambda p: np.array([x.item() for x in centre(p)]), True),
        (checks.centre_of_mass, lambda p: ..., None),
        (checks.centre_of_mass, lambda p: centre(p, divide=False), "not divided by its sum"),
        (checks.centre_of_mass, lambda p: (centre(p)[0], centre(p)[2], centre(p)[1]), "swapped"),
        (checks.centre_of_mass, lambda p: (p.max(), *centre(p)[1:]), "maximum"),
        (checks.centre_of_mass, lambda p: (p.sum(), p.argmax() // p.shape[1], p.argmax() % p.shape[1]), "brightest"),
        (checks.centre_of_mass, lambda p: centre(p)[1:], r"\[3\]"),
        (checks.centre_of_mass, lambda p: (p.sum(), (p.sum(1) * torch.arange(8)).sum() / p.sum(), 7.0), "size"),
        (checks.centre_of_mass, lambda p: centre(p.div_(p.sum())), "in place"),
    ],
    "overflow": [
        *((checks.overflow, given, True) for given in ([100.0] * 8, (-100, 100) * 4, np.full(8, 99), torch.full((8,), 95.0))),
        (checks.overflow, None, None),
        (checks.overflow, [100.0] * 9, "at most 8"),
        (checks.overflow, [300.0], r"-100\.\.100"),
        (checks.overflow, [100.0] * 6, "sum of their squares"),
        (checks.overflow, [[100.0] * 4] * 2, "shape"),
        *((checks.overflow, given, "give a tensor") for given in ("100", {"a": 1}, print, 100.0)),
    ],
    "regroup": [
        (checks.regroup, lambda x: x.view(len(x), 8, 32, 6, 6).permute(0, 2, 3, 4, 1).reshape(len(x), 1152, 8), True),
        (checks.regroup, lambda x: x.permute(0, 2, 3, 1).reshape(len(x), -1, 8), True),
        (checks.regroup, lambda x: rows(x.double()).mT, True),
        (checks.regroup, neighbours, "0 of 1,152.*memory order"),
        (checks.regroup, rows, "transpose"),
        (checks.regroup, lambda x: x.reshape(len(x), 16, -1).mT, "1,152 capsules of 8.*576 of 16"),
        (checks.regroup, lambda x: x.reshape(len(x), 4, -1).mT, "2,304 of 4"),
        (checks.regroup, lambda x: rows(x).mT[:, :1100], "1,100 of 8"),
        (checks.regroup, lambda x: rows(x).mT[:, [0, *range(1151)]], "missing, changed or repeated"),
        (checks.regroup, lambda x: squash(rows(x).mT), "missing, changed or repeated"),
        (checks.regroup, lambda x: x.reshape(1, 8, -1).mT, "batch size"),
        (checks.regroup, lambda x: ..., None),
    ],
    "places_seen": [
        *((checks.places_seen, f, True) for f in (places, lambda *given: int(places(*given)))),
        (checks.places_seen, lambda layer, maps, capsule: 193, "the same, whatever the input is"),
        (checks.places_seen, lambda *given: places(*given, channels=True), "for each of its channels"),
        (checks.places_seen, lambda *given: places(*given, own=False), "all capsules"),
        (checks.places_seen, lambda layer, maps, capsule: places(layer, maps, 0), "always look at capsule 0"),
        (checks.places_seen, lambda layer, maps, capsule: None, None),
    ],
    "diagnosis": [
        (diagnosed, TRUTH, True),
        (diagnosed, {"a": "Scrambled", "b": "right ", "c": "one orthant"}, True),
        *((diagnosed, nothing, None) for nothing in (None, dict.fromkeys(TRUTH))),
        (diagnosed, {**TRUTH, "A": "right", "C": "right"}, "A is something else.*C is something else"),
        (diagnosed, {**TRUTH, "B": None}, "B is not answered"),
        (diagnosed, {**TRUTH, "C": "orthant"}, "C should be one of"),
        (diagnosed, ["scrambled"], "dict"),
    ],
    "overtaking": [
        *((checks.overtaking, given, True) for given in (VOTES, VOTES.half(), VOTES.tolist(), VOTES.numpy())),
        (checks.overtaking, None, None),
        *((checks.overtaking, given, r"\[1, parts, 2, 2\]") for given in (VOTES[0], VOTES[..., 0], VOTES[:, :0], lambda: VOTES)),
        (checks.overtaking, VOTES.flip(2), "whole 0 has to be"),
        (checks.overtaking, VOTES * torch.tensor([1, 0.1])[:, None], "does not overtake"),
        (checks.overtaking, VOTES / 0, "not finite"),
    ],
    "misleading_loss": [
        *((checks.misleading_loss, given, True) for given in (MISLEADING, MISLEADING.double(), MISLEADING.tolist())),
        (checks.misleading_loss, MISLEADING * 8, r"0\.\.1"),
        (checks.misleading_loss, MISLEADING - 4, r"0\.\.1; yours run from -4"),
        (checks.misleading_loss, MISLEADING[:, :5], r"\[2, 10\]"),
        (checks.misleading_loss, MISLEADING.flip(0), "read as a 0"),
        (checks.misleading_loss, torch.eye(10)[:2], "has to cost more"),
        (checks.misleading_loss, None, None),
    ],
    "repairs": [
        *((checks.repairs, given, True) for given in ("AB", "ba", "A, B", ["A", "b"], {"A", "B"})),
        (checks.repairs, "A", "^B is missing"),
        (checks.repairs, "", "A is missing.*B is missing"),
        (checks.repairs, "ABC", "^C is not needed"),
        (checks.repairs, "CD", "A is missing.*B is missing.*C is not needed.*D is not needed"),
        *((checks.repairs, given, "letters from A to D") for given in ("AX", 3)),
        (checks.repairs, None, None),
    ],
    "batch_mates": [
        *((checks.batch_mates, given, True) for given in (MATES, MATES.tolist())),
        (checks.batch_mates, torch.tensor([[5.0, 2, 1], [-4, 0, 0]]), r"0\.\.1; yours run from -4 to 5"),
        (checks.batch_mates, MATES.roll(1, 1).roll(1, 0), "more of class"),
        (checks.batch_mates, MATES.T, r"\[2, 3\]"),
        (checks.batch_mates, torch.tensor([[0.9, 0.9, 0.05], [0.95, 0.05, 0.05]]), "equally long"),
        (checks.batch_mates, ..., None),
    ],
    "denormalise": [
        *((checks.denormalise, f, True) for f in (lambda x, mean, sd: x * sd + mean, lambda x, mean, sd: (x.double() * sd + mean).clamp(0, 1))),
        (checks.denormalise, lambda x, mean, sd: x.clamp(0, 1), "loses grey values"),
        (checks.denormalise, lambda x, mean, sd: (x - x.min()) / (x.max() - x.min()), "stretching"),
        (checks.denormalise, lambda x, mean, sd: (x + mean) * sd, "order"),
        (checks.denormalise, lambda x, mean, sd: x * sd, "forget the mean"),
        (checks.denormalise, lambda x, mean, sd: x * 0.3 + 0.1, "differs"),
        (checks.denormalise, lambda x: x, "It is called with"),
        (checks.denormalise, lambda x, mean, sd: ..., None),
    ],
    "flattery": [
        *((checks.flattery, f, True) for f in (flattery, lambda passes: flattery(passes).item())),
        (checks.flattery, lambda n: 2 - np.random.default_rng(1).binomial(1000, 0.02, (500, n)).min(1).mean() / 10, True),
        (checks.flattery, lambda passes: 0.8, "the same, whatever the input is: does your function use passes"),
        (checks.flattery, lambda: 0.8, r"It is called with \(passes\)"),
        (checks.flattery, lambda passes: flattery(30), "whatever is asked for"),
        (checks.flattery, lambda passes: flattery(passes) / 100, "share"),
        (checks.flattery, lambda passes: 10 * flattery(passes), "these are digits"),
        (checks.flattery, lambda passes: -flattery(passes), "sign"),
        (checks.flattery, lambda passes: 2 - flattery(passes), "reported error itself"),
        (checks.flattery, lambda passes: (2 - errors(passes).amax(1)).mean(), "largest error"),
        (checks.flattery, lambda passes: (2 - errors(passes).mean(1)).mean(), "500 trainings"),
        (checks.flattery, lambda passes: 2 - errors(passes).amin(1), "one number"),
        (checks.flattery, lambda passes: ..., None),
    ],
    "effects": [
        *((checks.effects, f, True) for f in (dimension_effects, lambda draw, v: dimension_effects(draw, v).tolist())),
        (checks.effects, lambda draw, v: dimension_effects(draw, v, unbiased=False), True),
        (checks.effects, lambda draw, v: dimension_effects(draw, v, own=True), "digit's own entry"),
        (checks.effects, lambda draw, v: dimension_effects(draw, v, far=1), "2 are asked for"),
        (checks.effects, lambda draw, v: dimension_effects(draw, v) ** 2, "differs|root"),
        (checks.effects, lambda draw, v: dimension_effects(draw, v)[:5], r"should have shape \[D\] = \[16\]"),
        (checks.effects, lambda draw, v: ..., None),
    ],
    "derivative": [
        *((checks.derivative, given, True) for given in ((1, 2), [1, 3], torch.tensor([1, 5]))),
        *((checks.derivative, given, None) for given in (None, (None, None), (1, None))),
        *((checks.derivative, given, "first iteration") for given in ((2, 1), (1, 1), (2, 3))),
        (checks.derivative, (1.5, 2), "whole numbers"),
        (checks.derivative, (0, 2), r"1\.\.20"),
        *((checks.derivative, given, "two numbers") for given in ((1, 2, 3), "12", 1)),
    ],
}  # fmt: skip

# Right code as other people write it.


def normalised(s):
    n = torch.linalg.vector_norm(s.float(), dim=-1, keepdim=True)
    return n**2 / (1 + n**2) * F.normalize(s.float(), dim=-1, eps=1e-20)


def vector_by_vector(s):
    out = torch.zeros_like(s.float())
    for b, i in np.ndindex(*s.shape[:2]):
        n = torch.linalg.vector_norm(s[b, i].float())
        out[b, i] = n / (1 + n * n) * s[b, i].float()
    return out


def with_axes_of_one(u, n):
    b = torch.zeros(*u.shape[:3], 1)
    for t in range(n):
        v = squash((b.softmax(2) * u).sum(1, keepdim=True))
        if t < n - 1:
            b = b + (u * v).sum(-1, keepdim=True)
    return v.squeeze(1)


def detached_in_part(u, n):
    b = torch.zeros_like(u[..., 0])
    for _ in range(n):
        v = squash(torch.einsum("bij,bijd->bjd", b.softmax(2), u))
        b = b + torch.einsum("bijd,bjd->bij", u.detach(), v.detach())
    return v


def image_by_image(u, n):
    return torch.cat([loop(image[None], n) for image in u])


def couplings_first(u, n):
    c, b = torch.full(u.shape[:3], 1 / u.shape[2]), 0
    for _ in range(n):
        v = squash(torch.einsum("bij,bijd->bjd", c, u))
        b = b + torch.einsum("bijd,bjd->bij", u, v)
        c = b.softmax(2)
    return v


def last_one_outside(u, n):
    with torch.no_grad():
        b = torch.zeros_like(u[..., 0])
        for _ in range(n - 1):
            b = b + (u * squash((b.softmax(2)[..., None] * u).sum(1))[:, None]).sum(-1)
    return squash((b.softmax(2)[..., None] * u).sum(1))


def one_by_one(lengths, labels):
    total = 0.0
    for n, j in np.ndindex(*lengths.shape):
        x = lengths[n, j]
        total = total + ((0.9 - x).clamp(min=0) ** 2 if j == labels[n] else 0.5 * (x - 0.1).clamp(min=0) ** 2)
    return total / len(lengths)


def chosen(lengths, labels):
    present = torch.eye(lengths.shape[1], dtype=bool)[labels]
    return torch.where(present, F.relu(0.9 - lengths) ** 2, 0.5 * F.relu(lengths - 0.1) ** 2).sum(-1).mean()


def filled(v, labels):
    return v.masked_fill((torch.arange(v.shape[1]) != labels[:, None])[..., None], 0)


def with_slices(images):
    out, (height, width) = torch.zeros_like(images), images.shape[2:]
    for n, image in enumerate(images):
        dy, dx = torch.randint(-2, 3, (2,)).tolist()
        part = image[:, max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)]
        out[n, :, max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = part
    return out


def slip(check, function, **changes):
    """A right function with one thing changed."""
    return check, lambda *given: function(*given, **changes)


def seen_by(layer, maps, capsule, reduce):
    maps = maps.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(maps)[0, capsule].sum(), maps)
    return reduce(gradient[0] != 0)


def ways(u, n, c=torch.softmax, votes=lambda u: u, cosine=False):
    u, b = votes(u), torch.zeros_like(u[..., 0])
    for _ in range(n):
        v = squash((c(b, 2)[..., None] * u).sum(1))
        a = (u * v[:, None]).sum(-1)
        b = b + (F.cosine_similarity(u, v[:, None], dim=-1) if cosine else a)
    return v


def differences(draw, capsules, low=-2, high=2, step=None, size=lambda x: x.square().flatten(1).mean(1).sqrt().mean()):
    result = []
    for d in range(capsules.shape[1]):
        mean, sd = capsules[:, d].mean(), capsules[:, d].std() if step is None else step
        moved = [capsules.index_fill(1, torch.tensor(d), float(mean + n * sd)) for n in (low, high)]
        result.append(size(draw(moved[1]) - draw(moved[0])))
    return torch.stack(result)


# Each mistake that a checker knows and that stands nowhere above.
EXERCISES["the rest"] = [
    (*slip(checks.dynamic_routing, ways), True),
    (*slip(checks.dynamic_routing, ways, c=lambda b, _: b.sigmoid()), "sigmoid of the logits"),
    (*slip(checks.dynamic_routing, ways, votes=squash), "squash the votes"),
    (*slip(checks.dynamic_routing, ways, cosine=True), "cosine"),
    (*slip(checks.margin_loss, by_hand, down=0.25), "twice"),
    (checks.reconstruction_loss, lambda a, b: 0.5 * losses.reconstruction_loss(a, b), "halve the sum"),
    (checks.mask, lambda v, y: v * F.one_hot(length(v)[..., 0].argmax(0), len(v)).T[..., None], "one over the batch"),
    (checks.mask, lambda v, y: keep_label(v, y) * y[:, None, None], "by its class number"),
    (checks.centre_of_mass, lambda p: (p.mean(), *centre(p)[1:]), "not its mean"),
    (checks.centre_of_mass, lambda p: (centre(p)[0], centre(p)[1] + 1, centre(p)[2] + 1), "count from 0"),
    (
        checks.centre_of_mass,
        lambda p: [x / n for x, n in zip(centre(p), (1, p.shape[0] - 1, p.shape[1] - 1), strict=True)],
        "in pixels",
    ),
    (checks.denormalise, lambda x, mean, sd: x.sigmoid(), "bends"),
    (checks.denormalise, lambda x, mean, sd: x + mean, "forget the standard deviation"),
    (checks.denormalise, lambda x, mean, sd: x * sd - mean, "subtract the mean"),
    (checks.denormalise, lambda x, mean, sd: x / sd + mean, "divide by the standard deviation"),
    (checks.denormalise, lambda x, mean, sd: (x - mean) / sd, "normalise once more"),
    (*slip(checks.effects, differences), True),
    (*slip(checks.effects, differences, step=0.125), "by 0.25"),
    (*slip(checks.effects, differences, low=0), "compare -2 with"),
    (*slip(checks.effects, differences, size=lambda x: x.square().flatten(1).mean(1).mean()), "root is missing"),
    (*slip(checks.effects, differences, size=lambda x: x.abs().mean()), "mean absolute difference"),
    (
        *slip(checks.effects, differences, size=lambda x: x.square().flatten(1).sum(1).sqrt().mean()),
        "sum over the pixels",
    ),
    (*slip(checks.effects, differences, size=lambda x: x.square().mean().sqrt()), "one root over all digits"),
    (
        *slip(checks.effects, differences, size=lambda x: x.square().flatten(1).mean(1).sqrt().sum()),
        "add the digits up",
    ),
    (*slip(checks.places_seen, seen_by, reduce=lambda seen: seen.all(0).sum()), "any. channel"),
    (checks.places_seen, lambda layer, maps, n: maps[0, 0].numel(), "all places of the maps"),
]
EXERCISES["in other words"] = [
    *((checks.squash, f, True) for f in (normalised, vector_by_vector)),
    *((checks.dynamic_routing, f, True) for f in (with_axes_of_one, detached_in_part, image_by_image)),
    *((checks.dynamic_routing, f, True) for f in (couplings_first, last_one_outside)),
    *((checks.margin_loss, f, True) for f in (one_by_one, chosen)),
    (checks.mask, filled, True),
    (checks.random_shift, with_slices, True),
]

PIECES = [(kind, *piece) for kind, pieces in {**ORDINARY, **EXERCISES}.items() for piece in pieces]


@pytest.mark.parametrize(("kind", "check", "given", "says"), PIECES, ids=[f"{p[0]}-{n}" for n, p in enumerate(PIECES)])
def test_what_readers_write(kind, check, given, says):
    torch.manual_seed(0)
    verdict = check(given)
    if says is True or says is None:
        assert verdict.passed is says and verdict.message, verdict
    else:
        assert verdict.passed is False and re.search(says, verdict.message if "line" in says else said(verdict)), (
            verdict
        )


def test_knobs_are_turned_on_a_network():
    net, (digits, labels) = capsule_lib.load_pretrained("small"), capsule_lib.load_digits("shipped", "test")
    with torch.no_grad():
        fours = net(digits[labels == 4]).capsules[:, 4]
    setting = {"net": net, "capsule": fours[0], "spread": fours.std(0), "label": 4, "wanted": 9}
    verdicts = {(d, x): checks.knobs({d: x}, **setting) for d in range(16) for x in (-4.0, 4.0)}
    (d, x), right = next((knob, verdict) for knob, verdict in verdicts.items() if verdict)
    assert "read as 9" in right.message and "with 1 dimension turned" in right.message
    assert checks.knobs({np.int64(d): torch.tensor(x)}, **setting)
    assert checks.knobs(None, **setting).passed is None
    for given, says in [
        ({0: 0.1}, "read as 4"),
        ({0: 5}, "more than 4"),
        ({16: 1}, "from 0 to 15"),
        ({}, "at least one dimension"),
        ({0: float("nan")}, "at least one dimension"),
        *((given, "write {dimension: standard deviations}") for given in ([3, 1.5], {0: "much"}, {"slant": 1.0}, 3)),
    ]:
        verdict = checks.knobs(given, **setting)
        assert verdict.passed is False and says in verdict.message, verdict


def test_what_is_no_function_at_all_is_a_type_error():
    for check in FUNCTIONS:
        with pytest.raises(TypeError, match="takes a function or a layer; got int"):
            check(5)


def test_checkers_work_in_any_mode_and_leave_it_as_it_was():
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert checks.squash(squash) and checks.margin_loss(by_hand)
            assert not torch.is_grad_enabled()


def test_help_names_what_a_checker_returns():
    for name in checks.__all__:
        if name not in ("Report", "Verdict", "answer", "predict", "progress", "report"):
            assert getattr(checks, name).__annotations__["return"] is checks.Verdict and getattr(checks, name).__doc__
