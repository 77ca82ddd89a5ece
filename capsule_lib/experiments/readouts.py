"""Does what a network knows of a digit say how it is turned, moved, scaled, slanted and thickened? Linear read-outs, and single numbers."""

import torch
from torch import Tensor

from capsule_lib.contract import check_labels, check_tensor
from capsule_lib.data import transform

QUANTITIES = {  # what is read out, the transformation that sets it, and between which amounts, all equally likely
    "angle": ("turn", -30, 30),
    "shift": ("shift", -4, 4),
    "scale": ("scale", 0.75, 1.25),
    "slant": ("slant", -17, 17),
    "thickness": ("thicken", -1, 2),
}
WIDTH = 16  # numbers that a read-out may use: the dimensions of a class capsule


def posed(images: Tensor, quantity: str, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures [N, C, H, W], each put into its own random pose, and the poses [N] in the transformation's unit."""
    name, low, high = QUANTITIES[quantity]
    amounts = low + (high - low) * torch.rand(len(images), generator=torch.Generator().manual_seed(seed))
    return transform(images, name, amounts), amounts


def read_out(fit: tuple[Tensor, Tensor, Tensor], unseen: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    """How well a pose follows from features: R², the share of its variance that is explained, on digits not used for the fit.

    Each class has its own read-out, by least squares; R² is their mean. Features of more than 16 numbers are first reduced to
    the 16 principal components of the class, so that all read-outs are equally wide. R² is below 0 where the class's mean says more.

    Args:
        fit: features [N, D], poses [N], labels [N] to fit on: at least 18 digits of each class that is there.
        unseen: the same of other digits, of the same classes.

    Returns:
        'linear', R² of the read-out from all 16 numbers, and 'single', that from the one of them that follows the pose best
        (chosen on `fit`).

    Raises:
        TypeError, ValueError: what is not such a triple, or too few digits.
    """
    for features, poses, labels in (fit, unseen):
        check_tensor(features, "features", "[N, D]")
        check_tensor(poses, "poses", "[N]")
        check_labels(labels, len(features), None)
    linear, single = [], []
    for j in fit[2].unique().tolist():
        (x, y), (new_x, new_y) = (tuple(t[part[2] == j].double() for t in part[:2]) for part in (fit, unseen))
        if len(x) < WIDTH + 2 or len(new_x) < 2:
            raise ValueError(
                f"class {j} has {len(x)} digits to fit on and {len(new_x)} to test: {WIDTH + 2} and 2 are needed"
            )
        mean, new_y, y = x.mean(0), new_y - y.mean(), y - y.mean()
        x, new_x = x - mean, new_x - mean
        if x.shape[1] > WIDTH:
            axes = torch.linalg.svd(x, full_matrices=False).Vh[:WIDTH].T
            x, new_x = x @ axes, new_x @ axes
        follows = (x * y[:, None]).sum(0).square() / x.square().sum(0).clamp(min=1e-12)
        best = follows.argmax()
        for results, a, b in ((linear, x, new_x), (single, x[:, [best]], new_x[:, [best]])):
            weights = torch.linalg.lstsq(a, y[:, None], driver="gelsd").solution  # also where features are constant
            residual = new_y - (b @ weights)[:, 0]
            results.append(1 - residual.square().sum() / (new_y - new_y.mean()).square().sum())
    return {name: round(torch.stack(r).mean().item(), 4) for name, r in (("linear", linear), ("single", single))}
