"""Checkers for a capsule layer as it is, whoever wrote it: from outside, by its votes, and by its weight."""

import contextlib
import functools
import math
import re
from collections.abc import Callable, Generator, Iterator

import torch
from torch import Tensor, nn

from capsule_lib.checks.capsules import lengths_of_squash
from capsule_lib.checks.routing import beyond, route, routing_mistakes
from capsule_lib.checks.verdict import (
    Asked,
    NoFunction,
    Unwritten,
    Wrong,
    arrange,
    checker,
    close,
    compare,
    groups_of,
    in_words,
    layout_of,
    noise,
    restore,
    wrong_if,
)

VOTERS = 24  # input capsules that vote in `routing_layer`; all others are 0
TRAINS = "in training mode {what}: call .eval() first, and check again"


def in_training_mode(layer: Callable) -> str:
    """What to say of a layer whose dropout or batch norm is in training mode; '' for any other."""
    modules = [m for m in layer.modules() if m.training] if isinstance(layer, nn.Module) else []
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules):
        return TRAINS.format(what="its batch norm mixes the images of a batch")
    if any(isinstance(m, nn.modules.dropout._DropoutNd) for m in modules):
        return TRAINS.format(what="its dropout draws lots")
    return ""


@contextlib.contextmanager
def untouched(layer: Callable) -> Iterator[None]:
    """Keep a layer's modes and buffers, such as a batch norm's averages, and the reader's random state, as they are."""
    modules = list(layer.modules()) if isinstance(layer, nn.Module) else []
    modes, buffers = [m.training for m in modules], [b for m in modules for b in m.buffers(recurse=False)]
    before = [b.clone() for b in buffers]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for buffer, kept in zip(buffers, before, strict=True):
            buffer.data.copy_(kept)


def layer_in(layer: Callable, takes: str, returns: str, sizes: dict[str, int] | None = None) -> Asked:
    """The layer as one that takes capsules [B, I, K] and returns [B, J, D]."""
    takes, returns = layout_of(takes, "bik"), layout_of(returns, "bjd")

    def undress(out: Tensor, u: Tensor) -> Tensor:
        known = (sizes or {}) | {"b": len(u)}
        places = [letter for letter in returns if letter not in "()"]
        if not sizes and "(" not in returns and out.dim() == len(places):
            known = dict(zip(places, out.shape, strict=True)) | known
        return restore(out, "bjd", returns, known)

    return Asked(layer, f"u {in_words(takes)}", in_words(returns), dress=lambda u: (arrange(u, "bik", takes),), undress=undress)  # fmt: skip


@checker
def capsule_layer(layer: Callable[[Tensor], Tensor], u: Tensor, takes: str = "bik", returns: str = "bjd"):
    """Check an untrained capsule layer from outside, whatever its weights look like.

    Args:
        layer: takes input capsules and returns output capsules.
        u: an example of its input; at least two images that differ.
        takes, returns: the axes of both, as letters: b batch, i input, k its dimensions, j output, d its dimensions, 1 an axis of
            size 1. "bki" for capsules [B, K, I].
    """
    takes = layout_of(takes, "bik")
    if isinstance(u, Tensor) and takes != "bik" and u.dim() == len(takes) and "(" not in takes:
        u = restore(u, "bik", takes, dict(zip(takes, u.shape, strict=True)))
    asked = layer_in(layer, takes, returns)
    fits = isinstance(u, Tensor) and u.dim() == 3 and len(u) > 1 and not close(u[:1], u[1:2])
    wrong_if(
        (not fits, f"give an example of the input too: capsules {in_words(takes)} of at least two images that differ")
    )
    with untouched(layer):
        return (yield from _from_outside(layer, asked, u))


