"""Squash and routing: against plain loops, at the edges of every number format, and against the known mistakes."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from capsule_lib import routing
from capsule_lib.device import TorchDispatchMode
from capsule_lib.routing import dynamic_routing, length, route, squash

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
# B, I, J, K, D: odd sizes, everything single, one capsule, one class, one number in a capsule, one image
SIZES = [(2, 7, 3, 4, 5), (1, 1, 1, 1, 1), (3, 1, 4, 3, 2), (2, 5, 1, 3, 4), (2, 3, 5, 1, 3), (1, 11, 2, 5, 1)]

vectors = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=9).map(
    lambda numbers: torch.tensor(numbers, dtype=torch.float64)
)


def relative(got, right):
    """Norm of the difference, relative to the norm of what is right."""
    return ((got.double() - right.double()).norm() / right.double().norm()).item()


def squash_by_hand(s):
    length = sum(x**2 for x in s) ** 0.5
    return [length**2 / (1 + length**2) * x / length for x in s]


def procedure_1(u_hat, iterations, detach=False):
    """Procedure 1 with a loop for every index; u_hat is float64. Returns v [B, J, D] and c [iterations, B, I, J]."""
    B, I, J, D = u_hat.shape
    all_v, all_c = [], []
    for image in range(B):
        logits = [[torch.zeros((), dtype=torch.float64) for _ in range(J)] for _ in range(I)]
        for t in range(iterations):
            votes = u_hat[image].detach() if detach and t < iterations - 1 else u_hat[image]
            c = []
            for i in range(I):
                total = sum(logits[i][j].exp() for j in range(J))
                c.append([logits[i][j].exp() / total for j in range(J)])
            v = []
            for j in range(J):
                v.append(squash_by_hand([sum(c[i][j] * votes[i, j, d] for i in range(I)) for d in range(D)]))
            for i in range(I):
                for j in range(J):
                    logits[i][j] = logits[i][j] + sum(votes[i, j, d] * v[j][d] for d in range(D))
            all_c.append(torch.stack([torch.stack(row) for row in c]).detach())
        all_v.append(torch.stack([torch.stack(capsule) for capsule in v]))
    return torch.stack(all_v), torch.stack(all_c).view(B, iterations, I, J).transpose(0, 1)


def capsules_and_weight(sizes, dtype=torch.float64):
    B, I, J, K, D = sizes
    u = torch.randn(B, I, K, dtype=torch.float64)
    weight = torch.randn(J, K, I, D, dtype=torch.float64)
    return u.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


def votes_of(u, weight):
    return torch.einsum("bik,jkid->bijd", u, weight)


# --- squash ---


@given(vectors)
def test_squash_gives_lengths_from_0_to_1(s):
    assert 0 <= squash(s).norm() <= 1


@given(vectors)
def test_squash_keeps_the_direction(s):
    torch.testing.assert_close(squash(s) * s.norm(), s * squash(s).norm(), rtol=1e-9, atol=1e-12)


@given(vectors, st.floats(1.01, 100))
def test_squash_makes_the_longer_of_two_parallel_vectors_no_shorter(s, factor):
    assert squash(factor * s).norm() >= squash(s).norm() - 1e-12


@given(st.floats(1e-3, 1e3), st.integers(1, 8))
def test_squash_gives_the_length_of_equation_1(length, size):
    s = torch.full((size,), length / size**0.5, dtype=torch.float64)
    assert squash(s).norm().item() == pytest.approx(length**2 / (1 + length**2), rel=1e-9)


@pytest.mark.parametrize(("length", "squashed"), [(1.0, 0.5), (3.0, 0.9), (0.1, 0.01 / 1.01), (100.0, 1e4 / 10001)])
def test_squash_by_hand(length, squashed):
    s = length * torch.tensor([0.6, 0.0, -0.8])
    torch.testing.assert_close(squash(s), squashed * torch.tensor([0.6, 0.0, -0.8]))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_squash_works_along_any_dim(shape, data):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    s = torch.randn(shape)
    torch.testing.assert_close(squash(s, dim), squash(s.movedim(dim, -1)).movedim(-1, dim))


def test_squash_treats_each_capsule_by_itself():
    s = torch.randn(4, 6, 5)
    alone = torch.stack([torch.stack([squash(capsule) for capsule in image]) for image in s])
    torch.testing.assert_close(squash(s), alone)
    assert (squash(100 * s).norm(dim=-1) > 0.99).all()  # along any other axis they would share a length


@pytest.mark.parametrize("dtype", FLOATS)
def test_squash_promotes_halves_to_float32_and_leaves_float64(dtype):
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert squash(torch.ones(2, 3, dtype=dtype)).dtype == expected
    with torch.autocast("cpu", torch.bfloat16):
        assert squash(torch.ones(2, 3, dtype=dtype)).dtype == expected


@pytest.mark.parametrize("dtype", FLOATS)
def test_squash_of_zero_is_zero_with_zero_gradient(dtype):
    s = torch.zeros(3, 4, dtype=dtype, requires_grad=True)
    v = squash(s)
    v.sum().backward()
    assert (v == 0).all()
    assert (s.grad == 0).all()


@pytest.mark.parametrize("share", [1.0, 0.6, 1e-3])
@pytest.mark.parametrize("size", [1, 2, 16, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_squash_of_a_very_long_vector_is_a_unit_vector(dtype, size, share):
    s = torch.full((size,), share * torch.finfo(dtype).max, dtype=dtype, requires_grad=True)
    v = squash(s)
    v.sum().backward()
    torch.testing.assert_close(v, torch.full_like(v, size**-0.5), rtol=1e-3, atol=0)
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("length", [1e-3, 3e-4, 300.0, 60_000.0])
def test_squash_of_a_float16_vector_is_as_exact_as_in_float64(length):
    s = torch.tensor([length, -length / 2, 0.0], dtype=torch.float16)
    torch.testing.assert_close(squash(s).double(), squash(s.double()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [1e-4, 0.3, 1.0, 30.0])  # tiny, and with a largest entry below and above 1
@pytest.mark.parametrize("dim", [-1, 0])
def test_squash_has_the_gradient_of_its_formula(scale, dim):
    s = scale * (0.5 + torch.rand(3, 4, dtype=torch.float64)) * torch.randn(3, 4).sign()
    assert gradcheck(
        lambda s: squash(s, dim) / scale, s.requires_grad_(), eps=1e-4 * scale, atol=1e-7 / max(1, scale**2)
    )


@pytest.mark.parametrize("scale", [1e-4, 0.3, 1.0, 30.0])
@pytest.mark.parametrize("dim", [-1, 0])
@pytest.mark.parametrize("function", [squash, length])
def test_squash_and_length_have_the_second_derivative_of_their_formula(function, dim, scale):
    s = scale * (0.5 + torch.rand(3, 4, dtype=torch.float64)) * torch.randn(3, 4).sign()
    assert gradgradcheck(
        lambda s: function(s, dim), s.requires_grad_(), eps=1e-4 * scale, atol=1e-6 / min(1, scale) ** 2, rtol=1e-5
    )


def second_derivative(function, s):
    """Of the sum of `function(s)`: along one direction, and then of all entries."""
    s = s.detach().requires_grad_()
    (first,) = torch.autograd.grad(function(s).sum(), s, create_graph=True)
    return torch.autograd.grad(first @ torch.tensor([1.0, -2.0, 0.5], dtype=s.dtype), s)[0]


def equation_1(s):
    return s * s.norm() / (1 + s.norm() ** 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e-25, 1e-19, 1e-18, 1e-12, 1e-3, 1.0, 1e4, 1e30])
def test_squash_has_a_finite_second_derivative_at_every_scale(scale, dtype):
    s = scale * torch.tensor([0.6, 0.0, -0.8], dtype=dtype)
    got = second_derivative(squash, s)
    assert got.isfinite().all()
    if scale == 0:
        assert (got == 0).all() and (second_derivative(length, s) == 0).all()
    elif 1e-18 <= scale <= 1e4:  # where float64 holds the formula as it stands
        assert relative(got, second_derivative(equation_1, s.double())) < 1e-3


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_squash_of_whole_numbers_is_a_clear_error(dtype):
    with pytest.raises(TypeError, match=rf"floating-point.*{dtype}.*\.float\(\)"):
        squash(torch.ones(2, 3, dtype=dtype))


# --- procedure 1 ---


@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("sizes", SIZES)
def test_dynamic_routing_is_procedure_1_in_plain_loops(sizes, iterations):
    votes = votes_of(*capsules_and_weight(sizes)).detach()
    v, c = dynamic_routing(votes, iterations, return_couplings=True)
    expected_v, expected_c = procedure_1(votes, iterations)
    assert relative(v, expected_v) < 1e-10
    assert c.shape == expected_c.shape
    assert relative(c, expected_c) < 1e-10
    assert relative(dynamic_routing(votes.float(), iterations), expected_v) < 1e-5


def test_one_iteration_is_squash_of_the_votes_sum_divided_by_the_classes():
    u, weight = capsules_and_weight((2, 7, 3, 4, 5))
    once = squash(votes_of(u, weight).sum(dim=1) / 3)
    torch.testing.assert_close(dynamic_routing(votes_of(u, weight), 1), once)
    torch.testing.assert_close(route(u, weight, 1), once)


def test_three_iterations_are_the_default():
    u, weight = capsules_and_weight((2, 7, 3, 4, 5))
    torch.testing.assert_close(dynamic_routing(votes_of(u, weight)), dynamic_routing(votes_of(u, weight), 3))
    torch.testing.assert_close(route(u, weight), route(u, weight, 3))


def both_couplings(iterations):
    u, weight = capsules_and_weight((2, 7, 3, 4, 5))
    for _, c in (
        dynamic_routing(votes_of(u, weight), iterations, return_couplings=True),
        route(u, weight, iterations, return_couplings=True),
    ):
        assert c.shape == (iterations, 2, 7, 3)
        yield c


def test_couplings_sum_to_1_over_the_outputs_and_not_over_the_inputs_or_the_batch():
    for c in both_couplings(4):
        torch.testing.assert_close(c.sum(dim=3), torch.ones(4, 2, 7, dtype=torch.float64))
        for axis in (1, 2):
            assert ((c[1:].sum(dim=axis) - 1).abs() > 0.1).any()


def test_couplings_start_equal_and_then_differ():
    for c in both_couplings(3):
        torch.testing.assert_close(c[0], torch.full_like(c[0], 1 / 3))
        assert (c[1:] - 1 / 3).abs().amax() > 0.1


def test_output_lengths_lie_below_1():
    u, weight = capsules_and_weight((2, 7, 3, 4, 5))
    assert (dynamic_routing(votes_of(u, weight)).norm(dim=2) < 1).all()
    assert (route(u, weight).norm(dim=2) < 1).all()


def test_capsules_of_an_image_do_not_depend_on_its_batch_mates():
    u, weight = capsules_and_weight((5, 7, 3, 4, 5))
    for image in range(5):
        alone = u[image : image + 1]
        torch.testing.assert_close(route(u, weight)[image], route(alone, weight)[0])
        votes = votes_of(u, weight)
        torch.testing.assert_close(dynamic_routing(votes)[image], dynamic_routing(votes[image : image + 1])[0])


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_gradient_through_every_iteration_is_that_of_the_loops(iterations):
    votes = votes_of(*capsules_and_weight((2, 3, 2, 2, 3))).detach().requires_grad_()
    towards = torch.randn(2, 2, 3, dtype=torch.float64)
    (got,) = torch.autograd.grad((dynamic_routing(votes, iterations, detach=False) * towards).sum(), votes)
    (right,) = torch.autograd.grad((procedure_1(votes, iterations)[0] * towards).sum(), votes)
    assert relative(got, right) < 1e-10


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_detached_votes_give_the_gradient_with_couplings_held_fixed(iterations):
    votes = votes_of(*capsules_and_weight((2, 3, 2, 2, 3))).detach().requires_grad_()
    towards = torch.randn(2, 2, 3, dtype=torch.float64)
    (got,) = torch.autograd.grad((dynamic_routing(votes, iterations) * towards).sum(), votes)
    fixed = procedure_1(votes.detach(), iterations)[1][-1]
    held = squash((fixed[..., None] * votes).sum(dim=1))
    (right,) = torch.autograd.grad((held * towards).sum(), votes)
    (loops,) = torch.autograd.grad((procedure_1(votes, iterations, detach=True)[0] * towards).sum(), votes)
    assert relative(got, right) < 1e-10
    assert relative(got, loops) < 1e-10


def test_detaching_changes_the_gradient_and_not_the_result():
    votes = votes_of(*capsules_and_weight((2, 7, 3, 4, 5))).detach().requires_grad_()
    once, throughout = (dynamic_routing(votes, 3, detach=detach) for detach in (True, False))
    assert torch.equal(once, throughout)
    gradients = [torch.autograd.grad(v.square().sum(), votes)[0] for v in (once, throughout)]
    assert relative(*gradients) > 0.01


def test_zero_votes_route_to_zero_with_finite_gradients():
    votes = torch.zeros(2, 3, 4, 5, requires_grad=True)
    v = dynamic_routing(votes)
    v.sum().backward()
    assert (v == 0).all()
    assert votes.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_routed_in_float32(dtype):
    u, weight = capsules_and_weight((2, 7, 3, 4, 5), torch.float32)
    votes = votes_of(u, weight).detach().to(dtype)
    assert torch.equal(dynamic_routing(votes), dynamic_routing(votes.float()))
    assert torch.equal(route(u.to(dtype), weight), route(u.to(dtype).float(), weight))
    assert torch.equal(route(u.to(dtype), weight.to(dtype)), route(u.to(dtype).float(), weight.to(dtype).float()))


def test_routing_ignores_autocast():
    u, weight = capsules_and_weight((2, 7, 3, 4, 5), torch.float32)
    votes = votes_of(u, weight).detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        inside = [*route(u, weight, return_couplings=True), *dynamic_routing(votes, return_couplings=True)]
    outside = [*route(u, weight, return_couplings=True), *dynamic_routing(votes, return_couplings=True)]
    for got, right in zip(inside, outside, strict=True):
        assert torch.equal(got, right)
    for got, right, inputs in [(inside[0], outside[0], (u, weight)), (inside[2], outside[2], (votes,))]:
        gradients = [torch.autograd.grad(v.square().sum(), inputs) for v in (got, right)]
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("shape", [(2, 3, 4), (3,), (1, 2, 3, 4, 5)])
def test_votes_of_a_wrong_shape_are_a_clear_error(shape):
    with pytest.raises(ValueError, match=re.escape(f"votes must be [B, I, J, D]; got a tensor of shape {list(shape)}")):
        dynamic_routing(torch.zeros(shape))


@pytest.mark.parametrize("iterations", [0, -1])
def test_fewer_than_one_iteration_is_a_clear_error(iterations):
    u, weight = capsules_and_weight((2, 3, 4, 5, 6))
    with pytest.raises(ValueError, match=f"iterations: expected a whole number from 1 on; got {iterations}"):
        dynamic_routing(votes_of(u, weight), iterations)
    with pytest.raises(ValueError, match=f"iterations: expected a whole number from 1 on; got {iterations}"):
        route(u, weight, iterations)


# --- route: the same without votes ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("pieces", [1, 2, 3, 100])
def test_route_equals_dynamic_routing_of_the_votes(monkeypatch, pieces, sizes, iterations, dtype):
    monkeypatch.setattr(routing, "_pieces", lambda u, weight: pieces)
    u, weight = capsules_and_weight(sizes)  # what is right is worked out in float64
    right, right_c = dynamic_routing(votes_of(u, weight), iterations, return_couplings=True)
    towards = torch.randn_like(right)
    right_gradients = torch.autograd.grad((right * towards).sum(), (u, weight))
    own = [x.detach().to(dtype).requires_grad_() for x in (u, weight)]
    got, c = route(*own, iterations, return_couplings=True)
    gradients = torch.autograd.grad((got * towards.to(dtype)).sum(), own)
    assert got.dtype == c.dtype == dtype
    for a, b in [(got, right), (c, right_c), *zip(gradients, right_gradients, strict=True)]:
        assert a.shape == b.shape
        assert relative(a, b) < TOLERANCE[dtype]


def test_route_takes_inputs_in_any_order_of_memory():
    u, weight = capsules_and_weight((2, 7, 3, 4, 5))
    right = route(u, weight)
    right_gradients = torch.autograd.grad(right.square().sum(), (u, weight))
    stored_u = u.detach().transpose(0, 2).contiguous().requires_grad_()
    stored_weight = weight.detach().permute(3, 1, 0, 2).contiguous().requires_grad_()
    got = route(stored_u.transpose(0, 2), stored_weight.permute(2, 1, 3, 0))
    gradients = torch.autograd.grad(got.square().sum(), (stored_u, stored_weight))
    torch.testing.assert_close(got, right)
    torch.testing.assert_close(gradients[0].transpose(0, 2), right_gradients[0])
    torch.testing.assert_close(gradients[1].permute(2, 1, 3, 0), right_gradients[1])


def test_route_takes_every_second_capsule_of_a_larger_tensor():
    u, weight = capsules_and_weight((2, 14, 3, 4, 5))
    right = route(u[:, ::2].contiguous(), weight[:, :, ::2].contiguous())
    torch.testing.assert_close(route(u[:, ::2], weight[:, :, ::2]), right)


@pytest.mark.parametrize("pieces", [1, 2, 100])
def test_one_iteration_whose_couplings_are_constants_has_the_gradient_of_its_formula(monkeypatch, pieces):
    monkeypatch.setattr(routing, "_pieces", lambda u, weight: pieces)
    inputs = capsules_and_weight((3, 3, 2, 3, 2))
    assert gradcheck(lambda u, weight: route(u, weight, 1), inputs)
    assert gradgradcheck(lambda u, weight: route(u, weight, 1), inputs)


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_the_gradient_through_every_iteration_has_the_derivative_of_its_formula(iterations):
    assert gradgradcheck(
        lambda u, weight: route(u, weight, iterations, detach=False), capsules_and_weight((2, 3, 2, 3, 2))
    )


def two_derivatives(v, towards, inputs):
    """The gradients of v . towards, and those of their squares' sum."""
    first = torch.autograd.grad((v * towards).sum(), inputs, create_graph=True)
    return *first, *torch.autograd.grad(sum(g.square().sum() for g in first), inputs)


