"""Squash and routing by agreement: the two ideas that make a capsule network.

`dynamic_routing` is the paper's procedure, to be read and checked. `route` gives the same numbers without ever
building the votes, which is several times faster; the networks use it.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from capsule_lib.contract import COUNT, check_tensor


def squash(s: Tensor, dim: int = -1) -> Tensor:
    """Shrink a vector's length into 0..1 and keep its direction (equation 1).

        v = ‖s‖² / (1 + ‖s‖²) · s / ‖s‖

    Args:
        s: capsules of any shape; float16 and bfloat16 are promoted to float32, float64 stays.
        dim: the axis that holds the dimensions of one capsule.

    Returns:
        `v`, the shape of `s`; its lengths are below 1 (as rounded). A zero vector stays zero, with a zero gradient.
    """
    if not isinstance(s, Tensor) or not s.is_floating_point() or s.layout != torch.strided:
        what = f"{s.layout} {s.dtype}" if isinstance(s, Tensor) else type(s).__name__
        raise TypeError(f"squash takes a dense floating-point tensor; got {what}: convert it with .float()")
    if isinstance(dim, bool) or not isinstance(dim, int) or not -s.dim() <= dim < s.dim() or not s.shape[dim]:
        raise ValueError(f"dim: expected an axis of a tensor {list(s.shape)} with something in it; got {dim!r}")
    s = _at_least_float32(s)
    # The formula times ‖s‖/‖s‖ is s ‖s‖ / (1 + ‖s‖²): nothing is divided by a length, so zero needs no epsilon.
    # Every vector is first divided by its largest entry m, where that is above 1, because ‖s‖² of a long vector
    # overflows. The value does not depend on m, so m needs no gradient.
    m = s.detach().abs().amax(dim, keepdim=True).clamp(min=1)
    t = s / m
    t_length = length(t, dim, keepdim=True)
    return t * (t_length / ((1 / m) ** 2 + t_length**2))


def length(x: Tensor, dim: int = -1, keepdim: bool = False) -> Tensor:
    """Euclidean length along `dim`. Where its square is zero or underflows: 0, with first and second derivatives of 0."""
    squared = x.square().sum(dim, keepdim)
    some = squared > torch.finfo(squared.dtype).tiny
    return torch.where(some, squared, 1).sqrt() * some


def dynamic_routing(
    u_hat: Tensor, iterations: int = 3, *, detach: bool = True, return_couplings: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Route votes to output capsules by agreement (procedure 1, equations 2 and 3).

    Args:
        u_hat: votes [B, I, J, D]: what input capsule i says output capsule j should be.
        iterations: how often the couplings are used, at least 1. One iteration is squash of the votes'
            sum divided by J: couplings start equal.
        detach: treat the votes as constants in all but the last iteration, so that gradients flow once.
            With False the gradient runs through every iteration. The outputs are the same.
        return_couplings: also return the couplings of each iteration.

    Returns:
        Output capsules `v` [B, J, D] with lengths below 1; with `return_couplings` also
        `c` [iterations, B, I, J], which sums to 1 over J.
    """
    check_tensor(u_hat, "votes", "[B, I, J, D]")
    COUNT.check("iterations", iterations)
    u_hat = _at_least_float32(u_hat)
    couplings = []
    with without_autocast(u_hat):
        b = u_hat.new_zeros(u_hat.shape[:3])
        for t in range(iterations):
            last = t == iterations - 1
            votes = u_hat.detach() if detach and not last else u_hat
            c = b.softmax(dim=2)  # over the outputs: each input shares itself out among the classes
            couplings.append(c)
            s = torch.einsum("bij,bijd->bjd", c, votes)
            v = squash(s)
            if not last:
                b = b + torch.einsum("bijd,bjd->bij", votes, v)
    return (v, torch.stack(couplings)) if return_couplings else v


def route(
    u: Tensor, weight: Tensor, iterations: int = 3, *, detach: bool = True, return_couplings: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Votes and routing in one: `dynamic_routing(votes)` without the votes.

    The vote of input i for output j is u_i W_ij. There are I x J x D numbers of them for every image, and routing
    only ever needs two kinds of sum over them, each of which is a matrix product that skips the votes:

        s_j  = sum_i c_ij (u_i W_ij)     = (c_j * u) W_j      scale the inputs, then multiply
        a_ij = (u_i W_ij) . v_j          = u_i . (W_ij v_j)   multiply v by the weight, then dot with the inputs

    That is *more* arithmetic: every sum multiplies by the weight again. What falls is traffic with the memory, which is
    what votes cost. Two things keep it low. A few input capsules are routed at a time, so that their scaled inputs,
    J x B x K numbers each, stay in the processor's cache; and the backward pass scales the inputs once more instead of
    keeping them. That takes a gradient written by hand. Where it can't be had (with `detach=False`, beneath `torch.vmap`,
    in `torch.compile` and export), the same formulas run on all capsules at once, and PyTorch derives the gradient.

    Args:
        u: input capsules [B, I, K].
        weight: [J, K, I, D]. A capsule's dimensions (K) come before its index (I): scaling by c and the sum over K
            then run along long rows of memory, and the output of PrimaryCaps lies that way already.
        iterations, detach, return_couplings: as for `dynamic_routing`.

    Returns:
        As `dynamic_routing`.
    """
    COUNT.check("iterations", iterations)
    u, weight = check_shapes(u, weight)
    u = u.transpose(1, 2).contiguous()  # [B, K, I]
    with without_autocast(u):
        if detach and not torch.compiler.is_compiling():
            s, *rounds = _Routing.apply(u, weight, iterations, return_couplings)
        else:
            s, *rounds = _routing(u, weight, iterations, detach, return_couplings)
        v = squash(s).transpose(0, 1)
    return (v, torch.stack(rounds).permute(0, 2, 3, 1)) if return_couplings else v


def check_shapes(u: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Capsules and weight in at least float32, if u is the [B, I, K] that a weight [J, K, I, D] takes."""
    _, in_dim, in_capsules, _ = check_tensor(weight, "weight", "[J, K, I, D]").shape
    check_tensor(u, "capsules", f"[B, {in_capsules}, {in_dim}]")
    if u.shape[1:] != (in_capsules, in_dim):
        raise ValueError(
            f"this weight takes capsules [B, {in_capsules}, {in_dim}]; got a tensor of shape {list(u.shape)}"
        )
    return _at_least_float32(u), _at_least_float32(weight)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Autocast, where x's device has it, would round sums to half precision."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _pieces(u: Tensor, weight: Tensor) -> int:
    """How many times the scaled inputs of u [B, K, I], J x B x K x I, fill a CPU's cache or a modest part of an accelerator's
    memory."""
    room = 3e6 if u.device.type == "cpu" else 256e6  # bytes
    return math.ceil(len(weight) * u.numel() * u.element_size() / room) or 1


