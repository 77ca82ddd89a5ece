"""The family of routings, side by side: votes [B, I, J, D] in, output capsules and couplings out.

From outside: `Routing`, any of them by its name in `ROUTINGS`; `RoutedCaps`, class capsules with one of them, which takes the place
of a CapsNet's `digit_caps`.
"""

from capsule_lib.routings.forms import ROUTINGS
from capsule_lib.routings.layer import RoutedCaps, Routing

__all__ = ["ROUTINGS", "RoutedCaps", "Routing"]