def _from_outside(layer: Callable, asked: Asked, u: Tensor) -> Generator[str, None, str]:
    v, again = asked.capsules(u), asked.capsules(u)
    wrong_if(
        (not v.isfinite().all(), "some capsules are not finite numbers"),
        (not close(again, v), "the same input gives other capsules each time: call layer.eval() first, or take the randomness out"),
        (close(v[1:2], v[:1], 1e-6) and not (v[0] == 0).all(), "two different images give the same capsules: the layer doesn't look at its input"),
    )  # fmt: skip
    yield from _mixed(layer, asked, u, v)
    lengths = v.norm(dim=2)
    if not (lengths < 1 + 1e-6).all():
        yield f"lengths reach {lengths.max():.2f}: squash along the dimensions of a capsule, not along the classes"
    elif lengths.median() > 0.9:
        yield f"before any training the median length is {lengths.median():.3f}: every class is 'present', and squash is flat there, so hardly any gradient flows. Draw the weights with a standard deviation of 0.1 or less, not 1"
    elif lengths.median() < 1e-6:
        yield f"before any training the median length is {lengths.median():.0e}: the capsules are all but zero, and so are their gradients. The weights' standard deviation is far too small: was fan-in counted over the capsules' axes?"
    if not asked.capsules(0 * u).isfinite().all():
        yield "input capsules of zero give results that are not finite: squash divides by a length of 0"
    asked.check_inputs()
    return f"capsule layer: images do not disturb each other, untrained lengths are moderate (median {lengths.median():.3f}). Its couplings can't be seen from outside: checks.routing_layer looks at them"


def _mixed(layer: Callable, asked: Asked, u: Tensor, v: Tensor) -> Iterator[str]:
    """What is wrong with how the images of a batch go together. Short capsules are made longer first: agreement shows only there."""
    for _ in range(9):
        if v.norm(dim=2).median() > 0.3:
            break
        with contextlib.suppress(Wrong):
            u, v = 10 * u, asked.capsules(10 * u)
    try:
        alone = asked.capsules(u[:1])
    except Wrong as problem:
        try:
            few = asked.capsules(torch.cat([u, u[:1]]))
        except Wrong:
            few = None
        if few is None:
            yield f"it takes batches of {len(u)} only: is there a weight, or a size, for each place of the batch? {problem}"
        else:
            yield f"a batch of one image fails: a squeeze without an axis takes the batch away, so name the axis. {problem}"
        return
    twins = asked.capsules(u[:1].expand_as(u))
    if not close(twins, twins[:1].expand_as(twins), 1e-3):
        yield "the same image gives other capsules at another place of the batch: each place has a weight of its own"
    elif not close(alone, v[:1], 1e-3):
        yield (
            in_training_mode(layer)
            or "the capsules of an image change with its batch-mates: average no logits and take no softmax over the batch"
        )


