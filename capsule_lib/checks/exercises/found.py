"""Checkers for what a reader has found: a vector, votes, lengths, knobs that break a claim, or a judgement on given code."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from capsule_lib import losses, routing
from capsule_lib.checks.verdict import Unwritten, Wrong, answered, checker, noise, wrong_if


@checker
def overflow(vector: Sequence[float]):
    """Check a vector that (1 - 1/(1 + ‖s‖²)) s/‖s‖ turns into zero in float16, with at most 8 entries, none above 100."""
    half = answered(vector, "[N], at most 8 numbers", [None], -100, 100).half()
    squared = (half**2).sum()
    broken = ((1 - 1 / (1 + squared)) / squared.sqrt() * half).float().norm().item()
    right = routing.squash(half).norm().item()
    says = f"the cancelling form gives ‖v‖ = {broken:.3f}, right is {right:.3f}"
    wrong_if(
        (len(half) > 8, f"use at most 8 numbers; these are {len(half)}"),
        (broken != 0 or right < 0.99, f"{says}: it isn't the numbers that have to overflow, but the sum of their squares, beyond 65,504"),
    )  # fmt: skip
    return says


@checker
def overtaking(votes: Tensor):
    """Check votes [1, I, 2, 2] with which whole 0 is longer after one iteration of routing, and whole 1 after five."""
    votes = answered(votes, "[1, parts, 2, 2]", [1, None, 2, 2]).double()
    one, five = (routing.dynamic_routing(votes, n)[0].norm(dim=1) for n in (1, 5))
    says = f"lengths after 1 iteration {one[0]:.2f} and {one[1]:.2f}, after 5 {five[0]:.2f} and {five[1]:.2f}"
    wrong_if(
        (one[0] <= one[1], f"whole 0 has to be the longer one after one iteration: {says}"),
        (five[0] >= five[1], f"whole 1 does not overtake: {says}"),
    )
    return f"whole 1 overtakes: {says}"


@checker
def misleading_loss(lengths: Tensor):
    """Check lengths [2, 10] of two images of class 0: the first is read rightly, the second is not, and yet the first costs more."""
    lengths = answered(lengths, "[2, 10]", [2, 10], 0, 1).double()
    found = lengths.argmax(dim=1).tolist()
    loss = [losses.margin_loss(row[None], torch.tensor([0])).item() for row in lengths]
    says = f"read as {found[0]} with loss {loss[0]:.2f}, and as {found[1]} with loss {loss[1]:.2f}"
    wrong_if(
        (found[0] != 0 or found[1] == 0, f"the first image has to be read as a 0 and the second as something else: {says}"),
        (loss[0] <= loss[1], f"the first image has to cost more: {says}"),
    )  # fmt: skip
    return says


@checker
def batch_mates(lengths: Tensor):
    """Check lengths [2, 3] with which a softmax over the batch lets through another class than the first image's longest."""
    lengths = answered(lengths, "[2, 3]", [2, 3], 0, 1).double()
    chosen, longest = int(lengths.softmax(dim=0).argmax(dim=1)[0]), int(lengths.argmax(dim=1)[0])
    says = f"image 0: longest class {longest}, let through {chosen}"
    wrong_if(
        (lengths[0].topk(2).values.unique().numel() < 2, "image 0 has no single longest class: two are equally long"),
        (chosen == longest, f"{says}: give its batch-mate more of class {longest}"),
    )
    return f"{says}, because its batch-mate has more of class {longest}"


REPAIRS = {  # of the loss in notebook 04: whether it is needed, and why
    "A": (True, "the hinges are not squared yet"),
    "B": (True, "the mean also runs over the classes, which the paper sums"),
    "C": (False, "λ is 0.5 already"),
    "D": (False, "m+ = 0.9 and m- = 0.1 stand where they belong"),
}


@checker
def repairs(letters: str):
    """Check which of the repairs A to D the loss in notebook 04 needs, as letters such as "CD"."""
    if letters is None or letters is ...:
        raise Unwritten("not answered yet")
    chosen = set("".join(map(str, letters)).upper()) - set(" ,+&") if np.iterable(letters) else {"?"}
    wrong_if((not chosen <= set(REPAIRS), f'write letters from A to D, such as "CD"; got {letters!r}'))
    for letter, (needed, why) in REPAIRS.items():
        if needed and letter not in chosen:
            yield f"{letter} is missing: {why}"
        if not needed and letter in chosen:
            yield f"{letter} is not needed: {why}"
    return "squared hinges, summed over the classes: the example costs 0.08625"


