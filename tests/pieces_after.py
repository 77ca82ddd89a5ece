"""More right and wrong pieces, in shapes that public code has, that grew together with the checkers. See pieces_before.py."""

import torch
import torch.nn.functional as F
from pieces_before import MAPS, U, Votes, axes_of_one, ball, each_number, gentle, hinges, numbers, primary, procedure
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

import capsule_lib
from capsule_lib import checks


def long_way(s):
    squared = (s * s).sum(dim=2)
    factor = squared / (1 + squared) / (squared + 1e-30).sqrt()
    return factor.unsqueeze(2) * s


def routed(**settings):
    return lambda u, n: procedure(u, n, **settings)


def summed(u, rounds):
    b = torch.zeros(1, *u.shape[1:3])
    for _ in range(rounds):
        v = ball((b.softmax(2)[..., None] * u).sum(1))
        b = b + torch.einsum("bijd,bjd->ij", u, v)
    return v


def last_one_right(u, rounds):
    b = torch.zeros_like(u[..., 0])
    for turn in range(rounds):
        v = ball((b.softmax(1 if turn < rounds - 1 else 2)[..., None] * u).sum(1))
        b = b + (u * v[:, None]).sum(-1)
    return v


def layer(**settings):
    return Votes(1.0, **settings)


def routing_layer(**settings):
    return checks.routing_layer(layer(**settings), "W", "1ijdk", iterations="rounds")


class Joined(nn.Module):
    """Weight [I, K, J * D], routing by a module of its own, logits that grow by a sum over the batch."""

    def __init__(self, over_batch=False):
        super().__init__()
        self.weights = nn.Parameter(0.1 * torch.randn(20, 5, 4 * 6))
        self.routing = nn.Module()
        self.routing.turns, self.over_batch = 3, over_batch

    def forward(self, u):
        votes = (u.unsqueeze(2) @ self.weights).view(len(u), 20, 4, 6)
        b = torch.zeros(len(u), 20, 4)
        for _ in range(self.routing.turns):
            v = ball(torch.einsum("bij,bijd->bjd", b.softmax(2), votes))
            a = torch.einsum("bijd,bjd->bij", votes, v)
            b = b + (a.sum(0, keepdim=True) if self.over_batch else a)
        return v


class Late(nn.Module):
    """Its weight is made in the first call."""

    def forward(self, u):
        if not hasattr(self, "W"):
            self.W = nn.Parameter(0.1 * torch.randn(1, u.shape[1], 4, 6, u.shape[2]))
        return procedure((self.W @ u[:, :, None, :, None]).squeeze(-1), 3)


class Plain(Votes):
    """Its weight is no parameter."""

    def __init__(self):
        super().__init__()
        weight = self.W.detach()
        del self.W
        self.W = weight


class Batched(Votes):
    """It is made for batches of 4."""

    def forward(self, u):
        votes = (torch.cat([self.W] * 4) @ u[:, :, None, :, None]).squeeze(-1)
        return procedure(votes, self.rounds, mean=True)


class Many(Votes):
    """As many inputs as the paper's layer has, and an epsilon that does no harm."""

    def __init__(self, **settings):
        super().__init__(squash=harmless, **settings)
        self.W = nn.Parameter(0.1 * torch.randn(1, 1152, 4, 6, 5))


def harmless(s):
    squared = s.square().sum(-1, keepdim=True)
    return squared / (1 + squared) * s / (squared + 1e-8).sqrt()


class Viewed(Votes):
    """It is made for batches of 6, which its error doesn't say."""

    def __init__(self):
        super().__init__()
        self.batch_size = 6

    def forward(self, u):
        return super().forward(u.reshape(self.batch_size, -1, 5))


class Swapped(Votes):
    """Capsules go in as [B, K, I] and come out as [B, J, D, 1]."""

    def forward(self, u):
        return super().forward(u.mT)[..., None]


class Anywhere(Votes):
    """Its logits are where its votes are."""

    def forward(self, u):
        votes = (self.W @ u[:, :, None, :, None]).squeeze(-1)
        return procedure(votes, self.rounds, start=torch.zeros_like(votes[..., 0]), **self.settings)


