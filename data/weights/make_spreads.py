"""Measure how far the capsules of the shipped training digits spread, for the networks that ship: NAME.spreads.safetensors.

python data/weights/make_spreads.py
"""

from capsule_lib import load_digits, load_pretrained
from capsule_lib.explorer.spreads import measure_spreads, save_spreads
from capsule_lib.weights import WEIGHTS

if __name__ == "__main__":
    images, labels = load_digits("shipped", "train")
    for name in ("small", "paper"):
        path = save_spreads(measure_spreads(load_pretrained(name), images, labels), WEIGHTS / f"{name}.safetensors")
        print(f"{path}: {path.stat().st_size:,} bytes")