@checker
def diagnosis(answers: Mapping[str, str], truth: Mapping[str, str]):
    """Check a dict that says of several things, by name, what is the matter with each."""
    if answers is None or answers is ...:
        raise Unwritten("not answered yet")
    wrong_if((not isinstance(answers, Mapping), f"keep the answers in a dict such as {dict.fromkeys(truth)}"))
    given = {str(name).strip().casefold(): answer for name, answer in answers.items()}
    words = {name: given.get(name.casefold()) for name in truth}
    if not any(words.values()):
        raise Unwritten("not answered yet")
    options = {option.casefold() for option in truth.values()}
    for name, word in words.items():
        if word is None:
            yield f"{name} is not answered yet"
        elif str(word).strip().casefold() not in options:
            yield f"{name} should be one of {', '.join(map(repr, sorted(options)))}; got {word!r}"
        elif str(word).strip().casefold() != truth[name].casefold():
            yield f"{name} is something else: look again, from outside"
    return ", ".join(f"{name} is {what}" for name, what in truth.items())


@checker
@torch.no_grad()
def knobs(turns: Mapping[int, float], net: Callable, capsule: Tensor, spread: Tensor, label: int, wanted: int):
    """Check that a digit's drawing, its capsule turned, is read as another class.

    Args:
        turns: {dimension: standard deviations}, none beyond 4.
        net: a CapsNet with a decoder.
        capsule: the digit's capsule [D], of class `label`.
        spread: the standard deviation of each dimension [D].
        wanted: the class that the network has to read.
    """
    if turns is None or turns is ...:
        raise Unwritten("not answered yet")
    try:
        turns = {int(d): float(x) for d, x in turns.items() if int(d) == d and math.isfinite(float(x))}
    except Exception:
        raise Wrong(f"write {{dimension: standard deviations}}, such as {{3: 1.5, 7: -2}}; got {turns!r}") from None
    wrong_if(
        (not turns or not set(turns) <= set(range(len(capsule))), f"name at least one dimension, from 0 to {len(capsule) - 1}, and a number of standard deviations for each"),
        (max(map(abs, turns.values()), default=0) > 4, "a dimension is turned by more than 4 standard deviations: no digit lives there"),
    )  # fmt: skip
    v = capsule.new_zeros(1, net.config.classes, len(capsule))
    v[0, label] = capsule
    for d, x in turns.items():
        v[0, label, d] += x * float(spread[d])
    lengths = net(net.decoder(v, torch.tensor([label], device=v.device))).lengths[0]
    read = int(lengths.argmax())
    says = f"read as {read}; length of the {label} {lengths[label]:.2f}, of the {wanted} {lengths[wanted]:.2f}"
    wrong_if((read != wanted, says))
    return f"{says}, with {len(turns)} dimension{'s' * (len(turns) > 1)} turned"


@checker
def derivative(iterations: tuple[int, int]):
    """Check a pair of iteration counts: with the first, the gradient of routing with constant couplings is the derivative of its output; with the second it is not."""
    if iterations is None or iterations is ... or (isinstance(iterations, list | tuple) and None in list(iterations)):
        raise Unwritten("not answered yet")
    pair = answered(iterations, "[2], two numbers of iterations", [2], 1, 20).tolist()
    wrong_if((any(n != round(n) for n in pair), "iterations are whole numbers"))
    u, weight = noise(2, 4, 3).double().requires_grad_(), noise(3, 3, 4, 5).double()
    settings = {"raise_exception": False, "check_undefined_grad": False}  # what no gradient gives is another question
    passes = [torch.autograd.gradcheck(lambda u, n=int(n): routing.route(u, weight, n), u, **settings) for n in pair]
    says = " and ".join(f"with {int(n)} it {'is' if fine else 'is not'} the derivative" for n, fine in zip(pair, passes, strict=True))  # fmt: skip
    wrong_if((passes != [True, False], f"{says}: think of what the couplings are in the first iteration"))
    return f"{says}: after one iteration the couplings don't depend on the input yet"