class Net(nn.Module):
    """A small network, with the mistakes that networks make."""

    def __init__(self, soft=None, mask="label", squeeze=False, mean=False, plain=False, one_hot=False, drop=False):
        super().__init__()
        self.conv, self.caps = nn.Conv2d(1, 8, 5, 2), Anywhere(0.7, mean=mean)
        self.caps.W = nn.Parameter(0.5 * torch.randn(1, 72, 4, 6, 4))
        self.decoder = nn.Sequential(nn.Linear(24, 30), nn.ReLU(), nn.Linear(30, 256), nn.Sigmoid())
        self.soft, self.mask, self.squeeze, self.one_hot = soft, mask, squeeze, one_hot
        self.drop = nn.Dropout(0.5) if drop else nn.Identity()
        if plain:
            self.scale = torch.ones(1)

    def forward(self, x, y=None):
        u = self.conv(x).relu().view(len(x), 2, 4, 36).transpose(2, 3).reshape(len(x), 72, 4)
        v = self.caps(self.drop(u))
        v = v.squeeze() if self.squeeze else v
        lengths = v.norm(dim=-1)
        lengths = lengths if self.soft is None else lengths.softmax(self.soft)
        best = F.one_hot(lengths.argmax(-1), 4).float()
        if self.mask == "batch":
            best = F.one_hot(v.norm(dim=-1).softmax(0).argmax(-1), 4).float()
        keep = best if y is None or self.mask in ("longest", "batch") else y if self.one_hot else F.one_hot(y, 4)
        keep = torch.ones_like(best) if self.mask == "all" else keep
        return lengths, self.decoder((v * keep[..., None]).flatten(-2)).view(-1, 1, 16, 16)


PICTURES = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(4))
DIGITS, LABELS = (x[:60] for x in capsule_lib.load_digits("shipped", "train"))
OTHERS, OTHER_LABELS = (x[:60] for x in capsule_lib.load_digits("shipped", "test"))


class Moved(Dataset):
    def __init__(self, images=DIGITS, labels=LABELS):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, n):
        return capsule_lib.random_shift(self.images[n : n + 1])[0], self.labels[n]


def together(items):
    images, labels = default_collate(items)
    return images.roll(tuple(torch.randint(-2, 3, (2,)).tolist()), (2, 3)), labels


def network(**settings):
    torch.manual_seed(2)
    return checks.network(Net(**settings), PICTURES)


class Asks(Net):
    def forward(self, x, y=None):
        torch.cuda.is_available()
        return super().forward(x, y) if x.device.type != "cuda" else None


class Moves(Net):
    def forward(self, x, y=None):
        return super().forward(x.to("cuda") if x.is_cuda else x, y)


def short():
    net = Net(mean=True)
    net.caps.W = nn.Parameter(0.02 * net.caps.W.detach())
    return net


def stays():
    net = Net()
    net.caps = Votes(0.7)
    net.caps.W = nn.Parameter(0.5 * torch.randn(1, 72, 4, 6, 4))
    return net


def loader(dataset, **settings):
    return DataLoader(dataset, batch_size=8, **settings)


TEST = TensorDataset(OTHERS, OTHER_LABELS)
GREY = TensorDataset(255 * DIGITS, LABELS)
CENTRED = TensorDataset((DIGITS - 0.13) / 0.31, LABELS)

