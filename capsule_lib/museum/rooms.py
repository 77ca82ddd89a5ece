"""The rooms of the museum: mistakes of published ports, each as one step of the network written otherwise, with what tells it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capsule_lib.losses import margin_loss, reconstruction_loss
from capsule_lib.museum.exhibit import Exhibit
from capsule_lib.routing import squash


class Room(NamedTuple):
    """row of MISTAKES.md; the network with the mistake; what tells it, of a network and of pictures [N, 1, 28, 28]: a number; in words; and what
    that number is in a right network."""

    row: int
    network: type[Exhibit]
    tell: Callable[[Exhibit, Tensor], float]
    words: str
    right: float


# 1: primary capsules


class Scrambled(Exhibit):
    def regroup(self, maps):
        return maps.reshape(len(maps), -1, self.config.primary_dim)


def places_of_a_capsule(net, images):
    places = torch.arange(36.0).view(1, 1, 6, 6).expand(1, 64, 6, 6)
    return max(len(set(capsule.tolist())) for capsule in net.regroup(places)[0])


# 15


class OneOrthant(Exhibit):
    def regroup(self, maps):
        return super().regroup(maps).relu()


def negative_entries(net, images):
    with torch.no_grad():
        return (net.primary(images) < 0).float().mean().item()


# 2: couplings


class OverTheInputs(Exhibit):
    def couplings(self, b):
        return b.softmax(dim=1)


def shared_out(net, images):
    return net.couplings(noise(2, 288, 10)).sum(dim=2).mean().item()


# 3: weights


class StandardNormal(Exhibit):
    def __init__(self):
        super().__init__()
        nn.init.normal_(self.digit_caps.weight)


def spread_at_first(net, images):
    torch.manual_seed(0)
    return type(net)().digit_caps.weight.std().item()


# 4, 20 and 28: squash


class SquashOverClasses(Exhibit):
    def squashed(self, s):
        return squash(s.mT).mT


def company(net, images):
    s = noise(1, 10, 16)
    alone = torch.zeros_like(s)
    alone[:, 0] = s[:, 0]
    return (net.squashed(s)[:, 0] - net.squashed(alone)[:, 0]).abs().max().item()


class SquashOneByOne(Exhibit):
    def squashed(self, s):
        return squash(s[..., None])[..., 0]

    def lengths(self, v):
        return v.norm(dim=2).clamp(max=1)


def longest_possible(net, images):
    return net.squashed(torch.full((1, 1, 16), 100.0)).norm().item()


class SquashWithHalf(Exhibit):
    def squashed(self, s):
        n2 = s.square().sum(dim=2, keepdim=True)
        return n2 / (0.5 + n2) * F.normalize(s, dim=2)


def a_length_of_one(net, images):
    return net.squashed(F.one_hot(torch.tensor([[3]]), 16).float()).norm().item()


# 5, 16, 23, 25: routing


class SharedByTheBatch(Exhibit):
    def agreement(self, u_hat, v):
        return super().agreement(u_hat, v).mean(dim=0, keepdim=True)


def batch_mates(net, images):
    with torch.no_grad():
        together = net.route(net.votes(net.primary(images)), 8)[-1][0][:4]
        alone = torch.cat([net.route(net.votes(net.primary(images[[n]])), 8)[-1][0] for n in range(4)])
    return (together - alone).abs().max().item()


class OneRoundTooMany(Exhibit):
    def rounds(self, iterations):
        return iterations + 1


def one_iteration(net, images):
    u_hat = noise(2, 30, 10, 16)
    return (net.route(u_hat, 1)[-1][0] - squash(u_hat.mean(dim=1) * 3)).norm().item()


class PlaceInTheBatch(Exhibit):
    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(250, 288, 10))

    def start(self, u_hat):
        return self.logits[: len(u_hat)]


def same_image_twice(net, images):
    torch.manual_seed(0)
    if hasattr(net, "logits"):
        nn.init.normal_(net.logits)
    with torch.no_grad():
        first, second = net(images[[0, 0]]).capsules
    return (first - second).abs().max().item()


# 6 and 11: the mask


class SoftmaxOverTheBatch(Exhibit):
    def mask(self, lengths, labels):
        return lengths.softmax(dim=0).argmax(dim=1) if labels is None else labels


def drawn_from_another(net, images):
    lengths = torch.full((6, 10), 0.1)
    lengths[:, 4] = torch.linspace(0.8, 0.95, 6)
    lengths[:, 7] = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 0.5])
    return (net.mask(lengths, None) != 4).float().mean().item()


class LongestInTraining(Exhibit):
    def mask(self, lengths, labels):
        return lengths.argmax(dim=1)


def drawn_in_training(net, images):
    lengths = torch.full((1, 10), 0.2)
    lengths[0, 5] = 0.8
    return net.mask(lengths, torch.tensor([3])).item()


# 7 and 10: losses


class NotSquared(Exhibit):
    def margin(self, lengths, labels):
        present = F.one_hot(labels, 10)
        terms = present * F.relu(0.9 - lengths) + 0.5 * (1 - present) * F.relu(lengths - 0.1)
        return terms.sum(dim=1).mean()


class MeanOverClasses(Exhibit):
    def margin(self, lengths, labels):
        return margin_loss(lengths, labels) / 10


class SoftmaxOfLengths(Exhibit):
    def margin(self, lengths, labels):
        return margin_loss(lengths.softmax(dim=1), labels)


def margin_by_hand(net, images):
    lengths = torch.full((1, 10), 0.1)
    lengths[0, 3], lengths[0, 5] = 0.5, 0.3
    return net.margin(lengths, torch.tensor([3])).item()  # 0.4² + 0.5 · 0.2²


class WeightOfTheMean(Exhibit):
    def redrawing(self, reconstruction, images):
        return 0.0005 * F.mse_loss(reconstruction, images)


class TooStrong(Exhibit):
    def redrawing(self, reconstruction, images):
        return reconstruction_loss(reconstruction, images, scale=0.392)


def redrawing_by_hand(net, images):
    grey = torch.full((1, 1, 28, 28), 0.5)
    return net.redrawing(grey + 0.1, grey).item()  # 0.0005 · 784 · 0.1²


# 12 and 13: pictures


class MeanZero(Exhibit):
    def seen(self, images):
        return (images - 0.1307) / 0.3081


def out_of_reach(net, images):
    targets = net.seen(images)
    return ((targets < 0) | (targets > 1)).float().mean().item()


class OneMoveForAll(Exhibit):
    def moved(self, images):
        down, right = torch.randint(-2, 3, (2,)).tolist()
        return images.roll((down, right), dims=(2, 3))


def moves_of_a_batch(net, images):
    torch.manual_seed(0)
    return len({moved.numpy().tobytes() for moved in net.moved(images[:1].repeat(640, 1, 1, 1))})


class TestMovesToo(Exhibit):
    def seen_in_use(self, images):
        return self.moved(images)


def changed_in_use(net, images):
    return (net.seen_in_use(images) - images).abs().max().item()


# 30: the optimiser


class ForgetfulOptimiser(Exhibit):
    def optimizer(self, before):
        return super().optimizer(None)


def steps_remembered(net, images):
    net = type(net)()
    labels = torch.zeros(4, dtype=torch.long)
    optimizer = None
    for _ in range(3):
        optimizer = net.optimizer(optimizer)
        net.margin(net(images[:4]).lengths, labels).backward()
        optimizer.step()
    return optimizer.state[net.digit_caps.weight]["step"].item()


def noise(*shape: int) -> Tensor:
    """Always the same normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


