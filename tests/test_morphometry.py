"""Measures of pictures whose answer is known, and what a capsule's numbers do to drawings made by a known decoder."""

import itertools
import math
import re
import time

import pytest
import torch

from capsule_lib import CapsNet, CapsNetConfig, load_digits, load_pretrained
from capsule_lib.morphometry import MEASURES, Effects, effects, measure


def picture(inside, size=40, fine=16):
    """[1, 1, size, size]: how much of each pixel lies inside a shape, given for x to the right and y upwards of the middle."""
    place = (torch.arange(size * fine) + 0.5) / fine - size / 2
    covered = inside(place[None, :], -place[:, None]).float()
    return torch.nn.functional.avg_pool2d(covered[None, None], fine)


def bar(thickness, length, angle=0.0):
    """Upright, turned by `angle` degrees to the right."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return picture(
        lambda x, y: ((x * cos - y * sin).abs() <= thickness / 2) & ((x * sin + y * cos).abs() <= length / 2)
    )


def ring(outer, inner, right=0.0, up=0.0):
    return picture(
        lambda x, y: ((x - right) ** 2 + (y - up) ** 2 <= outer**2) & ((x - right) ** 2 + (y - up) ** 2 >= inner**2)
    )


def of(name, image):
    return measure(image)[name].item()


@pytest.mark.parametrize("thickness, tolerance", [(2.0, 0.11), (2.5, 0.04), (3.0, 0.04), (4.0, 0.04)])
@pytest.mark.parametrize("angle", [0, 20, 45, 70, 90])
def test_thickness_of_a_bar_at_any_angle(thickness, tolerance, angle):
    assert of("stroke thickness", bar(thickness, 28, angle)) == pytest.approx(thickness, rel=tolerance)


def test_thickness_follows_a_tenth_of_a_pixel():
    steps = [of("stroke thickness", bar(2.5 + 0.125 * n, 28)) for n in range(5)]
    assert [b - a for a, b in itertools.pairwise(steps)] == pytest.approx([0.125] * 4, abs=0.03)


def test_thickness_of_a_ring_and_of_a_disc_within_what_the_docstring_says():
    assert of("stroke thickness", ring(12, 9)) == pytest.approx(3, rel=0.04)
    assert of("stroke thickness", ring(6, 0)) == pytest.approx(12, rel=0.12)


@pytest.mark.parametrize("angle", [-40, -10, 0, 5, 30])
def test_slant_of_a_sheared_bar(angle):
    image = picture(lambda x, y: ((x - y * math.tan(math.radians(angle))).abs() <= 2) & (y.abs() <= 10))
    assert of("slant", image) == pytest.approx(angle, abs=0.2)


def test_box_of_a_bar_a_ring_and_two_parts_with_a_gap():
    assert of("width", bar(3.5, 21.25)) == pytest.approx(3.5, abs=0.01)
    assert of("height", bar(3.5, 21.25)) == pytest.approx(21.25, abs=0.01)
    assert of("width", ring(9, 7, 0.3)) == pytest.approx(18, abs=0.2)
    dots = picture(lambda x, y: ((x.abs() - 8).abs() <= 1) & (y.abs() <= 1))
    assert of("width", dots) == pytest.approx(18, abs=0.01) and of("height", dots) == pytest.approx(2, abs=0.01)


def test_position_is_to_the_right_and_upwards():
    image = ring(8, 5, right=2.25, up=-3.5)
    assert of("horizontal position", image) == pytest.approx(2.25, abs=0.01)
    assert of("vertical position", image) == pytest.approx(-3.5, abs=0.01)


def test_a_shifted_picture_measures_the_same_elsewhere():
    image = load_digits("shipped", split="test")[0][:20]
    image = torch.nn.functional.pad(image, (6, 6, 6, 6))
    before, after = measure(image), measure(image.roll((-2, 3), (2, 3)))
    for name in MEASURES:
        move = {"horizontal position": 3, "vertical position": 2}.get(name, 0)
        assert torch.allclose(after[name] - before[name], torch.tensor(float(move)), atol=2e-3), name


def test_loop_area_is_the_paper_inside():
    assert of("loop area", ring(9, 6)) == pytest.approx(math.pi * 36, rel=0.01)
    assert of("loop area", 0.5 * ring(9, 6)) == pytest.approx(math.pi * 36 / 2, rel=0.01)  # paper leaks through grey
    opened = ring(9, 6)
    opened[..., 20, :15] = 0
    assert of("loop area", opened) == pytest.approx(0, abs=0.01)
    assert of("loop area", ring(20, 17.5)) == pytest.approx(math.pi * 17.5**2, rel=0.01)  # touches the picture's edge
    place = (torch.arange(11) - 5).abs()
    corners = (place[:, None] + place == 4).float()[
        None, None
    ]  # ink closes a loop by its corners, paper doesn't lead through
    assert of("loop area", corners) == 25
    smallest = torch.ones(1, 1, 3, 3)
    smallest[..., 1, 1] = 0
    assert of("loop area", smallest) == 1
    spiral = torch.ones(1, 1, 11, 11)
    spiral[0, 0, 1, :10] = spiral[0, 0, 1:10, 9] = spiral[0, 0, 9, 1:10] = spiral[0, 0, 3:10, 1] = 0
    spiral[0, 0, 3, 1:8] = spiral[0, 0, 3:8, 7] = spiral[0, 0, 7, 3:8] = 0
    assert of("loop area", spiral) == 0  # however long the way out is


def test_ink_and_its_lowest_third():
    image = bar(3, 21.5)
    assert of("total ink", image) == pytest.approx(3 * 21.5, abs=0.01)
    assert of("tail area", image) == pytest.approx(21.5, abs=0.01)
    foot = picture(lambda x, y: (y.abs() <= 9) & (x.abs() <= torch.where(y < -3, 6.0, 1.0)))
    assert of("tail area", foot) == pytest.approx(72, abs=0.5)


def test_colours_are_averaged_and_paper_has_no_shape():
    grey = ring(9, 6)
    for name, value in measure(torch.cat([grey, 0 * grey, 0.5 * grey], dim=1)).items():
        assert value.item() == pytest.approx(of(name, grey / 2), abs=1e-3), name
    nothing = measure(torch.zeros(2, 1, 8, 8))
    for name, value in nothing.items():
        unknown = name == "slant" or "position" in name
        assert value.isnan().all() if unknown else (value == 0).all(), name


@pytest.mark.parametrize(
    "images", [torch.zeros(28, 28), torch.full((1, 1, 4, 4), -0.1), torch.full((1, 1, 4, 4), 255.0)]
)
def test_what_can_not_be_measured_is_said(images):
    with pytest.raises(ValueError, match=r"\[N, C, H, W\]|0\.\.1"):
        measure(images)


class Draws(torch.nn.Module):
    """Draws a bar of the second class's numbers: number 0 moves it to the right, number 1 thins it, number 2 does nothing."""

    def forward(self, v, classes):
        own = v[torch.arange(len(v)), classes]
        place = torch.arange(30) - 14.5
        distance = (place - 10 * own[:, :1]).abs()
        columns = (1.5 - 5 * own[:, 1:2] + 0.5 - distance).clamp(0, 1)
        rows = (11 - place.abs()).clamp(0, 1)
        return (rows[None, :, None] * columns[:, None, :])[:, None].expand(-1, 3, -1, -1)


