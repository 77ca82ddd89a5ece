"""Squash and routing: the paper's formulas, and what must hold whatever the numbers are."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capsule_lib import DigitCaps, dynamic_routing, squash
from capsule_lib.routing import route

HALVES = [torch.float16, torch.bfloat16]
FLOATS = [*HALVES, torch.float32, torch.float64]


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def procedure_1(u_hat, iterations):
    """The paper's procedure 1 in plain Python numbers. u_hat[i][j] is a list; returns v[j]."""
    inputs, outputs, size = len(u_hat), len(u_hat[0]), len(u_hat[0][0])
    b = [[0.0] * outputs for _ in range(inputs)]
    for _ in range(iterations):
        c = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in b]
        v = []
        for j in range(outputs):
            s = [sum(c[i][j] * u_hat[i][j][d] for i in range(inputs)) for d in range(size)]
            squared = sum(x * x for x in s)
            v.append([squared / (1 + squared) * x / math.sqrt(squared) for x in s])
        b = [
            [b[i][j] + sum(x * y for x, y in zip(u_hat[i][j], v[j], strict=True)) for j in range(outputs)]
            for i in range(inputs)
        ]
    return v


@pytest.mark.parametrize(("length", "expected"), [(0.5, 0.2), (1, 0.5), (3, 0.9), (100, 10000 / 10001)])
def test_squash_by_hand(length, expected):
    v = squash(torch.tensor([0.6 * length, -0.8 * length], dtype=torch.float64))
    assert v.tolist() == pytest.approx([0.6 * expected, -0.8 * expected])


