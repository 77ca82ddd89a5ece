"""Your own pictures, photos of handwriting and drawings among them, as images that a network takes.

From outside: `load_pictures` and `split_pictures`, which return `Pictures`; `common_shape`, the shape that most files have; and
`mnist_like`, from the strokes of a pen to a digit as MNIST's.
"""

from capsule_lib.own_pictures.drawing import mnist_like
from capsule_lib.own_pictures.reading import Pictures, common_shape, load_pictures, split_pictures

__all__ = ["Pictures", "common_shape", "load_pictures", "mnist_like", "split_pictures"]
