"""Where pictures come from and what moves them.

From outside: `load_digits` and `digit_sets`, digits by name; `without`, which leaves pictures out; `DATA`, the folder that ships; `random_shift`, the paper's training
shifts, with `shift`, `shift_in_margin`, `rotate_and_scale` and `erase`, which take their random numbers as an argument; `transform`, which puts pictures through
one of `TRANSFORMATIONS`, and `affnist`, that data set's recipe; `overlapping_digits`, two on top of each other, with `partners` and `overlay`, which take
their random numbers, and `MARGIN`, by which their canvas is larger.
"""

from capsule_lib.data.digits import DATA, digit_sets, load_digits, without
from capsule_lib.data.moves import erase, random_shift, rotate_and_scale, shift, shift_in_margin
from capsule_lib.data.overlapping import MARGIN, OverlappingDigits, overlapping_digits, overlay, partners
from capsule_lib.data.transformations import TRANSFORMATIONS, affnist, transform

__all__ = [
    "DATA", "MARGIN", "TRANSFORMATIONS", "OverlappingDigits", "affnist", "digit_sets", "erase", "load_digits", "overlapping_digits", "overlay",
    "partners", "random_shift", "rotate_and_scale", "shift", "shift_in_margin", "transform", "without",
]  # fmt: skip