@given(vectors=st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_squash_keeps_direction_and_bounds_length(vectors):
    s = torch.tensor(vectors, dtype=torch.float64)
    v = squash(s)
    n = s.norm(dim=1, keepdim=True)
    assert (v.norm(dim=1) <= 1).all()
    assert torch.allclose(v * (1 + n**2), s * n, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dim", [0, 1, 2, -2])
def test_squash_works_along_any_axis(dim):
    s = torch.randn(3, 4, 5)
    assert torch.allclose(squash(s, dim), squash(s.movedim(dim, -1)).movedim(-1, dim))


@pytest.mark.parametrize("dtype", FLOATS)
def test_squash_is_safe_at_zero_forward_and_backward(dtype):
    s = torch.zeros(2, 4, dtype=dtype, requires_grad=True)
    v = squash(s)
    v.sum().backward()
    assert (v == 0).all() and (s.grad == 0).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_squash_neither_overflows_nor_vanishes(dtype):
    info = torch.finfo(dtype)
    long = squash(torch.full((1, 3), info.max / 2, dtype=dtype))
    assert torch.allclose(long.norm(dim=1), torch.ones(1, dtype=long.dtype), atol=1e-6)
    short = squash(torch.tensor([[1e-3, 0.0]], dtype=dtype))
    assert short[0, 0].item() == pytest.approx(1e-6, rel=0.02)


@pytest.mark.parametrize(
    ("given_type", "kept"), [(t, torch.float32) for t in HALVES] + [(torch.float64, torch.float64)]
)
def test_halves_are_promoted_and_float64_stays(given_type, kept):
    votes = torch.randn(2, 3, 4, 5).to(given_type)
    assert squash(votes).dtype == dynamic_routing(votes).dtype == kept


def test_squash_refuses_integers():
    with pytest.raises(TypeError, match=r"int64.*\.float\(\)"):
        squash(torch.ones(2, 3, dtype=torch.long))


def test_gradient_of_squash():
    torch.manual_seed(0)
    for scale in (1e-3, 1.0, 50.0):
        s = (scale * torch.randn(4, 3, dtype=torch.float64)).requires_grad_()
        assert torch.autograd.gradcheck(squash, s, eps=1e-6 * scale, atol=1e-5 * min(1, scale))


@pytest.mark.parametrize("iterations", range(1, 6))
def test_dynamic_routing_is_procedure_1(iterations):
    torch.manual_seed(iterations)
    u_hat = torch.randn(3, 7, 4, 5, dtype=torch.float64)
    expected = torch.tensor([procedure_1(image, iterations) for image in u_hat.tolist()], dtype=torch.float64)
    assert torch.allclose(dynamic_routing(u_hat, iterations), expected, rtol=1e-12, atol=1e-14)


def test_one_iteration_is_squash_of_the_even_sum():
    u_hat = torch.randn(2, 6, 3, 4)
    assert torch.allclose(dynamic_routing(u_hat, 1), squash(u_hat.sum(1) / 3), atol=1e-6)


@pytest.mark.parametrize("layer", [False, True])
def test_couplings_sum_to_one_over_the_outputs_only(layer):
    torch.manual_seed(0)
    if layer:
        _, c = DigitCaps(6, 4, 3, 5)(torch.randn(2, 6, 4), return_couplings=True)
    else:
        _, c = dynamic_routing(torch.randn(2, 6, 3, 5), return_couplings=True)
    assert c.shape == (3, 2, 6, 3)
    assert torch.allclose(c.sum(3), torch.ones(3, 2, 6))
    assert not torch.allclose(c.sum(2), torch.ones(3, 2, 3), atol=0.1)


def test_an_image_does_not_depend_on_its_batch_mates():
    torch.manual_seed(0)
    layer, u = DigitCaps(9, 4, 3, 5), torch.randn(4, 9, 4)
    assert torch.allclose(layer(u)[1:2], layer(u[1:2]), atol=1e-6)
    votes = torch.randn(4, 9, 3, 5)
    assert torch.allclose(dynamic_routing(votes)[1:2], dynamic_routing(votes[1:2]), atol=1e-6)


def test_detached_gradient_is_that_of_constant_couplings():
    u_hat = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    v, c = dynamic_routing(u_hat, 3, return_couplings=True)
    fixed = squash(torch.einsum("bij,bijd->bjd", c[-1].detach(), u_hat))
    got, expected = (torch.autograd.grad(out.square().sum(), u_hat)[0] for out in (v, fixed))
    assert torch.allclose(got, expected)


def test_full_gradient_is_the_derivative():
    u_hat = torch.randn(1, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dynamic_routing(x, 3, detach=False), u_hat)


SIZES = [(4, 37, 5, 3, 7), (2, 1, 3, 4, 5), (3, 11, 4, 1, 6), (1, 8, 1, 2, 1)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("iterations", range(1, 6))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_route_gives_the_numbers_of_dynamic_routing(size, iterations, dtype, tolerance):
    batch, inputs, in_dim, outputs, out_dim = size
    torch.manual_seed(iterations)
    u = torch.randn(batch, in_dim, inputs, dtype=dtype).transpose(1, 2).requires_grad_()  # not contiguous
    weight = torch.randn(outputs, in_dim, inputs, out_dim, dtype=dtype, requires_grad=True)
    votes = torch.einsum("bik,jkid->bijd", u, weight)
    results = [
        route(u, weight, iterations, return_couplings=True),
        dynamic_routing(votes, iterations, return_couplings=True),
    ]
    seed = torch.randn_like(results[0][0])
    gradients = [torch.autograd.grad((v * seed).sum(), (u, weight), retain_graph=True) for v, _ in results]
    for a, b in zip(results[0] + gradients[0], results[1] + gradients[1], strict=True):
        assert relative(a, b) < tolerance


def test_gradient_of_route_with_constant_couplings():
    u = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u, w: route(u, w, 1), (u, weight))


def test_autocast_does_not_lower_the_precision():
    torch.manual_seed(0)
    layer, u, votes = DigitCaps(40, 8, 3, 16), torch.randn(2, 40, 8), torch.randn(2, 40, 3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer(u), dynamic_routing(votes)
    assert relative(inside[0], layer(u)) < 1e-6 and relative(inside[1], dynamic_routing(votes)) < 1e-6


@pytest.mark.parametrize("bad", [torch.randn(2, 3, 4), torch.randn(3)])
def test_votes_need_four_axes(bad):
    with pytest.raises(ValueError, match=r"\[B, I, J, D\].*shape"):
        dynamic_routing(bad)


def test_no_iteration_is_an_error():
    with pytest.raises(ValueError, match="at least 1"):
        dynamic_routing(torch.randn(1, 2, 3, 4), 0)
    with pytest.raises(ValueError, match="at least 1"):
        route(torch.randn(1, 2, 3), torch.randn(2, 3, 2, 4), 0)