PIECES = [
    # squash
    ("squash: the long way", lambda: checks.squash(long_way), ["float16"]),
    ("squash: [B, I, D, 1]", lambda: checks.squash(lambda s: ball(s, 2) if s.dim() == 4 else s[..., 0, 0, 0], layout="bid1"), True),
    ("squash: [B, 1, I, D, 1]", lambda: checks.squash(lambda s: ball(s, 3) if s.dim() == 5 else s / 0, layout="b1id1"), True),
    ("squash: matrices, not said so", lambda: checks.squash(lambda s: ball(s) if s.dim() == 2 else s[:, :, :, 0]), None),
    ("squash: along I of [B, D, I]", lambda: checks.squash(lambda s: ball(s), layout="bdi"), ["along the capsules"]),
    ("squash: a capsule layout of nothing", lambda: checks.squash(ball, layout="xyz"), ["layout names each"]),
    ("squash: not a number", lambda: checks.squash(lambda s: s * float("nan")), ["not finite"]),
    ("squash: zero, whatever comes", lambda: checks.squash(lambda s: 0 * s), ["same, whatever"]),
    ("squash: each number, in [B, I, D, 1]", lambda: checks.squash(lambda s: ball(s, 3), layout="bid1"), ["by itself"]),
    # routing
    ("routing: [J, B, I, 1, D]", lambda: checks.dynamic_routing(lambda u, n: procedure(u[..., 0, :].permute(1, 2, 0, 3), n).transpose(0, 1)[:, :, None], layout="jbi1d", returns="jb1d"), True),
    ("routing: [B, I, J, D, 1], not said so", lambda: checks.dynamic_routing(axes_of_one), None),
    ("routing: a sum over the batch", lambda: checks.dynamic_routing(summed), ["add the routing logits up over the batch"]),
    ("routing: over the inputs but for the last", lambda: checks.dynamic_routing(last_one_right), ["over the inputs i in all iterations but the last"]),
    ("routing: exponential squash", lambda: checks.dynamic_routing(routed(squash=gentle)), ["1 - exp"]),
    ("routing: 10 % too long", lambda: checks.dynamic_routing(routed(squash=lambda s: 1.1 * ball(s))), ["another formula"]),
    ("routing: always three", lambda: checks.dynamic_routing(lambda u, n: procedure(u, 3)), ["always run three"]),
    ("routing: no zero", lambda: checks.dynamic_routing(routed(squash=lambda s: s * s.norm(dim=-1, keepdim=True) ** 2 / (1 + s.norm(dim=-1, keepdim=True) ** 2) / s.norm(dim=-1, keepdim=True))), ["zero"]),
    ("routing: not a number", lambda: checks.dynamic_routing(lambda u, n: procedure(u, n) / 0), ["not finite"]),
    ("routing: constant", lambda: checks.dynamic_routing(lambda u, n: 0 * procedure(u, n) + 0.3), ["same, whatever"]),
    ("routing: takes votes alone", lambda: checks.dynamic_routing(lambda u: procedure(u, 3)), ["called with"]),
    # losses and mask
    ("margin: capsules and one-hot", lambda: checks.margin_loss(lambda v, t: hinges(v.norm(dim=2), t)), True),
    ("margin: capsules, summed over the batch", lambda: checks.margin_loss(lambda v, y: len(y) * numbers(v.norm(dim=2), y)), ["over the batch"]),
    ("margin: one-hot, a softmax", lambda: checks.margin_loss(lambda a, t: hinges(a.softmax(1), t)), ["softmax"]),
    ("margin: random", lambda: checks.margin_loss(lambda a, y: numbers(F.dropout(a), y)), ["each time"]),
    ("reconstruction: mean", lambda: checks.reconstruction_loss(lambda a, b: 0.0005 * F.mse_loss(a, b)), ["mean"]),
    ("mask: one-hot, the longest", lambda: checks.mask(lambda v, t: v * F.one_hot(v.norm(dim=2).argmax(1), t.shape[1])[..., None]), ["longest"]),
    ("mask: one-hot and flat", lambda: checks.mask(lambda v, t: (v * t[:, :, None]).flatten(1)), True),
    # layers
    ("layer: [B, K, I] to [B, J, D, 1]", lambda: checks.capsule_layer(Swapped(), U.mT, takes="bki", returns="bjd1"), True),
    ("layer: made in the first call", lambda: checks.weights("W", "1ijdk", Late()), ["first call"]),
    ("layer: made in the first call, by its routing", lambda: checks.routing_layer(Late(), "W", "1ijdk"), ["first call"]),
    ("layer: for batches of 4", lambda: checks.capsule_layer(Batched(), U), ["batches of 4 only"]),
    ("layer: zero", lambda: checks.capsule_layer(layer(squash=lambda s: s * s.norm(dim=-1, keepdim=True) / (1 + s.norm(dim=-1, keepdim=True) ** 2) * s.norm(dim=-1, keepdim=True) / s.norm(dim=-1, keepdim=True)), 0.1 * U), ["zero"]),
    ("weights: right", lambda: checks.weights(nn.Parameter(0.05 * torch.randn(1, 9, 4, 6, 5)), "1ijdk"), True),
    ("weights: by name", lambda: checks.weights("weights", "ik(jd)", Joined()), True),
    ("weights: fan-in over the wrong axes", lambda: checks.weights(nn.Parameter(2e-6 * torch.randn(9, 4, 6, 5)), "ijdk"), ["standard deviation is 2e-06"]),
    ("weights: memory as it was", lambda: checks.weights(nn.Parameter(torch.full((9, 4, 6, 5), float("nan"))), "ijdk"), ["not finite"]),
    ("weights: no parameter", lambda: checks.weights("W", "1ijdk", Plain()), ["plain tensor"]),
    ("weights: axes that don't fit", lambda: checks.weights(nn.Parameter(torch.randn(9, 4, 6)), "ijdk"), None),
    ("routing layer: joined axes", lambda: checks.routing_layer(Joined(), "weights", "ik(jd)", iterations="routing.turns"), True),
    ("routing layer: joined axes, a sum over the batch", lambda: checks.routing_layer(Joined(True), "weights", "ik(jd)", iterations="routing.turns"), ["add the routing logits up over the batch"]),
    ("routing layer: the library's", lambda: checks.routing_layer(capsule_lib.DigitCaps(40, 8, 10, 16), "weight", "jkid", iterations="iterations"), True),
    ("routing layer: 1,152 inputs", lambda: checks.routing_layer(capsule_lib.DigitCaps(1152, 8, 10, 16), "weight", "jkid", iterations="iterations"), True),
    ("routing layer: [B, K, I] to [B, J, D, 1]", lambda: checks.routing_layer(Swapped(), "W", "1ijdk", "bki", "bjd1", "rounds"), True),
    ("routing layer: for batches of 4", lambda: checks.routing_layer(Batched(), "W", "1ijdk", iterations="rounds"), ["batches of 4 only", "over the batch"]),
    ("routing layer: a small epsilon", lambda: checks.routing_layer(Many(), "W", "1ijdk", iterations="rounds"), True),
    ("routing layer: over 1,152 inputs, a small epsilon", lambda: checks.routing_layer(Many(axis=1), "W", "1ijdk", iterations="rounds"), ["over the inputs", "^(?!.*short vectors)"]),
    ("routing layer: for batches of 6", lambda: checks.routing_layer(Viewed(), "W", "1ijdk", iterations="rounds"), ["batches of 6 only"]),
    ("routing layer: each number", lambda: routing_layer(squash=each_number), ["by itself"]),
    ("routing layer: one image loses its axis", lambda: routing_layer(squeeze=True), True),
    ("routing layer: no such weight", lambda: checks.routing_layer(layer(), "weight", "1ijdk"), None),
    ("routing layer: no such number", lambda: checks.routing_layer(layer(), "W", "1ijdk", iterations="turns"), None),
    ("routing layer: axes of one length", lambda: checks.routing_layer(capsule_lib.DigitCaps(40, 8, 10, 8), "weight", "jdik"), None),
    ("routing layer: a function", lambda: checks.routing_layer(lambda u: u, "W", "1ijdk"), None),
    # networks
    ("network: right", lambda: network(), True),
    ("network: one-hot labels", lambda: network(one_hot=True), True),
    ("network: softmax", lambda: network(soft=1), ["softmax stands on the lengths"]),
    ("network: longest in training", lambda: network(mask="longest"), ["in training, too"]),
    ("network: all capsules", lambda: network(mask="all"), ["all capsules"]),
    ("network: softmax over the batch", lambda: network(mask="batch"), ["than the longest"]),
    ("network: one image", lambda: network(squeeze=True), ["one image"]),
    ("network: mean over the batch", lambda: network(mean=True), ["batch-mates"]),
    ("network: mean over the batch, short capsules", lambda: checks.network(short(), PICTURES), ["batch-mates"]),
    ("network: a plain tensor", lambda: network(plain=True), ["register_buffer"]),
    ("network: logits on the CPU", lambda: checks.network(stays(), PICTURES), ["another device"]),
    ("network: dropout", lambda: network(drop=True), True),
    ("network: the library's", lambda: checks.network(capsule_lib.load_pretrained("small"), OTHERS[:5], OTHER_LABELS[:5]), True),
    ("network: asks for the device", lambda: checks.network(Asks(), PICTURES), True),
    ("network: moves to CUDA", lambda: checks.network(Moves(), PICTURES), ["\\.cuda is written into Moves.forward"]),
    ("network: no images", lambda: checks.network(Net(), None), None),
    # loaders
    ("loader: right", lambda: checks.loader(loader(Moved(), shuffle=True), loader(TEST)), True),
    ("loader: test images move", lambda: checks.loader(loader(Moved()), loader(Moved(OTHERS, OTHER_LABELS))), ["test images come out different"]),
    ("loader: one move for a batch", lambda: checks.loader(loader(TensorDataset(DIGITS, LABELS), collate_fn=together), TEST), ["same move"]),
    ("loader: mean 0", lambda: checks.loader(loader(CENTRED)), ["sigmoid reaches"]),
    ("loader: grey values", lambda: checks.loader(loader(GREY)), ["divide by 255"]),
    ("loader: an iterator", lambda: checks.loader(iter(loader(TEST))), None),
    ("loader: nothing", lambda: checks.loader([]), None),
    ("primary: [B, K, I]", lambda: checks.primary_caps(lambda x: primary(x).mT, MAPS, returns="bki"), True),
    ("primary: short capsules are scrambled", lambda: checks.primary_caps(lambda x: torch.cat([primary(x), 1e-6 * primary(x, scrambled=True)], 1), MAPS), ["105 of 210 capsules look at one place"]),
    ("primary: always the same", lambda: checks.primary_caps(lambda x: torch.ones(len(x), 6, 4) / 4, MAPS), ["doesn't look at its input"]),
    ("primary: [B, K, I], not said so", lambda: checks.primary_caps(lambda x: primary(x).mT[:, :, :30], torch.zeros(1, 16, 5, 6)), None),
]  # fmt: skip

