"""Reading picture files, alone or in a folder for each class, as tensors."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor
from tqdm import tqdm

from capsule_lib.contract import COUNT, SEED, Kind
from capsule_lib.own_pictures import digit

SIDE = Kind("a whole number of pixels from 17 on, as two convolutions with kernels of 9 need", int, lambda n: n >= 17)
SMALLEST = 16  # pixels of a photo's longer side; with fewer a digit can't be made out


@dataclass(frozen=True, eq=False, repr=False)
class Pictures:
    """Pictures that were read. `images, labels = pictures` takes them apart, as `load_digits` gives them.

    images: [N, C, H, W] in 0..1; with like='mnist' 0 is paper and 1 is ink.
    labels: [N], counted from 0, or None for files that came without class folders.
    classes: the class folders' names in alphabetical order. Label 2 is classes[2], whatever number that name may be.
    files: where each picture comes from.
    """

    images: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    files: tuple[Path, ...]
    like: str | None

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter((self.images, self.labels))

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.images.shape))
        return f"Pictures({shape}{', classes ' * bool(self.classes)}{', '.join(self.classes)})"

    def contact_sheet(self, count: int = 10) -> Image.Image:
        """The first `count` files, and below each what the network sees of it, a digit as ink on paper."""
        side, count = 140, min(COUNT.check("count", count), len(self.files))
        sheet = Image.new("RGB", (count * side, 2 * side + 16), "white")
        seen = self.images[:count].expand(-1, 3, -1, -1).movedim(1, 3)
        seen = 1 - seen if self.like else seen
        for n, pixels in enumerate((255 * seen).round().byte().numpy()):
            for row, picture in enumerate((_open(self.files[n]), Image.fromarray(pixels))):
                picture = ImageOps.contain(picture, (side - 8, side - 8), (Image.Resampling.BICUBIC, 0)[row])
                left, top = ((side - length) // 2 for length in picture.size)
                sheet.paste(picture, (n * side + left, row * side + top))
            name = "/".join(self.files[n].parts[-2 if self.classes else -1 :])
            ImageDraw.Draw(sheet).text((n * side + side / 2, 2 * side + 6), name[-22:], "black", anchor="mm")
        return sheet


def load_pictures(
    path: str | Path | Iterable[str | Path],
    size: int | tuple[int, int] = 28,
    like: str | None = "mnist",
    channels: int | None = None,
) -> Pictures:
    """Read photos of handwritten digits as pictures like MNIST's, or any pictures as they are.

    Args:
        path: a folder that holds a folder for each class, read as torchvision's ImageFolder reads it; or a file, or a list of them.
            Pillow reads the files: PNG, JPEG and many more. In folders, hidden files and those of another kind are passed over.
        size: pixels of the result, one number for a square, or (height, width).
        like: 'mnist' finds the one digit in each picture, dark on light paper or light on dark, and gives [1, size, size]: without
            shadows, specks and pale ruled lines, its stroke about as thick as in MNIST, its longer side 20/28 of the size,
            its centre of mass in the middle. Leave some paper all round the digit. None keeps everything: the picture is
            scaled, and evenly cut where its proportions are not those of the size.
        channels: with like=None 3 for colour (the default) or 1 for grey.

    Raises:
        FileNotFoundError: there is no such file or folder, or no picture in it.
        TypeError, ValueError: an argument is not as described, a file can't be read, or there is no digit in it.
    """
    height, width = size if isinstance(size, tuple | list) and len(size) == 2 else (size, size)
    height, width = SIDE.check("size", height), SIDE.check("size", width)
    if like not in ("mnist", None):
        raise ValueError(f"like: expected 'mnist', or None for pictures as they are; got {like!r}")
    if like and height != width:
        raise ValueError(f"size: pictures like MNIST's are square; got {size}: give one number, or like=None")
    if channels not in ((None, 1) if like else (None, 1, 3)):
        raise ValueError(f"channels: expected {'1 with like=' + repr(like) if like else '1 or 3'}; got {channels!r}")
    classes, files = _listed(path)
    labels = torch.tensor([label for label, own in enumerate(files) for _ in own]) if classes else None
    files = tuple(file for own in files for file in own)
    images = torch.empty(len(files), 1 if like else channels or 3, height, width)
    for image, file in zip(images, tqdm(files, "reading pictures", disable=len(files) < 100), strict=True):
        picture = _open(file, max(height, width))
        if not like:
            picture = ImageOps.fit(picture, (width, height)).convert("RGB" if len(image) == 3 else "L")
            image.copy_(torch.from_numpy(np.array(picture).reshape(height, width, -1)).movedim(2, 0) / 255)
            continue
        if max(picture.size) < SMALLEST:
            raise ValueError(
                f"{file} is {picture.width} x {picture.height} pixels: give at least {SMALLEST} for a digit"
            )
        try:
            image.copy_(digit.mnist_like_photo(picture, height))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    return Pictures(images, labels, classes, files, like)


def split_pictures(
    folder: str | Path,
    size: int | tuple[int, int] = 28,
    like: str | None = "mnist",
    channels: int | None = None,
    seed: int = 0,
) -> tuple[Pictures, Pictures]:
    """Training and test pictures: folder/train/CLASS and folder/test/CLASS, or folder/CLASS less a tenth of each class for the test.

    Args:
        folder, size, like, channels: as `load_pictures` takes them.
        seed: of the choice of that tenth.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `load_pictures`; or one of train and test is missing, their classes differ,
            there is only one class, or a single picture of a class.
    """
    SEED.check("seed", seed)
    if not isinstance(folder, str | os.PathLike) or not Path(folder).expanduser().is_dir():
        raise FileNotFoundError(f"expected a folder that holds a folder for each class; got {folder!r}")
    parts = [part for name in ("train", "test") if (part := Path(folder).expanduser() / name).is_dir()]
    if len(parts) == 1:
        raise FileNotFoundError(f"{parts[0]} needs train and test beside each other: add the other, or give {parts[0]}")
    loaded = [load_pictures(part, size, like, channels) for part in parts or [folder]]
    if any(len(pictures.classes) < 2 or pictures.classes != loaded[0].classes for pictures in loaded):
        found = " and ".join(", ".join(pictures.classes) for pictures in loaded)
        raise ValueError(f"expected two class folders or more, the same in train and test; got {found}")
    if parts:
        return loaded[0], loaded[1]
    whole, generator = loaded[0], torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(whole.files), dtype=torch.bool)
    for label, name in enumerate(whole.classes):
        own = torch.nonzero(whole.labels == label).flatten()
        if len(own) < 2:
            raise ValueError(f"{whole.files[own[0]]} is the only picture of class {name}: add one for the test")
        held_out[own[torch.randperm(len(own), generator=generator)[: max(1, len(own) // 10)]]] = True
    return _chosen(whole, ~held_out), _chosen(whole, held_out)


def common_shape(folder: str | Path, most: int = 128) -> tuple[tuple[int, int], int]:
    """The size (height, width) that most picture files below a folder have, and 3 channels, or 1 where all are grey.

    Of larger pictures the longer side becomes `most` pixels, and the shorter one keeps its proportion.
    """
    sizes, modes = Counter(), set()
    for file in _pictures_in(Path(folder)):
        try:
            with Image.open(file) as picture:
                sizes[picture.size] += 1
                modes.add(picture.mode)
        except OSError:  # `load_pictures` says what ails it
            continue
    if not sizes:
        raise FileNotFoundError(f"{folder} holds no picture: expected a folder of pictures for each class in it")
    width, height = sizes.most_common(1)[0][0]
    scale = min(1, most / max(width, height))
    return (round(scale * height), round(scale * width)), 1 if modes <= {"1", "L", "LA", "I;16"} else 3


def _chosen(pictures: Pictures, these: Tensor) -> Pictures:
    files = tuple(pictures.files[n] for n in torch.nonzero(these).flatten())
    return replace(pictures, images=pictures.images[these], labels=pictures.labels[these], files=files)


def _listed(path: str | Path | Iterable[str | Path]) -> tuple[tuple[str, ...], list[list[Path]]]:
    """The classes and the files of each; without classes, one list of files."""
    paths = [path] if isinstance(path, str | os.PathLike) or not isinstance(path, Iterable) else list(path)
    if not paths or not all(isinstance(one, str | os.PathLike) for one in paths):
        raise TypeError(
            f"path: expected a folder, a picture file or a list of files; got {type(path).__name__} {path!r:.80}"
        )
    paths = [Path(one).expanduser() for one in paths]
    for one in paths:
        if not one.exists():
            raise FileNotFoundError(f"{one} is not there: check the path, from {Path.cwd()} if it is relative")
        if one.is_dir() and len(paths) > 1:
            raise ValueError(f"{one} is a folder among files: give one folder, or a list of files")
    folder = paths[0]
    if not folder.is_dir():
        return (), [paths]
    classes = tuple(sorted(one.name for one in folder.iterdir() if one.is_dir() and not _hidden(one.name)))
    if {"train", "test"} <= set(classes):
        raise ValueError(f"{folder} holds train and test, not classes: give {folder / 'train'}, or use split_pictures")
    files = [_pictures_in(folder / name) for name in classes]
    if not classes or [] in files:
        empty = folder / classes[files.index([])] if classes else folder
        others = sorted(one.name for one in empty.iterdir() if not _hidden(one.name))
        raise FileNotFoundError(
            f"{empty} holds {'no picture' if classes else 'no folder for each class'}"
            f"{', only ' + ', '.join(others[:3]) if others else ''}: "
            + (
                "add PNG or JPEG files, or remove it"
                if classes
                else f"sort the pictures into {folder / 'NAME'} and so on"
            )
        )
    return classes, files


def _hidden(name: str) -> bool:
    return name.startswith((".", "__"))  # .ipynb_checkpoints, ._photo.jpg, __MACOSX


def _pictures_in(folder: Path) -> list[Path]:
    """Picture files below a folder, in ImageFolder's order."""
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    below = (Path(root, name) for root, _, names in sorted(os.walk(folder, followlinks=True)) for name in sorted(names))
    return [
        file
        for file in below
        if file.suffix.lower() in endings and not any(map(_hidden, file.relative_to(folder).parts))
    ]


def _open(file: Path, side: int = 0) -> Image.Image:
    """The picture in a file, upright, in RGB, on white; a large JPEG is read at a size that is enough for `side` pixels."""
    enough = 2 * max(side, digit.SIDE)
    try:
        with Image.open(file) as picture:
            picture.draft(None, (enough, enough))
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith("I"):  # 16 bits, which `convert` would cut off at 255
                picture = Image.fromarray((np.asarray(picture) / 257).clip(0, 255).round().astype(np.uint8))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return picture.convert("RGB")
    except Exception as error:  # whatever Pillow's many readers raise on a broken file
        raise ValueError(f"{file} can't be read as a picture ({error}): save it anew as PNG or JPEG") from error
