"""Training and measuring a capsule network."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from capsule_lib.data import shift, turn_and_scale
from capsule_lib.losses import margin_loss, reconstruction_loss
from capsule_lib.model import CapsNet

LIVE = 0.02  # a dimension is called live when it changes the picture by at least this much; see `dimension_effects`


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. The same network, images, recipe and thread count give the same weights, bit for bit."""

    epochs: int
    batch_size: int = 128
    learning_rate: float = 2e-3  # the highest of the cycle
    reconstruction_scale: float = 0.01  # of the squared error, summed over an image's pixels; the paper's is 0.0005
    rotation: float = 0.0  # each image is turned by up to this many degrees, both ways
    scaling: float = 0.0  # and its size changed by up to this share, both ways
    bfloat16: bool = False  # convolutions in bfloat16; capsules, decoder and weights stay in float32
    seed: int = 0  # of the order and the moves; the network's first weights come from torch.manual_seed


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


class Training:
    """A training under way. After any step it can be saved with `state_dict`, and gone on with later.

    Adam, with a learning rate that rises and falls to almost nothing (one cycle). Every image is moved by itself
    (section 5), and redrawn from the capsule of its label (section 4.1). The order of an epoch follows from the seed
    and the epoch alone, the move of an image from the seed, the epoch and the image alone: it makes no difference
    where a training was interrupted, or by how many processes it is shared (under torchrun each takes its part of
    every batch, and the gradient is that of the whole batch).

    Args:
        net: trained where it is; it stays on its device.
        images: [N, C, H, W], values in 0..1, not shifted; on any device.
        labels: [N], class numbers.
        averaging: with 0.999, say, `measured` is a second network whose weights are a running average of those of `net`:
            after each step, 0.999 of what they were and 0.001 of the new ones. With 0, `measured` is `net` itself.

    Raises:
        ValueError: images outside 0..1, which the decoder's sigmoid could never redraw.
        FloatingPointError: in `steps`, a loss that is not finite. The network is as it was before that step.
    """

    def __init__(self, net: CapsNet, images: Tensor, labels: Tensor, recipe: Recipe, averaging: float = 0.0):
        if not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(
                f"images must lie in 0..1, which is what the decoder's sigmoid can redraw; got {images.min():.2f}..{images.max():.2f}: "
                "leave out the normalisation to mean 0"
            )
        _check_pairs(images, labels)
        self.net, self.recipe = net, recipe
        self.device = next(net.parameters()).device
        self.images, self.labels = images.to(self.device), labels.to(self.device)
        self.shared = dist.is_initialized()
        self.processes, self.rank = (dist.get_world_size(), dist.get_rank()) if self.shared else (1, 0)
        self.parallel = DistributedDataParallel(net) if self.shared else net
        self.steps_an_epoch = -(-len(images) // recipe.batch_size)
        self.optimizer = torch.optim.Adam(net.parameters(), fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, recipe.learning_rate, total_steps=recipe.epochs * self.steps_an_epoch
        )
        self.average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(averaging)) if averaging else None
        self.measured = self.average.module if averaging else net
        self.epoch, self.step = 1, 0  # the epoch under way, and the steps of it that are done
        self.sums, self.seconds = torch.zeros(3), 0.0

    def steps(self) -> Iterator[int]:
        """Take the steps that the epoch still needs; yields the number of steps done after each."""
        generator = torch.Generator().manual_seed(1_000_003 * self.recipe.seed + self.epoch)
        order = torch.randperm(len(self.images), generator=generator)
        draws = torch.rand(len(self.images), 4, generator=generator)  # what moves each image
        self.net.train()
        for rows in order.split(self.recipe.batch_size)[self.step :]:
            start = time.perf_counter()
            self._take_step(rows, draws)
            self.step += 1
            self.seconds += time.perf_counter() - start
            yield self.step

    def _take_step(self, rows: Tensor, draws: Tensor) -> None:
        own = rows[self.rank :: self.processes]
        share = len(own) / len(rows)
        own = own if len(own) else rows[:1]  # a process without a part of a short batch joins in with a weight of 0
        x, y, own_draws = self.images[own], self.labels[own], draws[own].to(self.device)
        if self.recipe.rotation or self.recipe.scaling:
            x = turn_and_scale(x, own_draws[:, 2:], self.recipe.rotation, self.recipe.scaling)
        x = shift(x, own_draws[:, :2])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bfloat16):
            out = self.parallel(x, y)
        margin = margin_loss(out.lengths, y)
        redrawn = 0 * margin
        if self.net.decoder:
            redrawn = reconstruction_loss(out.reconstruction, x, self.recipe.reconstruction_scale)
        self.optimizer.zero_grad()
        # Processes' gradients are averaged. Each loss is a mean over the process's own images, so it is weighed by its share.
        (self.processes * share * (margin + redrawn)).backward()
        wrong = (out.lengths.argmax(dim=1) != y).float().mean()
        means = share * torch.stack([margin, redrawn, wrong]).detach()
        if self.shared:
            dist.all_reduce(means)
        if not means.isfinite().all():
            raise FloatingPointError(
                f"the loss is not finite at step {self.step + 1} of epoch {self.epoch} (margin {means[0]:.3g}, "
                f"reconstruction {means[1]:.3g}): try a lower learning rate than {self.recipe.learning_rate}"
            )
        self.optimizer.step()
        self.schedule.step()
        if self.average:
            self.average.update_parameters(self.net)
        self.sums += len(rows) * means.cpu()

    def end_epoch(self) -> Epoch:
        """What the epoch gave, once its steps are taken. The network is then in evaluation mode."""
        self.net.eval()
        margin, redrawn, wrong = (self.sums / len(self.images)).tolist()
        done = Epoch(self.epoch, margin, redrawn, 100 * wrong, self.seconds)
        self.epoch, self.step, self.sums, self.seconds = self.epoch + 1, 0, torch.zeros(3), 0.0
        return done

    def state_dict(self) -> dict:
        """Everything that a `Training` with the same arguments needs to go on from here."""
        parts = {name: getattr(self, name).state_dict() for name in self._parts()}
        return {**parts, **{name: getattr(self, name) for name in ("epoch", "step", "sums", "seconds")}}

    def load_state_dict(self, state: dict) -> None:
        for name in self._parts():
            getattr(self, name).load_state_dict(state[name])
        self.epoch, self.step, self.sums, self.seconds = (state[name] for name in ("epoch", "step", "sums", "seconds"))

    def _parts(self) -> list[str]:
        return ["net", "optimizer", "schedule", *(["average"] if self.average else [])]


def train(net: CapsNet, images: Tensor, labels: Tensor, epochs: int, **recipe) -> Iterator[Epoch]:
    """Train `net` and hand back an `Epoch` after each pass, so that you can look, save or stop in between.

        for epoch in train(net, images, labels, epochs=12):
            print(epoch)

    The network is in training mode while it trains, and in evaluation mode whenever you hold an `Epoch`.
    `recipe` takes the other fields of `Recipe`; `Training` says how it trains, and what errors it raises.
    """
    training = Training(net, images, labels, Recipe(epochs, **recipe))
    with tqdm(total=epochs * training.steps_an_epoch) as bar:
        for number in range(1, epochs + 1):
            bar.set_description(f"epoch {number}/{epochs}")
            for _ in training.steps():
                bar.update()
            yield training.end_epoch()


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
