"""The museum of mistakes: a working network, and the mistakes of published ports, each of which can be switched on in it.

From outside: `Exhibit`, the working network; `ROOMS`, by name, each a `Room` with the network that makes the mistake and what tells it.
"""

from capsule_lib.museum.exhibit import Exhibit
from capsule_lib.museum.rooms import ROOMS, Room

__all__ = ["ROOMS", "Exhibit", "Room"]
