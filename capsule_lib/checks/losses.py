"""Checkers for the two losses and for the mask before the decoder."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from capsule_lib import losses as library
from capsule_lib.checks.verdict import Asked, checker, combined, compare, in_any_dress, noise

# What published losses do instead, as changes to `_margin`. One of each kind may be made at once.
MARGIN_MISTAKES = [
    [("the hinges are not squared", {"power": 1})],
    [
        ("you average over the classes; the paper sums over them, and averages over the batch only", {"reduce": torch.mean}),
        ("you sum over the batch: the loss would grow with the batch size. Sum over classes, average over the batch", {"reduce": torch.sum}),
    ],
    [("you take a softmax of the lengths first: lengths are already in 0..1, and classes do not compete", {"softmax": True})],
    [
        ("the down-weighting λ = 0.5 of the absent classes is missing", {"down": 1}),
        ("λ = 0.5 belongs to the absent classes, not to the present one", {"up": 0.5, "down": 1}),
        ("the absent classes count a quarter: λ is 0.5, and you apply it twice", {"down": 0.25}),
    ],
    [
        ("m+ and m- are swapped: m+ = 0.9 is for the class that is present", {"m_plus": 0.1, "m_minus": 0.9}),
        ("both margins are 0.5: each length is judged by the same line. The paper's are 0.9 for a class that is present and 0.1 for one that is absent", {"m_plus": 0.5, "m_minus": 0.5}),
    ],
    [("max(0, ...) is missing: a length beyond its margin should cost nothing", {"hinge": lambda x: x})],
    [
        ("present and absent classes are swapped", {"target": lambda t: 1 - t}),
        ("lengths[:, labels] picks every label's class for every image; lengths[torch.arange(B), labels] picks each image's own", {"target": lambda t: t.mean(0, keepdim=True).expand_as(t)}),
        ("the class that is present is also charged as if it were absent: take that back", {"absent": lambda t: torch.ones_like(t)}),
        ("you take back too much of what the class that is present was charged as an absent one: λ = 0.5 belongs to that too", {"absent": lambda t: 1 - 2 * t}),
    ],
]  # fmt: skip


def _margin(lengths, labels, m_plus=0.9, m_minus=0.1, up=1, down=0.5, power=2, hinge=F.relu, softmax=False, target=lambda t: t, absent=lambda t: 1 - t, reduce=lambda loss: loss.sum(1).mean()):  # fmt: skip
    present = target(F.one_hot(labels, lengths.shape[1]).float())
    lengths = lengths.softmax(1) if softmax else lengths
    too_short, too_long = hinge(m_plus - lengths) ** power, hinge(lengths - m_minus) ** power
    return reduce(up * present * too_short + down * absent(present) * too_long)


def _one_hot(x: Tensor, labels: Tensor) -> Tensor:
    return F.one_hot(labels, x.shape[1]).float()


def _as_capsules(lengths: Tensor) -> Tensor:
    """Capsules [B, J, 8] of these lengths."""
    return lengths[..., None] * F.normalize(noise(*lengths.shape, 8), dim=-1)


MARGIN_DRESSES = [  # what the function takes, and how to say so of one that takes something else than most
    ("lengths [B, J], labels [B]", lambda a, y: (a, y), ""),
    ("lengths [B, J], labels [B, J]", lambda a, y: (a, _one_hot(a, y)), " It takes one-hot labels."),
    ("capsules [B, J, D], labels [B]", lambda a, y: (_as_capsules(a), y), " It takes capsules."),
    ("capsules [B, J, D], labels [B, J]", lambda a, y: (_as_capsules(a), _one_hot(a, y)), " It takes capsules and one-hot labels."),
]  # fmt: skip


@checker
def margin_loss(function: Callable[[Tensor, Tensor], Tensor]):
    """Check the margin loss (equation 4). `function` takes lengths [B, J] and labels [B], returns a scalar.

    Capsules [B, J, D] in the place of lengths and one-hot labels [B, J] are as good.
    """
    cases = []
    for labels, classes in [([0, 9, 2, 1, 3, 2], 10), ([4, 0, 4, 1], 5)]:
        lengths = torch.rand(len(labels), classes, generator=torch.Generator().manual_seed(0))
        lengths[:2, labels[0]] = torch.tensor([0.98, 0.02])  # one of each beyond its margin, where the loss is flat
        cases.append((lengths, torch.tensor(labels)))
    mistakes = list(combined(_margin, MARGIN_MISTAKES))

    def in_dress(takes: str, dress: Callable) -> None:
        compare(Asked(function, takes, "one number", dress=dress), cases, library.margin_loss, mistakes, gradient=True)

    says = in_any_dress([(words, lambda takes=takes, dress=dress: in_dress(takes, dress)) for takes, dress, words in MARGIN_DRESSES])  # fmt: skip
    return f"margin_loss: {library.margin_loss(*cases[0]):.4f} on six made-up images, as by hand.{says}".removesuffix(
        "."
    )


def _summed(a, b):
    return 0.0005 * (a - b).square().flatten(1).sum(1)


RECONSTRUCTION_MISTAKES = [
    ("you multiply the *mean* over the pixels by 0.0005; the paper multiplies their sum, 784 times as much. Reconstructions would stay blurred means", lambda a, b: 0.0005 * F.mse_loss(a, b)),
    ("this is the mean squared error itself: the paper's term is 0.0005 times the sum over the pixels, 0.392 times the mean", F.mse_loss),
    ("0.5 times the mean is near the paper's term but not it: 0.0005 times the sum is 0.392 times the mean", lambda a, b: 0.5 * F.mse_loss(a, b)),
    ("784 (or 0.392) is written into your code: that is the size of one kind of image. Count the numbers in an image, images[0].numel()", lambda a, b: 0.0005 * 784 * F.mse_loss(a, b)),
    ("you count the pixels and forget the colour channels: an image has C × H × W numbers", lambda a, b: _summed(a, b).mean() / a.shape[1]),
    ("you sum over the batch too: sum over the pixels of an image, average over the batch", lambda a, b: _summed(a, b).sum()),
    ("0.392 belongs before the *mean* over the pixels, and you put it before their sum: 784 times too strong, and the margin loss drowns", lambda a, b: 0.0005 * a[0].numel() * _summed(a, b).mean() / 0.0005),
    ("the weight 0.0005 is missing: the reconstruction would drown the margin loss", lambda a, b: _summed(a, b).mean() / 0.0005),
    ("the paper takes the squared difference, not the absolute one", lambda a, b: 0.0005 * (a - b).abs().flatten(1).sum(1).mean()),
    ("the paper takes the sum of squares, not its square root", lambda a, b: 0.0005 * (a - b).flatten(1).norm(dim=1).mean()),
    ("you halve the sum of squares; the paper doesn't", lambda a, b: 0.5 * _summed(a, b).mean()),
]  # fmt: skip


@checker
def reconstruction_loss(function: Callable[[Tensor, Tensor], Tensor]):
    """Check the paper's reconstruction loss (section 4.1). `function` takes two batches of images [B, C, H, W], returns a scalar."""
    asked = Asked(function, "reconstruction [B, C, H, W], images [B, C, H, W]", "one number")
    sizes = [(4, 1, 28, 28), (2, 3, 12, 10)]
    cases = [(noise(*shape).sigmoid(), noise(*shape, seed=1).sigmoid()) for shape in sizes]
    compare(asked, cases, library.reconstruction_loss, RECONSTRUCTION_MISTAKES, gradient=True)
    return "reconstruction_loss: 0.0005 times the squared error summed over the pixels, for any size of image"


