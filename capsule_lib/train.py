"""Training and measuring a capsule network."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from capsule_lib.data import random_shift
from capsule_lib.losses import margin_loss, reconstruction_loss
from capsule_lib.model import CapsNet

LIVE = 0.02  # a dimension is called live when it changes the picture by at least this much; see `dimension_effects`


class Epoch(NamedTuple):
    """What one pass over the training images gave: mean losses, share of wrong predictions in %, time in seconds."""

    number: int
    margin: float
    reconstruction: float
    error: float
    seconds: float


class Evaluation(NamedTuple):
    """error in %; mse, the mean squared error a pixel of what the longest capsule redraws (nan without a decoder);
    lengths [N, J] on the CPU."""

    error: float
    mse: float
    lengths: Tensor


def train(
    net: CapsNet,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    *,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    reconstruction_scale: float = 0.01,
) -> Iterator[Epoch]:
    """Train `net` and hand back an `Epoch` after each pass, so that you can look, save or stop in between.

        for epoch in train(net, images, labels, epochs=12):
            print(epoch)

    Adam, with a learning rate that rises to `learning_rate` and falls to almost nothing (one cycle). Every image is
    shifted by itself (section 5), and redrawn from the capsule of its label (section 4.1). The network stays on its
    device; it is in training mode while it trains, and in evaluation mode whenever you hold an `Epoch`.

    Args:
        images: [N, C, H, W], values in 0..1, not shifted; on any device.
        labels: [N], class numbers.
        reconstruction_scale: the weight of the squared error, summed over an image's pixels. The paper's is 0.0005.

    Raises:
        ValueError: images outside 0..1, which the decoder's sigmoid could never redraw.
        FloatingPointError: a loss that is not finite; it says where.
    """
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"images must lie in 0..1, which is what the decoder's sigmoid can redraw; got {images.min():.2f}..{images.max():.2f}: "
            "leave out the normalisation to mean 0"
        )
    _check_pairs(images, labels)
    device = next(net.parameters()).device
    images, labels = images.to(device), labels.to(device)
    steps = -(-len(images) // batch_size)
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)
    with tqdm(total=epochs * steps) as bar:
        for number in range(1, epochs + 1):
            net.train()
            start = time.perf_counter()
            bar.set_description(f"epoch {number}/{epochs}")
            sums = torch.zeros(3, device=device)
            for rows in torch.randperm(len(images), device=device).split(batch_size):
                x, y = random_shift(images[rows]), labels[rows]
                out = net(x, y)
                margin = margin_loss(out.lengths, y)
                redrawn = (
                    reconstruction_loss(out.reconstruction, x, reconstruction_scale) if net.decoder else 0 * margin
                )
                optimizer.zero_grad()
                (margin + redrawn).backward()
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    sums += len(rows) * torch.stack([margin, redrawn, (out.lengths.argmax(1) != y).float().mean()])
                bar.update()
            if not sums.isfinite().all():
                raise FloatingPointError(
                    f"the loss stopped being finite in epoch {number}: try a lower learning_rate than {learning_rate}"
                )
            net.eval()
            margin, redrawn, wrong = (sums / len(images)).tolist()
            yield Epoch(number, margin, redrawn, 100 * wrong, time.perf_counter() - start)


@torch.no_grad()
def evaluate(net: CapsNet, images: Tensor, labels: Tensor, batch_size: int = 250) -> Evaluation:
    """Measure a network on images [N, C, H, W] with labels [N], which it has never trained on. See `Evaluation`."""
    _check_pairs(images, labels)
    device, training = next(net.parameters()).device, net.training
    net.eval()
    lengths, squared_error = [], 0.0
    # The bar waits for what really takes long: a short one would only stay behind on a notebook's page.
    for x in tqdm(images.split(batch_size), desc="evaluating", leave=False, delay=30):
        out = net(x.to(device))
        lengths.append(out.lengths.cpu())
        squared_error += (out.reconstruction.cpu() - x).square().sum().item() if net.decoder else float("nan")
    net.train(training)
    lengths = torch.cat(lengths)
    error = 100 * (lengths.argmax(dim=1) != labels.cpu()).float().mean().item()
    return Evaluation(error, squared_error / images.numel(), lengths)


@torch.no_grad()
def dimension_effects(net: CapsNet, images: Tensor, labels: Tensor, digits: int = 100) -> Tensor:
    """How much each number of each class capsule changes the drawn picture: root-mean-square difference a pixel [J, D].

    For every class, the capsule's numbers are measured on all its images. Then, for up to `digits` of them, one number
    at a time is set to 2 standard deviations below and above its mean, and the two drawings are compared.
    A dimension is called live from `LIVE` on.
    """
    device = next(net.parameters()).device
    v = torch.cat([net(x.to(device)).capsules for x in images.split(250)])
    classes, dim = v.shape[1:]
    effects = torch.empty(classes, dim)
    for j in range(classes):
        own = v[labels.to(device) == j]
        mean, spread = own[:, j].mean(dim=0), own[:, j].std(dim=0)
        own = own[:digits]
        label = torch.full((len(own),), j, device=device)
        for d in range(dim):
            low, high = own.clone(), own.clone()
            low[:, j, d], high[:, j, d] = mean[d] - 2 * spread[d], mean[d] + 2 * spread[d]
            change = net.decoder(high, label) - net.decoder(low, label)
            effects[j, d] = change.square().flatten(1).mean(dim=1).sqrt().mean()
    return effects


def _check_pairs(images: Tensor, labels: Tensor) -> None:
    if labels.shape != (len(images),):
        raise ValueError(
            f"{len(images)} images need as many labels, [{len(images)}]; got labels of shape {list(labels.shape)}"
        )
