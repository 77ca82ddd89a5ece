"""The family of routings: each against plain loops over its published formulas, against attention and `dynamic_routing`, and at the edges."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck

from capsule_lib import CapsNet, CapsNetConfig, dynamic_routing, load_weights, save_weights, squash
from capsule_lib.routing import length
from capsule_lib.routings import ROUTINGS, RoutedCaps, Routing
from capsule_lib.routings.forms import recurrent

B, I, J, D = 2, 5, 3, 4
LEARNED = [name for name in ROUTINGS if name not in ("uniform", "dynamic")]
ITERATED = [name for name in ROUTINGS if name not in ("uniform", "self-attention")]


def votes(seed=0, size=1.0, sizes=(B, I, J, D)):
    return size * torch.randn(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(name, iterations=3, sizes=(I, J, D), spread=0.7):
    """A routing in float64 whose learned numbers are far from where they start."""
    torch.manual_seed(1)
    routing = Routing(name, *sizes, iterations).double()
    for p in routing.parameters():
        p.data += spread * torch.randn_like(p)
    return routing


def number(x):
    return x.item() if isinstance(x, torch.Tensor) else x


def dot(a, b):
    return sum(number(x) * number(y) for x, y in zip(a, b, strict=True))


def softmax(logits):
    top = max(logits)
    powers = [math.exp(x - top) for x in logits]
    return [p / sum(powers) for p in powers]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def stretched(pose, to):
    own = math.sqrt(dot(pose, pose))
    return [to * x / own for x in pose]


def layer_norm(x, norm):
    mean = sum(x) / len(x)
    variance = sum((n - mean) ** 2 for n in x) / len(x)
    return [
        (n - mean) / math.sqrt(variance + 1e-5) * w + b
        for n, w, b in zip(x, norm.weight.tolist(), norm.bias.tolist(), strict=True)
    ]


def linear(x, layer):
    bias = layer.bias.tolist() if layer.bias is not None else [0.0] * len(layer.weight)
    return [dot(row, x) + b for row, b in zip(layer.weight.tolist(), bias, strict=True)]


def weighted(c, u, j):
    """The sum over i of c_ij u_ij."""
    return [sum(c[i][j] * u[i][j][d] for i in range(len(u))) for d in range(D)]


def uniform_by_hand(u, form, iterations):
    c = [[1 / J] * J for _ in range(I)]
    v = []
    for j in range(J):
        s = weighted(c, u, j)
        own = math.sqrt(dot(s, s))
        v.append(stretched(s, own**2 / (1 + own**2)))
    return v, [c]


def dynamic_by_hand(u, form, iterations):
    b, rounds = [[0.0] * J for _ in range(I)], []
    for _ in range(iterations):
        rounds.append([softmax(row) for row in b])
        v = []
        for j in range(J):
            s = weighted(rounds[-1], u, j)
            own = math.sqrt(dot(s, s))
            v.append(stretched(s, own**2 / (1 + own**2)))
        b = [[b[i][j] + dot(u[i][j], v[j]) for j in range(J)] for i in range(I)]
    return v, rounds


def em_by_hand(u, form, iterations):
    """Procedure 1 of Hinton et al. 2018, with densities as they stand there and not in logarithms."""
    beta_u, beta_a = form.beta_u.tolist(), form.beta_a.tolist()
    r, rounds = [[1 / J] * J for _ in range(I)], []
    for t in range(1, iterations + 1):
        rounds.append(r)
        means, variances, activations = [], [], []
        for j in range(J):
            amount = sum(r[i][j] for i in range(I)) + 1e-8
            means.append([x / amount for x in weighted(r, u, j)])
            variances.append(
                [sum(r[i][j] * (u[i][j][d] - means[j][d]) ** 2 for i in range(I)) / amount + 1e-4 for d in range(D)]
            )
            cost = sum((beta_u[j] + math.log(math.sqrt(s))) * amount for s in variances[j])
            inverse_temperature = 4 * J / (I * D) * (1 - 0.95**t)
            activations.append(sigmoid(inverse_temperature * (beta_a[j] - cost)))
        p = [[1.0] * J for _ in range(I)]
        for i in range(I):
            for j in range(J):
                for d in range(D):
                    s = variances[j][d]
                    p[i][j] *= math.exp(-((u[i][j][d] - means[j][d]) ** 2) / (2 * s)) / math.sqrt(2 * math.pi * s)
        r = [
            [activations[j] * p[i][j] / sum(activations[k] * p[i][k] for k in range(J)) for j in range(J)]
            for i in range(I)
        ]
    return [stretched(means[j], activations[j]) for j in range(J)], rounds


def self_attention_by_hand(u, form, iterations):
    prior = form.prior.tolist()
    c = []
    for i in range(I):
        logits = [sum(dot(u[i][j], u[k][j]) for k in range(I)) / math.sqrt(D) for j in range(J)]
        c.append([x + prior[i][j] for j, x in enumerate(softmax(logits))])
    v = []
    for j in range(J):
        s = weighted(c, u, j)
        v.append(stretched(s, 1 - 1 / math.exp(math.sqrt(dot(s, s)))))
    return v, [c]


def inverted_attention_by_hand(u, form, iterations):
    poses, rounds = [[0.0] * D for _ in range(J)], []
    for _ in range(iterations):
        rounds.append([softmax([dot(poses[j], u[i][j]) / math.sqrt(D) for j in range(J)]) for i in range(I)])
        poses = [layer_norm(weighted(rounds[-1], u, j), form.norm) for j in range(J)]
    return [stretched(p, sigmoid(linear(p, form.score)[0])) for p in poses], rounds


def gated(x, h, cell):
    """A gated recurrent unit: Cho et al. 2014, as PyTorch orders its gates."""
    from_x = [dot(row, x) + b for row, b in zip(cell.weight_ih.tolist(), cell.bias_ih.tolist(), strict=True)]
    from_h = [dot(row, h) + b for row, b in zip(cell.weight_hh.tolist(), cell.bias_hh.tolist(), strict=True)]
    out = []
    for d in range(D):
        reset, keep = sigmoid(from_x[d] + from_h[d]), sigmoid(from_x[D + d] + from_h[D + d])
        new = math.tanh(from_x[2 * D + d] + reset * from_h[2 * D + d])
        out.append((1 - keep) * new + keep * h[d])
    return out


def slot_attention_by_hand(u, form, iterations):
    slots, rounds = form.slots.tolist(), []
    normed = [[layer_norm(u[i][j], form.norm_votes) for j in range(J)] for i in range(I)]
    keys = [[linear(x, form.key) for x in row] for row in normed]
    values = [[linear(x, form.value) for x in row] for row in normed]
    for _ in range(iterations):
        queries = [linear(layer_norm(slots[j], form.norm_slots), form.query) for j in range(J)]
        attention = [softmax([dot(keys[i][j], queries[j]) / math.sqrt(D) for j in range(J)]) for i in range(I)]
        rounds.append(attention)
        for j in range(J):
            total = sum(attention[i][j] + 1e-8 for i in range(I))
            weights = [[(x + 1e-8) / total for x in row] for row in attention]
            slot = gated(weighted(weights, values, j), slots[j], form.cell)
            inner = [max(0.0, x) for x in linear(layer_norm(slot, form.norm_update), form.update[0])]
            slots[j] = [a + b for a, b in zip(slot, linear(inner, form.update[2]), strict=True)]
    return [stretched(s, sigmoid(linear(s, form.score)[0])) for s in slots], rounds


BY_HAND = {
    "uniform": uniform_by_hand,
    "dynamic": dynamic_by_hand,
    "EM": em_by_hand,
    "self-attention": self_attention_by_hand,
    "inverted attention": inverted_attention_by_hand,
    "slot attention": slot_attention_by_hand,
}


@pytest.mark.parametrize("iterations", [1, 2, 4])
@pytest.mark.parametrize("name", ROUTINGS)
def test_each_is_what_its_formulas_say(name, iterations):
    routing, u = made(name, iterations), votes()
    v, couplings = routing(u)
    assert couplings.shape == (iterations if name in ITERATED else 1, B, I, J) and v.shape == (B, J, D)
    for image in range(B):
        right_v, right_c = BY_HAND[name](u[image].tolist(), routing.form, iterations)
        torch.testing.assert_close(v[image], torch.tensor(right_v, dtype=torch.float64), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(
            couplings[:, image], torch.tensor(right_c, dtype=torch.float64), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("name", ITERATED)
def test_iterations_count_where_there_are_any(name):
    assert not torch.allclose(made(name, 1)(votes())[0], made(name, 2)(votes())[0], rtol=1e-3)


@pytest.mark.parametrize("name", ["uniform", "self-attention"])
def test_iterations_count_for_nothing_where_there_is_one(name):
    for got, right in zip(made(name, 5)(votes()), made(name, 1)(votes()), strict=True):
        assert torch.equal(got, right)


def test_the_papers_routing_is_that_of_the_library():
    u = votes().requires_grad_()
    for iterations in (1, 3):
        ours, right = made("dynamic", iterations)(u), dynamic_routing(u, iterations, return_couplings=True)
        assert torch.equal(ours[0], right[0]) and torch.equal(ours[1], right[1])
        gradients = [torch.autograd.grad(v[0].square().sum(), u)[0] for v in (ours, right)]
        assert torch.equal(*gradients)
    torch.testing.assert_close(made("uniform")(u)[0], dynamic_routing(u, 1))


# The attention end.


def same_for_all(x):
    """Votes [B, I, J, D] that don't depend on the whole, from inputs [B, I, D]: what attention knows."""
    return x[:, :, None].expand(-1, -1, J, -1)