def _routing(
    u: Tensor, weight: Tensor, iterations: int, detach: bool, all_rounds: bool, pieces: int = 1
) -> tuple[Tensor, ...]:
    """Procedure 1 for capsules u [B, K, I], cut into pieces along I: the last sums s [J, B, D], then couplings c [J, B, I], of
    all iterations or the last."""
    parts = list(zip(u.chunk(pieces, dim=2), weight.chunk(pieces, dim=2), strict=True))
    b = [u.new_zeros(weight.shape[0], u.shape[0], u_part.shape[2]) for u_part, _ in parts]
    rounds, s = [], None
    for t in range(iterations):
        v, s = squash(s) if t else None, 0
        for n, (u_part, weight_part) in enumerate(parts):
            w = _flat(weight_part)
            if t:
                agreement = _times_weight(v, w, u_part).mul_(u_part).sum(dim=2)
                b[n] = b[n] + (agreement.detach() if detach else agreement)
                scaled = _scaled(u_part, b[n].softmax(dim=0))
            else:  # all couplings are equal, and so are the scaled inputs of all outputs
                scaled = (u_part / len(w)).reshape(1, u_part.shape[0], -1).expand(len(w), -1, -1)
            s = s + scaled @ w
        if all_rounds or t == iterations - 1:
            rounds.append(torch.cat(b, dim=2).softmax(dim=0))
    return s, *rounds


def _gradients(u: Tensor, weight: Tensor, c: Tensor, grad_s: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of u and weight that follow from one of s, with constant couplings."""
    # In one piece where the gradient will be differentiated, because PyTorch does that for each piece with all of it.
    few = math.ceil(u.shape[2] / (1 if torch.is_grad_enabled() else _pieces(u, weight)))
    grad_u, grad_weight = grad_s.new_empty(u.shape), grad_s.new_empty(weight.shape)
    for start in range(0, u.shape[2], few):
        at = (slice(None), slice(None), slice(start, start + few))  # I is the third axis of all three
        u_part, weight_part, c_part = u[at], weight[at], c[at]
        grad_u[at] = _times_weight(grad_s, _flat(weight_part), u_part).mul_(c_part[:, :, None]).sum(dim=0)
        grad_weight[at] = (_scaled(u_part, c_part).transpose(1, 2) @ grad_s).reshape(weight_part.shape)
    return grad_u, grad_weight


# These reshape and transpose, instead of flatten and mT, because `torch.autograd.functional` maps over those alone.
def _scaled(u: Tensor, c: Tensor) -> Tensor:
    """c_ij u_i for all i and j: u [B, K, I] and c [J, B, I] -> [J, B, K * I]."""
    return (u * c[:, :, None]).reshape(*c.shape[:2], -1)


def _flat(weight: Tensor) -> Tensor:
    """One matrix for each output: weight [J, K, I, D] -> [J, K * I, D]."""
    return weight.reshape(weight.shape[0], -1, weight.shape[3])


def _times_weight(v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """W_ij v_j for all i and j: v [J, B, D] and w [J, K * I, D] -> [J, B, K, I], as u is [B, K, I]."""
    return (v @ w.transpose(1, 2)).reshape(-1, *u.shape)


class _Routing(torch.autograd.Function):
    """`_routing` with couplings that count as constants, in pieces."""

    @staticmethod
    def forward(u, weight, iterations, all_rounds):
        return _routing(u, weight, iterations, True, all_rounds, _pieces(u, weight))

    @staticmethod
    def setup_context(ctx, inputs, output):
        u, weight, *_ = inputs
        ctx.save_for_backward(u, weight, output[-1])
        ctx.save_for_forward(u, weight, output[-1])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # the couplings' would be zeros, as large as they are
        ctx.constants = len(output) - 1

    @staticmethod
    def backward(ctx, grad_s, *_):
        if grad_s is None:  # only the couplings were used
            return None, None, None, None
        return *_gradients(*ctx.saved_tensors, grad_s), None, None

    @staticmethod
    def jvp(ctx, u_dot, weight_dot, *_):
        u, weight, c = ctx.saved_tensors
        terms = [(u_dot, weight), (u, weight_dot)]
        s_dot = sum(_scaled(x, c) @ _flat(w) for x, w in terms if x is not None and w is not None)
        return s_dot, *(ctx.constants * [None])

    @staticmethod
    def vmap(info, in_dims, u, weight, iterations, all_rounds):
        out = torch.vmap(lambda u, weight: _routing(u, weight, iterations, True, all_rounds), in_dims[:2])(u, weight)
        return out, len(out) * (0,)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
