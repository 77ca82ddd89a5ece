"""Draws the course's pictures of the network, and of parts, wholes and votes, as SVG files beside this script.

    python notebooks/drawings/draw.py             # writes the drawings, with the numbers in digit.json
    python notebooks/drawings/draw.py --measure   # first writes digit.json: one test digit in the shipped network `small`

The drawings hold no fonts, links or scripts, and have a light card of their own, so that they look alike on a light page
and on a dark one. What is measured is kept apart from the drawing, so that the files come out the same on every machine.
"""

import argparse
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import torch
from torch import Tensor

from capsule_lib import CapsNet, dynamic_routing, load_digits, load_pretrained

FOLDER = Path(__file__).parent
DIGIT = 28  # of the shipped test digits: a 3
MAPS = (36, 52, 13, 18, 49)  # feature maps in which the 3 can be seen, the front one first

# Of each part: a dark colour for text and lines, a strong one for shapes, a light one for areas (after Okabe and Ito).
COLOURS = {
    "image": ("#1b2733", "#1b2733", "#eef1f4"),
    "stem": ("#0a6384", "#3a9fd6", "#e1f1fb"),
    "primary": ("#00508a", "#0072b2", "#dcebf7"),
    "votes": ("#9c4100", "#d55e00", "#fbd9c0"),
    "class": ("#00664a", "#009e73", "#d3efe5"),
    "squash": ("#6b4a00", "#e69f00", "#fdf0cc"),
    "loss": ("#a3195b", "#cf2f7b", "#fbe0ec"),
    "decoder": ("#5b3a91", "#8460bd", "#e9e1f5"),
}
GREY = ("#5c6670", "#b3bbc3", "#edf0f2")
INK = COLOURS["image"][0]
SMALL, LARGE = 15, 18  # of 1,000 units across

TITLE = (
    "The capsule network. A handwritten 3 becomes feature maps, primary capsules, votes and ten class capsules; the mask "
    "keeps the longest of these, the capsule of the 3, and the decoder redraws the digit from it."
)
AT_HAND = {  # what each notebook builds: the parts, and their names
    "01": (
        {"squash"},
        "squash, which follows the second convolution and the weighted sum, and the vectors that it makes",
    ),
    "02": ({"stem", "primary"}, "the stem and the primary capsules"),
    "03": ({"votes", "class"}, "the votes, their coupling coefficients and the class capsules"),
    "04": (
        {"loss"},
        "margin loss, which looks at the ten lengths, and reconstruction loss, which compares the two images",
    ),
    "05": ({"decoder"}, "the mask, the decoder and the redrawn image"),
}

VOTES_TITLE = (
    "Two lower-level capsules, a loop and a stem, send prediction vectors to two higher-level capsules, a 9 and a 6. About "
    "the 9 they agree, so it gets long; about the 6 they contradict each other, so it stays short."
)
LOOP_AND_STEM = torch.tensor([[[0.20, 1.00], [-1.30, 0.40]], [[-0.10, 1.10], [1.00, 0.20]]])  # notebook 03's [I, J, D]


# --- numbers ----------------------------------------------------------------------------------------------------------


