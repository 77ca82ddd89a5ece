"""The two terms of the paper's loss."""

import torch
import torch.nn.functional as F
from torch import Tensor


def margin_loss(
    lengths: Tensor, labels: Tensor, m_plus: float = 0.9, m_minus: float = 0.1, down_weight: float = 0.5
) -> Tensor:
    """Margin loss (equation 4), summed over the classes and averaged over the batch.

        L_j = T_j max(0, m+ - |v_j|)^2 + lambda (1 - T_j) max(0, |v_j| - m-)^2

    The margins say where the loss goes flat. They are no thresholds of a decision: the prediction is the longest capsule.

    Args:
        lengths: lengths of the class capsules [B, J], in 0..1.
        labels: class numbers [B] in 0..J-1; or T itself, [B, J], with a 1 for every class that is present.
        m_plus, m_minus, down_weight: m+, m- and lambda.

    Returns:
        A scalar.
    """
    if lengths.dim() != 2:
        raise ValueError(f"margin_loss takes lengths [B, J]; got a tensor of shape {list(lengths.shape)}")
    present = labels if labels.shape == lengths.shape else one_hot(labels, *lengths.shape)
    present = present.to(lengths.dtype)
    too_short = present * F.relu(m_plus - lengths) ** 2
    too_long = (1 - present) * F.relu(lengths - m_minus) ** 2
    return (too_short + down_weight * too_long).sum(dim=1).mean()


def reconstruction_loss(reconstruction: Tensor, images: Tensor, scale: float = 0.0005) -> Tensor:
    """Squared error of the redrawn images, *summed* over the pixels, times `scale`, averaged over the batch (section 4.1).

    At 28 x 28 pixels the paper's 0.0005 times the sum is 0.392 times the mean.

    Args:
        reconstruction, images: [B, C, H, W], values in 0..1.
        scale: the paper's 0.0005; the networks that ship with this course use 0.01, the weight in the authors' code
            relative to its margin loss.

    Returns:
        A scalar.
    """
    if reconstruction.shape != images.shape:
        raise ValueError(
            f"reconstruction_loss compares images of one shape; got {list(reconstruction.shape)} and {list(images.shape)}"
        )
    return scale * (reconstruction - images).square().flatten(1).sum(dim=1).mean()


def one_hot(labels: Tensor, batch: int, classes: int) -> Tensor:
    """Class numbers [B] as rows [B, J] with a single 1. A label out of range is an error on every device."""
    if labels.shape != (batch,) or labels.is_floating_point():
        raise ValueError(
            f"labels must be {batch} whole numbers, one an image; got shape {list(labels.shape)}, {labels.dtype}"
        )
    if not _in_range(labels, classes):
        raise ValueError(
            f"labels must lie in 0..{classes - 1}; got {int(labels.min())}..{int(labels.max())}: "
            "give the network as many classes as the data has"
        )
    return (labels[:, None] == torch.arange(classes, device=labels.device)).long()


def _in_range(labels: Tensor, classes: int) -> bool:
    """Whether all labels lie in 0..classes-1. While a graph is traced, under vmap and on the meta device nobody can know: True."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    try:
        return bool(((labels >= 0) & (labels < classes)).all())
    except RuntimeError:
        return True