@pytest.fixture
def colour_net():
    """Three classes of four numbers, colour images of 30 x 30, and a decoder whose effects are known."""
    config = CapsNetConfig((3, 30, 30), classes=3, stem_channels=4, types=2, primary_dim=4, class_dim=4)
    net = CapsNet(config).eval()
    net.decoder = Draws()
    spreads = torch.tensor([0.1, 0.05, 0.1, 0.1])

    class Known(torch.nn.Module):
        def forward(self, u):
            own = torch.linspace(-1, 1, len(u))[:, None] * torch.tensor([1, 1, 1, -1])
            return (own / own.std(dim=0) * spreads)[:, None].expand(-1, 3, -1)

    net.digit_caps = Known()
    return net


def test_known_effects_are_found_measured_and_named(colour_net):
    images, labels = torch.rand(40, 3, 30, 30), torch.ones(40, dtype=torch.long)
    found = effects(colour_net, images, labels, label=1, digits=10)
    names = list(MEASURES)
    across, thick = names.index("horizontal position"), names.index("width")
    assert found.change.shape == found.relative.shape == found.same_sign.shape == (4, 9)
    assert found.change[0, across] == pytest.approx(10 * 4 * 0.1, abs=0.01)  # from -2 to +2 deviations of 0.1
    assert found.change[1, thick] == pytest.approx(-2 * 5 * 4 * 0.05, abs=0.02)
    assert found.relative[0, across] == pytest.approx(4, abs=0.01)  # the class's own deviation is 1 px
    assert found.same_sign[0, across] == found.same_sign[1, thick] == 1
    assert found.strongest[0] == "horizontal position +4.0 px"
    assert re.match(r"(stroke thickness|width|total ink|tail area) -", found.strongest[1])
    assert found.strongest[2:] == ["nothing clear"] * 2 and not found.change[2:].any()
    half = effects(colour_net, images, labels, label=1, digits=10, spread=1.0)
    assert half.change[0, across] == pytest.approx(2.0, abs=0.01)
    assert found.digits == 10 and effects(colour_net, images, labels, label=1, digits=99).digits == 40


