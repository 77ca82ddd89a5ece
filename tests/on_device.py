"""What holds on any accelerator. `test_device.py` runs this file on the stand-in, and on CUDA where there is one.

On the stand-in the numbers are the CPU's to the last bit, on CUDA nearly so. What is refused here, both refuse.
"""

import copy
import dataclasses
import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import capsule_lib
from capsule_lib import bench, morphometry
from capsule_lib.data import rotate_and_scale
from capsule_lib.device import choose_device, describe_machine
from capsule_lib.explorer import measure_spreads
from capsule_lib.model import CapsNet, CapsNetConfig
from capsule_lib.routings import ROUTINGS, Routing
from capsule_lib.training import Trainer, TrainingConfig, evaluate, train

stand_in = pytest.importorskip("stand_in") if choose_device().type == "stand_in" else None
TINY = CapsNetConfig(stem_channels=4, types=2, primary_dim=4, class_dim=6, decoder_hidden=(16,))
NORMED = dataclasses.replace(TINY, stem=((4, 5, 1), (8, 3, 2)), depthwise=True)
FEW_MOVES = {"rotation": 10.0, "scaling": 0.1}
ALL_MOVES = {**FEW_MOVES, "rotation_spread": 10.0, "shift": "margin", "squeeze": 0.25, "erase": 4, "weight_decay": 0.01}


@pytest.fixture(scope="module")
def device():
    device = choose_device()
    assert device.type != "cpu", "torch finds no accelerator: run this file through test_device.py"
    return device


def same(there, here, exact=stand_in) -> bool:
    if isinstance(here, torch.Tensor):
        on_cpu = there.detach().cpu()
        equal = torch.equal(on_cpu, here) if exact else torch.allclose(on_cpu, here, rtol=1e-3, atol=1e-4)
        return there.device == choose_device() and there.dtype == here.dtype and equal
    if isinstance(here, (list, tuple)):
        return len(there) == len(here) and all(same(a, b, exact) for a, b in zip(there, here, strict=True))
    return there == here


def close(there, here) -> bool:
    """Of what routing has made: it takes larger pieces than on a processor, so that sums end in other last digits."""
    return same(there, here, exact=False)


class Values:
    """Tensors of the device (x, number, index ...) and of the CPU (c, ...) to mix."""

    def __init__(self, device):
        self.device = device
        self.x = torch.arange(6.0, device=device).view(2, 3)
        self.c = torch.ones(2, 3)
        self.number, self.c_number = torch.tensor(3.0, device=device), torch.tensor(2.0)
        self.index, self.c_index = torch.tensor([0, 1], device=device), torch.tensor([0, 1])


def assign(tensor, place, value):
    tensor[place] = value
    return tensor


