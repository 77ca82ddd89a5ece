"""Photos of handwriting come out like MNIST's digits and are read; folders of pictures become tensors; bad input is said."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from test_drawing import DIGITS, arc, moved
from torchvision.datasets import ImageFolder

from capsule_lib import evaluate, load_digits, load_pictures, load_pretrained, load_weights
from capsule_lib.morphometry import measure
from capsule_lib.own_pictures import common_shape, mnist_like, split_pictures

WIDTH, HEIGHT = 320, 240
BLUE, BLACK, RED, ORANGE, PENCIL = (40, 60, 180), (35, 35, 40), (200, 40, 50), (245, 160, 40), (150, 150, 152)
PAPER = (236, 233, 224)


def photo(ink, seed=0, pen=BLACK, paper=PAPER, shadow=None, lines=(), noise=4, specks=0, table=0):
    """What a camera sees of `ink`, a grey picture of how much of each pixel is covered, on paper that has a texture."""
    random = np.random.default_rng(seed)
    page = Image.new("RGB", ink.size, paper)
    draw = ImageDraw.Draw(page)
    for axis, step in enumerate(lines):  # between the rows, between the columns
        for place in range(12, ink.size[1 - axis], step):
            ends = ([0, place], [ink.width, place]) if axis == 0 else ([place, 0], [place, ink.height])
            draw.line([*ends[0], *ends[1]], (172, 195, 225))
    page.paste(pen, mask=ink)
    for x, y, radius in random.random((specks, 3)) * (*ink.size, 3):
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=pen)
    if table:
        draw.rectangle([0, 0, table * ink.width, ink.height], fill=(70, 50, 35))
    y, x = np.mgrid[0 : ink.height, 0 : ink.width] / [[[ink.height]], [[ink.width]]]
    light = {
        None: np.ones_like(x),
        "slope": 1 - 0.6 * (0.7 * x + 0.3 * y),  # darker and darker towards a corner
        "lamp": 1.05 - 0.7 * ((x - 0.2) ** 2 + (y - 0.2) ** 2),
        "edge": np.where(x + 0.4 * y < 0.65, 1, 0.5),  # of a hand, through the digit
        "soft": 1 - 0.55 / (1 + np.exp(-25 * (x + 0.4 * y - 0.65))),
    }[shadow]
    texture = Image.fromarray(random.normal(0, 5, (ink.height // 4, ink.width // 4))).resize(ink.size)
    seen = (np.array(page) + np.array(texture)[..., None]) * light[..., None] + random.normal(0, noise, (*x.shape, 3))
    return Image.fromarray(seen.clip(0, 255).astype(np.uint8))


def written(digit, size=(WIDTH, HEIGHT), side=200, at=None, angle=0):
    """A real digit [28, 28] large on a sheet, as how much of each pixel its ink covers."""
    stroke = Image.fromarray((255 * digit).byte().numpy()).resize((side, side), Image.Resampling.BICUBIC).rotate(angle)
    sheet = Image.new("L", size)
    sheet.paste(stroke, at or ((size[0] - side) // 2, (size[1] - side) // 2))
    return sheet


def drawn(strokes, pen, size=(400, 400)):
    """Strokes [[[x, y], ...], ...] in 0..1 drawn with a round pen, of so many pixels, on a sheet."""
    sheet = Image.new("L", size)
    draw = ImageDraw.Draw(sheet)
    for points in ([(x * size[0], y * size[1]) for x, y in stroke] for stroke in strokes):
        draw.line(points, 255, pen)
        for x, y in points:
            draw.ellipse([x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2], 255)
    return sheet


@pytest.fixture(scope="module")
def some_digits():
    images, labels = load_digits("shipped", "test")
    these = torch.randperm(1000, generator=torch.Generator().manual_seed(1))[:30]
    return images[these, 0], labels[these]


@pytest.fixture(scope="module")
def small():
    return load_pretrained("small")


def read(net, pictures):
    return net.encode(pictures.images).norm(dim=2).argmax(dim=1)


def saved(pictures, folder, ending="jpg"):
    files = [folder / f"{n:03}.{ending}" for n in range(len(pictures))]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file)
    return files


@pytest.mark.parametrize(
    "place, look",
    [
        ({}, {}),
        ({}, {"shadow": "slope"}),
        ({"angle": 10}, {"shadow": "slope", "pen": BLUE}),
        ({"angle": -10}, {"shadow": "lamp", "pen": PENCIL}),
        ({"side": 70, "at": (10, 160)}, {"shadow": "slope", "pen": RED}),
        ({"side": 150}, {"shadow": "edge", "specks": 10}),
        ({"side": 160}, {"shadow": "soft", "pen": ORANGE}),
        ({}, {"shadow": "slope", "lines": (27, 27), "pen": BLUE}),
        ({}, {"shadow": "slope", "lines": (40,)}),
        ({"side": 160}, {"shadow": "slope", "table": 0.1, "pen": PENCIL}),
        ({}, {"shadow": "slope", "pen": (215, 220, 215), "paper": (45, 70, 55)}),
        ({"size": (800, 600), "side": 300, "at": (60, 200), "angle": 8}, {"shadow": "soft", "lines": (50, 50), "specks": 8, "pen": BLUE}),
    ],
    ids=["plain", "slope", "10", "-10", "small", "edge", "soft", "squared", "lined", "table", "chalk", "all"],
)  # fmt: skip
def test_photos_of_real_digits_are_read(tmp_path, some_digits, small, place, look):
    images, labels = some_digits
    files = saved([photo(written(digit, **place), n, **look) for n, digit in enumerate(images)], tmp_path)
    assert (read(small, load_pictures(files)) == labels).sum() >= 28  # of 30, where without a camera 30 are read


@pytest.mark.parametrize("turned", [False, True], ids=["as they are", "inverted"])
def test_a_digit_of_mnist_comes_back_as_it_was(tmp_path, some_digits, small, turned):
    images, labels = some_digits
    files = saved([Image.fromarray((255 * (1 - x if turned else x)).byte().numpy()) for x in images], tmp_path, "png")
    pictures = load_pictures(files)
    assert (read(small, pictures) == labels).sum() >= 29
    if turned:
        assert (
            small.encode(1 - images[:, None]).norm(dim=2).argmax(dim=1) == labels
        ).sum() <= 6  # and so it was before
    assert (pictures.images[:, 0] - images).abs().mean() < 0.3 * images.mean()  # the edges are all that differs


@pytest.mark.parametrize("pen", [3, 14, 40], ids=["ballpoint", "felt tip", "marker"])
@pytest.mark.parametrize(
    "style",
    [{}, {"matrix": ((1, -0.25), (0, 1))}, {"matrix": ((1, 0.15), (0, 1)), "tremor": 0.01}],
    ids=["plain", "right", "left, tremor"],
)
def test_pens_of_any_width_are_read_and_look_like_mnists(tmp_path, small, pen, style):
    sheets = [photo(drawn(moved(strokes, **style), pen), shadow="slope", pen=BLUE) for strokes in DIGITS]
    pictures = load_pictures(saved(sheets, tmp_path))
    assert (read(small, pictures) == torch.arange(10)).sum() >= 9
    sizes = measure(pictures.images)
    assert sizes["stroke thickness"].mean() == pytest.approx(2.7, abs=0.5)
    assert (torch.maximum(sizes["width"], sizes["height"]) - 20).abs().max() < 0.6


@pytest.mark.parametrize("size", [28, 33, 96])
def test_a_photo_comes_out_as_the_drawing_pad_would_have_it(tmp_path, size):
    for n, strokes in enumerate(DIGITS):
        pen = 2.6 / (20 - 2.6) * max(np.ptp(np.concatenate(strokes), axis=0)) * 400  # as thick as the pad's pen
        photo(drawn(strokes, round(pen)), shadow="lamp").save(tmp_path / f"{n}.png")
    images = load_pictures(sorted(tmp_path.iterdir()), size).images
    pad = torch.stack([mnist_like(strokes, size) for strokes in DIGITS])
    assert (images - pad).abs().mean() < 0.15 * pad.mean()
    place = torch.arange(size, dtype=torch.float32)
    for axis in (2, 3):
        centre = images.sum(axis)[:, 0] @ place / images.sum((1, 2, 3))
        assert (centre - size // 2).abs().max() < 0.02


def test_a_digit_in_two_parts_stays_whole_and_a_speck_far_away_does_not_count(tmp_path):
    five = [[[0.36, 0.18], [0.34, 0.45], *arc(0.46, 0.62, 0.2, 0.19, -115, 140)], [[0.45, 0.16], [0.7, 0.16]]]
    alone, with_specks = drawn(five, 12), drawn([*five, [[0.02, 0.9]], [[0.95, 0.5]], [[0.9, 0.06]]], 12)
    one, other = load_pictures(saved([photo(alone), photo(with_specks)], tmp_path)).images
    assert one[0, :8, 16:].sum() > 5  # the bar
    assert (one - other).abs().max() < 0.15


def blank(look):
    return photo(Image.new("L", (WIDTH, HEIGHT)), **look)


@pytest.mark.parametrize(
    "look",
    [
        {},
        {"noise": 0},
        {"noise": 25},
        {"specks": 9},
        {"lines": (27, 27)},
        {"lines": (40,)},
        {"shadow": "slope"},
        {"shadow": "lamp"},
        {"shadow": "edge"},
        {"shadow": "soft", "noise": 0},
        {"paper": (30, 30, 30)},
    ],
    ids=str,
)
def test_a_blank_page_is_said(tmp_path, look):
    (file,) = saved([blank(look)], tmp_path)
    with pytest.raises(
        ValueError, match=r"000.jpg: no digit is found: expected dark ink on light paper or light on dark"
    ):
        load_pictures(file)
    assert load_pictures(file, like=None).images.shape == (1, 3, 28, 28)


@pytest.fixture
def folder(tmp_path):
    """Three classes of pictures in all kinds of places."""
    for n, name in enumerate(["cat/b.png", "cat/a.JPG", "cat/more/c.png", "Dog/z.png", "ant/x.jpeg", "ant/y.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (40 * n, 255 - 40 * n, 99)).save(tmp_path / name)
    return tmp_path


def test_folders_are_read_as_image_folder_reads_them(folder):
    theirs = ImageFolder(folder)
    for name in ["cat/Thumbs.db", "cat/._b.png", "cat/notes.txt", ".git/a.png", "cat/.ipynb_checkpoints/b.png"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not a picture")
    (folder / "list.csv").write_text("")
    ours = load_pictures(str(folder), size=20, like=None)
    assert ours.classes == tuple(theirs.classes) == ("Dog", "ant", "cat")
    assert [(str(f), y) for f, y in zip(ours.files, ours.labels.tolist(), strict=True)] == theirs.samples
    for image, file in zip(ours.images, ours.files, strict=True):
        expected = torch.tensor(Image.open(file).convert("RGB").getpixel((20, 15))) / 255
        assert torch.allclose(image, expected[:, None, None].expand(3, 20, 20), atol=0.02)
    images, labels = ours
    assert images is ours.images and labels.dtype == torch.int64
    assert repr(ours) == "Pictures(6 x 3 x 20 x 20, classes Dog, ant, cat)"


def test_as_they_are_pictures_keep_their_colours_and_are_cut_to_the_proportions(tmp_path):
    picture = Image.new("RGB", (80, 40), "blue")
    picture.paste("red", (20, 0, 60, 40))  # the middle: a square
    picture.paste("lime", (20, 0, 60, 20))  # its upper half
    picture.save(tmp_path / "a.png")
    image = load_pictures(tmp_path / "a.png", size=20, like=None).images[0]
    assert (image[:, 2] - torch.tensor([0.0, 1, 0])[:, None]).abs().max() < 0.1
    assert (image[:, 17] - torch.tensor([1.0, 0, 0])[:, None]).abs().max() < 0.1
    wide = load_pictures([tmp_path / "a.png"], (20, 40), None, channels=1)
    assert wide.images.shape == (1, 1, 20, 40) and wide.labels is None and wide.classes == ()
    assert wide.images[0, 0, 15, 20] == pytest.approx(0.299, abs=0.005)  # red's share of grey


def scene():
    """40 x 60 pixels: light above, dark below, with a dark mark at the left: a turn or a turned scale shows."""
    grey = np.full((60, 40), 220, np.uint8)
    grey[30:], grey[8:20, 5:15] = 60, 20
    return Image.fromarray(grey)


def as_exif(file):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    scene().rotate(90, expand=True).save(file.with_suffix(".jpg"), exif=exif, quality=95)
    return file.with_suffix(".jpg")


def as_alpha(file):
    grey = np.array(scene())
    Image.fromarray(np.stack([0 * grey, 255 - grey], axis=2), "LA").save(file)  # black ink, more or less of it
    return file


def as_palette(file):
    grey = np.array(scene())
    picture = Image.fromarray(np.where(grey == 220, 1, np.where(grey == 60, 2, 0)).astype(np.uint8), "P")
    picture.putpalette([20, 20, 20, 0, 0, 0, 60, 60, 60])
    picture.save(file, transparency=bytes([255, 35, 255]))  # of the paper's black, 14 % is there
    return file


def as_16_bits(file):
    Image.fromarray(np.array(scene()).astype(np.uint16) * 257).save(file)
    return file


def as_cmyk(file):
    scene().convert("RGB").convert("CMYK").save(file.with_suffix(".jpg"), quality=95)
    return file.with_suffix(".jpg")


def as_animation(file):
    scene().save(file.with_suffix(".gif"), save_all=True, append_images=[Image.new("L", (40, 60), n) for n in (0, 99)])
    return file.with_suffix(".gif")


@pytest.mark.parametrize("write", [as_exif, as_alpha, as_palette, as_16_bits, as_cmyk, as_animation])
def test_every_kind_of_file_shows_the_same(tmp_path, write):
    scene().save(tmp_path / "plain.png")
    plain = load_pictures(tmp_path / "plain.png", (60, 40), None).images
    assert plain.max() == pytest.approx(220 / 255) and plain.min() == pytest.approx(20 / 255)
    assert (load_pictures(write(tmp_path / "other.png"), (60, 40), None).images - plain).abs().mean() < 0.01


def png(*size):
    buffer = io.BytesIO()
    Image.new("L", size, 200).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "besides, given, error, message",
    [
        ({}, {"path": "dogs"}, FileNotFoundError, "dogs is not there: check the path"),
        ({}, {"path": ["cat/b.png", "cat/no.png"]}, FileNotFoundError, "no.png is not there"),
        ({}, {"path": ["cat/b.png", "ant"]}, ValueError, "ant is a folder among files: give one folder, or a list of files"),
        ({}, {"path": []}, TypeError, "expected a folder, a picture file or a list of files; got list"),
        ({}, {"path": None}, TypeError, "got NoneType"),
        ({}, {"path": torch.zeros(2, 28, 28)}, TypeError, "got Tensor"),
        ({}, {"path": "Dog"}, FileNotFoundError, "Dog holds no folder for each class, only z.png: sort the pictures into"),
        ({"empty": None}, {"path": "empty"}, FileNotFoundError, "empty holds no folder for each class: sort the pictures"),
        ({"emu": None}, {}, FileNotFoundError, "emu holds no picture: add PNG or JPEG files, or remove it"),
        ({"emu/1.heic": b""}, {}, FileNotFoundError, "emu holds no picture, only 1.heic: add PNG or JPEG files"),
        ({"cat/bad.png": b"no picture"}, {}, ValueError, "bad.png can't be read as a picture .*: save it anew as PNG or JPEG"),
        ({"cat/cut.png": png(400, 300)[:90]}, {}, ValueError, "cut.png can't be read as a picture .*: save it anew"),
        ({"train": None, "test": None}, {}, ValueError, "holds train and test, not classes: give .*train, or use split_pictures"),
        ({}, {"size": 16}, ValueError, "size: expected a whole number of pixels from 17 on.*; got 16"),
        ({}, {"size": (28, 28, 3)}, ValueError, r"size: expected .*; got \(28, 28, 3\)"),
        ({}, {"size": 28.5}, ValueError, "size: expected .*; got 28.5"),
        ({}, {"size": "28"}, ValueError, "size: expected .*; got '28'"),
        ({}, {"like": "MNIST"}, ValueError, "like: expected 'mnist', or None for pictures as they are; got 'MNIST'"),
        ({}, {"like": "mnist", "size": (28, 40)}, ValueError, r"square; got \(28, 40\): give one number, or like=None"),
        ({}, {"like": "mnist", "channels": 3}, ValueError, "channels: expected 1 with like='mnist'; got 3"),
        ({}, {"channels": 4}, ValueError, "channels: expected 1 or 3; got 4"),
        ({"tiny.png": png(9, 12)}, {"like": "mnist", "path": "tiny.png"}, ValueError, "9 x 12 pixels: give at least 16"),
    ],
)  # fmt: skip
def test_bad_input_is_said(folder, monkeypatch, besides, given, error, message):
    monkeypatch.chdir(folder)
    add(besides)
    with pytest.raises(error, match=message):
        load_pictures(**{"path": folder, "like": None, **given})


def add(files):
    """Files, or with None folders, by name, in the present folder."""
    for name, content in files.items():
        Path(name if content is None else Path(name).parent).mkdir(parents=True, exist_ok=True)
        if content is not None:
            Path(name).write_bytes(content)


def test_a_tenth_of_each_class_is_held_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    add({f"a/{n:02}.png": png(20 + n, 20) for n in range(31)} | {f"b/{n}.png": png(20, 20) for n in range(2)})
    train, test = split_pictures(tmp_path, 20, None, 1)
    assert train.images.shape == (29, 1, 20, 20) and test.images.shape == (4, 1, 20, 20)
    assert test.labels.tolist() == [0, 0, 0, 1] and train.labels.tolist() == [0] * 28 + [1]
    assert train.classes == test.classes == ("a", "b")
    whole = load_pictures(tmp_path, 20, None, 1)
    assert sorted(train.files + test.files) == sorted(whole.files)
    for part in (train, test):
        assert [part.classes[label] for label in part.labels] == [file.parent.name for file in part.files]
    again, other = (split_pictures(tmp_path, 20, None, 1, seed)[1].files for seed in (0, 1))
    assert again == test.files != other


def test_train_and_test_folders_are_taken_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    add({f"{name}.png": png(20, 20) for name in ("train/a/1", "train/a/2", "train/b/1", "test/a/3", "test/b/4")})
    add({"notes/readme.txt": b""})
    train, test = split_pictures(str(tmp_path), (17, 20), None)
    assert train.labels.tolist() == [0, 0, 1] and test.labels.tolist() == [0, 1]
    assert test.images.shape == (2, 3, 17, 20) and test.files[1] == tmp_path / "test/b/4.png"


@pytest.mark.parametrize(
    "files, message",
    [
        (["train/a/1", "train/b/1"], "train needs train and test beside each other: add the other, or give .*train"),
        (["test/a/1", "test/b/1"], "test needs train and test beside each other"),
        (["train/a/1", "train/b/1", "test/a/1", "test/c/1"], "the same in train and test; got a, b and a, c"),
        (["train/a/1", "train/b/1", "test/a/1"], "the same in train and test; got a, b and a$"),
        (["a/1", "a/2"], "expected two class folders or more.*; got a$"),
        (["a/1", "a/2", "b/1"], "b/1.png is the only picture of class b: add one for the test"),
        (["1"], "holds no folder for each class, only 1.png"),
    ],
    ids=lambda files: " ".join(files) if isinstance(files, list) else "",
)
def test_folders_that_cannot_be_split_are_said(tmp_path, monkeypatch, files, message):
    monkeypatch.chdir(tmp_path)
    add({f"{name}.png": png(20, 20) for name in files})
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        split_pictures(tmp_path, 20, None)


def test_a_file_cannot_be_split(folder):
    for path in (folder / "cat" / "b.png", folder / "nowhere", None):
        with pytest.raises(FileNotFoundError, match="expected a folder that holds a folder for each class; got"):
            split_pictures(path)
    with pytest.raises(ValueError, match="seed: expected .*; got -1"):
        split_pictures(folder, seed=-1)


def test_pictures_go_where_digits_go_and_the_sheet_shows_what_the_network_sees(tmp_path, monkeypatch, small):
    monkeypatch.chdir(tmp_path)
    for label, strokes in enumerate(DIGITS):
        Path(str(label)).mkdir()
        photo(drawn(strokes, 12), shadow="slope").save(f"{label}/mine.jpg")
    pictures = load_pictures(".")
    assert evaluate(small, *pictures).error <= 10
    sheet = pictures.contact_sheet(3)
    assert sheet.size == (3 * 140, 2 * 140 + 16)
    for n, strokes in enumerate(DIGITS[:3]):
        above = sheet.crop((n * 140 + 4, 4, n * 140 + 136, 136)).convert("L")
        original = photo(drawn(strokes, 12), shadow="slope").convert("L").resize((132, 132))
        assert np.abs(np.array(above, float) - np.array(original, float)).mean() < 5
        below = sheet.crop((n * 140 + 4, 144, n * 140 + 136, 276)).convert("L").resize((28, 28), Image.Resampling.BOX)
        assert np.abs(np.array(below, float) / 255 - (1 - pictures.images[n, 0].numpy())).mean() < 0.05  # ink on paper
    assert pictures.contact_sheet(99).width == 10 * 140
    as_they_are = load_pictures(".", like=None).contact_sheet(1)  # in its own colours above and below
    above, below = (np.array(as_they_are.crop((10, top, 130, top + 120)), float).mean((0, 1)) for top in (10, 150))
    assert np.abs(above - below).max() < 3
    with pytest.raises(ValueError, match="count: expected"):
        pictures.contact_sheet(0)


def test_the_training_command_takes_sizes_and_classes_from_a_folder(tmp_path):
    random = np.random.default_rng(0)
    for name, channel in [("cats", 0), ("dogs", 1)]:
        (tmp_path / "pets" / name).mkdir(parents=True)
        for n in range(12):
            pixels = random.integers(0, 60, (18, 26, 3), dtype=np.uint8)
            pixels[4:14, 5 + n : 12 + n, channel] = 230
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{n}.png")
    arguments = ["--data", tmp_path / "pets", "--epochs", "8", "--batch-size", "6", "--out", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-m", "capsule_lib.train", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    net = load_weights(tmp_path / "run" / "weights.safetensors")
    assert net.config.image_shape == (3, 18, 26) and net.config.classes == 2
    card = json.loads((tmp_path / "run" / "weights.json").read_text())
    assert "shipped_test_mse" not in card and card["live_dimensions"].keys() == {"0", "1"}


def test_the_shape_that_most_pictures_have(tmp_path):
    for n, size in enumerate([(40, 30), (40, 30), (50, 20)]):
        Image.new("L", size).save(tmp_path / f"{n}.png")
    assert common_shape(tmp_path) == ((30, 40), 1)
    Image.new("RGB", (400, 300)).save(tmp_path / "large.png")
    assert common_shape(tmp_path)[1] == 3
    for n in range(3):
        Image.new("RGB", (400, 300)).save(tmp_path / f"large{n}.png")
    assert common_shape(tmp_path) == ((96, 128), 3)
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        common_shape(tmp_path / "nowhere")
