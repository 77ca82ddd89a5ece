"""A training, step by step: it can stop and go on after any of them, and several processes can share it."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from capsule_lib.contract import check_labels, check_pictures
from capsule_lib.data import erase, overlay, partners, rotate_and_scale, shift, shift_in_margin
from capsule_lib.losses import margin_loss, reconstruction_loss
from capsule_lib.model import CapsNet
from capsule_lib.training.config import TrainingConfig
from capsule_lib.training.evaluation import misread


class Epoch(NamedTuple):
    """What one pass over the training images gave: mean losses, share of wrong predictions in %, time in seconds."""

    number: int
    margin: float
    reconstruction: float
    error: float
    seconds: float


class Trainer:
    """A training under way. After any step it can be saved with `state_dict`, and gone on with later.

    Adam, with a learning rate that rises and falls to almost nothing (one cycle). Every image is moved by itself
    (section 5), and redrawn from the capsule of its label (section 4.1). With data 'overlapping' each lies below another one, of another
    class, drawn anew in each epoch; both are moved as the paper moves them, not by `max_shift`, and each is redrawn alone. The order of an epoch follows from the seed
    and the epoch alone, the move of an image from the seed, the epoch and the image alone: it makes no difference
    where a training was interrupted, or by how many processes it is shared (under torchrun each takes its part of
    every batch, and the gradient is that of the whole batch; only batch norm takes each process's part by itself).

    Args:
        net: trained where it is; it stays on its device.
        images: [N, C, H, W], values in 0..1, not shifted; on any device.
        labels: [N], class numbers.
        loss: of scores [B, J] and labels [B]. Another network than a CapsNet, without a decoder, can be trained with another loss; what
            it returns has its scores as `lengths`.
        config: the settings. With an `ema_decay` of 0.999, say, `measured` is a second network, whose weights (and the means and
            variances of batch norm) are after each step 0.999 of what they were and 0.001 of those of `net`; with 0, `measured`
            is `net` itself.

    Raises:
        TypeError, ValueError: images or labels that the network can't learn from.
        FloatingPointError: in `steps`, a loss or weights that are not finite.
    """

    def __init__(
        self, net: CapsNet, images: Tensor, labels: Tensor, config: TrainingConfig, loss: Callable = margin_loss
    ):
        # Notebook 06's own network has none, and is checked in its first step.
        config_of_net = getattr(net, "config", None)
        check_pictures(images, None if config.margin else config_of_net and config_of_net.image_shape)
        if config.margin and config_of_net:
            needed = (images.shape[1], *(side + 2 * config.margin for side in images.shape[2:]))
            if config_of_net.image_shape != needed:
                raise ValueError(
                    f"two overlapping digits of {list(images.shape[1:])} need a canvas of {list(needed)}; the network takes "
                    f"{list(config_of_net.image_shape)}: build it with image_shape={needed}"
                )
        labels = check_labels(labels, len(images), config_of_net and config_of_net.classes)
        if config.erase > min(images.shape[2:]):
            sides = " x ".join(map(str, images.shape[2:]))
            raise ValueError(
                f"erase: expected a patch that fits into images of {sides}; got one of {config.erase} pixels"
            )
        weight = next(net.parameters())
        self.net, self.config, self.loss, self.device = net, config, loss, weight.device
        self.images, self.labels = images.to(self.device, weight.dtype), labels.to(self.device)
        self.shared = dist.is_initialized()
        self.processes, self.rank = (dist.get_world_size(), dist.get_rank()) if self.shared else (1, 0)
        self.parallel = DistributedDataParallel(net) if self.shared else net
        self.classes = config_of_net.classes if config_of_net else max(10, int(labels.max()) + 1)
        self.steps_per_epoch = -(-len(images) // config.batch_size)
        adam = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
        self.optimizer = adam(net.parameters(), weight_decay=config.weight_decay, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.learning_rate, total_steps=config.epochs * self.steps_per_epoch
        )
        average = get_ema_multi_avg_fn(config.ema_decay)
        self.ema_model = AveragedModel(net, multi_avg_fn=average, use_buffers=True) if config.ema_decay else None
        self.measured = self.ema_model.module if self.ema_model else net
        self.epoch, self.step = 1, 0  # the epoch under way, and the steps of it that are done
        self.sums, self.seconds = torch.zeros(3), 0.0

    def steps(self) -> Iterator[int]:
        """Take the steps that the epoch still needs; yields the number of steps done after each."""
        generator = torch.Generator().manual_seed(1_000_003 * self.config.seed + self.epoch)
        order = torch.randperm(len(self.images), generator=generator)
        # What moves each image: seven even random numbers and four normal ones.
        draws = [torch.rand(len(self.images), n, generator=generator) for n in (4, 3)]
        draws = torch.cat([*draws, torch.randn(len(self.images), 4, generator=generator)], dim=1)
        if self.config.margin:  # which digit lies over each, and where the two lie
            places = torch.rand(len(self.images), 5, generator=generator)
            self.others, draws = partners(self.labels.cpu(), places[:, 4]), torch.cat([draws, places], dim=1)
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
        x, y, wanted = self._examples(own, draws)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            out = self.parallel(x, y)
        margin = self.loss(out.lengths, y)
        redrawn = 0 * margin
        if self.net.decoder:
            redrawn = reconstruction_loss(out.reconstruction, wanted, self.config.scale_for(x[0].numel()))
        self.optimizer.zero_grad()
        # Processes' gradients are averaged. Each loss is a mean over the process's own images, so it is weighed by its share.
        (self.processes * share * (margin + redrawn)).backward()
        wrong = misread(out.lengths, y).float().mean()
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

    def _examples(self, rows: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images, their labels, and the images that are to be redrawn from the labels' capsules."""
        x, y, own = self.images[rows], self.labels[rows], draws[rows].to(self.device)
        x = self._moved(x, own)
        if not self.config.margin:
            return x, y, x
        others = self.others[rows]
        second = self._moved(self.images[others], draws[others].to(self.device))
        pairs = overlay(x, y, second, self.labels[others], own[:, -5:-1], self.classes)
        return pairs.images, pairs.labels, pairs.originals.flatten(0, 1)

    def _moved(self, x: Tensor, draws: Tensor) -> Tensor:
        """Training images as the settings have them moved, by random numbers [B, 11]."""
        c = self.config
        if c.rotation or c.scaling or c.rotation_spread or c.squeeze:
            amounts = c.rotation, c.scaling, c.rotation_spread, c.squeeze
            x = rotate_and_scale(x, draws[:, [2, 3, 4, 7, 8]], *amounts)
        if c.shift == "margin":
            x = shift_in_margin(x, draws[:, 9:11])
        elif not c.margin:  # two digits are moved on their canvas
            x = shift(x, draws[:, :2], c.max_shift)
        return erase(x, draws[:, 5:7], c.erase) if c.erase else x

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


def train(
    net: CapsNet, images: Tensor, labels: Tensor, epochs: int, loss: Callable = margin_loss, **settings
) -> Iterator[Epoch]:
    """Train `net` and hand back an `Epoch` after each pass, so that you can look, save or stop in between.

        for epoch in train(net, images, labels, epochs=12):
            print(epoch)

    The network is in training mode while it trains, and in evaluation mode whenever you hold an `Epoch`.
    `settings` are other fields of `TrainingConfig`; `Trainer` says how it trains, with which `loss`, and what errors it raises.
    """
    trainer = Trainer(net, images, labels, TrainingConfig(epochs=epochs, **settings), loss)
    with tqdm(total=epochs * trainer.steps_per_epoch) as bar:
        for number in range(1, epochs + 1):
            bar.set_description(f"epoch {number}/{epochs}")
            for _ in trainer.steps():
                bar.update()
            yield trainer.end_epoch()
