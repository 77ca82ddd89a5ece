"""Where pictures come from and what moves them.

From outside: `load_digits` and `digit_sets`, digits by name; `DATA`, the folder that ships; `random_shift`, the paper's training
shifts, with `shift` and `rotate_and_scale`, which take their random numbers as an argument; `transform`, which puts pictures through
one of `TRANSFORMATIONS`, and `affnist`, that data set's recipe.
"""

from capsule_lib.data.digits import DATA, digit_sets, load_digits
from capsule_lib.data.moves import random_shift, rotate_and_scale, shift
from capsule_lib.data.transformations import TRANSFORMATIONS, affnist, transform

__all__ = [
    "DATA", "TRANSFORMATIONS", "affnist", "digit_sets", "load_digits", "random_shift", "rotate_and_scale", "shift", "transform",
]  # fmt: skip