def test_couplings_of_inverted_attention_are_attention_of_the_parts_to_the_wholes():
    """scaled_dot_product_attention normalises over its keys; here these are the wholes, and its values say which is which."""
    routing, x = made("inverted attention", 3), votes()[:, :, 0]
    _, couplings = routing(same_for_all(x))
    for t in (1, 2):
        s = torch.einsum("bij,bid->bjd", couplings[t - 1], x)
        poses = F.layer_norm(s, (D,), routing.form.norm.weight, routing.form.norm.bias)
        right = F.scaled_dot_product_attention(x, poses, torch.eye(J, dtype=x.dtype).expand(B, J, J))
        torch.testing.assert_close(couplings[t], right)
        ordinary = F.scaled_dot_product_attention(poses, x, torch.eye(I, dtype=x.dtype).expand(B, I, I))
        assert not torch.allclose(couplings[t], ordinary.mT, rtol=0.01)


def test_slot_attention_is_attention_of_the_slots_but_for_the_axis_of_its_softmax():
    routing, x = made("slot attention", 1), votes()[:, :, 0]
    form = routing.form
    keys, values = (layer(form.norm_votes(x)) for layer in (form.key, form.value))
    queries = form.query(form.norm_slots(form.slots)).expand(B, J, D)
    _, couplings = routing(same_for_all(x))
    right = F.scaled_dot_product_attention(keys, queries, torch.eye(J, dtype=x.dtype).expand(B, J, J))
    torch.testing.assert_close(couplings[0], right)
    # With a softmax over the parts instead, the mean of the values is attention as it stands in the textbook.
    logits = keys @ queries.mT / math.sqrt(D)
    mean = torch.einsum("bij,bid->bjd", logits.softmax(dim=1), values)
    torch.testing.assert_close(mean, F.scaled_dot_product_attention(queries, keys, values))


def test_the_recurrent_unit_is_pytorchs():
    cell, x, state = made("slot attention").form.cell, votes(1, sizes=(6, D)), votes(2, sizes=(6, D))
    torch.testing.assert_close(recurrent(cell, x, state), cell(x, state))


# Invariances.


@pytest.mark.parametrize("name", ROUTINGS)
def test_couplings_are_shared_out_over_the_wholes(name):
    routing = made(name) if name != "self-attention" else Routing(name, I, J, D).double()  # whose prior is learned
    _, couplings = routing(votes())
    torch.testing.assert_close(couplings.sum(dim=3), torch.ones_like(couplings[..., 0]))
    assert (couplings >= 0).all()
    assert name == "uniform" or (couplings[-1] - 1 / J).abs().max() > 0.05


@pytest.mark.parametrize("name", ROUTINGS)
def test_an_image_does_not_depend_on_its_batch_mates(name):
    routing, u = made(name), votes()
    for n in range(B):
        v, couplings = routing(u[n : n + 1])
        torch.testing.assert_close(v[0], routing(u)[0][n])
        torch.testing.assert_close(couplings[:, 0], routing(u)[1][:, n])


@pytest.mark.parametrize("name", ROUTINGS)
def test_the_order_of_the_parts_does_not_matter(name):
    routing, u, order = made(name), votes(), torch.randperm(I)
    v, couplings = routing(u)
    if name == "self-attention":
        routing.form.prior.data = routing.form.prior[order]
    again, permuted = routing(u[:, order])
    torch.testing.assert_close(again, v)
    torch.testing.assert_close(permuted, couplings[:, :, order])