def measure() -> dict:
    """What the shipped network makes of one digit, in whole numbers: brightness of 255, angles in degrees, and
    lengths, couplings and the capsule's dimensions in thousandths."""
    net = load_pretrained("small")
    images, labels = load_digits("shipped", split="test")
    image, label = images[DIGIT : DIGIT + 1], int(labels[DIGIT])
    types = net.config.types
    with torch.no_grad():
        maps = torch.relu(net.stem(image))[0, list(MAPS)]
        u = net.primary(image)
        v, couplings = net.digit_caps(u, return_couplings=True)
        redrawn = net(image).reconstruction
    centred = u[0] - u[0].mean(dim=0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    axes = (
        axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
    )  # a principal axis has no sign of its own
    across, up = (centred @ axes.T).unbind(dim=1)
    shares = couplings[-1, 0].unflatten(0, (types, -1))  # [types, places, J]
    givers = shares[:, :, label].argmax(dim=1)  # of each type, the capsule that gives most to the 3
    return {
        "label": label,
        "image": whole(image[0, 0] * 255),
        "maps": whole(maps / maps.amax(dim=(1, 2), keepdim=True) * 255),
        "angles": whole(torch.rad2deg(torch.atan2(up, across)).view(types, -1)),
        "primary_lengths": whole(u[0].norm(dim=1).view(types, -1) * 1000),
        "givers": whole(givers),
        "couplings": whole(shares[torch.arange(types), givers] * 1000),
        "lengths": whole(v[0].norm(dim=1) * 1000),
        "capsule": whole(v[0, label] * 1000),
        "reconstruction": whole(redrawn[0, 0] * 255),
    }


def whole(x: Tensor) -> list:
    return x.round().int().tolist()


def shapes() -> dict[str, list[int]]:
    """The shapes, without the batch, of all that flows through `small`, as PyTorch reports them."""
    net, seen = CapsNet.from_preset("small").eval(), {}

    def note(name):
        return lambda module, given, out: seen.update({name: out})

    net.stem.register_forward_hook(note("stem"))
    net.primary_caps.register_forward_hook(note("primary"))
    linear = [layer for layer in net.decoder.layers if isinstance(layer, torch.nn.Linear)]
    linear[0].register_forward_pre_hook(lambda module, given: seen.update(flat=given[0]))
    for name, layer in zip(["hidden 1", "hidden 2", "pixels"], linear, strict=True):
        layer.register_forward_hook(note(name))
    image = torch.zeros(2, *net.config.image_shape)
    with torch.no_grad():
        out = net(image)
        seen |= {"image": image, "votes": net.digit_caps.votes(seen["primary"])}
    seen |= {"class": out.capsules, "reconstruction": out.reconstruction}
    return {name: list(tensor.shape[1:]) for name, tensor in seen.items()}


# --- pieces of SVG ----------------------------------------------------------------------------------------------------


def number(x: float) -> str:
    return f"{x:.1f}".removesuffix(".0")


def tag(name: str, content: str = "", **attributes) -> str:
    written = "".join(
        f' {key.replace("_", "-")}="{number(value) if isinstance(value, float) else value}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def text(x, y, words, fill, *, size=SMALL, bold=False, mono=False) -> str:
    style = {"font_family": "Menlo, Consolas, Liberation Mono, DejaVu Sans Mono, monospace"} if mono else {}
    style |= {"font_weight": "bold"} if bold else {}
    return tag("text", escape(words), x=x, y=y, fill=fill, font_size=size, text_anchor="middle", **style)


def heading(x, y, words, below, fill) -> str:
    return text(x, y, words, fill, size=LARGE, bold=True) + text(x, y + 20, below, fill)


def line(points: Iterable[tuple[float, float]], stroke, width=2.0, **more) -> str:
    path = "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)
    return tag("path", d=path, fill="none", stroke=stroke, stroke_width=width, **more)


def curve(points: list[tuple[float, float]], stroke, width, **more) -> str:
    """A Bézier curve: start, two handles, end."""
    start, *others = (f"{number(x)} {number(y)}" for x, y in points)
    return tag("path", d=f"M{start}C{' '.join(others)}", fill="none", stroke=stroke, stroke_width=width, **more)


def polygon(points: Iterable[tuple[float, float]], fill) -> str:
    return tag("polygon", points=" ".join(f"{number(x)},{number(y)}" for x, y in points), fill=fill)


def box(x, y, width, height, stroke, thick=1.5, fill="none", radius=0.0) -> str:
    return tag("rect", x=x, y=y, width=width, height=height, rx=radius, fill=fill, stroke=stroke, stroke_width=thick)


def circle(x, y, radius, stroke, thick, fill="none") -> str:
    return tag("circle", cx=x, cy=y, r=radius, fill=fill, stroke=stroke, stroke_width=thick)


def pill(x, y, width, words, colours) -> str:
    dark, strong, light = colours
    return box(x - width / 2, y - 13.5, width, 27, strong, 2, light, 13.5) + text(x, y + 5.5, words, dark, bold=True)


def arrow(start, end, colour, width=2.5, head=9.0) -> str:
    """A shaft, and a head whose tip is at `end`."""
    (x0, y0), (x1, y1) = start, end
    length = math.hypot(x1 - x0, y1 - y0)
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    head = min(head, 0.7 * length)
    x, y, half = x1 - head * dx, y1 - head * dy, 0.45 * head
    shaft = line([start, (x1 - 0.8 * head * dx, y1 - 0.8 * head * dy)], colour, width)
    return shaft + polygon([end, (x - half * dy, y + half * dx), (x + half * dy, y - half * dx)], colour)


def capsule(x, y, degrees, length, colour) -> str:
    """A small arrow around its middle, at an angle counted anticlockwise."""
    dx, dy = math.cos(math.radians(degrees)) * length / 2, -math.sin(math.radians(degrees)) * length / 2
    return arrow((x - dx, y - dy), (x + dx, y + dy), colour, 1.8, 6.5)


def mixed(colour: str, share: float, paper: str = "#ffffff") -> str:
    """A colour between paper (0) and `colour` (1)."""
    pairs = ((int(paper[n : n + 2], 16), int(colour[n : n + 2], 16)) for n in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def picture(rows: list[list[int]], x, y, size, colour: str, frame: str) -> str:
    """Brightness of 0 (white) to 255 (`colour`) in a frame. Neighbours of one shade, of twelve, are one stroke."""
    runs = {}
    for r, row in enumerate(rows):
        at = 0
        for shade, group in itertools.groupby(round(value / 255 * 12) for value in row):
            width = len(list(group))
            runs.setdefault(shade, []).append(f"M{at} {r}h{width}v1h-{width}z")
            at += width
    paths = [tag("path", d="".join(d), fill=mixed(colour, shade / 12)) for shade, d in sorted(runs.items())]
    place = f"translate({number(x)} {number(y)}) scale({size / len(rows):.4g})"
    inside = tag("g", "".join(paths), transform=place, shape_rendering="crispEdges")
    return inside + box(x, y, size, size, frame)


def svg(height: int, title: str, description: str, content: Iterable[str]) -> str:
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 {height}" width="1000" height="{height}" '
        'role="img" aria-labelledby="title desc" '
        'font-family="Helvetica Neue, Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif">'
    )
    words = [tag("title", escape(title), id="title"), tag("desc", escape(description), id="desc")]
    card = box(1, 1, 998, height - 2, "#d5dbe1", 1.5, "#ffffff", 16)
    return "\n".join([opening, *words, card, *content, "</svg>\n"])


# --- the network ------------------------------------------------------------------------------------------------------


def network(digit: dict, shape: dict[str, list[int]], at_hand: set[str], title: str) -> str:
    """From the digit, along the top, to the class capsules; and back, along the bottom, to the redrawn digit."""

    def ink(*parts):
        """The colours of the first of these parts that is at hand."""
        return next((COLOURS[part] for part in parts if part in at_hand), GREY)

    top = [  # the middle of a column; the part and what flows there; a heading
        (95, "image", "image", "image", "one digit"),
        (281, "stem", "stem", "stem", f"{shape['stem'][0]} feature maps"),
        (478, "primary", "primary", "primary capsules", "8 types, 6 × 6 places"),
        (688, "votes", "votes", "votes", "width: coupling coefficient"),
        (880, "class", "class", "class capsules", "length: is it there?"),
    ]
    bottom = [
        (880, "decoder", "class", "mask", "all but one set to 0"),
        (690, "decoder", "flat", "", ""),
        (560, "decoder", "hidden 1", "", ""),
        (420, "decoder", "hidden 2", "decoder", "three linear layers"),
        (275, "decoder", "pixels", "", ""),
        (95, "decoder", "reconstruction", "redrawn", "from one capsule"),
    ]
    steps = [  # an arrow from here to there; what is done on the way
        (162, 204, 267, "stem", "conv 9 × 9", "ReLU"),
        (357, 424, 267, "primary", "conv 9 × 9", "stride 2"),
        (532, 606, 267, "votes", "times a matrix", "W for each pair"),
        (770, 826, 267, "class", "weighted", "sum"),
        (822, 740, 561, "decoder", "flatten"),
        (640, 612, 561, "decoder", "ReLU"),
        (506, 478, 561, "decoder", "ReLU"),
        (358, 326, 561, "decoder", "sigmoid"),
        (222, 166, 561, "decoder", "as a picture"),
    ]
    content = []
    for row, head, lane in [(top, 36, 272), (bottom, 378, 566)]:
        for x, part, flow, name, below in row:
            content.append(text(x, lane, written(shape[flow]), ink(part)[0], mono=True))
            if name:
                content.append(heading(x, head, name, below, ink(part)[0]))
    for start, end, y, part, *words in steps:
        content.append(arrow((start, y), (end, y), ink(part)[1]))
        content += [text((start + end) / 2, y + 27 + 18 * n, word, ink(part)[0]) for n, word in enumerate(words)]
    content += [text(688, 294, "agreement,", ink("votes")[0]), text(688, 312, "3 iterations", ink("votes")[0])]
    content += [pill(390, 334, 80, "squash", ink("squash")), pill(798, 334, 80, "squash", ink("squash"))]
    content += [*convolutions(digit, ink), *routed(digit, ink), *redrawn(digit, shape, ink), *losses(ink)]
    return svg(612, title, described(digit, shape), content)


def written(shape: list[int]) -> str:
    return f"[{', '.join(['B', *map(str, shape)])}]"


def convolutions(digit, ink) -> Iterator[str]:
    """The image, feature maps as sheets, primary capsules as sheets of arrows; and what one place of each looks at."""
    dark, _, _ = ink("image")
    yield picture(digit["image"], 32, 88, 126, dark, dark)

    stem, strong, _ = ink("stem")
    left, top, place = 217, 118, 5.4  # the front sheet's corner; the side of one place
    for back, rows in reversed(list(enumerate(digit["maps"]))):
        yield picture(rows, left + 8 * back, top - 7.5 * back, 20 * place, stem, strong)

    dark, strong, light = ink("primary")
    vectors, _, _ = ink("primary", "squash")
    grid_left, side = 404, 18
    for back in range(7, -1, -1):
        yield box(grid_left + 6 * back, top - 5.5 * back, 6 * side, 6 * side, strong, 1.2, light if back else "#ffffff")
    for n, (degrees, length) in enumerate(zip(digit["angles"][0], digit["primary_lengths"][0], strict=True)):
        x, y = grid_left + side * (n % 6 + 0.5), top + side * (n // 6 + 0.5)
        yield capsule(x, y, degrees, 15 * length / 1000, vectors)

    # One place of a feature map sees 9 x 9 pixels; one capsule sees 9 x 9 places of all feature maps, in steps of 2.
    r, c, pixel = 4, 9, 126 / 28
    yield looks_at((32 + pixel * c, 88 + pixel * r, 9 * pixel), (left + place * c, top + place * r, place), stem)
    r, c = 3, 2
    window = left + 2 * place * c, top + 2 * place * r, 9 * place
    yield looks_at(window, (grid_left + side * c, top + side * r, side), dark)


def looks_at(window, place, colour) -> str:
    """A window and the small place that looks at it, each given by its corner and its side, joined by two lines."""
    (x0, y0, large), (x1, y1, small) = window, place
    lines = [line([(x0 + large, y0 + n * large), (x1, y1 + n * small)], colour, 1.2) for n in (0, 1)]
    return "".join([*lines, box(x0, y0, large, large, colour, 2), box(x1, y1, small, small, colour, 2)])


def routed(digit, ink) -> Iterator[str]:
    """Eight of the primary capsules, their votes as lines as wide as the couplings, and the ten class capsules."""
    winner, givers = digit["label"], [92 + 18 * t for t in range(8)]
    rows = [80.5 + 15.6 * j for j in range(10)]
    _, strong, light = ink("votes")
    for j in sorted(range(10), key=lambda j: j == winner):  # the winner's votes lie on top
        for y, shares in zip(givers, digit["couplings"], strict=True):
            points = [(605, y), (690, y), (701, rows[j]), (786, rows[j])]
            yield curve(points, strong if j == winner else light, 14 * shares[j] / 1000)
    yield line([(770, 244), (606, 244)], strong, stroke_dasharray="5 4") + arrow((614, 244), (602, 244), strong)

    _, strong, _ = ink("primary")
    vectors, _, _ = ink("primary", "squash")
    for y, angles, place in zip(givers, digit["angles"], digit["givers"], strict=True):
        yield circle(594, y, 8.5, strong, 1.2, "#ffffff") + capsule(594, y, angles[place], 13, vectors)

    dark, _, light = ink("class")
    vectors, others, _ = ink("class", "squash")
    for j, (y, length) in enumerate(zip(rows, digit["lengths"], strict=True)):
        look = (vectors, 5, 14) if j == winner else (others, 4, 9)
        yield text(795, y + 5.4, str(j), dark, bold=j == winner) + box(806, y - 6, 150, 12, "none", 0, light, 6)
        yield arrow((806, y), (806 + 150 * length / 1000, y), *look)


def redrawn(digit, shape, ink) -> Iterator[str]:
    """The mask, the decoder's layers from right to left, and the digit that comes out."""
    dark, strong, light = ink("decoder")
    yield arrow((852, 282), (852, 356), strong)
    winner, values = digit["label"], digit["capsule"]
    for j in range(10):
        y = 408 + 11.8 * j
        if j != winner:
            yield box(806, y + 1.5, 150, 8.8, strong, 0.8, "#ffffff", 3)
            continue
        yield text(795, y + 11, str(j), dark, bold=True)
        for d, value in enumerate(values):
            fill = mixed(dark if value > 0 else GREY[0], abs(value) / max(map(abs, values)))
            yield box(806 + 9.375 * d, y - 1, 9.375, 13.8, dark, 0.8, fill)

    names = ["flat", "hidden 1", "hidden 2", "pixels"]
    bars = [(x, shape[name][0] / 17) for x, name in zip((690, 560, 420, 275), names, strict=True)]  # half as high
    for (x, half), (after, more) in itertools.pairwise(bars):
        yield polygon(
            [(x - 9, 468 - half), (after + 9, 468 - more), (after + 9, 468 + more), (x - 9, 468 + half)], light
        )
    for x, half in bars:
        yield box(x - 9, 468 - half, 18, 2 * half, strong, 1.5, mixed(strong, 0.55), 5)
    yield picture(digit["reconstruction"], 32, 408, 126, dark, strong)


def losses(ink) -> Iterator[str]:
    """Where each of the two terms of the loss looks."""
    dark, strong, _ = ink("loss")
    for length in (0.1, 0.9):
        x = 806 + 150 * length
        yield line([(x, 72), (x, 230)], strong, stroke_dasharray="4 3") + text(x, 246, str(length), dark)
    yield line([(961, 150), (972, 150), (972, 305)], strong) + pill(923, 312, 118, "margin loss", ink("loss"))
    yield line([(28, 151), (18, 151), (18, 471), (28, 471)], strong)
    yield pill(98, 334, 176, "reconstruction loss", ink("loss"))


def described(digit, shape) -> str:
    """The whole drawing in words."""
    at = {name: written(size) for name, size in shape.items()}
    winner = digit["label"]
    others = max(length for j, length in enumerate(digit["lengths"]) if j != winner) / 1000
    to_winner = [shares[winner] / 1000 for shares in digit["couplings"]]
    return (
        f"Top row, from left to right. The image {at['image']} passes through the stem, a convolution of 9 × 9 and ReLU: "
        f"{shape['stem'][0]} feature maps {at['stem']}, drawn as sheets. A second convolution of 9 × 9, with stride 2, and "
        f"squash give the primary capsules {at['primary']}: 8 types on 6 × 6 places, drawn as sheets; on the front one every "
        "capsule is a small arrow. A window of 9 × 9 is joined to the place that looks at it, once for each convolution. "
        f"Every primary capsule, times one matrix for each class, gives its votes {at['votes']}. For eight of the "
        f"{shape['primary'][0]} capsules, of each type the one that gives most to the {winner}, they are drawn as lines as wide "
        f"as the coupling coefficients after 3 iterations of agreement: {min(to_winner):.2f} to {max(to_winner):.2f} to the "
        f"{winner}, about a tenth to each other class. Their weighted sum, squashed, gives the class capsules {at['class']}: "
        f"ten arrows, that of the {winner} {digit['lengths'][winner] / 1000:.2f} long, the others at most {others:.2f}. Margin "
        "loss looks at these lengths, with marks at 0.1 and 0.9. Bottom row, from right to left. The mask sets all capsules "
        f"but that of the {winner} to 0. Flattened, {at['flat']}, it goes through the decoder's three linear layers, "
        f"{at['hidden 1']}, {at['hidden 2']} and {at['pixels']}, with ReLU, ReLU and sigmoid, and becomes the redrawn image "
        f"{at['reconstruction']}. Reconstruction loss compares it with the image above it."
    )


# --- parts, wholes and votes ------------------------------------------------------------------------------------------


def votes() -> str:
    """Two parts vote for two wholes, after three iterations."""
    v, couplings = dynamic_routing(LOOP_AND_STEM[None], 3, return_couplings=True)
    v, c = v[0].tolist(), couplings[-1, 0].tolist()
    loop, stem, total = COLOURS["primary"], COLOURS["votes"], COLOURS["class"]
    content = [
        heading(122, 38, "lower-level capsules", "parts", INK),
        heading(385, 38, "coupling coefficients", "each part shares out 1", INK),
        heading(763, 38, "higher-level capsules", "wholes. Thin: prediction vectors. Thick: the capsule", INK),
    ]
    pills = []
    for (i, colours), j in itertools.product(enumerate([loop, stem]), range(2)):
        y0, y1 = (188, 388)[i], (178, 392)[j] + 26 * (i - 0.5)
        points = [(192, y0), (342, y0), (376, y1), (566, y1)]
        content.append(curve(points, colours[1], 20 * c[i][j], stroke_opacity=0.85))
        shares = [0.343, 0.441, 0.189, 0.027]  # of the four points, three tenths along the curve
        x, y = (sum(share * p for share, p in zip(shares, line, strict=True)) for line in zip(*points, strict=True))
        pills.append(pill(x, y, 58, f"{c[i][j]:.2f}", colours))
    content += pills
    content += [circle(122, 188, 70, loop[1], 2.5, "#ffffff"), circle(122, 188, 24, loop[1], 12)]
    content += [circle(122, 388, 70, stem[1], 2.5, "#ffffff"), stroke(122, 348, 428, stem[1])]
    content += [text(122, 284, "a loop", loop[0], bold=True), text(122, 484, "a stem", stem[0], bold=True)]

    for j, (name, says, y) in enumerate([("9", "the votes agree", 178), ("6", "the votes contradict each other", 392)]):
        content.append(box(566, y - 98, 394, 196, total[1] if j == 0 else GREY[1], 2.5, "#ffffff", 14))
        content.append(text(763, y - 72, f"the {name}: {says}", INK, bold=True))
        down = 1 if name == "9" else -1  # a 9 is a loop with a stem below it on the right; a 6 is the same upside down
        content.append(stroke(626 + 21 * down, y + 14 - 25 * down, y + 14 + 52 * down, stem[1]))
        content.append(circle(626, y + 14 - 22 * down, 21, loop[1], 12))
        x, y, unit = 812, y + 74, 100
        half_disc = f"M{x - unit} {y}A{unit} {unit} 0 0 1 {x + unit} {y}Z"
        content.append(tag("path", d=half_disc, fill=GREY[2]))
        for (across, up), colours in zip(LOOP_AND_STEM[:, j].tolist(), [loop, stem], strict=True):
            content.append(arrow((x, y), (x + unit * across, y - unit * up), colours[1], 4, 14))
        content.append(circle(x, y, 4.5, "none", 0, total[0]))
        content.append(arrow((x, y), (x + unit * v[j][0], y - unit * v[j][1]), total[0], 9, 24))
        content.append(text(x - 96, y - 108, f"length {math.hypot(*v[j]):.2f}", total[0], bold=True))
    description = (
        f"On the left two lower-level capsules, the parts: a loop and a stem. Lines as wide as the coupling coefficients lead to "
        f"two higher-level capsules, the wholes. The loop gives {c[0][0]:.2f} of itself to the 9 and {c[0][1]:.2f} to the 6, the "
        f"stem {c[1][0]:.2f} and {c[1][1]:.2f}. In the 9, both prediction vectors (votes) point up, and the capsule has a length "
        f"of {math.hypot(*v[0]):.2f}. In the 6, one points left and the other right, and the capsule has a length of "
        f"{math.hypot(*v[1]):.2f}. A grey half-disc of radius 1 shows the scale."
    )
    return svg(512, VOTES_TITLE, description, content)


def stroke(x, y0, y1, colour) -> str:
    return line([(x, y0), (x, y1)], colour, 12, stroke_linecap="round")


# --- files ------------------------------------------------------------------------------------------------------------


def drawings() -> dict[str, str]:
    """Name and content of every drawing."""
    digit, shape = json.loads((FOLDER / "digit.json").read_text()), shapes()
    files = {"network.svg": network(digit, shape, set(COLOURS), TITLE), "votes.svg": votes()}
    for notebook, (parts, words) in AT_HAND.items():
        files[f"network-{notebook}.svg"] = network(digit, shape, parts, f"{TITLE} Coloured here: {words}.")
    return files


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="measure the digit anew before drawing")
    if parser.parse_args().measure:
        lines = [f'"{name}": {json.dumps(value)}' for name, value in measure().items()]
        (FOLDER / "digit.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    for name, content in drawings().items():
        (FOLDER / name).write_text(content, encoding="utf-8")