MIXED = {  # two devices in one operation
    "sum": lambda v: v.x + v.c,
    "sum, the other way round": lambda v: v.c + v.x,
    "in place": lambda v: v.x.mul_(v.c),
    "in place on the CPU": lambda v: v.c.mul_(v.x),
    "number of the device": lambda v: v.c + v.number,
    "number of the device, into one of the CPU": lambda v: v.c_number.add_(v.number),
    "comparison": lambda v: v.c > v.x,
    "matrix product": lambda v: v.x @ v.c.T,
    "einsum": lambda v: torch.einsum("ij,kj->ik", v.x, v.c),
    "cat": lambda v: torch.cat([v.x, v.c]),
    "stack of numbers": lambda v: torch.stack([v.number, v.c_number]),
    "where": lambda v: torch.where(v.x > 1, v.x, v.c),
    "clamp": lambda v: v.x.clamp(min=v.c_number),
    "index of the device": lambda v: v.c[v.index],
    "mask of the device": lambda v: v.c[v.x > 1],
    "index_select": lambda v: v.x.index_select(0, v.c_index),
    "gather": lambda v: v.x.gather(1, v.c_index[:, None]),
    "values for a mask": lambda v: assign(v.x, v.x > 3, torch.ones(2)),
    "embedding": lambda v: F.embedding(v.index, v.c),
    "embedding, the other way round": lambda v: F.embedding(v.c_index, v.x),
    "convolution": lambda v: F.conv1d(v.x[:, None], v.c[:, None]),
    "linear": lambda v: nn.Linear(3, 4)(v.x),
    "loss": lambda v: F.cross_entropy(v.x, v.c_index),
    "equal": lambda v: torch.equal(v.x, v.c),
    "allclose": lambda v: torch.allclose(v.x, v.c),
    "out": lambda v: torch.add(v.x, v.x, out=v.c),
    "numpy": lambda v: v.x.numpy(),
    "asarray": lambda v: np.asarray(v.x),
    "generator of the CPU": lambda v: torch.randn(3, device=v.device, generator=torch.Generator()),
    "generator of the device": lambda v: torch.randn(3, generator=torch.Generator(v.device)),
    "order by a generator of the device": lambda v: torch.randperm(3, generator=torch.Generator(v.device)),
    "in a gradient": lambda v: torch.autograd.grad(Halved.apply(v.x.requires_grad_()).sum(), v.x),
}
ALLOWED = {  # and what it gives, written with the CPU's tensors only
    "number of the CPU": (lambda v: v.x + v.c_number, lambda v: v.c_x + 2),
    "number of the CPU first": (lambda v: v.c_number * v.x, lambda v: v.c_x * 2),
    "where": (lambda v: torch.where(v.x > 1, v.x, v.c_number), lambda v: torch.where(v.c_x > 1, v.c_x, 2.0)),
    "masked_fill": (lambda v: v.x.masked_fill(v.x > 1, v.c_number), lambda v: v.c_x.masked_fill(v.c_x > 1, 2)),
    "index of the CPU": (lambda v: v.x[:, v.c_index], lambda v: v.c_x[:, :2]),
    "mask of the CPU": (lambda v: v.x[torch.tensor([False, True])], lambda v: v.c_x[1:]),
    "assigned row": (lambda v: assign(v.x, 0, torch.ones(3)), lambda v: assign(v.c_x, 0, 1.0)),
    "assigned number": (lambda v: assign(v.x, (0, 1), v.c_number), lambda v: assign(v.c_x, (0, 1), 2.0)),
    "copy_": (lambda v: v.x.copy_(v.c), lambda v: v.c),
}


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x / 2

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.full(grad.shape, 0.5)  # on the CPU


@pytest.mark.parametrize("act", MIXED.values(), ids=MIXED)
def test_two_devices_are_refused(act, device):
    with pytest.raises(BaseException) as caught:
        act(Values(device))
    assert caught.type in (stand_in.Refused,) if stand_in else (RuntimeError, TypeError)
    assert device.type in str(caught.value) and ("cpu" in str(caught.value).lower())


@pytest.mark.parametrize("act, expected", ALLOWED.values(), ids=ALLOWED)
def test_two_devices_that_go_together(act, expected, device):
    values = Values(device)
    values.c_x = values.x.cpu()
    assert same(act(values), expected(values))


def test_what_goes_from_the_device_to_the_cpu(device):
    values = Values(device)
    assert float(values.number) == 3 and int(values.number) == 3 and f"{values.number:.1f}" == "3.0"
    assert values.x.tolist() == [[0, 1, 2], [3, 4, 5]] and values.x.cpu().numpy().sum() == 15
    assert (
        assign(values.c, (0, 0), values.number)[0, 0] == 3 and assign(values.c, values.c > 2, values.number).sum() == 8
    )
    assert "device='" in repr(values.x) and values.x.to("cpu").device.type == "cpu"
    assert torch.zeros_like(values.x, device="cpu").device.type == "cpu"
    with torch.inference_mode():
        assert values.x.cpu().device.type == "cpu" and torch.ones(3, device=device).cpu().device.type == "cpu"


