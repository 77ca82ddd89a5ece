"""The experiment: the network `compact` with each of the family of routings, trained alike, so that nothing else differs."""

import math
import statistics
import time

import torch
from torch import Tensor, nn

from capsule_lib.experiments.networks import parameters
from capsule_lib.experiments.robustness import Robustness, error_of
from capsule_lib.losses import margin_loss
from capsule_lib.model import PRESETS, CapsNet
from capsule_lib.routing import length
from capsule_lib.routings import RoutedCaps

VERSION = 1  # raise it whenever the same settings would give other numbers
PASSES = {"shipped": {1_000: 30, 4_000: 18}, "mnist": {59_000: 8}}  # over so many training digits
STEP = 128  # images of the step that is timed


def recipe(data: str = "shipped", quick: bool = False) -> dict:
    """All settings of the experiment on 'shipped' or 'mnist', as they stand in the record; 'training' are those of `TrainingConfig`.

    Raises:
        ValueError: an unknown data set.
    """
    if data not in PASSES:
        raise ValueError(f"no data set {data!r}: choose one of {', '.join(map(repr, PASSES))}")
    settings = {
        "data": data, "quick": quick, "batch_size": 64, "seeds": [0, 1, 2], "iterations": 3,
        "training": {"rotation": 15.0, "scaling": 0.1, "weight_decay": 0.01, "reconstruction_scale": 0.0005},
        "learning_rates": [0.001, 0.0025, 0.005], "tuning_digits": 1_000, "tuning_epochs": 20,
        "epochs": {str(size): passes for size, passes in PASSES[data].items()},
        "test_digits": 2_000, "all_test_digits": 10_000,
    }  # fmt: skip
    tiny = {
        "seeds": [0], "learning_rates": [0.001, 0.005], "tuning_digits": 30, "tuning_epochs": 1, "epochs": {"100": 1},
        "test_digits": 20, "all_test_digits": 100,
    }  # fmt: skip
    return settings | (tiny if quick else {})


class Family(Robustness):
    """The digits of the other experiment, and cells for each routing.

        Family(recipe()).cell("EM", size=1_000, seed=0, learning_rate=0.005)["error_on_all"]

    Which learning rate a routing gets, and which routing is better, is decided by digits that are not the official test set:
    the tries' own, and `held_out_error`.
    """

    def build(self, network: str, pixels: int) -> nn.Module:
        """`compact` with another routing. All have the same stem, votes and decoder, drawn from the same random numbers."""
        net = CapsNet(PRESETS["compact"])
        in_dim, (classes, _, in_capsules, out_dim) = net.config.primary_dim, net.digit_caps.weight.shape
        routed = RoutedCaps(in_capsules, in_dim, classes, out_dim, network, self.settings["iterations"])
        with torch.no_grad():
            routed.weight.copy_(net.digit_caps.weight)
        net.digit_caps = routed
        return net.eval()

    def cell(self, network: str, size: int, seed: int, learning_rate: float) -> dict:
        """Train one network, and measure its errors in %, its couplings, and what a step of its class layer costs."""
        images, labels = self.balanced(size, seed)
        epochs = self.settings["epochs"][str(size)]
        net, seconds = self._train(network, images, labels, epochs, learning_rate, seed)
        return {
            "kind": "routing",
            **{"network": network, "size": size, "seed": seed, "learning_rate": learning_rate, "epochs": epochs},
            "tries": len(self.settings["learning_rates"]),
            "parameters": parameters(net),
            "routing_parameters": parameters(net.digit_caps.routing),
            "seconds": round(seconds, 1),
            "held_out_error": error_of(net, *self.held_out),
            "error_on_all": error_of(net, *self.all_test),
            "entropy": round(self._entropy(net), 4),
            **cost_of_a_step(net.digit_caps),
        }

    @torch.no_grad()
    def _entropy(self, net: CapsNet) -> float:
        """Of the last couplings on test digits, as `entropy` counts it."""
        parts = [net.primary(some.to(self.device)) for some in self.test[0].split(250)]
        return torch.cat([entropy(net.digit_caps(u, return_couplings=True)[1][-1]) for u in parts]).mean().item()


def entropy(couplings: Tensor) -> Tensor:
    """Entropy of the couplings [B, I, J] of each image and input, [B, I], as a share of the largest, log J: 1 where all are equal.

    What self-attention's prior takes below 0 counts as 0, and each input's are made to sum to 1.
    """
    p = couplings.clamp(min=0)
    p = p / p.sum(dim=2, keepdim=True).clamp(min=1e-12)
    return torch.special.entr(p).sum(dim=2) / math.log(p.shape[2])


def cost_of_a_step(layer: RoutedCaps, times: int = 12) -> dict[str, float]:
    """Forward and backward pass of a class layer with 128 images: the median in milliseconds, and the bytes kept in between."""
    _, in_dim, in_capsules, _ = layer.weight.shape
    u = (
        torch.rand(STEP, in_capsules, in_dim, generator=torch.Generator().manual_seed(0)).to(layer.weight.device)
        / in_dim
    )
    labels = torch.arange(STEP, device=u.device) % layer.weight.shape[0]
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    milliseconds = []
    for _ in range(times):
        start = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = margin_loss(length(layer(u)), labels)
        own, kept = sum(kept.values()), {}
        torch.autograd.grad(loss, [*layer.parameters()])
        loss.item()  # waits for the device
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return {"step_ms": round(statistics.median(milliseconds), 2), "bytes_kept": own}
