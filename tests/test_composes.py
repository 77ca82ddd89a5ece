"""What the class capsules' layer and the whole network go together with in PyTorch: one table, each line compared with plain eager.

Plain eager is the readable form: votes, then `dynamic_routing`, and automatic differentiation of its operations."""

import copy
import dataclasses
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, stack_module_state, vjp, vmap
from torch.utils.checkpoint import checkpoint

from capsule_lib import routing
from capsule_lib.layers import DigitCaps
from capsule_lib.losses import margin_loss, reconstruction_loss
from capsule_lib.model import CapsNet, CapsNetConfig
from capsule_lib.routing import dynamic_routing, length

BATCH = 6  # not one of the other sizes, which a compiler would take for the same
SMALLEST = CapsNetConfig(
    image_shape=(1, 9, 9),
    classes=3,
    stem_channels=3,
    kernel_size=3,
    types=2,
    primary_dim=4,
    class_dim=5,
    decoder_hidden=(6,),
)


# The same with layers of batch norm, and primary capsules with a channel for each dimension, as `compact` has them.
BATCH_NORM = dataclasses.replace(SMALLEST, stem=((4, 3, 1), (8, 3, 1)), kernel_size=3, depthwise=True)


class PlainCaps(DigitCaps):
    def forward(self, u):
        return dynamic_routing(self.votes(u), self.iterations, detach=self.detach)


class Subject:
    """A module, inputs, labels, and the same module routed by plain eager operations."""

    def __init__(self, name, detach):
        self.name = name
        if name == "layer":
            self.module = DigitCaps(7, 4, 3, 5, detach=detach)
            self.module.weight.data *= 10  # far enough from equal couplings that the iterations count
            self.x = torch.randn(BATCH, 7, 4, dtype=torch.float64)
            layer = self.module
        else:
            self.module = CapsNet(SMALLEST if name == "network" else BATCH_NORM).train(name == "network")
            for part in self.module.modules():
                if isinstance(part, nn.BatchNorm2d):  # what it has learned of other images
                    nn.init.normal_(part.running_mean), nn.init.uniform_(part.running_var, 0.5, 2)
            layer = self.module.digit_caps
            layer.detach = detach
            layer.weight.data *= 10
            self.x = torch.rand(BATCH, 1, 9, 9, dtype=torch.float64)
        self.module.double()
        self.y = torch.arange(BATCH) % 3
        self.plain = copy.deepcopy(self.module)
        (self.plain if name == "layer" else self.plain.digit_caps).__class__ = PlainCaps
        self.parameters = {name: p.detach() for name, p in self.module.named_parameters()}

    def of(self, images):
        """The same with some of the images."""
        some = copy.copy(self)
        some.x, some.y = self.x[images], self.y[images]
        return some

    def call(self, parameters, x, y=None, module=None):
        """What a module with these parameters gives, as a tuple of tensors."""
        inputs = (x,) if self.name == "layer" or y is None else (x, y)
        out = functional_call(module or self.module, parameters, inputs)
        return (out,) if self.name == "layer" else tuple(out)

    def loss(self, parameters, x, y, module=None):
        out = self.call(parameters, x, y, module)
        if self.name == "layer":
            return margin_loss(length(out[0]), y)
        return margin_loss(out[0], y) + reconstruction_loss(out[2], x)

    def right_loss(self, parameters, x, y):
        return self.loss(parameters, x, y, self.plain)

    def leaves(self):
        return {k: p.clone().requires_grad_() for k, p in self.parameters.items()}, self.x.clone().requires_grad_()

    def right_gradients(self):
        """Of the loss, by plain eager: of each parameter and of x."""
        parameters, x = self.leaves()
        grads = torch.autograd.grad(self.right_loss(parameters, x, self.y), [*parameters.values(), x])
        return dict(zip([*parameters, "x"], grads, strict=True))

    def right(self):
        return self.call(self.parameters, self.x, self.y, self.plain)


@pytest.fixture(params=["layer", "network"])
def name(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["detach", "full"])
def subject(request, name, monkeypatch):
    monkeypatch.setattr(routing, "_pieces", lambda u, weight: 3)
    return Subject(name, request.param)


def equal(got, right, rtol=1e-9, atol=1e-11):
    torch.testing.assert_close(got, right, rtol=rtol, atol=atol)


def gradients_of(module, subject):
    """Of the loss, by a module called as it stands."""
    module.zero_grad()
    x = subject.x.clone().requires_grad_()
    if subject.name == "layer":
        loss = margin_loss(length(module(x)), subject.y)
    else:
        out = module(x, subject.y)
        loss = margin_loss(out[0], subject.y) + reconstruction_loss(out[2], x)
    loss.backward()
    return dict(zip(subject.right_gradients(), [*(p.grad for p in module.parameters()), x.grad], strict=True))


def outputs_of(module, subject, *inputs):
    out = module(*inputs)
    return (out,) if subject.name == "layer" else tuple(out)


def same_outputs_and_gradients(module, subject):
    inputs = (subject.x,) if subject.name == "layer" else (subject.x, subject.y)
    equal(outputs_of(module, subject, *inputs), subject.right())
    equal(gradients_of(module, subject), subject.right_gradients())


# --- derivatives ---


def backward(subject):
    same_outputs_and_gradients(subject.module, subject)


def double_backward(subject):
    def second(loss):
        parameters, x = subject.leaves()
        leaves = [*parameters.values(), x]
        grads = torch.autograd.grad(loss(parameters, x, subject.y), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)

    equal(second(subject.loss), second(subject.right_loss))


def triple_backward(subject):
    def third(loss):
        parameters, x = subject.leaves()
        leaves = [*parameters.values(), x]
        total = loss(parameters, x, subject.y)
        for _ in range(2):
            grads = torch.autograd.grad(total, leaves, create_graph=True)
            total = sum(g.square().sum() for g in grads)
        return torch.autograd.grad(total, leaves)

    equal(third(subject.loss), third(subject.right_loss))


def func_grad(subject):
    of_parameters, of_x = grad(subject.loss, (0, 1))(subject.parameters, subject.x, subject.y)
    equal({**of_parameters, "x": of_x}, subject.right_gradients())


def func_grad_of_grad(subject):
    def twice(loss):
        return grad(lambda x: grad(lambda x: loss(subject.parameters, x, subject.y))(x).square().sum())(subject.x)

    equal(twice(subject.loss), twice(subject.right_loss))


def func_vjp(subject):
    _, back = vjp(lambda x: subject.loss(subject.parameters, x, subject.y), subject.x)
    equal(back(torch.ones((), dtype=torch.float64))[0], subject.right_gradients()["x"])


def func_jvp(subject):
    dots = torch.randn_like(subject.x), {k: torch.randn_like(p) for k, p in subject.parameters.items()}
    _, got = jvp(lambda x, p: subject.loss(p, x, subject.y), (subject.x, subject.parameters), dots)
    right = subject.right_gradients()
    equal(got, sum((right[k] * dot).sum() for k, dot in {**dots[1], "x": dots[0]}.items()))


def func_jvp_of_x_alone(subject):
    dot = torch.randn_like(subject.x)
    _, got = jvp(lambda x: subject.loss(subject.parameters, x, subject.y), (subject.x,), (dot,))
    equal(got, (subject.right_gradients()["x"] * dot).sum())


def func_linearize(subject):
    _, linear = linearize(lambda x: subject.loss(subject.parameters, x, subject.y), subject.x)
    dot = torch.randn_like(subject.x)
    equal(linear(dot), (subject.right_gradients()["x"] * dot).sum())


def forward_mode(subject):
    dot = torch.randn_like(subject.x)
    with forward_ad.dual_level():
        loss = subject.loss(subject.parameters, forward_ad.make_dual(subject.x, dot), subject.y)
        got = forward_ad.unpack_dual(loss).tangent
    equal(got, (subject.right_gradients()["x"] * dot).sum())


def rows_of_the_jacobian(subject):
    x = subject.x.clone().requires_grad_()
    out = subject.call(subject.parameters, x, subject.y, subject.plain)[0]
    return torch.stack([torch.autograd.grad(v, x, retain_graph=True)[0] for v in out.flatten()]).view(
        *out.shape, *x.shape
    )


def func_jacrev(subject):
    got = jacrev(lambda x: subject.call(subject.parameters, x, subject.y)[0])(subject.x)
    equal(got, rows_of_the_jacobian(subject))


def func_jacfwd(subject):
    got = jacfwd(lambda x: subject.call(subject.parameters, x, subject.y)[0])(subject.x)
    equal(got, rows_of_the_jacobian(subject))


def jacobian_by_rows(subject):
    f = lambda x: subject.call(subject.parameters, x, subject.y)[0]  # noqa: E731
    equal(torch.autograd.functional.jacobian(f, subject.x), rows_of_the_jacobian(subject))


def jacobian_vectorized(subject):
    f = lambda x: subject.call(subject.parameters, x, subject.y)[0]  # noqa: E731
    equal(torch.autograd.functional.jacobian(f, subject.x, vectorize=True), rows_of_the_jacobian(subject))


