"""The explorer: turn the dimensions of a class capsule and watch the digit change.

From outside: `CapsuleExplorer`, the widget; and `measure_spreads`, `save_spreads`, `load_spreads`, how far real digits'
capsules spread. All else belongs to the room.
"""

from capsule_lib.explorer.spreads import Spreads, load_spreads, measure_spreads, save_spreads
from capsule_lib.explorer.widget import CapsuleExplorer

__all__ = ["CapsuleExplorer", "Spreads", "load_spreads", "measure_spreads", "save_spreads"]