NUMBERS = {  # of x [4, 6], positive
    "arithmetic": lambda x: (2 - x) ** 2 / (1 + x) // 0.3 + -x % 0.7,
    "reductions": lambda x: [x.sum(), x.mean(dim=1), x.std(dim=0), x.amax(1), x.max(dim=1), x.norm(), x.prod(1), x.logsumexp(0)],
    "order": lambda x: [x.sort(dim=1), x.argsort(), x.topk(2), x.median(), x.argmax(1), torch.unique(x.round()), x.cumsum(0)],
    "products": lambda x: [x @ x.T, torch.einsum("ij,ik->jk", x, x), torch.bmm(x[None], x.mT[None]), torch.outer(x[0], x[1])],
    "convolutions": lambda x: [
        F.conv2d(x[None, None], torch.ones(3, 1, 2, 2, device=x.device), stride=2),
        F.max_pool2d(x[None], 2),
        F.interpolate(x[None, None], scale_factor=2, mode="bilinear"),
        F.pad(x, (1, 2, 0, 1)),
    ],
    "views": lambda x: [x.T, x[:, 1::2], x.view(2, 2, 6)[1], x.expand(3, 4, 6), x.unflatten(1, (2, 3)), x.diagonal(), *x.split(3)],
    "written": lambda x: [assign(x.clone(), (slice(None), 2), 9.0), assign(x.clone(), x > 0.5, 0.0), x.clone().T.mul_(2), x.index_add(0, torch.tensor([1, 1], device=x.device), x[:2])],
    "chosen": lambda x: [x.gather(1, x.argsort()), x.scatter(1, x.argsort(), 2.0), torch.where(x > 0.5, x, -x), x.nonzero(), x[x > 0.5]],
    "functions": lambda x: [x.softmax(1), torch.sigmoid(x), F.layer_norm(x, [6]), F.one_hot((9 * x).long()), F.gelu(x), torch.histc(x, 4)],
    "spectra": lambda x: [torch.fft.rfft(x).abs(), torch.fft.ifft2(torch.fft.fft2(x).conj()).real],
    "made": lambda x: [torch.arange(5, device=x.device), torch.linspace(0, 1, 4, device=x.device), torch.eye(3, device=x.device), torch.full((2,), 7, device=x.device), x.new_zeros(2), torch.tensor([[1, 2]], device=x.device), torch.ones_like(x), torch.tril_indices(3, 3, device=x.device)],
    "types": lambda x: [x.half(), x.bfloat16().float(), x > 0.5, (x > 0.5).int() + 1, x.long().float().mul_(3)],
    "shape changed in place": lambda x: [x.clone().t_(), x.clone().unsqueeze_(0), x.clone().resize_(2, 6), torch.cat([x, x], out=x.new_empty(0))],
    "warped": lambda x: [rotate_and_scale(x[None, None].clamp(0, 1), x[:1, :2], 30, 0.2), capsule_lib.squash(x)],
    "vmap and derivatives": lambda x: [torch.vmap(torch.dot)(x, x), torch.func.grad(lambda y: (y**3).sum())(x), torch.func.jvp(torch.sin, (x,), (x,)), torch.autograd.functional.jacobian(torch.sin, x[0])],
}  # fmt: skip


@pytest.mark.parametrize("function", NUMBERS.values(), ids=NUMBERS)
def test_numbers_are_those_of_the_cpu(function, device):
    x = torch.rand(4, 6) + 0.01
    assert same(function(x.to(device)), function(x))


def test_gradients_are_those_of_the_cpu(device):
    x = torch.rand(4, 1, 9, 9)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(147, 5))
    there = copy.deepcopy(net).to(device)
    for network, images in ((net, x.clone().requires_grad_()), (there, x.to(device).requires_grad_())):
        loss = F.cross_entropy(network(images), torch.arange(4, device=images.device))
        (network.first,) = torch.autograd.grad(loss, images, create_graph=True)
        (loss + network.first.square().sum()).backward()
    assert same(there.first.detach(), net.first.detach())
    assert all(same(a.grad, b.grad) for a, b in zip(there.parameters(), net.parameters(), strict=True))


def test_random_numbers(device):
    one, two = (torch.Generator(device).manual_seed(3) for _ in range(2))
    first = torch.randn(5, device=device, generator=one)
    assert torch.equal(first, torch.randn(5, device=device, generator=two))
    assert not torch.equal(first, torch.randn(5, device=device, generator=one))
    assert torch.randperm(9, device=device, generator=one).sort().values.tolist() == list(range(9))
    assert one.device.type == device.type and torch.Generator().device.type == "cpu"
    torch.manual_seed(0)
    first = torch.rand(3, device=device)
    torch.manual_seed(0)
    assert torch.equal(first, torch.rand(3, device=device))


