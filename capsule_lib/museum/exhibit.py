"""A capsule network and its training with every step a method of its own, so that a mistake is one method written otherwise."""

from collections.abc import Iterator

import torch
from torch import Tensor

from capsule_lib.data import random_shift
from capsule_lib.losses import margin_loss, reconstruction_loss
from capsule_lib.model import PRESETS, CapsNet, CapsNetOutput
from capsule_lib.routing import squash


class Exhibit(CapsNet):
    """The preset `small`, right in every step. It gives the numbers of a `CapsNet` with the same weights.

    Notebook 03 writes routing this way, with all votes at once, and notebook 06 training.
    """

    iterations = 3

    def __init__(self):
        super().__init__(PRESETS["small"])

    # From the picture to the primary capsules

    def seen(self, images: Tensor) -> Tensor:
        """What the network is given of images [B, 1, 28, 28] in 0..1, in training and in use."""
        return images

    def seen_in_use(self, images: Tensor) -> Tensor:
        """What it is given of them where it is measured."""
        return images

    def regroup(self, maps: Tensor) -> Tensor:
        """Feature maps [B, K * types, H, W] as vectors [B, I, K]: the K numbers of one place."""
        return maps.unflatten(1, (self.config.primary_dim, -1)).flatten(2).mT

    def primary(self, images: Tensor) -> Tensor:
        return squash(self.regroup(self.primary_caps.conv(torch.relu(self.stem(images)))))

    # From the primary capsules to the class capsules

    def votes(self, u: Tensor) -> Tensor:
        """[B, I, K] -> [B, I, J, D] (equation 2)."""
        return torch.einsum("bik,jkid->bijd", u, self.digit_caps.weight)

    def start(self, u_hat: Tensor) -> Tensor:
        """The logits [B, I, J] before the first iteration."""
        return torch.zeros_like(u_hat[..., 0])

    def couplings(self, b: Tensor) -> Tensor:
        """Logits [B, I, J] -> couplings [B, I, J]: each part shares itself out among the wholes (equation 3)."""
        return b.softmax(dim=2)

    def squashed(self, s: Tensor) -> Tensor:
        """Sums [B, J, D] -> class capsules (equation 1)."""
        return squash(s)

    def agreement(self, u_hat: Tensor, v: Tensor) -> Tensor:
        """What is added to the logits, [B, I, J]: dot products of votes and wholes."""
        return (u_hat * v[:, None]).sum(dim=3)

    def rounds(self, iterations: int) -> int:
        """How many times the sums are taken."""
        return iterations

    def route(self, u_hat: Tensor, iterations: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Procedure 1: class capsules [B, J, D] and couplings [B, I, J] of every iteration."""
        b, found = self.start(u_hat), []
        rounds = self.rounds(iterations or self.iterations)
        for t in range(rounds):
            votes = u_hat if t == rounds - 1 else u_hat.detach()
            c = self.couplings(b)
            v = self.squashed((c[..., None] * votes).sum(dim=1))
            found.append((v, c))
            b = b + self.agreement(votes, v).detach()
        return found

    # Which class is drawn

    def mask(self, lengths: Tensor, labels: Tensor | None) -> Tensor:
        """The class [B] whose capsule the decoder gets: the label's in training, the longest in use."""
        return lengths.argmax(dim=1) if labels is None else labels

    def lengths(self, v: Tensor) -> Tensor:
        """Class capsules [B, J, D] -> lengths [B, J]."""
        return v.norm(dim=2)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> CapsNetOutput:
        v = self.route(self.votes(self.primary(images)))[-1][0]
        lengths = self.lengths(v)
        return CapsNetOutput(lengths, v, self.decoder(v, self.mask(lengths, labels)))

    # Training

    def moved(self, images: Tensor) -> Tensor:
        """Training images, each moved by up to two pixels by itself."""
        return random_shift(images)

    def margin(self, lengths: Tensor, labels: Tensor) -> Tensor:
        """Equation 4."""
        return margin_loss(lengths, labels)

    def redrawing(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """The paper's reconstruction term (section 4.1): 0.0005 times the squared error, summed over the pixels."""
        return reconstruction_loss(reconstruction, images, scale=0.0005)

    def optimizer(self, before: torch.optim.Optimizer | None) -> torch.optim.Optimizer:
        """The optimiser of an epoch, given that of the epoch before."""
        return before or torch.optim.Adam(self.parameters(), lr=1e-3)

    def train_on(
        self, images: Tensor, labels: Tensor, epochs: int, batch_size: int = 64
    ) -> Iterator[tuple[float, float]]:
        """Train, and hand back the two losses of each step."""
        optimizer = None
        for _ in range(epochs):
            optimizer = self.optimizer(optimizer)
            for rows in torch.randperm(len(images)).to(images.device).split(batch_size):
                x, y = self.seen(self.moved(images[rows])), labels[rows]
                out = self(x, y)
                losses = self.margin(out.lengths, y), self.redrawing(out.reconstruction, x)
                optimizer.zero_grad()
                sum(losses).backward()
                optimizer.step()
                yield losses[0].item(), losses[1].item()

    @torch.no_grad()
    def error(self, images: Tensor, labels: Tensor) -> float:
        """The share of images that are misread, in %."""
        read = [self(self.seen(self.seen_in_use(some))).lengths.argmax(dim=1) for some in images.split(250)]
        return 100 * (torch.cat(read) != labels).float().mean().item()
