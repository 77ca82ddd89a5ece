"""Figures with a spread: what several trainings gave, one mark per network and condition."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

MARKS = "osD^vPX*"  # with the colours of the course, which are seven, no two of the first 56 networks look alike
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def spreads(
    found: Sequence[Mapping[str, tuple[float, float]]], at: Sequence, axes: tuple[str, str], log: bool = False
) -> Figure:
    """Means and standard deviations of several networks, at several places of the axis to the right.

    Args:
        found: for each place, a dict from a network's name to its mean and standard deviation. A name may be missing at a place.
        at: the places: numbers, which are joined by lines, or words, at which the networks stand side by side.
        axes: what stands below and beside the figure.
        log: logarithmic axes; words stand as they are.
    """
    figure, axis = plt.subplots(figsize=(9, 4.2))
    names, words = list(dict.fromkeys(name for each in found for name in each)), isinstance(at[0], str)
    for number, name in enumerate(names):
        places = [n for n, each in enumerate(found) if name in each]
        means, errors = zip(*(found[n][name] for n in places), strict=True)
        beside = (number - (len(names) - 1) / 2) * 0.8 / len(names)
        x = [n + beside for n in places] if words else [at[n] for n in places]
        line = "-" if number < 7 else "--"  # from the eighth on the colours come again
        style = {"fmt": MARKS[number % len(MARKS)] + (line if not words else ""), "markersize": 5, "capsize": 3}
        axis.errorbar(x, means, errors, color=f"C{number}", label=name, **style)
    if log:
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter("")
        low, high = axis.get_ylim()
        axis.set_yticks(shown := [t for t in TICKS if low <= t <= high], [f"{t:g}" for t in shown])
    if log and not words:
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter("")
    axis.set_xticks(range(len(at)) if words else at, [a if words else f"{a:,}" for a in at])
    axis.set(xlabel=axes[0], ylabel=axes[1])
    axis.legend(fontsize=10, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure
