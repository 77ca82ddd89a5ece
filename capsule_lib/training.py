"""Training and measuring a capsule network."""

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from capsule_lib.contract import COUNT, DEGREES, POSITIVE, SEED, SHARE, WEIGHT, check_labels, check_pictures
from capsule_lib.data import rotate_and_scale, shift
from capsule_lib.losses import margin_loss, reconstruction_loss
from capsule_lib.model import PRESETS, CapsNet


def _setting(default, kind, words: str):
    """A field of `TrainingConfig`: its default, which values fit (a kind, a list of choices, or any text), and what it means."""
    return field(default=default, metadata={"kind": kind, "words": words})


@dataclass(frozen=True)
class TrainingConfig:
    """Every setting of a training: what the command takes, and what a checkpoint and a card record.

    The same network, images, settings and thread count give the same weights, bit for bit.

    Raises:
        ValueError: a value that does not fit. It is named, with what was expected.
    """

    preset: str = _setting("small", PRESETS, "the network: the paper's, or a quarter of its size")
    data: str = _setting(
        "shipped", str, "the 4,000 'shipped' digits, 'mnist', 'fashion', or a folder of your own pictures"
    )
    epochs: int = _setting(20, COUNT, "passes over the training images")
    batch_size: int = _setting(128, COUNT, "images per step, over all processes together")
    learning_rate: float = _setting(2e-3, POSITIVE, "the highest one: it rises to it and falls again")
    reconstruction_scale: float | None = _setting(
        None, WEIGHT, "weight of the squared error, summed over an image's pixels; the paper's is 0.0005; "
        "by default 0.01 at 784 pixels, and so much at other sizes that the mean has the same weight",
    )  # fmt: skip
    rotation: float = _setting(0.0, DEGREES, "rotate each training image by up to so many degrees, both ways")
    scaling: float = _setting(0.0, SHARE, "change the size of each training image by up to this share, both ways")
    ema_decay: float = _setting(
        0.0, SHARE, "decay of an exponential moving average of the weights, which is what is evaluated and saved; "
        "0.999 averages over about 1,000 steps; 0: no average",
    )  # fmt: skip
    start: str | None = _setting(
        None, str, "weights.safetensors of an earlier run, to start from instead of random weights"
    )
    iterations: int = _setting(3, COUNT, "routing iterations")
    seed: int = _setting(0, SEED, "of the first weights, the split, the order and the moves of the images")
    precision: str = _setting("float32", ("float32", "bfloat16"), "of the convolutions; all else stays in float32")

    def __post_init__(self):
        for each in dataclasses.fields(self):
            name, value, kind = each.name, getattr(self, each.name), each.metadata["kind"]
            if isinstance(kind, tuple | dict):
                if value not in kind:
                    raise ValueError(f"{name}: expected one of {', '.join(map(repr, kind))}; got {value!r}")
            elif kind is not str and not (value is None and each.default is None):
                object.__setattr__(self, name, kind.check(name, value))
            elif kind is str and not ((isinstance(value, str) and value) or value is each.default):
                raise ValueError(f"{name}: expected a text; got {value!r}")

    def scale_for(self, pixels: int) -> float:
        """The reconstruction's weight for images of so many pixels, counted over all channels."""
        return 0.01 * (784 / pixels) if self.reconstruction_scale is None else self.reconstruction_scale


class Epoch(NamedTuple):
    """What one pass over the training images gave: mean losses, share of wrong predictions in %, time in seconds."""

    number: int
    margin: float
    reconstruction: float
    error: float
    seconds: float


class Evaluation(NamedTuple):
    """error in %; mse, the mean squared error per pixel of what the longest capsule redraws (None without a decoder);
    lengths [N, J] on the CPU."""

    error: float
    mse: float | None
    lengths: Tensor