def test_a_small_change_and_one_of_mixed_sign_are_not_called_clear():
    change, same_sign = torch.zeros(4, 9), torch.ones(4, 9)
    relative = torch.zeros(4, 9)
    change[:, 1], relative[:, 1] = -12.0, torch.tensor([-1.5, -0.9, -1.5, -1.5])
    same_sign[2, 1] = 0.8
    change[2, 8], relative[2, 8] = 7.0, 1.2  # weaker than the slant, but the same in all digits
    change[3, 0], relative[3, 0] = 1.0, 2.0
    found = Effects(3, 50, 2.0, change, relative, same_sign)
    assert found.strongest == ["slant -12.0°", "nothing clear", "total ink +7.0 px²", "stroke thickness +1.0 px"]


def test_a_shift_that_nobody_sees_counts_little_though_digits_are_centred():
    images, labels = load_digits("shipped")
    net = load_pretrained("small")
    found = effects(net, images, labels, label=3)
    place = list(MEASURES).index("horizontal position")
    assert torch.allclose(found.relative[:, place], found.change[:, place])  # counted in pixels, not in thirds of one
    assert "stroke thickness +1.4 px" in found.strongest and "nothing clear" in found.strongest


def test_the_table_says_it_in_text_and_in_html():
    images, labels = load_digits("shipped", split="test")
    found = effects(load_pretrained("small"), images, labels, label=4)
    text, page = repr(found), found._repr_html_()
    rows = text.splitlines()[-16:]
    for d, (row, words) in enumerate(zip(rows, found.strongest, strict=True)):
        numbers = [float(x) for x in row.split()[1:10]]
        assert row.split()[0] == str(d) and row.endswith(words)
        assert numbers == pytest.approx(found.change[d].tolist(), abs=0.051)
        cells = "".join(f"<td>{x:+.1f}</td>" for x in numbers)
        assert f'<th scope="row">{d}</th>{cells}<td>{words}</td>' in page
    assert all(len(row) < 130 for row in text.splitlines())
    assert "class 4 (mean of 50 digits)" in text and "class 4 (mean of 50 digits)" in page
    assert '<th scope="col">stroke thickness px</th><th scope="col">slant °</th>' in page
    assert "-0.0 " not in text


def test_effects_take_a_short_time():
    images, labels = load_digits("shipped", split="test")
    net = load_pretrained("small")
    start = time.process_time()
    effects(net, images, labels, label=8)
    assert time.process_time() - start < 3


def test_what_has_no_effects_is_said(colour_net):
    images, labels = torch.rand(4, 3, 30, 30), torch.tensor([1, 1, 1, 2])
    with pytest.raises(ValueError, match="no class 3"):
        effects(colour_net, images, labels, 3)
    for label in (0, 2):
        with pytest.raises(ValueError, match=f"class {label} needs at least two"):
            effects(colour_net, images, labels, label)
    with pytest.raises(ValueError, match="as many labels"):
        effects(colour_net, images, labels[:3], 1)
    with pytest.raises(ValueError, match="this network takes images"):
        effects(colour_net, images[:, :1], labels, 1)
    colour_net.decoder = None
    with pytest.raises(ValueError, match="no decoder"):
        effects(colour_net, images, labels, 1)