@pytest.mark.parametrize("name", ROUTINGS)
def test_wholes_that_change_places_take_all_of_theirs_along(name):
    routing, u, order = made(name), votes(), torch.tensor([2, 0, 1])
    v, couplings = routing(u)
    for own, axis in {"prior": 1, "beta_u": 0, "beta_a": 0, "slots": 0}.items():
        if hasattr(routing.form, own):
            p = getattr(routing.form, own)
            p.data = p.index_select(axis, order)
    again, permuted = routing(u[:, :, order])
    torch.testing.assert_close(again, v[:, order])
    torch.testing.assert_close(permuted, couplings[:, :, :, order])


@pytest.mark.parametrize("name", ["uniform", "dynamic", "self-attention"])
def test_votes_that_are_turned_turn_the_wholes(name):
    """The others look at each dimension by itself: EM's variances, layer norm."""
    routing, u = made(name), votes()
    turn, _ = torch.linalg.qr(votes(3, sizes=(D, D)))
    v, couplings = routing(u)
    again, turned = routing(u @ turn)
    torch.testing.assert_close(again, v @ turn)
    torch.testing.assert_close(turned, couplings)


def test_votes_that_are_moved_leave_the_couplings_of_em_as_they_were():
    routing, u = made("EM"), votes()
    torch.testing.assert_close(routing(u + 3.0)[1], routing(u)[1], rtol=1e-5, atol=1e-6)


def test_em_gives_a_part_to_the_whole_whose_cluster_it_votes_into():
    """Two clusters of wholes: parts 0 to 3 agree about whole 0 and scatter about whole 1, parts 4 to 7 the other way round."""
    u = 2 * votes(5, sizes=(1, 8, 2, D))
    u[:, :4, 0], u[:, 4:, 1] = 1.0 + votes(6, 0.05, (1, 4, D)), -1.0 + votes(7, 0.05, (1, 4, D))
    _, couplings = Routing("EM", 8, 2, D, 4).double()(u)
    assert (couplings[-1, 0, :4, 0] > 0.95).all() and (couplings[-1, 0, 4:, 1] > 0.95).all()


# At the edges.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ROUTINGS)
def test_zero_and_long_votes_give_no_nan_forward_or_backward(name, dtype):
    routing = Routing(name, I, J, D)
    for u in (torch.zeros(B, I, J, D), votes(size=1e4).float()):
        u = u.to(dtype).requires_grad_()
        v, couplings = routing(u)
        v.sum().backward()
        assert v.isfinite().all() and couplings.isfinite().all() and u.grad.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in routing.parameters())
        assert (length(v) <= 1 + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ROUTINGS)
def test_half_precision_is_promoted_to_float32_whatever_autocast_says(name, dtype):
    routing, u = Routing(name, I, J, D), votes().to(dtype)
    right = routing(u.float())
    for got in (routing(u), routing.to(dtype)(u)):
        assert [part.dtype for part in got] == 2 * [torch.float32]
    routing = made(name).float()
    right = routing(u.float())
    with torch.autocast("cpu", torch.bfloat16):
        for got, exact in zip(routing(u), right, strict=True):
            assert got.dtype == torch.float32 and torch.equal(got, exact)


@pytest.mark.parametrize("name", ROUTINGS)
def test_float64_stays_and_a_float32_routing_follows_it(name):
    assert made(name)(votes())[0].dtype == torch.float64
    assert Routing(name, I, J, D)(votes())[0].dtype == torch.float64
    assert made(name)(votes().float())[0].dtype == (torch.float64 if name in LEARNED else torch.float32)


