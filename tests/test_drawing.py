"""A drawing becomes an image like MNIST's, which the network reads."""

import math

import pytest
import torch

from capsule_lib import load_digits, load_pretrained, morphometry
from capsule_lib.own_pictures import mnist_like


def arc(x, y, width, height, start, end):
    """An ellipse's arc with half-axes `width` and `height`: 0 degrees is right, 90 is down."""
    turns = [math.radians(start + (end - start) * n / 24) for n in range(25)]
    return [[x + width * math.cos(turn), y + height * math.sin(turn)] for turn in turns]


DIGITS = [
    [arc(0.5, 0.5, 0.2, 0.32, -90, 270)],
    [[[0.5, 0.15], [0.5, 0.85]]],
    [[*arc(0.5, 0.33, 0.2, 0.18, -170, 30), [0.3, 0.82], [0.72, 0.82]]],
    [[*arc(0.46, 0.33, 0.2, 0.17, -150, 90), *arc(0.46, 0.67, 0.23, 0.18, -90, 150)]],
    [[[0.32, 0.15], [0.28, 0.52], [0.72, 0.52]], [[0.66, 0.2], [0.64, 0.88]]],
    [[[0.68, 0.18], [0.36, 0.18], [0.34, 0.47], *arc(0.46, 0.64, 0.22, 0.19, -115, 140)]],
    [[[0.62, 0.15], [0.42, 0.4], *arc(0.5, 0.66, 0.17, 0.18, -170, 190)]],
    [[[0.28, 0.2], [0.72, 0.2], [0.46, 0.86]]],
    [[*arc(0.5, 0.33, 0.15, 0.17, 90, -270), *arc(0.5, 0.68, 0.18, 0.18, -90, 270)]],
    [[*arc(0.5, 0.34, 0.17, 0.18, 0, -360), [0.67, 0.34], [0.6, 0.86]]],
]


def moved(strokes, matrix=((1, 0), (0, 1)), offset=(0, 0), tremor=0.0):
    (a, b), (c, d) = matrix
    return [
        [
            [a * x + b * y + offset[0] + dx, c * x + d * y + offset[1] + dy]
            for (x, y), (dx, dy) in zip(stroke, (tremor * torch.randn(len(stroke), 2)).tolist(), strict=True)
        ]
        for stroke in strokes
    ]


def drawn(**variant):
    return torch.stack([mnist_like(moved(strokes, **variant)) for strokes in DIGITS])


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"matrix": ((1, -0.25), (0, 1))},  # leaning to the right
        {"matrix": ((1, 0.15), (0, 1))},
        {"matrix": ((0.3, 0), (0, 0.3)), "offset": (0.6, 0.05)},  # small, in a corner
        {"matrix": ((1.3, 0), (0, 1))},
        {"tremor": 0.01},
    ],
    ids=["plain", "right", "left", "small", "wide", "tremor"],
)
def test_the_network_reads_what_is_drawn(variant):
    with torch.no_grad():
        read = load_pretrained("small")(drawn(**variant)).lengths.argmax(dim=1)
    assert (read == torch.arange(10)).sum() >= 8, read.tolist()


def test_drawings_measure_like_mnist():
    images, _ = load_digits("shipped")
    ours, theirs = morphometry.measure(drawn()), morphometry.measure(images[:1000])
    for name, tolerance in [
        ("stroke thickness", 0.15),
        ("total ink", 10),
        ("horizontal position", 0.05),
        ("vertical position", 0.05),
    ]:
        assert ours[name].mean() == pytest.approx(theirs[name].mean().item(), abs=tolerance), name
    assert (torch.maximum(ours["width"], ours["height"]) - 20).abs().max() < 0.2
    ink = drawn()[drawn() > 0.02]
    assert ink.max() == 1 and 0.45 < (ink < 0.98).float().mean() < 0.65  # as many grey edges: 61 % in MNIST


@pytest.mark.parametrize("size", [28, 40, 33])
def test_the_centre_of_mass_is_in_the_middle_of_the_same_pixel_as_in_mnist(size):
    image = mnist_like(DIGITS[7], size)
    assert image.shape == (1, size, size) and image.dtype == torch.float32
    place = torch.arange(size, dtype=torch.float32)
    centre = [(image[0].sum(axis) @ place / image.sum()).item() for axis in (0, 1)]
    assert centre == pytest.approx([size // 2, size // 2], abs=0.02)
    assert morphometry.measure(image[None])["height"].item() == pytest.approx(size * 20 / 28, abs=0.2)


def test_place_and_size_of_the_drawing_make_no_difference():
    there = moved(DIGITS[4], ((3, 0), (0, 3)), (-1, 5))  # far outside 0..1
    assert torch.allclose(mnist_like(DIGITS[4]), mnist_like(there), atol=1e-4)


def test_a_line_is_what_it_should_be_by_hand():
    image = mnist_like([[[0.5, 0.2], [0.5, 0.8]]])[0]
    assert image[14, 12:17].tolist() == pytest.approx([0, 0.8, 1, 0.8, 0], abs=1e-6)  # a pen 2.6 wide round pixel 14
    assert image[:, 14].sum() == pytest.approx(20, abs=0.05)


def test_a_dot_beside_a_line_is_drawn():
    image = mnist_like([[[0.5, 0.1], [0.5, 0.9]], [[0.8, 0.5]]])
    assert image[0, :, 18:].sum() == pytest.approx(math.pi * 1.3**2, abs=0.5)


@pytest.mark.parametrize(
    "strokes, message",
    [
        ([], "draw a digit first"),
        ([[]], "draw a digit first"),
        ([[[0.5, 0.5]]], "a speck"),
        ([[[0.5, 0.5], [0.51, 0.5]]], "a speck"),
        (None, "lists of points"),
        ([[["a", 1], [2, 3]]], "lists of points"),
        ([[None]], "lists of points"),
        ([[0.5, 0.1], [0.5, 0.9]], "lists of points"),
        ([[[10**400, 0], [0, 0]]], "lists of points"),
        ([[[float("nan"), 1], [0, 0]]], "not a finite number"),
        ([[[float("inf"), 1], [0, 0]]], "not a finite number"),
    ],
)
def test_what_is_no_drawing_is_said(strokes, message):
    with pytest.raises(ValueError, match=message):
        mnist_like(strokes)
