"""What a capsule's dimensions do to the drawn digit, measured in pixels and degrees instead of judged by eye.

From outside: `measure` measures pictures, in the units of `MEASURES`; `effects` says what each dimension of one class changes;
`dimension_effects` how much each changes the picture, of which `LIVE` is the least that counts; `capsules_by_class` sorts capsules.
"""

from capsule_lib.morphometry.effects import LIVE, Effects, capsules_by_class, dimension_effects, effects
from capsule_lib.morphometry.measures import MEASURES, measure

__all__ = ["LIVE", "MEASURES", "Effects", "capsules_by_class", "dimension_effects", "effects", "measure"]
