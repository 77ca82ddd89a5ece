"""Checkers for the two losses and for the mask before the decoder."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from capsule_lib import losses as library
from capsule_lib.checks.verdict import Verdict, compare, noise


def margin_loss(function: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check the margin loss (equation 4). `function` takes lengths [B, J] and labels [B], returns a scalar."""
    lengths, labels = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 4, 2, 1, 3, 2])
    lengths[0, 0], lengths[1, 0] = 0.98, 0.02  # one of each beyond its margin, where the loss is flat
    right, t = library.margin_loss, F.one_hot(labels, 5)
    up, down = F.relu(0.9 - lengths), F.relu(lengths - 0.1)
    mistakes = [
        ((t * up + 0.5 * (1 - t) * down).sum(1).mean(), "the hinges are not squared"),
        (right(lengths, labels) / 5, "you average over the classes; the paper sums over them, and averages over the batch only"),
        ((t * up + 0.5 * (1 - t) * down).mean(), "the hinges are not squared, and you average over the classes where the paper sums"),
        (right(lengths, labels) * 6, "you sum over the batch: the loss would grow with the batch size. Sum over classes, average over the batch"),
        (right(lengths.softmax(1), labels), "you take a softmax of the lengths first: lengths are already in 0..1, and classes do not compete"),
        (right(lengths.softmax(1), labels) / 5, "you take a softmax of the lengths first, and average over the classes where the paper sums"),
        (right(lengths, labels, down_weight=1.0), "the down-weighting lambda = 0.5 of the absent classes is missing"),
        ((0.5 * t * up**2 + (1 - t) * down**2).sum(1).mean(), "lambda = 0.5 belongs to the absent classes, not to the present one"),
        (right(lengths, labels, 0.1, 0.9), "m+ and m- are swapped: m+ = 0.9 is for the class that is present"),
        (right(lengths, labels, 0.5, 0.5), "both margins are 0.5, as in the authors' code; the paper's are 0.9 and 0.1"),
        ((t * (0.9 - lengths) ** 2 + 0.5 * (1 - t) * (lengths - 0.1) ** 2).sum(1).mean(), "max(0, ...) is missing: a length beyond its margin should cost nothing"),
        ((right(lengths, 1 - t)), "present and absent classes are swapped"),
    ]  # fmt: skip
    praise = f"margin_loss: {right(lengths, labels):.4f} on six made-up images, as by hand"
    return compare(function, (lengths, labels), right(lengths, labels), mistakes, praise)


def reconstruction_loss(function: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check the paper's reconstruction loss (section 4.1). `function` takes two batches of images [B, C, H, W], returns a scalar."""
    a, b = noise(3, 1, 28, 28).sigmoid(), noise(3, 1, 28, 28, seed=1).sigmoid()
    right = library.reconstruction_loss(a, b)
    mistakes = [
        (0.0005 * F.mse_loss(a, b), "you multiply the *mean* over the pixels by 0.0005; the paper multiplies their sum, 784 times as much. Reconstructions would stay blurred means"),
        (F.mse_loss(a, b), "this is the mean squared error itself: the paper's term is 0.0005 times the sum over the pixels, 0.392 times the mean"),
        (0.5 * F.mse_loss(a, b), "0.5 times the mean is near the paper's term but not it: 0.0005 times the sum is 0.392 times the mean"),
        (3 * right, "you sum over the batch too: sum over the pixels of an image, average over the batch"),
        (right / 0.0005, "the weight 0.0005 is missing: the reconstruction would drown the margin loss"),
        (0.0005 * (a - b).abs().flatten(1).sum(1).mean(), "the paper takes the squared difference, not the absolute one"),
    ]  # fmt: skip
    return compare(
        function, (a, b), right, mistakes, "reconstruction_loss: 0.0005 times the squared error summed over the pixels"
    )


def mask(function: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check the mask before the decoder, as training needs it (section 4.1).

    `function` takes capsules [B, J, D] and labels [B]; it returns them with all but the label's zeroed, as [B, J, D] or [B, J * D].
    """
    v, labels = 0.3 * noise(4, 5, 3), torch.tensor([2, 2, 0, 2])
    length = v.norm(dim=2)

    def unflattened(v: Tensor, labels: Tensor) -> Tensor:
        out = function(v, labels)
        return out.view_as(v) if isinstance(out, Tensor) and out.shape == (4, 15) else out

    def keep(weights: Tensor) -> Tensor:
        return v * weights[:, :, None]

    mistakes = [
        (
            keep(F.one_hot(length.argmax(1), 5)),
            "you keep the longest capsule: in training keep the label's, or the decoder learns to draw the network's mistakes",
        ),
        (
            keep(F.one_hot(length.softmax(0).argmax(0), 4).T),
            "your mask is one over the batch, not over the classes: it keeps one image for each class",
        ),
        (
            keep(length.softmax(0) == length.softmax(0).amax(1, keepdim=True)),
            "you choose the class after a softmax over the batch: what an image keeps depends on its batch-mates. Take the label's class",
        ),
        (
            keep(length.softmax(0)),
            "you weight by a softmax over the batch: with every image of one class, the mask would still spread over images",
        ),
        (keep(length.softmax(1)), "you weight by a softmax of the lengths: nothing is masked out"),
        (keep(1 - F.one_hot(labels, 5)), "you zero the label's capsule and keep the others: it is the other way round"),
        (v, "nothing is masked"),
    ]
    return compare(
        unflattened,
        (v, labels),
        keep(F.one_hot(labels, 5)),
        mistakes,
        "mask: the label's capsule passes, the others are zero, whatever their lengths",
    )
