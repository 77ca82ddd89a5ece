"""Pictures of digits, and of which are taken for which."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from capsule_lib.contract import COUNT, check_labels, check_tensor


def digit_image(image: Tensor, size: int = 280) -> Image.Image:
    """One grey image, [H, W] or with axes of 1 before, in 0..1, as ink on paper, enlarged to `size` pixels of height."""
    check_tensor(image, "image", "[" + "1, " * (getattr(image, "ndim", 2) - 2) + "H, W]")
    if image.shape[-2:].numel() != image.numel():
        raise ValueError(
            f"image must be one grey image, [H, W]; got {list(image.shape)}: take one, and its image.mean(0)"
        )
    COUNT.check("size", size)
    grey = (255 * (1 - image.detach().cpu().reshape(image.shape[-2:]).clamp(0, 1))).byte().numpy()
    height, width = grey.shape
    return Image.fromarray(grey).resize((size * width // height, size), Image.Resampling.NEAREST)


def digit_rows(rows: dict[str, Tensor], titles: Sequence = (), size: float = 0.9) -> Figure:
    """Rows of grey images [N, 1, H, W] in 0..1, each row with its name, each column with its title; `size`: inches per image."""
    if not isinstance(rows, dict) or not rows:
        raise TypeError(f"rows must be a dict from names to images [N, 1, H, W]; got {type(rows).__name__}")
    for images in rows.values():
        check_tensor(images, "images", "[N, 1, H, W]")
    count = max(len(images) for images in rows.values())
    figure, axes = plt.subplots(len(rows), 1, figsize=(size * count + 1.6, size * len(rows) + 0.4), squeeze=False)
    for axis, (name, images) in zip(axes[:, 0], rows.items(), strict=True):
        padded = torch.nn.functional.pad(images.detach().cpu()[:, 0], (1, 1, 1, 1))
        # One picture of them all: one per digit takes 100 times as long.
        axis.imshow(np.hstack(list(padded.numpy())), vmin=0, vmax=1)
        axis.axis("off")
        axis.text(-0.01, 0.5, name, transform=axis.transAxes, ha="right", va="center")
    for n, title in enumerate(titles):
        axes[0, 0].text((n + 0.5) * padded.shape[-1] - 1, -3, title, ha="center", va="bottom")
    return figure


def confusion(predictions: Tensor, labels: Tensor, classes: int = 10) -> Figure:
    """Rows: the true class; columns: the predicted one. The diagonal is left white, so that the mistakes stand out."""
    COUNT.check("classes", classes)
    predictions = check_labels(predictions, None, classes)
    labels = check_labels(labels, len(predictions), classes)
    counts = (classes * labels + predictions).cpu().bincount(minlength=classes**2).view(classes, classes)
    figure, axis = plt.subplots(figsize=(6.5, 6))
    mistakes = counts - counts.diag().diag()
    # The darkest colour is not used: black numbers could not be read on it.
    axis.imshow(mistakes.numpy(), cmap="Oranges", vmin=0, vmax=max(1.6 * mistakes.max(), 1))
    for true, predicted in counts.nonzero().tolist():
        colour = "black" if true != predicted else "0.55"
        axis.text(predicted, true, counts[true, predicted].item(), ha="center", va="center", color=colour)
    axis.set(xlabel="predicted", ylabel="true", xticks=range(classes), yticks=range(classes))
    return figure
