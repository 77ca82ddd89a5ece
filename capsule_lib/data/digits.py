"""Handwritten digits: a small real set that always works, the whole of MNIST and Fashion-MNIST where they can be had."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import torch
from safetensors.torch import load
from torch import Tensor

from capsule_lib.files import DATA, INSTALLED, RESTORE, capsule_home, is_writable, read_sums, read_verified, write_whole

SHIPPED_SHA256 = "f9687aeb5267a9557fa3c949a8f6bf492353320a9a992d457296d3bfaf52dcda"
MNIST_SHA256 = {  # of the unpacked files
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def load_digits(name: str = "shipped", split: str = "train") -> tuple[Tensor, Tensor]:
    """Images [N, 1, 28, 28] as float32 in 0..1, and labels [N] as int64 in 0..9, on the CPU.

    Args:
        name: 'shipped', 4,000 training and 1,000 test digits of MNIST, balanced, that come with the course (all from
            MNIST's training set); 'mnist', 60,000 and 10,000; or 'fashion', the same for pictures of clothes.
            The last two are looked for under the folder that the environment variable CAPSULE_DATA names, under `data/`,
            and under `data` in `capsule_home()`. Then torchvision downloads them: to the `data/` of a checkout, or, where
            that is read-only or the course was installed without one, to `capsule_home()`.
        split: 'train' or 'test'.

    Raises:
        ValueError: an unknown name or split, or a file that is cut short or altered.
        FileNotFoundError: the whole set is not there and could not be downloaded.
    """
    if split not in ("train", "test"):
        raise ValueError(f"no split {split!r}: choose 'train' or 'test'")
    if name == "shipped":
        path = DATA / "shipped_digits.safetensors"
        parts = load(read_verified(path, SHIPPED_SHA256, RESTORE))
        images, labels = parts[f"{split}_images"], parts[f"{split}_labels"]
    elif name in ("mnist", "fashion"):
        images, labels = _load_whole(name, split)
    else:
        raise ValueError(f"no data set {name!r}: choose 'shipped', 'mnist' or 'fashion'")
    return images[:, None].float() / 255, labels.long()


def without(images: Tensor, labels: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Images and labels, less those images that are among `others`, pixel by pixel: so that these stay unseen."""
    seen = {image.numpy().tobytes() for image in others}
    keep = torch.tensor([image.numpy().tobytes() not in seen for image in images])
    return images[keep], labels[keep]


def digit_sets() -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    """The sets of MNIST's digits that are at hand without a download, by name; each a function that loads it.

    Always 'shipped', the 1,000 test digits of the course; where there is MNIST, 'MNIST test' and 'MNIST training' too.
    """
    sets = {"shipped": ("shipped", "test"), "MNIST test": ("mnist", "test"), "MNIST training": ("mnist", "train")}
    return {
        title: partial(load_digits, name, split)
        for title, (name, split) in sets.items()
        if name == "shipped" or _find_whole("MNIST", split)
    }


def _load_whole(name: str, split: str) -> tuple[Tensor, Tensor]:
    from torchvision import datasets  # here, because it takes longer to import than the rest of the package

    readers = datasets.mnist.read_image_file, datasets.mnist.read_label_file
    dataset = {"mnist": datasets.MNIST, "fashion": datasets.FashionMNIST}[name]
    root = _find_whole(dataset.__name__, split) or _download(dataset)
    folder = root / dataset.__name__ / "raw"
    remedy = "delete that folder so that it can be downloaded again, or use load_digits('shipped')"
    files = _files(split)
    sums = MNIST_SHA256 if name == "mnist" else _own_sums(folder)
    for file in files:
        read_verified(folder / file, sums[file], remedy)
    count = 60_000 if split == "train" else 10_000
    try:
        # read here, because the data set's own class wants the files of the other split too
        images, labels = (read(str(folder / file)) for read, file in zip(readers, files, strict=True))
    except (ValueError, RuntimeError, AssertionError, IndexError, OSError) as error:
        raise ValueError(f"the {name} files in {folder} can't be read ({error}): {remedy}") from error
    if images.shape != (count, 28, 28) or labels.shape != (count,):
        raise ValueError(f"{folder} should hold {count:,} images of 28 x 28; it holds {list(images.shape)}: {remedy}")
    return images, labels


def _own_sums(folder: Path) -> dict[str, str]:
    """SHA-256 of a set's files, as they were when they were first read: written beside them then, where that can be.

    Fashion-MNIST's publisher gives checksums of the packed files only, which torchvision verifies as it unpacks them.
    """
    record = folder / "SHA256SUMS"
    there = [file for split in ("train", "test") for file in _files(split) if (folder / file).is_file()]
    sums = read_sums(record)
    if new := {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in there if file not in sums}:
        sums |= new
        with contextlib.suppress(OSError):
            write_whole({record: "".join(f"{sha}  {file}\n" for file, sha in sorted(sums.items())).encode()})
    return sums


def _files(split: str) -> list[str]:
    stem = "train" if split == "train" else "t10k"
    return [f"{stem}-{kind}" for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]


def _roots() -> list[Path]:
    return [Path(folder) for folder in (os.environ.get("CAPSULE_DATA"), DATA, capsule_home() / "data") if folder]


def _find_whole(folder: str, split: str) -> Path | None:
    """Under which folder this machine has a whole set."""
    return next((r for r in _roots() if all((r / folder / "raw" / f).is_file() for f in _files(split))), None)


def _download(dataset: type) -> Path:
    """Fetch a whole set into the folder that is returned. It appears there whole or not at all."""
    folder = DATA if DATA != INSTALLED and is_writable(DATA) else capsule_home() / "data"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".download-*-*"):  # by a process that was killed meanwhile
            if not psutil.pid_exists(int(left.name.split("-")[1])):
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".download-{os.getpid()}-") as aside:
            dataset(aside, download=True)
            if not (folder / dataset.__name__).exists():  # else another process was quicker
                os.rename(Path(aside) / dataset.__name__, folder / dataset.__name__)
    except (OSError, RuntimeError) as error:
        wanted = " and ".join(str(root / dataset.__name__ / "raw") for root in _roots())
        raise FileNotFoundError(
            f"{dataset.__name__} is not in {wanted}, and the download failed ({error}). Set CAPSULE_DATA to a folder "
            f"that holds {dataset.__name__}/raw/train-images-idx3-ubyte and so on, or use load_digits('shipped')"
        ) from error
    return folder