def test_a_module_moves_and_keeps_its_parameters(device):
    net = nn.Linear(3, 2)
    optimizer, before = torch.optim.SGD(net.parameters(), 0.1), [id(p) for p in net.parameters()]
    net.to(device)
    assert [id(p) for p in net.parameters()] == before and isinstance(net.weight, nn.Parameter)
    weight = net.to(device).weight.clone()  # this graph holds the weight
    net(torch.ones(1, 3, device=device)).sum().backward()
    optimizer.step()
    assert not torch.equal(net.weight, weight) and net.weight.grad.device == net.weight.device
    assert [id(p) for p in net.half().parameters()] == before and net.weight.grad.dtype == torch.float16
    assert net.weight.dtype == torch.float16 and net.float().cpu().weight.device.type == "cpu"
    with torch.device(device):
        assert nn.Linear(2, 2).bias.device.type == device.type


def test_data_of_a_parameter(device):
    weight = nn.Parameter(torch.ones(3, device=device))
    weight.data[0] = 5
    weight.data.mul_(2)
    assert weight.tolist() == [10, 2, 2]
    weight.data = torch.zeros(2, 2, device=device)
    assert weight.shape == (2, 2) and weight.requires_grad and weight.sum() == 0


def test_copies_and_files(device):
    net = nn.BatchNorm1d(3).to(device)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.weight.device == net.weight.device and isinstance(other.weight, nn.Parameter)
        other.weight.data.add_(1)
        assert net.weight.tolist() == [1, 1, 1]
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    for place in ("cpu", device):
        file.seek(0)
        state = torch.load(file, weights_only=True, map_location=place)
        assert {x.device.type for x in state.values()} == {torch.device(place).type}