PAIRS = [
    ("squash: 0.5; zero", lambda: checks.squash(lambda s: ball(s, one=0.5) * s / s), ["0\\.5", "zero"]),
    ("squash: along the capsules; zero", lambda: checks.squash(lambda s: ball(s, 1) * s / s), ["along the capsules", "zero"]),
    ("squash: gradient at zero; float16", lambda: checks.squash(lambda s: (n := s.square().sum(-1, keepdim=True).sqrt()) / (1 + n * n) * s), ["gradient there", "float16"]),
    ("routing: inputs; batch", lambda: checks.dynamic_routing(routed(axis=1, mean=True)), ["over the inputs", "over the batch"]),
    ("routing: inputs; 0.5 for 1", lambda: checks.dynamic_routing(routed(axis=1, squash=lambda s: ball(s, one=0.5))), ["over the inputs", "0\\.5"]),
    ("routing: batch; 10 % too long", lambda: checks.dynamic_routing(routed(mean=True, squash=lambda s: 1.1 * ball(s))), ["over the batch", "another formula"]),
    ("routing: inputs; 10 % too long", lambda: checks.dynamic_routing(routed(axis=1, squash=lambda s: 1.1 * ball(s))), ["over the inputs", "another formula"]),
    ("routing: softmax over the batch; one too many", lambda: checks.dynamic_routing(lambda u, n: procedure(u, n + 1, axis=0)), ["over the batch", "too many"]),
    ("routing: along the classes; batch", lambda: checks.dynamic_routing(routed(mean=True, squash=lambda s: ball(s, 1))), ["along the classes", "over the batch"]),
    ("routing: not squashed; inputs", lambda: checks.dynamic_routing(routed(axis=1, squash=lambda s: s)), ["not squashed", "over the inputs"]),
    ("routing: always three; batch", lambda: checks.dynamic_routing(lambda u, n: procedure(u, 3, mean=True)), ["always run three", "over the batch"]),
    ("routing: inputs; zero", lambda: checks.dynamic_routing(routed(axis=1, squash=lambda s: ball(s) * s / s)), ["over the inputs", "zero"]),
    ("routing layer: inputs; each number", lambda: routing_layer(axis=1, squash=each_number), ["over the inputs", "by itself"]),
    ("routing layer: inputs; along the classes", lambda: routing_layer(axis=1, squash=lambda s: ball(s, 1)), ["over the inputs", "along the classes"]),
    ("routing layer: batch; zero", lambda: routing_layer(mean=True, squash=lambda s: ball(s) * s / s), ["over the batch", "zero"]),
    ("routing layer: four; inputs", lambda: checks.routing_layer(layer(axis=1, rounds=4), "W", "1ijdk"), ["runs 4 iterations", "over the inputs"]),
    ("margin: mean; softmax", lambda: checks.margin_loss(lambda a, y: numbers(a, y, soft=True, mean=True)), ["over the classes", "softmax"]),
    ("margin: capsules; not squared; mean", lambda: checks.margin_loss(lambda v, y: numbers(v.norm(dim=2), y, power=1, mean=True)), ["not squared", "over the classes"]),
    ("layer: one image; wide weights", lambda: checks.capsule_layer(Votes(3.0, squeeze=True), U), ["one image", "standard deviation"]),
    ("layer: batch; along the classes", lambda: checks.capsule_layer(Votes(3.0, mean=True, squash=lambda s: ball(s, 1)), U), ["batch-mates", "lengths reach"]),
    ("weights: wide; for each place of the batch", lambda: checks.weights(nn.Parameter(torch.randn(4, 9, 3, 6, 5)), "bijdk"), ["places of the batch", "standard deviation"]),
    ("network: softmax; one image", lambda: network(soft=-1, squeeze=True), ["softmax stands", "one image"]),
    ("network: batch; longest in training", lambda: network(mean=True, mask="longest"), ["batch-mates", "in training, too"]),
    ("network: softmax; a plain tensor", lambda: network(soft=1, plain=True), ["softmax stands", "register_buffer"]),
    ("loader: test images move; mean 0", lambda: checks.loader(loader(CENTRED), loader(Moved(OTHERS, OTHER_LABELS))), ["test images come out", "sigmoid reaches"]),
    ("primary: along the capsules; scrambled", lambda: checks.primary_caps(lambda x: primary(x, axis=1, scrambled=True), MAPS), ["along the capsules", "memory order"]),
]  # fmt: skip