def jacobian_vectorized_and_differentiable(subject):
    def of(call_module):
        x = subject.x.clone().requires_grad_()
        f = lambda x: subject.call(subject.parameters, x, subject.y, call_module)[0]  # noqa: E731
        return torch.autograd.grad(
            torch.autograd.functional.jacobian(f, x, vectorize=True, create_graph=True).square().sum(), x
        )

    equal(of(subject.module), of(subject.plain))


def jacobian_vectorized_forward(subject):
    f = lambda x: subject.call(subject.parameters, x, subject.y)[0]  # noqa: E731
    got = torch.autograd.functional.jacobian(f, subject.x, vectorize=True, strategy="forward-mode")
    equal(got, rows_of_the_jacobian(subject))


def second_derivatives(subject):
    x = subject.x.clone().requires_grad_()
    (first,) = torch.autograd.grad(subject.right_loss(subject.parameters, x, subject.y), x, create_graph=True)
    rows = [torch.autograd.grad(g, x, retain_graph=True)[0] for g in first.flatten()]
    return torch.stack(rows).view(*x.shape, *x.shape)


def func_hessian(subject):
    subject = subject.of(slice(1))  # one image is enough, and quick
    got = hessian(lambda x: subject.loss(subject.parameters, x, subject.y))(subject.x)
    equal(got, second_derivatives(subject))


def func_hessian_backward_over_forward(subject):
    subject = subject.of(slice(1))
    got = jacrev(jacfwd(lambda x: subject.loss(subject.parameters, x, subject.y)))(subject.x)
    equal(got, second_derivatives(subject))


# --- many at once ---


def vmap_over_images(subject):
    got = vmap(lambda x, y: subject.call(subject.parameters, x[None], y[None]))(subject.x, subject.y)
    equal([part[:, 0] for part in got], list(subject.right()))


def vmap_over_networks(subject):
    other = copy.deepcopy(subject.module)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)
    stacked, _ = stack_module_state([subject.module, other])
    got = vmap(lambda p: subject.call(p, subject.x, subject.y))(stacked)
    equal([part[0] for part in got], list(subject.right()))
    parameters = {k: 1.1 * p for k, p in subject.parameters.items()}
    equal([part[1] for part in got], list(subject.call(parameters, subject.x, subject.y, subject.plain)))


def vmap_over_batches_of_images(subject):
    two = torch.stack([subject.x, subject.x.flip(0)], dim=1)  # along an axis that is not the first
    got = vmap(lambda x: subject.call(subject.parameters, x, subject.y), in_dims=1)(two)
    equal([part[0] for part in got], list(subject.right()))
    equal(
        [part[1] for part in got], list(subject.call(subject.parameters, subject.x.flip(0), subject.y, subject.plain))
    )


def gradients_per_sample(subject):
    got = vmap(grad(lambda p, x, y: subject.loss(p, x[None], y[None])), (None, 0, 0))(
        subject.parameters, subject.x, subject.y
    )
    for n in range(BATCH):
        right = subject.of(slice(n, n + 1)).right_gradients()
        equal({k: g[n] for k, g in got.items()}, {k: right[k] for k in got})


def gradient_of_a_vmap(subject):
    def loss(p, x):
        return vmap(lambda x, y: subject.loss(p, x[None], y[None]))(x, subject.y).mean()

    of_parameters, of_x = grad(loss, (0, 1))(subject.parameters, subject.x)
    equal({**of_parameters, "x": of_x}, subject.right_gradients())


def couplings_beneath_vmap(subject):
    layer = subject.module if subject.name == "layer" else subject.module.digit_caps
    u = torch.randn(BATCH, layer.weight.shape[2], layer.weight.shape[1], dtype=torch.float64)
    _, c = vmap(lambda u: layer(u[None], return_couplings=True))(u)
    equal(c[:, :, 0].transpose(0, 1), dynamic_routing(layer.votes(u), return_couplings=True)[1])


def recomputed_in_backward(subject):
    class Recomputed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = subject.module

        def forward(self, *inputs):
            return checkpoint(self.inner, *inputs, use_reentrant=False)

    same_outputs_and_gradients(Recomputed(), subject)


# --- as a graph ---


def compiled(subject):
    torch.compiler.reset()
    same_outputs_and_gradients(torch.compile(subject.module, fullgraph=True, backend="aot_eager"), subject)


def compiled_for_any_batch(subject):
    torch.compiler.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    module = torch.compile(subject.module, fullgraph=True, dynamic=True, backend=count)
    for batch in (BATCH, 3, 4):
        out = outputs_of(module, subject, subject.x[:batch].clone())
        equal(out, subject.call(subject.parameters, subject.x[:batch], module=subject.plain))
    assert len(graphs) == 1


