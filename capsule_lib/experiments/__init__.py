"""Experiments that the notebooks quote: `python -m capsule_lib.experiments robustness`, with its record under data/experiments/.

From outside: `NETWORKS`, the networks that are compared, and `build`, which makes one; `Robustness`, whose cells can be computed one
by one, with the settings of a `recipe`; `CONDITIONS`, what test digits are put through; `posed` and `read_out`, for read-outs;
`read_record` and `mean_and_spread`, for the figures.
"""

from capsule_lib.experiments.networks import NETWORKS, build, last_features, loss_of, parameters
from capsule_lib.experiments.readouts import QUANTITIES, posed, read_out
from capsule_lib.experiments.robustness import CONDITIONS, Robustness, recipe

__all__ = [
    "CONDITIONS", "NETWORKS", "QUANTITIES", "Robustness", "build", "last_features", "loss_of", "parameters", "posed", "read_out", "recipe",
]  # fmt: skip
