"""`python -m capsule_lib.train` with a network and data so small that an epoch takes a moment."""

import os
import sys
from dataclasses import replace

import torch

from capsule_lib.model import PRESETS, CapsNetConfig
from capsule_lib.train import command
from capsule_lib.train import run as running

PRESETS["tiny"] = CapsNetConfig(stem_channels=4, types=2, primary_dim=4, class_dim=6, decoder_hidden=(16,))
PRESETS["normed"] = replace(PRESETS["tiny"], stem=((4, 5, 1), (8, 3, 2)), depthwise=True)
PRESETS["other"] = CapsNetConfig(stem_channels=4, types=1, decoder_hidden=(16,))
load_digits = running.load_digits


def few_digits(name, split):
    images, labels = load_digits(name, split)
    return images[:: len(images) // 400], labels[:: len(labels) // 400]


def main(*arguments: str, log: str = os.devnull) -> None:
    """Run the command with these arguments, as a process of its own, its output going to the file `log`."""
    sys.argv = ["train", "--preset", "tiny", *arguments]
    with open(log, "w", buffering=1) as sys.stdout:
        sys.stderr = sys.stdout
        run()


def run() -> None:
    """Run the command with few digits; in a process of its own, because the library is changed for it."""
    torch.set_num_threads(1)
    running.load_digits = few_digits
    sys.exit(command.main())


if __name__ == "__main__":
    run()