def compiled_autocast(subject):
    torch.compiler.reset()
    module = subject.module.float()
    x = subject.x.float()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        got, right = outputs_of(compiled, subject, x), outputs_of(module, subject, x)
    equal(got, right, rtol=0.02, atol=0.02)


def exported(subject):
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(subject.module, (subject.x,), dynamic_shapes=({0: batch},))
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    module = torch.export.load(stored).module()
    for n in (1, 2, BATCH):
        equal(
            outputs_of(module, subject, subject.x[:n]),
            subject.call(subject.parameters, subject.x[:n], module=subject.plain),
        )


def exported_to_onnx(subject):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    batch = torch.export.Dim("batch", min=1, max=4096)
    module = subject.module.float()
    program = torch.onnx.export(module, (subject.x.float(),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    stored = io.BytesIO()
    program.save(stored)
    session = runtime.InferenceSession(stored.getvalue())
    for n in (1, 2, BATCH):
        got = session.run(None, {session.get_inputs()[0].name: subject.x[:n].float().numpy()})
        right = subject.call(subject.parameters, subject.x[:n], module=subject.plain)
        equal([torch.from_numpy(part) for part in got], [part.float() for part in right], rtol=1e-4, atol=1e-5)


def traced(subject):
    module = torch.jit.trace(subject.module, (subject.x[:2],), check_trace=False)
    equal(
        (module(subject.x),) if subject.name == "layer" else tuple(module(subject.x)),
        subject.call(subject.parameters, subject.x, module=subject.plain),
    )


# --- other devices, types and copies ---


def meta(subject):
    module = copy.deepcopy(subject.module).to("meta")
    x = subject.x.to("meta").requires_grad_()
    inputs = (x,) if subject.name == "layer" else (x, subject.y.to("meta"))
    out = outputs_of(module, subject, *inputs)
    assert [(part.device.type, part.shape, part.dtype) for part in out] == [
        ("meta", part.shape, part.dtype) for part in subject.right()
    ]
    out[0].sum().backward()
    assert x.grad.shape == x.shape and x.grad.is_meta


def half(subject, dtype=torch.float16, close=1e-2):
    module, x = copy.deepcopy(subject.module).to(dtype), subject.x.to(dtype).requires_grad_()
    out = outputs_of(module, subject, x)
    right = subject.call(subject.parameters, subject.x, module=subject.plain)
    equal([part.double() for part in out], list(right), rtol=0, atol=close)
    out[0].sum().backward()
    exact = subject.x.clone().requires_grad_()
    subject.call(subject.parameters, exact, module=subject.plain)[0].sum().backward()
    assert ((x.grad.double() - exact.grad).norm() / exact.grad.norm()) < 10 * close


def bfloat16(subject):
    half(subject, torch.bfloat16, 5e-2)


def data_parallel(subject):
    same_outputs_and_gradients(nn.DataParallel(subject.module), subject)


def threads(subject):
    """What DataParallel does with replicas: one thread each."""
    with ThreadPoolExecutor(4) as pool:
        for out in pool.map(lambda _: subject.call(subject.parameters, subject.x, subject.y), range(16)):
            equal(out, subject.right())


def deep_copied(subject):
    same_outputs_and_gradients(copy.deepcopy(subject.module), subject)


def pickled(subject):
    same_outputs_and_gradients(pickle.loads(pickle.dumps(subject.module)), subject)


def inference_mode(subject):
    with torch.inference_mode():
        equal(subject.call(subject.parameters, subject.x, subject.y), subject.right())


COMPOSES = {f.__name__: f for f in [
    backward, double_backward, triple_backward, func_grad, func_grad_of_grad, func_vjp, func_jvp, func_jvp_of_x_alone,
    func_linearize, forward_mode, func_jacrev, func_jacfwd, jacobian_by_rows, jacobian_vectorized,
    jacobian_vectorized_and_differentiable, jacobian_vectorized_forward, func_hessian, func_hessian_backward_over_forward,
    vmap_over_images, vmap_over_networks, vmap_over_batches_of_images, gradients_per_sample, gradient_of_a_vmap,
    couplings_beneath_vmap, recomputed_in_backward, compiled, compiled_for_any_batch, compiled_autocast, exported,
    exported_to_onnx, traced, meta, half, bfloat16, data_parallel, threads, deep_copied, pickled, inference_mode,
]}  # fmt: skip


@pytest.mark.parametrize("case", COMPOSES)
def test_composes(case, subject):
    COMPOSES[case](subject)


@pytest.mark.parametrize("case", COMPOSES)
def test_batch_norm_composes_in_evaluation_mode(case):
    COMPOSES[case](Subject("batch norm", detach=True))
