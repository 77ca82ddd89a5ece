"""The training command, `python -m capsule_lib.train`. From outside: `main`, the command, and `split_digits`."""

from capsule_lib.train.command import main, split_digits

__all__ = ["main", "split_digits"]