ROOMS = {
    "scrambled primary capsules": Room(1, Scrambled, places_of_a_capsule, "places that one capsule draws on", 1),
    "ReLU before squash": Room(15, OneOrthant, negative_entries, "share of negative entries in primary capsules", 0.5),
    "softmax over the inputs": Room(2, OverTheInputs, shared_out, "how much each part gives away in all", 1),
    "standard-normal weights": Room(3, StandardNormal, spread_at_first, "standard deviation of the untrained weights", 0.1),
    "squash over the classes": Room(4, SquashOverClasses, company, "change of a capsule when the others vanish", 0),
    "squash one by one": Room(20, SquashOneByOne, longest_possible, "length of a very long capsule", 1),
    "squash with 0.5": Room(28, SquashWithHalf, a_length_of_one, "what becomes of a length of 1", 0.5),
    "logits of the whole batch": Room(5, SharedByTheBatch, batch_mates, "change of capsules with other batch-mates", 0),
    "one round too many": Room(16, OneRoundTooMany, one_iteration, "one iteration, off from squash of the mean", 0),
    "a weight per place in the batch": Room(25, PlaceInTheBatch, same_image_twice, "one image at two places, apart", 0),
    "softmax over the batch in the mask": Room(6, SoftmaxOverTheBatch, drawn_from_another, "share drawn from another class than the longest", 0),
    "longest capsule in training": Room(11, LongestInTraining, drawn_in_training, "drawn for a 3 that is read as a 5", 3),
    "margin loss not squared": Room(7, NotSquared, margin_by_hand, "margin loss of lengths 0.5 (true) and 0.3", 0.18),
    "margin loss averaged over classes": Room(7, MeanOverClasses, margin_by_hand, "margin loss of lengths 0.5 (true) and 0.3", 0.18),
    "softmax of the lengths": Room(7, SoftmaxOfLengths, margin_by_hand, "margin loss of lengths 0.5 (true) and 0.3", 0.18),
    "0.0005 on a mean": Room(10, WeightOfTheMean, redrawing_by_hand, "what a drawing that is off by 0.1 everywhere adds", 0.00392),
    "reconstruction far too strong": Room(27, TooStrong, redrawing_by_hand, "what a drawing that is off by 0.1 everywhere adds", 0.00392),
    "images of mean 0": Room(12, MeanZero, out_of_reach, "share of targets that a sigmoid can't reach", 0),
    "one move for the whole batch": Room(13, OneMoveForAll, moves_of_a_batch, "different moves in a batch of 640", 25),
    "test images moved, too": Room(13, TestMovesToo, changed_in_use, "change of a test image before it is read", 0),
    "a new optimiser in each epoch": Room(30, ForgetfulOptimiser, steps_remembered, "steps that it remembers after three epochs of one", 3),
}  # fmt: skip
