"""Squash and routing by agreement: the two ideas that make a capsule network.

`dynamic_routing` is the paper's procedure, to be read and checked. `route` gives the same numbers without ever
building the votes, which is several times faster; the networks use it.
"""

import torch
from torch import Tensor


def squash(s: Tensor, dim: int = -1) -> Tensor:
    """Shrink a vector's length into 0..1 and keep its direction (equation 1).

        v = |s|^2 / (1 + |s|^2) * s / |s|

    Args:
        s: capsules of any shape; float16 and bfloat16 are promoted to float32, float64 stays.
        dim: the axis that holds the numbers of one capsule.

    Returns:
        `v`, the shape of `s`; its lengths are below 1 (as rounded). A zero vector stays zero, with a zero gradient.
    """
    if not s.is_floating_point():
        raise TypeError(f"squash takes floating-point capsules; got {s.dtype}: convert them with .float()")
    s = _at_least_float32(s)
    # The formula times |s|/|s| is s |s| / (1 + |s|^2): nothing is divided by a length, so zero needs no epsilon.
    # Every vector is first divided by its largest entry m, where that is above 1, because |s|^2 of a long vector
    # overflows. The value does not depend on m, so m needs no gradient.
    m = s.detach().abs().amax(dim, keepdim=True).clamp(min=1)
    t = s / m
    length = torch.linalg.vector_norm(t, dim=dim, keepdim=True)
    return t * length / ((1 / m) ** 2 + length**2)


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
    if u_hat.dim() != 4:
        raise ValueError(f"dynamic_routing takes votes [B, I, J, D]; got a tensor of shape {list(u_hat.shape)}")
    if iterations < 1:
        raise ValueError(f"dynamic_routing needs at least 1 iteration; got {iterations}")
    u_hat = _at_least_float32(u_hat)
    couplings = []
    with torch.autocast(u_hat.device.type, enabled=False):  # autocast would round the sums to half precision
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
    u: Tensor, weight: Tensor, iterations: int = 3, *, return_couplings: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Votes and routing in one: `dynamic_routing(votes)` without the votes.

    The vote of input i for output j is u_i W_ij. There are I x J x D numbers of them for every image, and routing
    only ever needs two kinds of sum over them, each of which is a matrix product that skips the votes:

        s_j  = sum_i c_ij (u_i W_ij)     = (c_j * u) W_j      scale the inputs, then multiply
        a_ij = (u_i W_ij) . v_j          = u_i . (W_ij v_j)   multiply v by the weight, then dot with the inputs

    Couplings count as constants for the gradient, as in `dynamic_routing` with detached votes.

    Args:
        u: input capsules [B, I, K].
        weight: [J, K, I, D]. The capsule's numbers (K) come before its index (I): scaling by c and the sum over K
            then run along long rows of memory, and the output of PrimaryCaps lies that way already.
        iterations, return_couplings: as for `dynamic_routing`.

    Returns:
        As `dynamic_routing`.
    """
    if iterations < 1:
        raise ValueError(f"route needs at least 1 iteration; got {iterations}")
    u, weight = fitting(u, weight)
    u = u.transpose(1, 2).contiguous()  # [B, K, I]
    couplings = []
    with torch.autocast(u.device.type, enabled=False):
        with torch.no_grad():
            b = u.new_zeros(len(u), weight.shape[0], u.shape[2])  # [B, J, I]
            for t in range(iterations):
                c = b.softmax(dim=1)
                couplings.append(c.transpose(1, 2))
                if t < iterations - 1:
                    v = squash(_weighted_sums(u, weight, c))
                    for j, w in enumerate(weight):
                        b[:, j] += (u * (v[:, j] @ w.flatten(0, 1).T).view_as(u)).sum(dim=1)
        v = squash(_WeightedSums.apply(u, weight, c))
    return (v, torch.stack(couplings)) if return_couplings else v


def fitting(u: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Capsules and weight in at least float32, after a look at whether u is the [B, I, K] that a weight [J, K, I, D] takes."""
    _, in_dim, in_capsules, _ = weight.shape
    if u.dim() != 3 or u.shape[1:] != (in_capsules, in_dim):
        raise ValueError(
            f"this weight takes capsules [B, {in_capsules}, {in_dim}]; got a tensor of shape {list(u.shape)}"
        )
    return _at_least_float32(u), _at_least_float32(weight)


def _weighted_sums(u: Tensor, weight: Tensor, c: Tensor) -> Tensor:
    """s [B, J, D] from u [B, K, I], weight [J, K, I, D] and constant couplings c [B, J, I]; one output at a time."""
    return torch.stack([(u * c[:, j, None]).flatten(1) @ w.flatten(0, 1) for j, w in enumerate(weight)], dim=1)


class _WeightedSums(torch.autograd.Function):
    """`_weighted_sums` with a backward pass that scales the inputs again instead of keeping J scaled copies."""

    @staticmethod
    def forward(ctx, u, weight, c):
        ctx.save_for_backward(u, weight, c)
        return _weighted_sums(u, weight, c)

    @staticmethod
    def backward(ctx, grad_s):
        u, weight, c = ctx.saved_tensors
        grad_u, grad_weight = torch.zeros_like(u), torch.empty_like(weight)
        for j, w in enumerate(weight):
            c_j, grad_j = c[:, j, None], grad_s[:, j]
            grad_weight[j] = ((u * c_j).flatten(1).T @ grad_j).view_as(w)
            grad_u += c_j * (grad_j @ w.flatten(0, 1).T).view_as(u)
        return grad_u, grad_weight, None


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
