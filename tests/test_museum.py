"""The museum: the working network is the library's, every mistake is told by its invariant, and the right network passes them all."""

import pytest
import torch

from capsule_lib import load_digits, load_pretrained
from capsule_lib.museum import ROOMS, Exhibit


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits("shipped", "test")
    return images[:60], labels[:60]


@pytest.fixture(scope="module")
def working():
    net = Exhibit()
    net.load_state_dict(load_pretrained("small").state_dict())
    return net.eval()


def test_the_working_network_gives_the_library_s_numbers(working, digits):
    images, labels = digits
    for given in (None, labels):
        for ours, theirs in zip(working(images, given), load_pretrained("small")(images, given), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_its_gradient_is_the_library_s(working, digits):
    images, labels = digits
    twin = load_pretrained("small")
    for net in (working, twin):
        net.zero_grad()
        out = net(images, labels)
        (working.margin(out.lengths, labels) + working.redrawing(out.reconstruction, images)).backward()
    for ours, theirs in zip(working.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3)
    working.zero_grad()


@pytest.mark.parametrize("name", ROOMS)
def test_the_working_network_passes_and_the_mistake_is_told(name, working, digits):
    room = ROOMS[name]
    mistaken = room.network()
    mistaken.load_state_dict(working.state_dict(), strict=False)
    right, wrong = room.tell(working, digits[0]), room.tell(mistaken.eval(), digits[0])
    assert right == pytest.approx(room.right, rel=0.1, abs=1e-4)
    assert wrong != pytest.approx(room.right, rel=0.2, abs=1e-3), wrong


@pytest.mark.parametrize("name", ROOMS)
def test_a_mistake_is_in_one_step_alone(name):
    network = ROOMS[name].network
    changed = {k for k in vars(network) if not k.startswith("_") or k == "__init__"}
    assert network.__base__ is Exhibit and 1 <= len(changed) <= 2
    assert all(hasattr(Exhibit, k) for k in changed)


def test_it_learns_in_the_same_way_from_the_same_seed(digits):
    curves = []
    for _ in range(2):
        torch.manual_seed(0)
        net = Exhibit()
        curves.append(list(net.train_on(*digits, epochs=3, batch_size=20)))
    assert curves[0] == curves[1] and len(curves[0]) == 9
    assert curves[0][-1][0] < curves[0][0][0]


@pytest.mark.parametrize("name", ROOMS)
def test_every_exhibit_can_be_trained_and_measured(name, digits):
    torch.manual_seed(0)
    net = ROOMS[name].network()
    (losses,) = net.train_on(digits[0][:8], digits[1][:8], epochs=1, batch_size=8)
    assert all(torch.tensor(losses).isfinite()) and 0 <= net.error(*digits) <= 100