@checker
def routing_layer(layer: nn.Module, weight: str = "weight", layout: str = "jikd", takes: str = "bik", returns: str = "bjd", iterations: str | int = 3):  # fmt: skip
    """Check procedure 1 inside a layer, unchanged, that makes its votes and routes them in one `forward`.

    The layer's own weight is replaced by a known one while it is looked at, so that its votes are known, and put back.

    Args:
        layer: takes input capsules and returns output capsules.
        weight: the name of its weight, such as "W" or "digit_caps.W".
        layout: the weight's axes, as letters: i input, k its dimensions, j output, d its dimensions, 1 an axis of size 1, and
            parentheses round axes that share one: "1ijdk" for [1, I, J, D, K], "ik(jd)" for [I, K, J * D].
        takes, returns: the axes of what the layer takes and returns, as for `capsule_layer`.
        iterations: the name of the attribute that holds the number of iterations, such as "num_iterations"; or, where there is
            none, how many there should be.
    """
    layout, takes = layout_of(layout, "ijkd"), layout_of(takes, "bik")
    parameter = _parameter(layer, weight)
    if isinstance(iterations, str):
        *path, name = iterations.split(".")
        holder = functools.reduce(lambda x, part: getattr(x, part, None), path, layer)
        original = getattr(holder, name, None)
        if not isinstance(original, int):
            raise Unwritten(f"the layer has no number of iterations named {iterations!r}: give the attribute's name, or the number itself")  # fmt: skip
    sizes = _sizes(layer, parameter, layout, takes, returns)
    single = layer_in(layer, takes, returns, sizes)

    def run(u: Tensor, rounds: int) -> Tensor:
        if isinstance(iterations, str):
            setattr(holder, name, rounds)
        return layer(u)

    run.__wrapped__ = layer
    asked = Asked(run, f"u {in_words(takes)}, iterations", in_words(returns.lower()), dress=lambda u, n: (*single.dress(u), n), undress=lambda out, u, n: single.undress(out, u))  # fmt: skip
    voters = min(VOTERS, sizes["i"])
    spread = 1.5 * sizes["j"] / math.sqrt(voters * sizes["d"] * sizes["k"])  # one iteration gives lengths of about 0.7
    matrix = spread * noise(*(sizes[letter] for letter in "ijkd"), seed=7)
    # Batches of other sizes than all axes: no axis is mistaken for the batch.
    batches = [n for n in range(2, 12) if n not in sizes.values()][:2]
    try:
        single(torch.zeros(batches[0], sizes["i"], sizes["k"]))
    except Wrong as problem:  # a batch size may be written into the layer: an attribute or its error then names it
        named = [n for module in layer.modules() for key, n in vars(module).items() if "batch" in key and isinstance(n, int)]  # fmt: skip
        for n in {*named, *map(int, re.findall(r"\b\d+\b", str(problem)))} - {batches[0]}:
            with contextlib.suppress(Wrong):
                if 1 < n <= 64 and len(single(torch.zeros(n, sizes["i"], sizes["k"]))):
                    batches = [n]
        wrong_if((len(batches) > 1, str(problem)))
        yield f"it takes batches of {batches[0]} only: the size of a batch is written into it"
    counts = [1, 3, 2] if isinstance(iterations, str) else [iterations, iterations]
    cases = [(torch.zeros(batches[n % len(batches)], sizes["i"], sizes["k"]), count) for n, count in enumerate(counts)]
    for n, (u, _) in enumerate(cases):
        # The last votes are so strong that they agree, too, where a softmax over all inputs leaves each of them little.
        strength = max(2.0, sizes["i"] / sizes["j"] / 10) if n == len(cases) - 1 else 1.0
        u[:, :voters] = strength * noise(len(u), voters, sizes["k"], seed=8 + n)

    def routed(u: Tensor, rounds: int, make: Callable = route) -> Tensor:
        u_hat = torch.einsum("bik,ijkd->bijd", u[:, :voters], matrix[:voters])
        return make(u_hat, rounds, silent=sizes["i"] - voters)

    known = routing_mistakes(rounds=None if isinstance(iterations, str) else iterations)
    mistakes = ((says, functools.partial(routed, make=make)) for says, make in known)
    before, mistake, said = parameter.data, routed, ""
    with contextlib.ExitStack() as stack:
        stack.enter_context(untouched(layer))
        stack.callback(setattr, parameter, "data", before)
        if isinstance(iterations, str):
            stack.callback(setattr, holder, name, original)
        parameter.data = arrange(matrix, "ijkd", layout).contiguous().to(before)
        try:
            compare(asked, cases, routed, mistakes, explain=lengths_of_squash, tolerance=1e-3)
        except Wrong as problem:
            waits = in_training_mode(layer)
            if problem.known == 1 and len(set(sizes.values())) < 4 and not waits:
                raise Unwritten(f"can't tell: {problem}. Two axes of this weight are equally long; give a layer in which I, J, K and D differ, so that the layout can't be mistaken") from None  # fmt: skip
            if not problem.mistake:
                raise Wrong("; ".join(filter(None, [waits, str(problem)])), problem.known) from None
            mistake, said = problem.mistake, str(problem)
            yield said
        yield from beyond(asked, mistake, said, (0.05 * cases[0][0], counts[-1]))
        out = asked(*cases[0])
        if parameter.requires_grad and not (out.requires_grad and torch.autograd.grad(out.sum(), parameter, allow_unused=True)[0] is not None):  # fmt: skip
            yield f"no gradient reaches {weight}: nothing could be learned. detach, no_grad, .data and NumPy cut it off"
    rounds = "1, 2 and 3 iterations" if isinstance(iterations, str) else f"{iterations} iterations"
    return f"routing layer: the capsules of procedure 1 with {rounds}, from votes made by a known weight"


def _parameter(layer: nn.Module, name: str) -> nn.Parameter:
    """The layer's weight of this name; in words what is wrong, where there is none."""
    if not isinstance(layer, nn.Module):
        Asked(layer, "u", "v")  # says what is wrong with it where it is no function
        raise Unwritten("give the layer itself, an nn.Module: its weight is looked at, by name")
    known = dict(layer.named_parameters())
    wrong_if((not known, "the layer has no weight before its first call: an optimiser that is built before never trains one that is made in forward. Make it in __init__, as an nn.Parameter"))  # fmt: skip
    if name not in known:
        raise Unwritten(f"the layer has no weight named {name!r}: give one of {', '.join(map(repr, known))}")
    return known[name]


