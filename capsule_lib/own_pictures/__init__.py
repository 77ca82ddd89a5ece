"""Your own pictures, photos of handwriting among them, as images that a network takes.

From outside: `load_pictures` and `split_pictures`, which return `Pictures`; `common_shape`, the shape that most files have; and how
MNIST's digits lie in their pictures: `BOX`, `PEN`, `SPECK` and `middle`, which the explorer's drawing pad keeps to as well.
"""

from capsule_lib.own_pictures.digit import BOX, PEN, SPECK, middle
from capsule_lib.own_pictures.reading import Pictures, common_shape, load_pictures, split_pictures

__all__ = ["BOX", "PEN", "SPECK", "Pictures", "common_shape", "load_pictures", "middle", "split_pictures"]
