"""The two terms of the paper's loss."""

import torch.nn.functional as F
from torch import Tensor

from capsule_lib.contract import check_tensor, in_unit_range, present_classes


def margin_loss(
    lengths: Tensor, labels: Tensor, m_plus: float = 0.9, m_minus: float = 0.1, down_weight: float = 0.5
) -> Tensor:
    """Margin loss (equation 4), summed over the classes and averaged over the batch.

        L_j = T_j max(0, m+ - ‖v_j‖)² + λ (1 - T_j) max(0, ‖v_j‖ - m-)²

    The margins say where the loss goes flat. They are not thresholds of a decision: the prediction is the longest capsule.

    Args:
        lengths: lengths of the class capsules [B, J], in 0..1.
        labels: class numbers [B] in 0..J-1; or T itself, [B, J], with a 1 for every class that is present and else 0.
        m_plus, m_minus, down_weight: m+, m- and λ.

    Returns:
        A scalar.

    Raises:
        TypeError, ValueError: lengths outside 0..1 or not [B, J]; labels out of range, or not one per image.
    """
    check_tensor(lengths, "lengths", "[B, J]")
    in_unit_range(lengths, "lengths", "take the lengths of squashed capsules, not logits or capsules", nan=True)
    present = present_classes(labels, *lengths.shape).to(lengths.dtype)
    too_short = present * F.relu(m_plus - lengths) ** 2
    too_long = (1 - present) * F.relu(lengths - m_minus) ** 2
    return (too_short + down_weight * too_long).sum(dim=1).mean()


def reconstruction_loss(reconstruction: Tensor, images: Tensor, scale: float = 0.0005) -> Tensor:
    """Squared error of the redrawn images, *summed* over the pixels, times `scale`, averaged over the batch (section 4.1).

    At 28 x 28 pixels the paper's 0.0005 times the sum is 0.392 times the mean. For other sizes give a scale that keeps the
    weight of the mean, 0.392 / (C H W), as a `TrainingConfig` does; else the sum of many pixels drowns the margin loss.

    Args:
        reconstruction, images: [B, C, H, W], values in 0..1.
        scale: the paper's 0.0005; the networks that ship with this course for exploring use 0.01, the weight in the
            authors' code relative to its margin loss.

    Returns:
        A scalar.

    Raises:
        TypeError, ValueError: not two tensors of one shape [B, C, H, W].
    """
    for what, x in [("reconstruction", reconstruction), ("images", images)]:
        check_tensor(x, what, "[B, C, H, W]")
    if reconstruction.shape != images.shape:
        raise ValueError(
            f"reconstruction_loss compares images of one shape; got {list(reconstruction.shape)} and {list(images.shape)}"
        )
    return scale * (reconstruction - images).square().flatten(1).sum(dim=1).mean()
