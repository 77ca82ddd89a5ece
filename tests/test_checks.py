"""Each checker passes what is right, and names the mistake in what is wrong."""

import pytest
import torch
import torch.nn.functional as F

import capsule_lib
from capsule_lib import checks, squash


def length(s, dim=-1):
    return s.norm(dim=dim, keepdim=True)


def routing(u_hat, iterations, softmax=2, squash_axis=-1, average=False, extra=0):
    b = torch.zeros_like(u_hat[..., 0])
    for _ in range(iterations + extra):
        v = squash((b.softmax(softmax)[..., None] * u_hat).sum(1), squash_axis)
        a = (u_hat * v[:, None]).sum(-1)
        b = b + (a.mean(0, keepdim=True) if average else a)
    return v


def margin(lengths, labels, power=2, down=0.5, average=False, softmax=False):
    lengths, t = lengths.softmax(1) if softmax else lengths, F.one_hot(labels, lengths.shape[1])
    loss = t * F.relu(0.9 - lengths) ** power + down * (1 - t) * F.relu(lengths - 0.1) ** power
    return loss.mean() if average else loss.sum(1).mean()


RIGHT = [
    (checks.squash, squash),
    (checks.dynamic_routing, capsule_lib.dynamic_routing),
    (checks.dynamic_routing, routing),
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
    (checks.dynamic_routing, lambda u, n: routing(u, n, softmax=1), "over the inputs"),
    (checks.dynamic_routing, lambda u, n: routing(u, n, softmax=0), "over the batch"),
    (checks.dynamic_routing, lambda u, n: routing(u, n, squash_axis=1), "along the classes"),
    (checks.dynamic_routing, lambda u, n: routing(u, n, average=True), "average the routing logits"),
    (checks.dynamic_routing, lambda u, n: routing(u, n, extra=1), "too many"),
    (checks.dynamic_routing, lambda u, n: routing(u, n, softmax=1, average=True), "inputs.*average"),
    (checks.dynamic_routing, lambda u, n: routing(u, n).detach(), "no gradient"),
    (checks.dynamic_routing, lambda u, n: 0.9 * routing(u, n), "differs"),
    (checks.margin_loss, lambda a, y: margin(a, y, power=1), "not squared"),
    (checks.margin_loss, lambda a, y: margin(a, y, average=True), "average over the classes"),
    (checks.margin_loss, lambda a, y: margin(a, y, power=1, average=True), "not squared, and you average"),
    (checks.margin_loss, lambda a, y: margin(a, y, softmax=True), "softmax"),
    (checks.margin_loss, lambda a, y: margin(a, y, down=1), "lambda"),
    (checks.margin_loss, lambda a, y: margin(a, y) + 0.01, "differs"),
    (checks.reconstruction_loss, lambda a, b: 0.0005 * F.mse_loss(a, b), "mean"),
    (checks.reconstruction_loss, lambda a, b: 0.0005 * F.mse_loss(a, b, reduction="sum"), "batch"),
    (checks.mask, lambda v, y: v * F.one_hot(length(v)[..., 0].argmax(1), v.shape[1])[..., None], "longest"),
    (checks.mask, lambda v, y: v * length(v).softmax(0), "batch"),
    (checks.mask, lambda v, y: v * ((w := length(v).softmax(0)) == w.amax(1, keepdim=True)), "batch-mates"),
    (checks.mask, lambda v, y: v, "nothing is masked"),
    (checks.random_shift, lambda x: x.roll(tuple(torch.randint(-2, 3, (2,)).tolist()), (2, 3)), "same move"),
    (checks.random_shift, lambda x: x, "same move"),
    (checks.images, torch.randn(2, 1, 9, 9), "normalisation"),
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
    import re

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


@pytest.mark.parametrize("check", FUNCTIONS)
def test_stubs_and_crashes(check):
    assert check(lambda *_: None).passed is None and check(lambda *_: ...).passed is None
    assert "ZeroDivisionError" in check(lambda *_: 1 / 0).message


def test_other_layouts():
    assert checks.dynamic_routing(lambda u, n: routing(u.permute(3, 1, 0, 2), n), layout="jidb")
    assert checks.couplings(torch.rand(3, 2, 5).softmax(0), layout="jbi")
    with pytest.raises(ValueError, match="'bij'"):
        checks.dynamic_routing(routing, layout="bij")


def test_primary_capsules_from_outside():
    layer, maps = capsule_lib.PrimaryCaps(3, 4, 8, 5, 2), torch.zeros(1, 3, 12, 12)
    assert checks.primary_caps(layer, maps, kernel_size=5)
    wrong = checks.primary_caps(lambda x: squash(layer.conv(x).reshape(len(x), -1, 8)), maps, kernel_size=5)
    assert not wrong and "move the K channels" in wrong.message
    relu = checks.primary_caps(lambda x: layer(x).relu(), maps, kernel_size=5)
    assert not relu and "orthant" in relu.message
    bare = checks.primary_caps(lambda x: 20 * layer.conv(x).reshape(len(x), 8, -1).mT, maps, kernel_size=5)
    assert not bare and "squash" in bare.message


def test_capsule_layers_from_outside():
    torch.manual_seed(0)
    layer, u = capsule_lib.DigitCaps(50, 8, 10, 16), squash(torch.randn(4, 50, 8))
    assert checks.capsule_layer(layer, u)
    assert "batch-mates" in checks.capsule_layer(lambda x: layer(x - x.mean(0)), u).message
    layer.weight.data *= 20
    assert "standard deviation" in checks.capsule_layer(layer, u).message