@pytest.mark.parametrize("name", [name for name in ROUTINGS if name != "dynamic"])  # which holds some votes constant
def test_gradients_are_those_of_the_function(name):
    routing = made(name, 2)
    leaves = [votes().requires_grad_(), *routing.parameters()]
    assert gradcheck(lambda u, *_: routing(u), leaves, atol=1e-6)


@pytest.mark.parametrize("name", LEARNED)
def test_all_that_can_be_learned_gets_a_gradient(name):
    routing = made(name)
    routing(votes())[0].square().sum().backward()
    assert all(p.grad.any() for p in routing.parameters())


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Routing("routing", 4, 3, 2), ValueError, "no routing 'routing': choose one of 'uniform', 'dynamic', 'EM'"),
        (lambda: Routing(["EM"], 4, 3, 2), ValueError, "no routing"),
        (lambda: RoutedCaps(4, 2, 3, 2, "em"), ValueError, "no routing 'em'"),
        (lambda: Routing("EM", 4, 1, 2), ValueError, "at least 2 input and 2 output capsules; got 4 and 1"),
        (lambda: Routing("EM", 1, 4, 2), ValueError, "at least 2 input and 2 output capsules; got 1 and 4"),
        (lambda: Routing("slot attention", 4, 0, 2), ValueError, "out_capsules: expected a whole number from 1 on"),
        *[(lambda n=n: Routing(n, 4, 3, 2, 0), ValueError, "iterations: expected .* from 1 on; got 0") for n in ROUTINGS],
        *[(lambda n=n: Routing(n, 4, 3, 2)(torch.rand(1, 3, 4, 2)), ValueError, r"\['B', 4, 3, 2\]; got .*\[1, 3, 4, 2\]") for n in ROUTINGS],
        (lambda: Routing("uniform", 4, 3, 2)(torch.rand(4, 3, 2)), ValueError, r"votes must be \[B, I, J, D\]"),
        (lambda: Routing("uniform", 4, 3, 2)([1]), TypeError, "votes must be a tensor"),
        (lambda: Routing("EM", 4, 3, 2)(torch.ones(1, 4, 3, 2).long()), ValueError, "floating-point"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_words(call, error, words):
    with pytest.raises(error, match=words):
        call()


# In a network.

TINY = CapsNetConfig((1, 9, 11), classes=3, stem_channels=4, kernel_size=3, types=2, primary_dim=4, class_dim=5, decoder_hidden=(8,))  # fmt: skip


def routed(name, iterations=3):
    torch.manual_seed(0)
    net = CapsNet(TINY)
    net.digit_caps = RoutedCaps(24, 4, 3, 5, name, iterations)
    nn.init.normal_(net.digit_caps.weight)
    return net


@pytest.mark.parametrize("name", ROUTINGS)
def test_class_capsules_route_the_votes_of_their_layer(name):
    layer = routed(name).digit_caps
    u = squash(torch.randn(2, 24, 4))
    v, couplings = layer(u, return_couplings=True)
    right = layer.routing(layer.votes(u))
    assert torch.equal(v, right[0]) and torch.equal(layer(u), v) and torch.equal(couplings, right[1])


@pytest.mark.parametrize("name", ROUTINGS)
def test_a_network_with_each_learns_and_works_in_half_precision(name):
    net, images = routed(name), torch.rand(6, 1, 9, 11)
    out = net(images, torch.arange(6) % 3)
    assert out.lengths.shape == (6, 3) and (out.lengths < 1).all()
    (out.lengths.sum() + out.reconstruction.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.half()(images.half()).lengths.dtype == torch.float32


@pytest.mark.parametrize("name", ROUTINGS)
def test_a_network_is_saved_as_what_it_is_or_not_at_all(name, tmp_path):
    net, images = routed(name).eval(), torch.rand(6, 1, 9, 11)
    if name in LEARNED:
        with pytest.raises(ValueError, match=r"can't be saved: digit_caps.routing.form.* should be absent"):
            save_weights(net, tmp_path / "net.safetensors")
    else:
        again = load_weights(save_weights(net, tmp_path / "net.safetensors"))
        torch.testing.assert_close(again(images).lengths, net(images).lengths)
