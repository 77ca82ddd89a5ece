"""What a network gets wrong, and how well it redraws."""

from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from capsule_lib.contract import COUNT, check_labels, check_pictures, check_tensor, present_classes
from capsule_lib.model import CapsNet


class Evaluation(NamedTuple):
    """error in %; mse, the mean squared error per pixel of what the longest capsule redraws (None without a decoder);
    lengths [N, J] on the CPU; digit_error in %, of pictures of several digits: the share of digits that are missed."""

    error: float
    mse: float | None
    lengths: Tensor
    digit_error: float


def read_as(lengths: Tensor, labels: Tensor) -> Tensor:
    """The classes that lengths [N, J] are read as: the longest one's number [N] where labels are numbers [N]; the set [N, J] of as many longest
    ones as each set of labels [N, J] has."""
    if labels.dim() == 1:
        return lengths.argmax(dim=1)
    ranks = lengths.argsort(dim=1, descending=True).argsort(dim=1)
    return ranks < labels.sum(dim=1, keepdim=True)


def misread(lengths: Tensor, labels: Tensor) -> Tensor:
    """Which of N pictures are misread, [N] of False and True: of several digits all have to be right, as the paper counts it (section 5.3)."""
    wrong = read_as(lengths, labels) != labels
    return wrong if labels.dim() == 1 else wrong.any(dim=1)


@torch.no_grad()
def evaluate(
    net: CapsNet, images: Tensor, labels: Tensor, originals: Tensor | None = None, batch_size: int = 250
) -> Evaluation:
    """Measure a network on images [N, C, H, W] with labels [N], which it has never trained on. See `Evaluation`.

        evaluate(net, *overlapping_digits(images, labels))

    Labels may be sets of M classes each, [N, J], such as those of two overlapping digits; then originals [N, M, C, H, W] are the digits of
    each image alone, by rising class, which the M longest capsules should redraw. Without them there is no `mse`.

    Raises:
        TypeError, ValueError: images, labels or originals that don't fit each other or the network.
    """
    check_pictures(images)
    device, training = next(net.parameters()).device, net.training
    net.eval()
    lengths, squared_error = [], 0.0
    several = getattr(labels, "ndim", 1) == 2
    redrawn = images if originals is None else originals
    if originals is not None:
        check_tensor(originals, "originals", "[N, M, C, H, W]")
        alike = not several or labels.sum(dim=1).eq(originals.shape[1]).all()
        if not alike or originals[:, 0].shape != images.shape:
            raise ValueError(
                f"originals are the digits of each image alone, as many as its set of classes has, each like its image "
                f"{list(images.shape[1:])}; got {list(originals.shape)}"
            )
    draws = bool(net.decoder) and several <= (originals is not None)
    parts = zip(*(x.split(COUNT.check("batch_size", batch_size)) for x in (images, redrawn)), strict=True)
    # The bar waits for what really takes long: a short one would only stay behind on a notebook's page.
    for x, wanted in tqdm(parts, total=-(-len(images) // batch_size), desc="evaluating", leave=False, delay=30):
        out = net(x.to(device))
        if not lengths:
            check = present_classes if several else check_labels
            labels = check(labels, len(images), out.lengths.shape[1]).cpu()
        done = sum(map(len, lengths))
        lengths.append(out.lengths.cpu())
        redrawing = out.reconstruction
        if several and draws:
            rows, chosen = read_as(lengths[-1], labels[done : done + len(x)]).to(device).nonzero(as_tuple=True)
            redrawing = net.decoder(out.capsules[rows], chosen)
        if draws:
            squared_error += (redrawing.cpu() - wanted.cpu().view(redrawing.shape)).square().sum().item()
    net.train(training)
    lengths = torch.cat(lengths)
    missed = (read_as(lengths, labels) != labels) & (labels if several else True)
    error, digit_error = (100 * wrong.float().mean().item() for wrong in (misread(lengths, labels), missed))
    if several:
        digit_error *= labels.numel() / labels.sum().item()
    return Evaluation(error, squared_error / redrawn.numel() if draws else None, lengths, digit_error)
