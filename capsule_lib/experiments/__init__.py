"""Experiments that the notebooks quote: `python -m capsule_lib.experiments robustness`, or `routings`; records: data/experiments/.

From outside: `NETWORKS`, the networks that are compared, `build`, which makes one, and `Classifier`, which makes one of any features; `Robustness`, whose cells can be computed one
by one, with the settings of a `recipe`; `CONDITIONS`, what test digits are put through; `posed`, `last_features` and `read_out`, for
read-outs of `QUANTITIES`; `Family`, the same for the family of routings, with `entropy` of couplings; `by_network`, `errors_under` and `read_outs`, for the figures
of a record; `CLAIMS`, `Claim`, `Comparison`, `compare` and `verdict`, for what they say of a claim; `run`, what the command does.
"""

from capsule_lib.experiments.claims import CLAIMS, Claim, Comparison, compare, errors_under, read_outs, verdict
from capsule_lib.experiments.command import run
from capsule_lib.experiments.family import Family, entropy
from capsule_lib.experiments.networks import NETWORKS, Classifier, build, last_features, loss_of, parameters
from capsule_lib.experiments.readouts import QUANTITIES, posed, read_out
from capsule_lib.experiments.record import by_network
from capsule_lib.experiments.robustness import CONDITIONS, Robustness, recipe

__all__ = [
    "CLAIMS", "CONDITIONS", "NETWORKS", "QUANTITIES", "Claim", "Classifier", "Comparison", "Family", "Robustness", "build", "by_network", "compare", "entropy",
    "errors_under", "last_features", "loss_of", "parameters", "posed", "read_out", "read_outs", "recipe", "run", "verdict",
]  # fmt: skip
