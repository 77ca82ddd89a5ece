"""What a network gets wrong, and how well it redraws."""

from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from capsule_lib.contract import COUNT, check_labels, check_pictures
from capsule_lib.model import CapsNet


class Evaluation(NamedTuple):
    """error in %; mse, the mean squared error per pixel of what the longest capsule redraws (None without a decoder);
    lengths [N, J] on the CPU."""

    error: float
    mse: float | None
    lengths: Tensor


@torch.no_grad()
def evaluate(net: CapsNet, images: Tensor, labels: Tensor, batch_size: int = 250) -> Evaluation:
    """Measure a network on images [N, C, H, W] with labels [N], which it has never trained on. See `Evaluation`."""
    check_pictures(images)
    device, training = next(net.parameters()).device, net.training
    net.eval()
    lengths, squared_error = [], 0.0
    # The bar waits for what really takes long: a short one would only stay behind on a notebook's page.
    for x in tqdm(images.split(COUNT.check("batch_size", batch_size)), desc="evaluating", leave=False, delay=30):
        out = net(x.to(device))
        labels = check_labels(labels, len(images), out.lengths.shape[1])
        lengths.append(out.lengths.cpu())
        squared_error += (out.reconstruction.cpu() - x.cpu()).square().sum().item() if net.decoder else 0.0
    net.train(training)
    lengths = torch.cat(lengths)
    error = 100 * (lengths.argmax(dim=1) != labels.cpu()).float().mean().item()
    return Evaluation(error, squared_error / images.numel() if net.decoder else None, lengths)
