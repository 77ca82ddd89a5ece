"""Gather the cards of all trainings, in this folder and in `runs/`, into `results.md`.

python data/weights/make_results.py
"""

import json
import statistics
from pathlib import Path

HERE = Path(__file__).parent
HEAD = [
    "# What the trainings gave",
    "",
    "Measured on MNIST's 10,000 test digits, once per training, at the end. The reconstruction weight is that of the squared error,",
    "summed over an image's pixels; the paper's is 0.0005. Each row has a card in this folder or in `runs/`, with its command.",
    "",
    "| network | routing iterations | reconstruction weight | training | test error % | squared error per pixel |",
    "|---|---|---|---|---|---|",
]
ELSEWHERE = [
    "| the paper's, as published | 3 | 0.0005 | | 0.25 (sd 0.005) | |",
    "| | 3 | none | | 0.35 | |",
    "| | 1 | 0.0005 | | 0.29 | |",
    "| | 1 | none | | 0.34 | |",
    "| independent reproductions of the first of these | 3 | | | 0.27 to 0.36 | |",
    "",
    "In `small` the heavy reconstruction term (0.01) costs a tenth of a percentage point. It buys sharper drawings, and the weakest",
    "of the 160 dimensions changes its drawing nearly twice as much as with the paper's weight. `paper` (one seed each) reached",
    "0.39 % in one long training at half the learning rate, and nearly kept it with more weight on reconstruction. Shorter",
    "trainings, and those that went on from them, lie between 0.48 and 0.59 %. All are above the published figure.",
]


def page() -> str:
    """A line for each setting; runs that differ in nothing but the seed share one, with mean and standard deviation."""
    cards = [json.loads(path.read_text()) for path in sorted([*HERE.glob("*.json"), *HERE.glob("runs/*.json")])]
    by_weights = {card["sha256"]: card for card in cards}
    groups: dict[tuple, list[dict]] = {}
    for card in cards:
        weight = card["reconstruction_scale"]
        key = card["preset"], card["iterations"], weight, training(card, by_weights, weight)
        groups.setdefault(key, []).append(card)
    lines = []
    for key, alike in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        preset, iterations, scale, trained = key
        error, mse = (spread([card[name] for card in alike], form) for name, form in COLUMNS)
        runs = f" ({len(alike)} seeds)" if len(alike) > 1 else ""
        lines.append(f"| `{preset}`{runs} | {iterations} | {scale or 'none'} | {trained} | {error} | {mse} |")
    return "\n".join([*HEAD, *lines, *ELSEWHERE]) + "\n"


def training(card: dict, by_weights: dict[str, dict], weight: float) -> str:
    """How a network was trained, after what it began with; `weight` is the reconstruction weight that its row gives."""
    own = f" with {card['reconstruction_scale']}" if card["reconstruction_scale"] != weight else ""
    words = [f"{card['epochs']} epochs{own}"]
    words += [f"rotation {card['rotation']:g}°"] if card["rotation"] else []
    words += [f"scaling {100 * card['scaling']:g} %"] if card["scaling"] else []
    words += ["averaged weights"] if card.get("averaging") else []
    before = f"{training(by_weights[card['start']['sha256']], by_weights, weight)}; then " if card.get("start") else ""
    return before + ", ".join(words)


COLUMNS = [("test_error_percent", ".2f"), ("test_mse", ".4f")]


def spread(values: list[float], form: str) -> str:
    mean = f"{statistics.mean(values):{form}}"
    return f"{mean} (sd {statistics.stdev(values):{form[:-2]}{int(form[-2]) + 1}f})" if len(values) > 1 else mean


if __name__ == "__main__":
    (HERE / "results.md").write_text(page())
    print(page())
