"""The training command, `python -m capsule_lib.train`.

From outside: `main`, the command; `split_digits`, its training, validation and test sets; and `recorded_settings`, the settings on
a card, older ones included.
"""

from capsule_lib.train.command import main
from capsule_lib.train.run import recorded_settings, split_digits

__all__ = ["main", "recorded_settings", "split_digits"]