def _sizes(layer: nn.Module, parameter: Tensor, layout: str, takes: str, returns: str) -> dict[str, int]:
    """How long each axis is, by the weight's shape; axes that share one, by a first call."""
    groups = groups_of(layout)
    if len(groups) != parameter.dim():
        raise Unwritten(f"this weight has {parameter.dim()} axes, {list(parameter.shape)}, and the layout {in_words(layout)} names {len(groups)}")  # fmt: skip
    sizes = {group: n for group, n in zip(groups, parameter.shape, strict=True) if len(group) == 1 and group != "1"}
    if "i" not in sizes or "k" not in sizes:
        raise Unwritten("a layout in which i or k share an axis can't be looked at: give a layer in which they stand by themselves")  # fmt: skip
    if not {"j", "d"} <= sizes.keys():
        v = layer_in(layer, takes, returns).capsules(noise(2, sizes["i"], sizes["k"]))
        sizes |= {"j": v.shape[1], "d": v.shape[2]}
    fits = all(math.prod(sizes.get(x, 1) for x in group) == n for group, n in zip(groups, parameter.shape, strict=True))
    if not fits:
        raise Unwritten(
            f"the layout {in_words(layout)} doesn't fit a weight {list(parameter.shape)}: which axis is which?"
        )
    return sizes


@checker
def weights(weight: Tensor | str, layout: str = "jikd", layer: nn.Module | None = None):
    """Check the weight of a capsule layer, before any training.

    Args:
        weight: the tensor; or its name, with the layer it belongs to. Ask before the layer's first call.
        layout: its axes, as letters: i input, k its dimensions, j output, d its dimensions, b batch, 1 an axis of size 1, and
            parentheses round axes that share one.
    """
    if isinstance(weight, str):
        made_later = isinstance(layer, nn.Module) and not hasattr(layer, weight) and weight not in dict(layer.named_parameters())  # fmt: skip
        plain = getattr(layer, weight, None)
        wrong_if(
            (made_later, f"the layer has no {weight} before its first call: an optimiser that is built before never trains a weight that is made in forward. Make it in __init__, as an nn.Parameter"),
            (isinstance(plain, Tensor) and not isinstance(plain, nn.Parameter), f"{weight} is a plain tensor: no optimiser finds it, and it stays behind when the layer moves. Wrap it in nn.Parameter"),
        )  # fmt: skip
        weight = _parameter(layer, weight)
    elif isinstance(weight, nn.parameter.UninitializedParameter):
        raise Unwritten("this weight has no numbers before the layer's first call: call the layer once")
    elif not isinstance(weight, Tensor):
        raise NoFunction(f"checks.weights takes a tensor, or its name and the layer; got {type(weight).__name__}")
    elif isinstance(layer, nn.Module):
        wrong_if((not any(p is weight for p in layer.parameters()), "the weight is not among the layer's parameters: no optimiser that is given them trains it"))  # fmt: skip
    layout = layout_of(layout, "ijkd", may="1b")
    groups = groups_of(layout)
    if len(groups) != weight.dim():
        raise Unwritten(f"this weight has {weight.dim()} axes, {list(weight.shape)}, and the layout {in_words(layout)} names {len(groups)}")  # fmt: skip
    values = weight.detach().double()
    wrong_if((not values.isfinite().all(), "some weights are not finite numbers: torch.Tensor and torch.empty leave them as memory was"))  # fmt: skip
    places = dict(zip(groups, weight.shape, strict=True)).get("b", 1)
    if places > 1:
        yield f"it has a matrix for each of {places} places of the batch: all images share one. Leave the batch axis out"
    if not weight.requires_grad:
        yield "it needs no gradient, so nothing trains it: wrap it in nn.Parameter"
    spread = values.std().item() if values.numel() > 1 else 0.0
    if spread >= 0.5:
        yield f"its standard deviation is {spread:.2g}: with the softmax over the outputs nearly all untrained capsules are then long, where squash is flat. Take 0.1 or less"
    elif spread <= 1e-4:
        yield f"its standard deviation is {spread:.1g}: the untrained capsules are all but zero, and so are their gradients. Was fan-in counted over the capsules' axes? Take about 0.1"
    return f"weights: a standard deviation of {spread:.2g}, no batch axis, and a gradient"