class Trainer:
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
        config: the settings. With an `ema_decay` of 0.999, say, `measured` is a second network, whose weights are after each
            step 0.999 of what they were and 0.001 of those of `net`; with 0, `measured` is `net` itself.

    Raises:
        TypeError, ValueError: images or labels that the network can't learn from.
        FloatingPointError: in `steps`, a loss or weights that are not finite.
    """

    def __init__(self, net: CapsNet, images: Tensor, labels: Tensor, config: TrainingConfig):
        config_of_net = getattr(
            net, "config", None
        )  # notebook 06's own network has none, and is checked in its first step
        check_pictures(images, config_of_net and config_of_net.image_shape)
        labels = check_labels(labels, len(images), config_of_net and config_of_net.classes)
        weight = next(net.parameters())
        self.net, self.config, self.device = net, config, weight.device
        self.images, self.labels = images.to(self.device, weight.dtype), labels.to(self.device)
        self.shared = dist.is_initialized()
        self.processes, self.rank = (dist.get_world_size(), dist.get_rank()) if self.shared else (1, 0)
        self.parallel = DistributedDataParallel(net) if self.shared else net
        self.steps_per_epoch = -(-len(images) // config.batch_size)
        self.optimizer = torch.optim.Adam(net.parameters(), fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.learning_rate, total_steps=config.epochs * self.steps_per_epoch
        )
        average = get_ema_multi_avg_fn(config.ema_decay)
        self.ema_model = AveragedModel(net, multi_avg_fn=average) if config.ema_decay else None
        self.measured = self.ema_model.module if self.ema_model else net
        self.epoch, self.step = 1, 0  # the epoch under way, and the steps of it that are done
        self.sums, self.seconds = torch.zeros(3), 0.0

    def steps(self) -> Iterator[int]:
        """Take the steps that the epoch still needs; yields the number of steps done after each."""
        generator = torch.Generator().manual_seed(1_000_003 * self.config.seed + self.epoch)
        order = torch.randperm(len(self.images), generator=generator)
        draws = torch.rand(len(self.images), 4, generator=generator)  # what moves each image
        self.net.train()
        for rows in order.split(self.config.batch_size)[self.step :]:
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
        if self.config.rotation or self.config.scaling:
            x = rotate_and_scale(x, own_draws[:, 2:], self.config.rotation, self.config.scaling)
        x = shift(x, own_draws[:, :2])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            out = self.parallel(x, y)
        margin = margin_loss(out.lengths, y)
        redrawn = 0 * margin
        if self.net.decoder:
            redrawn = reconstruction_loss(out.reconstruction, x, self.config.scale_for(x[0].numel()))
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
                f"reconstruction {means[1]:.3g}): try a lower learning rate than {self.config.learning_rate}"
            )
        self.optimizer.step()
        self.schedule.step()
        if self.ema_model:
            self.ema_model.update_parameters(self.net)
        self.sums += len(rows) * means.cpu()

    def end_epoch(self) -> Epoch:
        """What the epoch gave, once its steps are taken. The network is then in evaluation mode."""
        self.net.eval()
        if not all(p.isfinite().all() for p in self.measured.parameters()):  # the loss can't tell after the last step
            raise FloatingPointError(
                f"weights are not finite after epoch {self.epoch}: try a lower learning rate than {self.config.learning_rate}"
            )
        margin, redrawn, wrong = (self.sums / len(self.images)).tolist()
        done = Epoch(self.epoch, margin, redrawn, 100 * wrong, self.seconds)
        self.epoch, self.step, self.sums, self.seconds = self.epoch + 1, 0, torch.zeros(3), 0.0
        return done

    def state_dict(self) -> dict:
        """Everything that a `Trainer` with the same arguments needs to go on from here."""
        parts = {name: getattr(self, name).state_dict() for name in self._parts()}
        return {**parts, **{name: getattr(self, name) for name in ("epoch", "step", "sums", "seconds")}}

    def load_state_dict(self, state: dict) -> None:
        """Go on from what `state_dict` gave. A ValueError says what does not belong to a training like this one."""
        try:
            for name in self._parts():
                getattr(self, name).load_state_dict(state[name])
            epoch, step, sums, seconds = (state[name] for name in ("epoch", "step", "sums", "seconds"))
            sums, seconds = sums + torch.zeros(3), float(seconds)
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"not the state of a training of this network ({error})") from error
        for name, value, most in [("epoch", epoch, self.config.epochs + 1), ("step", step, self.steps_per_epoch)]:
            if not isinstance(value, int) or not 0 <= value <= most:
                raise ValueError(f"not the state of a training of this length: {name} {value!r} is not in 0..{most}")
        self.epoch, self.step, self.sums, self.seconds = epoch, step, sums, seconds

    def _parts(self) -> list[str]:
        return ["net", "optimizer", "schedule", *(["ema_model"] if self.ema_model else [])]


def train(net: CapsNet, images: Tensor, labels: Tensor, epochs: int, **settings) -> Iterator[Epoch]:
    """Train `net` and hand back an `Epoch` after each pass, so that you can look, save or stop in between.

        for epoch in train(net, images, labels, epochs=12):
            print(epoch)

    The network is in training mode while it trains, and in evaluation mode whenever you hold an `Epoch`.
    `settings` are other fields of `TrainingConfig`; `Trainer` says how it trains, and what errors it raises.
    """
    trainer = Trainer(net, images, labels, TrainingConfig(epochs=epochs, **settings))
    with tqdm(total=epochs * trainer.steps_per_epoch) as bar:
        for number in range(1, epochs + 1):
            bar.set_description(f"epoch {number}/{epochs}")
            for _ in trainer.steps():
                bar.update()
            yield trainer.end_epoch()


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