def test_autocast(device):
    x = torch.rand(2, 3, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        assert (x @ x.T).dtype == F.linear(x, x).dtype == torch.bfloat16 and (x + x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x.T).dtype == torch.float32
    assert (x @ x.T).dtype == torch.float32


def test_the_network(device):
    images, labels = (some[:40] for some in capsule_lib.load_digits("shipped", "test"))
    net = capsule_lib.load_pretrained("small")
    there = copy.deepcopy(net).to(device)
    v = net.encode(images)
    assert close(there.encode(images), v) and close(there.encode(images.to(device)), v)
    assert close(there.decode(v[:, 4].to(device), 4), net.decode(v[:, 4], 4))
    assert close(there.decode(v[:, 4], labels), net.decode(v[:, 4], labels))
    out = there(images.to(device), labels.to(device))
    assert close([x.detach() for x in out], [x.detach() for x in net(images, labels)])
    for place in (images, images.to(device)):
        found, expected = evaluate(there, place, labels.to(place.device)), evaluate(net, images, labels)
        assert found.error == expected.error and found.lengths.device.type == "cpu"
    with pytest.raises((RuntimeError, ValueError) if not stand_in else BaseException, match="cpu"):
        there(images)
    assert device.type in describe_machine(device)


@pytest.mark.parametrize(("shape", "moves"), [(TINY, FEW_MOVES), (NORMED, ALL_MOVES)])
def test_training_and_going_on_with_it(shape, moves, device):
    images, labels = (some[:64] for some in capsule_lib.load_digits("shipped", "train"))
    config = TrainingConfig(epochs=2, batch_size=16, ema_decay=0.9, **moves)
    ends = {}
    for place in ("cpu", device):
        torch.manual_seed(0)
        net = CapsNet(shape).to(place)
        trainer = Trainer(net, images, labels, config)
        steps = trainer.steps()
        next(steps), next(steps)
        file = io.BytesIO()
        torch.save(trainer.state_dict(), file)
        file.seek(0)
        resumed = Trainer(CapsNet(shape).to(place), images.to(place), labels.to(place), config)
        resumed.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
        for each in (trainer, resumed):
            for _ in range(2):
                for _ in each.steps() if each is resumed or each.epoch > 1 else steps:
                    pass
                each.end_epoch()
        ends[str(place)] = [
            x.detach() for x in (*trainer.net.state_dict().values(), *trainer.measured.state_dict().values())
        ]
        again = [x.detach() for x in (*resumed.net.state_dict().values(), *resumed.measured.state_dict().values())]
        assert all(torch.equal(a, b) for a, b in zip(ends[str(place)], again, strict=True)) or not stand_in
    assert same(ends[str(device)], ends["cpu"])
    (epoch,) = train(CapsNet(shape).to(device), images, labels, epochs=1, precision="bfloat16")
    assert 0 < epoch.margin < 2


@pytest.mark.parametrize("name", ROUTINGS)
def test_each_routing(name, device):
    torch.manual_seed(0)
    routing, some = Routing(name, 6, 5, 4), torch.randn(3, 6, 5, 4)
    there = copy.deepcopy(routing).to(device)
    for votes in (some, some.half(), torch.zeros(1, 6, 5, 4)):
        assert close([x.detach() for x in there(votes.to(device))], [x.detach() for x in routing(votes)])


def test_what_is_measured_of_a_network(device):
    images, labels = capsule_lib.load_digits("shipped", "test")
    net = capsule_lib.load_pretrained("small")
    there = copy.deepcopy(net).to(device)
    # 100 digits per class: with fewer than dimensions, the narrowest principal axes would be anybody's guess.
    spreads = [measure_spreads(n, images, labels) for n in (there, net)]
    for name, found, expected in zip(spreads[0]._fields, *spreads, strict=True):
        if "counts" in name:  # a digit on an edge between two bins may fall to either side
            assert (found.cpu() - expected).abs().sum() < 1e-3 * expected.sum()
        else:
            assert torch.allclose(found.cpu(), expected, atol=1e-3)
    images, labels = images[:100], labels[:100]
    found, expected = (morphometry.dimension_effects(n, images, labels, digits=1) for n in (there, net))
    assert torch.allclose(found.cpu(), expected, atol=1e-4)
    found, expected = morphometry.measure(images[:20].to(device)), morphometry.measure(images[:20])
    assert all(same(found[name].to(device), expected[name]) for name in expected)
    morphometry.effects(there, images, labels, 4, digits=2)


def test_the_benchmark_measures_the_device(device):
    for form in bench.FORMS:
        assert bench.measure_layer(form, 32, 2, device.type, 0.0)["forward_s"] > 0


@pytest.mark.skipif(not stand_in, reason="of the stand-in")
def test_what_only_mps_lacks():
    x = torch.ones(2, 2, device="stand_in")
    for act in (x.double, lambda: torch.zeros(2, device="stand_in", dtype=torch.float64), lambda: torch.ones(2).double().to("stand_in")):  # fmt: skip
        with pytest.raises(stand_in.Refused, match="float64"):
            act()
    with pytest.raises(stand_in.Refused, match="CUDA does not have it"):
        torch.histogram(x, 2)
    with pytest.raises(stand_in.Refused, match="MPS does not have it"):
        torch.linalg.eigvals(x)
    with pytest.raises(stand_in.Refused, match="stand_in:1"):
        torch.ones(2, device="stand_in:1")


def runs_a_little_wrong(operation, *args, run=stand_in and stand_in.run, **kwargs):
    result = run(operation, *args, **kwargs)
    if operation.name() == "aten::mm":
        result.inner.add_(1e-6)
    return result


@pytest.mark.skipif(not stand_in, reason="of the stand-in")
@pytest.mark.parametrize("name, broken, test, cases", [
    ("refuse_mixture", lambda *_: None, test_two_devices_are_refused, ["sum", "matrix product", "loss", "in a gradient"]),
    ("run", runs_a_little_wrong, test_numbers_are_those_of_the_cpu, ["products"]),
    ("COPIES", set(), test_two_devices_that_go_together, ["copy_", "assigned row"]),
])  # fmt: skip
def test_a_broken_stand_in_is_noticed(name, broken, test, cases, monkeypatch, device):
    monkeypatch.setattr(stand_in, name, broken)
    for case in cases:
        arguments = ALLOWED[case] if case in ALLOWED and "together" in test.__name__ else ({**MIXED, **NUMBERS}[case],)
        with pytest.raises((AssertionError, pytest.fail.Exception, stand_in.Refused)):
            test(*arguments, device)