@pytest.mark.parametrize("pieces", [1, 2, 100])
@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("detach", [True, False])
def test_route_has_the_second_derivatives_of_procedure_1(monkeypatch, detach, iterations, pieces):
    monkeypatch.setattr(routing, "_pieces", lambda u, weight: pieces)
    inputs, towards = capsules_and_weight((2, 3, 2, 3, 2)), torch.randn(2, 2, 2, dtype=torch.float64)
    got = two_derivatives(route(*inputs, iterations, detach=detach), towards, inputs)
    readable = two_derivatives(dynamic_routing(votes_of(*inputs), iterations, detach=detach), towards, inputs)
    right = two_derivatives(procedure_1(votes_of(*inputs), iterations, detach)[0], towards, inputs)
    for a, b, c in zip(got, readable, right, strict=True):
        assert relative(a, c) < 1e-10 and relative(b, c) < 1e-10


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("zero", ["capsule", "weight", "all"])
def test_routing_of_zeros_has_finite_second_derivatives(zero, detach):
    u, weight = (x.detach() for x in capsules_and_weight((2, 3, 2, 3, 2)))
    if zero != "weight":
        u[:, slice(None) if zero == "all" else 0] = 0
    if zero == "weight":  # one output gets nothing but zeros
        weight[0] = 0
    inputs = u.requires_grad_(), weight.requires_grad_()
    towards = torch.randn(2, 2, 2, dtype=torch.float64)
    got = two_derivatives(route(*inputs, detach=detach), towards, inputs)
    readable = two_derivatives(dynamic_routing(votes_of(*inputs), detach=detach), towards, inputs)
    for a, b in zip(got, readable, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_detached_gradient_of_the_inputs_is_another_than_the_full_one():
    u, weight = capsules_and_weight((2, 7, 3, 4, 5))
    once, full = (torch.autograd.grad(route(u, weight, detach=d).square().sum(), u)[0] for d in (True, False))
    assert relative(once, full) > 0.1


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(t, torch.Tensor):
                self.numel = max(self.numel, t.numel())
        return result


def test_route_never_builds_the_votes():
    """Nothing that it makes, forward or backward, is nearly as large as the votes [B, I, J, D] or the scaled inputs of a batch."""
    B, I, J, K, D = 64, 1152, 10, 4, 16
    u, weight = capsules_and_weight((B, I, J, K, D), torch.float32)
    votes_alone = LargestTensor()
    with votes_alone:
        votes_of(u, weight)
    assert votes_alone.numel == B * I * J * D  # it sees what there is to see
    with LargestTensor() as largest:
        route(u, weight)[0].sum().backward()
    assert largest.numel < B * I * J * K / 1.9


@pytest.mark.parametrize(
    ("B", "K", "I", "pieces"),
    [(1, 8, 1152, 1), (32, 8, 1152, 4), (128, 8, 1152, 16), (32, 4, 1152, 2), (0, 8, 1152, 1)],
)
def test_a_piece_of_the_scaled_inputs_fits_a_cache(B, K, I, pieces):
    assert routing._pieces(torch.empty(B, K, I), torch.empty(10, K, I, 16)) == pieces


@pytest.mark.parametrize("capsules", [(2, 6, 4), (2, 7, 3), (2, 7)])
def test_capsules_that_do_not_fit_the_weight_are_a_clear_error(capsules):
    with pytest.raises(ValueError, match=r"\[B, 7, 4\]"):
        route(torch.zeros(capsules), torch.zeros(3, 4, 7, 5))


@pytest.mark.gpu
def test_squash_and_routing_give_the_same_numbers_on_cuda():
    u, weight = capsules_and_weight((3, 7, 3, 4, 5))
    here = [squash(u), route(u, weight), dynamic_routing(votes_of(u, weight))]
    gradients = torch.autograd.grad(here[1].square().sum(), (u, weight))
    there_u, there_weight = (x.detach().cuda().requires_grad_() for x in (u, weight))
    there = [squash(there_u), route(there_u, there_weight), dynamic_routing(votes_of(there_u, there_weight))]
    there_gradients = torch.autograd.grad(there[1].square().sum(), (there_u, there_weight))
    for got, right in zip([*there, *there_gradients], [*here, *gradients], strict=True):
        assert got.is_cuda
        assert relative(got.cpu(), right) < 1e-10