def _keep(v: Tensor, weights: Tensor) -> Tensor:
    return v * weights[:, :, None]


def _best(scores: Tensor) -> Tensor:
    return F.one_hot(scores.argmax(1), scores.shape[1])


MASK_MISTAKES = [
    ("you keep the longest capsule: in training keep the label's, or the decoder learns to draw the network's mistakes", lambda v, y: _keep(v, _best(v.norm(dim=2)))),
    ("your mask is one over the batch, not over the classes: it keeps one image for each class", lambda v, y: _keep(v, _best(v.norm(dim=2).T).T)),
    ("you choose the class after a softmax over the batch: what an image keeps depends on its batch-mates. Take the label's class", lambda v, y: _keep(v, _best(v.norm(dim=2).softmax(0)))),
    ("you weight by a softmax over the batch: with every image of one class, the mask would still spread over images", lambda v, y: _keep(v, v.norm(dim=2).softmax(0))),
    ("you weight by a softmax of the lengths: nothing is masked out", lambda v, y: _keep(v, v.norm(dim=2).softmax(1))),
    ("you zero the label's capsule and keep the others: it is the other way round", lambda v, y: _keep(v, 1 - F.one_hot(y, v.shape[1]))),
    ("v[:, labels] keeps every label's class for every image; v[torch.arange(B), labels] takes each image's own", lambda v, y: _keep(v, F.one_hot(y, v.shape[1]).amax(0, keepdim=True))),
    ("you multiply the label's capsule by its class number: use one-hot rows, with a single 1", lambda v, y: _keep(v, F.one_hot(y, v.shape[1]) * y[:, None])),
    ("nothing is masked", lambda v, y: v),
]  # fmt: skip


@checker
def mask(function: Callable[[Tensor, Tensor], Tensor]):
    """Check the mask before the decoder, as training needs it (section 4.1).

    `function` takes capsules [B, J, D] and labels [B]; it returns them with all but the label's zeroed, as [B, J, D] or [B, J * D].
    One-hot labels [B, J] are as good.
    """

    sizes = [(4, 10, 16, [2, 2, 0, 2]), (3, 5, 8, [4, 1, 4])]
    cases = [(0.3 * noise(b, j, d), torch.tensor(y)) for b, j, d, y in sizes]

    def in_dress(takes: str, dress: Callable) -> None:
        asked = Asked(function, takes, "[B, J, D]", dress=dress, undress=lambda out, v, y: out.reshape(v.shape) if out.shape == v.flatten(1).shape else out)  # fmt: skip
        compare(asked, cases, lambda v, y: _keep(v, F.one_hot(y, v.shape[1])), MASK_MISTAKES, gradient=True)

    in_any_dress(
        [
            ("", lambda: in_dress("v [B, J, D], labels [B]", lambda v, y: (v, y))),
            ("", lambda: in_dress("v [B, J, D], labels [B, J]", lambda v, y: (v, _one_hot(v, y)))),
        ]
    )
    return "mask: the label's capsule passes, the others are zero, whatever their lengths"
