"""The experiment: capsule networks and their controls, trained alike on few digits and many, measured on transformed ones."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from capsule_lib.contract import COUNT
from capsule_lib.data import affnist, digit_sets, load_digits, shift, transform, without
from capsule_lib.device import choose_device, has_bfloat16
from capsule_lib.experiments.networks import build, last_features, loss_of, parameters
from capsule_lib.experiments.readouts import QUANTITIES, posed, read_out
from capsule_lib.training import Trainer, TrainingConfig, evaluate

VERSION = 1  # raise it whenever the same settings would give other numbers
MARGIN = 6  # black pixels round a digit of 28 x 28 that is placed on 40 x 40
READ_OUT = ("small", "uniform couplings", "no reconstruction", "CNN", "global pooling")
CONDITIONS = {  # what the test digits are put through
    "upright": ("shift", 0),
    **{f"turned {a}°": ("turn", a) for a in (15, -15, 30, -30, 45, -45)},  # positive: anticlockwise
    "scaled 0.75": ("scale", 0.75),
    "scaled 1.25": ("scale", 1.25),
    "slanted 17°": ("slant", 17),
    "moved 4 px": ("shift", 4),  # to the right
    "thickened 2 px": ("thicken", 2),
    "thinned 1 px": ("thicken", -1),
    "noise 0.3": ("noise", 0.3),
}


PASSES = {100: 60, 300: 40, 1_000: 25, 4_000: 15, 59_000: 10}  # over so many training digits
PLACED_PASSES = {4_000: 8, 59_000: 8}  # over digits placed on 40 x 40
SIZES = {"shipped": (100, 300, 1_000, 4_000), "mnist": (59_000,), "fashion": (100, 300, 1_000, 4_000, 59_000)}


def recipe(data: str = "shipped", quick: bool = False) -> dict:
    """All settings of the experiment on 'shipped', 'mnist' or 'fashion', as they stand in the record.

    Sizes are whole sets where they are 59,000: MNIST without the 1,000 shipped test digits, and as many clothes. 'stop_at' is
    the error in % on upright digits at which networks are compared, besides the comparison of what they are in the end.

    Raises:
        ValueError: an unknown data set.
    """
    if data not in SIZES:
        raise ValueError(f"no data set {data!r}: choose one of {', '.join(map(repr, SIZES))}")
    settings = {
        "data": data, "quick": quick, "batch_size": 32, "seeds": [0, 1, 2],
        "learning_rates": [0.0003, 0.001, 0.003], "tuning_digits": 1_000, "tuning_epochs": 20,
        "epochs": {str(size): PASSES[size] for size in SIZES[data]},
        "placed_epochs": {str(size): PLACED_PASSES[size] for size in SIZES[data] if size in PLACED_PASSES},
        "stop_at": {"4000": 20.0, "59000": 12.0} if data == "fashion" else {"4000": 4.0, "59000": 1.0},
        "check_every": 25,  # steps
        "test_digits": 2_000, "read_out_digits": 2_000, "all_test_digits": 10_000,
    }  # fmt: skip
    tiny = {
        "seeds": [0], "learning_rates": [0.001, 0.003], "tuning_digits": 30, "tuning_epochs": 1,
        "epochs": {"200": 1}, "placed_epochs": {"200": 1}, "stop_at": {"200": 100.0}, "check_every": 5,
        "test_digits": 20, "read_out_digits": 100, "all_test_digits": 100,
    }  # fmt: skip
    return settings | (tiny if quick else {})


class Robustness:
    """The experiment's digits, and its cells, each of which can be computed alone.

        experiment = Robustness(recipe())
        experiment.cell("CNN", size=100, seed=0, learning_rate=0.001)["errors"]["turned 30°"]

    Training digits are balanced, and drawn anew for each seed. The official test digits measure, and nothing is chosen by
    them; where they are not at hand, the 1,000 shipped ones do, and also say when a network is stopped.

    Args:
        settings: as `recipe` gives them.

    Attributes:
        progress: called with the number of pictures (as forward passes) after each stretch of work.
    """

    def __init__(self, settings: dict):
        data, count = settings["data"], settings["all_test_digits"]
        self.settings, self.device = settings, choose_device()
        self.progress: Callable[[int], object] = lambda pictures: None
        self.pool, self.test_name = load_digits(data, "train"), data
        if data == "fashion":
            images, labels = self.pool
            self.pool, self.held_out = (images[:-1000], labels[:-1000]), (images[-1000:], labels[-1000:])
            test = load_digits(data, "test")
        else:
            self.held_out = load_digits("shipped", "test")
            whole = digit_sets().get("MNIST test")
            test, self.test_name = (whole(), "MNIST") if whole else (self.held_out, "shipped")
        if data == "mnist":
            self.pool = without(*self.pool, self.held_out[0])
        self.held_out = tuple(part[:count] for part in self.held_out)
        self.all_test = tuple(part[:count] for part in test)
        self.test = tuple(part[: settings["test_digits"]] for part in test)

    def balanced(self, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """So many training digits, equally many of each class; all where there are no more. The seed draws them."""
        images, labels = self.pool
        if size >= len(labels):
            return images, labels
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        rows = torch.cat([order[labels[order] == j][: size // 10] for j in range(10)])
        return images[rows], labels[rows]

    def build(self, network: str, pixels: int) -> nn.Module:
        """A network by its name, freshly initialised."""
        return build(network, pixels)

    def tune(self, network: str, learning_rate: float) -> dict:
        """One try at a learning rate: the error in % on as many training digits as it is trained on, and other ones."""
        images, labels = self.balanced(2 * self.settings["tuning_digits"], seed=0)
        try:
            net, _ = self._train(network, images[::2], labels[::2], self.settings["tuning_epochs"], learning_rate, 0)
            error = error_of(net, images[1::2], labels[1::2])
        except FloatingPointError:  # it diverged
            error = 100.0
        return {"kind": "learning rate", "network": network, "learning_rate": learning_rate, "validation_error": error}

    def cell(self, network: str, size: int, seed: int, learning_rate: float, placed: bool = False) -> dict:
        """Train one network, and measure its errors in % under all `CONDITIONS`; or, placed at random on 40 x 40, on affNIST's.

        Where the settings have a `stop_at` for this size, 'stopped' holds the same errors as soon as that on the held-out
        digits was no larger, or None if it never was. At the largest size some networks are also read out.
        """
        COUNT.check("size", size)
        (images, labels), (held_out, held_labels) = self.balanced(size, seed), self.held_out
        epochs = self.settings["placed_epochs" if placed else "epochs"][str(size)]
        if placed:
            images, held_out = F.pad(images, 4 * [MARGIN]), placed_at_random(held_out, seed)
        target, stopped = self.settings["stop_at"].get(str(size)), None

        def check(net: nn.Module, step: int) -> None:
            nonlocal stopped
            if target is not None and stopped is None and step % self.settings["check_every"] == 0:
                error = error_of(net, held_out, held_labels)
                if error <= target:
                    stopped = {"step": step, "held_out_error": error, "errors": self._errors(net, placed)}

        net, seconds = self._train(network, images, labels, epochs, learning_rate, seed, MARGIN if placed else 2, check)
        cell = {
            "kind": "placed" if placed else "digits",
            **{"network": network, "size": size, "seed": seed, "learning_rate": learning_rate, "epochs": epochs},
            "tries": len(self.settings["learning_rates"]),
            "parameters": parameters(net),
            "decoder_parameters": parameters(net.decoder),
            "flops_per_picture": flops(net, images.shape[-1]),
            "seconds": round(seconds, 1),
            "errors": self._errors(net, placed),
            "stopped": stopped,
        }
        if not placed:
            cell["error_on_all"] = error_of(net, *self.all_test)
            if size == self._largest() and network in READ_OUT:
                cell["read_out"] = self.read_outs(lambda x, y: last_features(net, x, y), seed)
        return cell

    def read_outs(self, features: Callable[[Tensor, Tensor], Tensor], seed: int) -> dict[str, dict]:
        """R² of the read-outs of all `QUANTITIES` from `features` of images and labels, on test digits: see `read_out`."""
        (images, labels), test = self.balanced(self._largest(), seed), self.all_test
        unseen, unseen_labels = (part[: self.settings["read_out_digits"]] for part in test)
        results = {}
        for quantity in QUANTITIES:
            x, y = posed(images, quantity, 2 * seed)
            new_x, new_y = posed(unseen, quantity, 2 * seed + 1)
            fit = features(x, labels), y, labels
            results[quantity] = read_out(fit, (features(new_x, unseen_labels), new_y, unseen_labels))
        return results

    def control(self, features: str, seed: int) -> dict:
        """The read-outs from an untrained `small`, or from the pixels."""
        torch.manual_seed(seed)
        net = build("small").to(self.device)
        source = {"untrained": lambda x, y: last_features(net, x, y), "pixels": lambda x, y: x.flatten(1)}[features]
        return {"kind": "read-out", "features": features, "seed": seed, "read_out": self.read_outs(source, seed)}

    def _largest(self) -> int:
        return min(max(map(int, self.settings["epochs"])), 4_000)

    def _train(
        self, network: str, images: Tensor, labels: Tensor, epochs: int, learning_rate: float, seed: int,
        max_shift: int = 2, check: Callable[[nn.Module, int], None] = lambda net, step: None,
    ) -> tuple[nn.Module, float]:  # fmt: skip
        """A trained network, and the seconds that its steps took."""
        torch.manual_seed(seed)
        net = self.build(network, images.shape[-1]).to(self.device)
        config = TrainingConfig(
            epochs=epochs, batch_size=self.settings["batch_size"], learning_rate=learning_rate, max_shift=max_shift, seed=seed,
            precision="bfloat16" if has_bfloat16(self.device) else "float32", **self.settings.get("training", {}),
        )  # fmt: skip
        trainer, seconds = Trainer(net, images, labels, config, loss_of(net)), 0.0
        for epoch in range(epochs):
            for step in trainer.steps():
                check(net, epoch * trainer.steps_per_epoch + step)
                self.progress(3 * config.batch_size)  # a backward pass takes as long as two forward passes
            seconds += trainer.end_epoch().seconds
        return net, seconds

    def _errors(self, net: nn.Module, placed: bool) -> dict[str, float]:
        images, labels = self.test
        if placed:
            tests = {"placed": placed_at_random(images, 0), "affNIST": affnist(images)}
        else:
            tests = {name: transform(images, *how) for name, how in CONDITIONS.items()}
        self.progress(len(tests) * len(images))
        return {name: error_of(net, x, labels) for name, x in tests.items()}


def error_of(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of wrong predictions, in %, as it is written down."""
    return round(evaluate(net, images, labels).error, 3)


def placed_at_random(images: Tensor, seed: int) -> Tensor:
    """Each digit [N, 1, 28, 28] at its own random place on black, [N, 1, 40, 40]."""
    draws = torch.rand(len(images), 2, generator=torch.Generator().manual_seed(seed))
    return shift(F.pad(images, 4 * [MARGIN]), draws.to(images.device), MARGIN)


def flops(net: nn.Module, pixels: int) -> int:
    """Floating-point operations of one picture's forward pass, in matrix products and convolutions: a multiply-add counts as two."""
    blank = torch.zeros(1, 1, pixels, pixels, device=next(net.parameters()).device)
    # Gradients stay on: without them, attention takes a path that isn't counted.
    with FlopCounterMode(display=False) as counter:
        net(blank)
    return counter.get_total_flops()
