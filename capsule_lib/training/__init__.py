"""Training and measuring a capsule network.

From outside: `train` trains a network pass by pass, with the settings of a `TrainingConfig`; `evaluate` measures one; `Trainer` is
what both the function and the command `python -m capsule_lib.train` train with.
"""

from capsule_lib.training.config import TrainingConfig
from capsule_lib.training.evaluation import Evaluation, evaluate
from capsule_lib.training.trainer import Epoch, Trainer, train

__all__ = ["Epoch", "Evaluation", "Trainer", "TrainingConfig", "evaluate", "train"]
