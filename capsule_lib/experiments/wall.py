"""The experiment: the museum's working network and every mistake in it, after the same short training. Does the accuracy tell?"""

import torch
from torch import nn

from capsule_lib.experiments.robustness import Robustness
from capsule_lib.museum import ROOMS, Exhibit

VERSION = 1  # raise it whenever the same settings would give other numbers
WORKING = "no mistake"
EXHIBITS = {WORKING: Exhibit, **{name: room.network for name, room in ROOMS.items()}}
CURVE = 10  # steps of which a point of a training's curve is the mean


def recipe(data: str = "shipped", quick: bool = False) -> dict:
    """All settings of the experiment, as they stand in the record; the only data are 'shipped'.

    Raises:
        ValueError: another data set.
    """
    if data != "shipped":
        raise ValueError(f"no data set {data!r}: the museum's short trainings are on 'shipped'")
    settings = {
        "data": data, "quick": quick, "batch_size": 64, "seeds": [0, 1, 2], "epochs": {"4000": 4},
        "test_digits": 2_000, "all_test_digits": 10_000,
    }  # fmt: skip
    tiny = {"seeds": [0], "epochs": {"60": 1}, "test_digits": 20, "all_test_digits": 40}
    return settings | (tiny if quick else {})


class Wall(Robustness):
    """The digits of the other experiments, and a cell for each exhibit.

    Wall(recipe()).cell("softmax over the inputs", size=4_000, seed=0)["error_on_all"]
    """

    def build(self, network: str, pixels: int) -> nn.Module:
        """An untrained exhibit."""
        return EXHIBITS[network]().eval()

    def cell(self, network: str, size: int, seed: int) -> dict:
        """Train one exhibit for a few epochs, and measure: error in %, the curve of the margin loss, and what the invariant says."""
        images, labels = (part.to(self.device) for part in self.balanced(size, seed))
        torch.manual_seed(seed)
        net, batch_size = EXHIBITS[network]().to(self.device), self.settings["batch_size"]
        margins = []
        for margin, _ in net.train_on(images, labels, self.settings["epochs"][str(size)], batch_size):
            margins.append(margin)
            self.progress(3 * batch_size)
        net.eval()
        parts = [margins[n : n + CURVE] for n in range(0, len(margins), CURVE)]
        room = ROOMS.get(network)
        test_images, test_labels = (part.to(self.device) for part in self.all_test)
        return {
            "kind": "exhibit",
            **{"network": network, "row": room.row if room else None, "size": size, "seed": seed},
            "margins": [round(sum(part) / len(part), 4) for part in parts],
            "error_on_all": round(net.error(test_images, test_labels), 3),
            "tells": room and round(room.tell(net.cpu(), self.test[0][:100]), 4),
            "right": room and room.right,
        }
