"""What the paper and the article claim, and what the record says: comparisons of two networks by one rule."""

import math
from collections.abc import Callable
from typing import NamedTuple

from capsule_lib.experiments.record import by_network


class Comparison(NamedTuple):
    """What is measured, how it is read from a cell of the record, whether `network` or `other` should have more of it, and which cells count."""

    measured: str
    value: Callable[[dict], float | None]
    network: str
    other: str
    more: bool
    which: dict


class Outcome(NamedTuple):
    """Both means, and 'yes' if they differ as claimed, 'no difference', 'the other way', or 'one seed', which says nothing of a spread."""

    network: float
    other: float
    differ: str


def compare(record: dict, comparison: Comparison) -> Outcome:
    """Two networks differ if their means lie further apart than twice the larger of the two standard deviations over the seeds."""
    _, value, network, other, more, which = comparison
    found = by_network(record, value, **which)
    (mean, spread), (other_mean, other_spread) = found[network], found[other]
    if math.isnan(spread) or math.isnan(other_spread):
        return Outcome(mean, other_mean, "one seed")
    if abs(mean - other_mean) <= 2 * max(spread, other_spread):
        return Outcome(mean, other_mean, "no difference")
    return Outcome(mean, other_mean, "yes" if (mean > other_mean) == more else "the other way")


def errors_under(*conditions: str, stopped: bool = False) -> Callable[[dict], float | None]:
    """The mean error in % under some conditions, of a cell; `stopped`: when it first had the common upright error, None if never."""

    def value(cell: dict) -> float | None:
        errors = cell["errors"] if not stopped else cell["stopped"] and cell["stopped"]["errors"]
        return errors and sum(errors[name] for name in conditions) / len(conditions)

    return value


def read_outs(quantity: str, kind: str = "linear") -> Callable[[dict], float | None]:
    """R² of a cell's read-out of a quantity, 'linear' or 'single'; None where it has none."""
    return lambda cell: cell["read_out"][quantity][kind] if "read_out" in cell else None


def _error_on_all(network: str, other: str, size: int) -> Comparison:
    which = {"kind": "digits", "size": size}
    return Comparison(f"% misread, {size:,} digits", lambda c: c["error_on_all"], network, other, False, which)


def _turned(network: str, other: str) -> Comparison:
    value, which = errors_under("turned 30°", "turned -30°"), {"kind": "digits", "size": 4_000}
    return Comparison("% misread at ± 30°", value, network, other, False, which)


def _affnist(network: str, other: str, stopped: bool) -> Comparison:
    measured = "% misread, affNIST" + ", stopped" * stopped
    return Comparison(measured, errors_under("affNIST", stopped=stopped), network, other, False, {"kind": "placed"})


class Claim(NamedTuple):
    """Who says it, and what it is judged by: all comparisons count."""

    said_by: str
    comparisons: list[Comparison]


CLAIMS = {
    "routing beats uniform couplings": Claim("the paper, table 1", [
        _error_on_all("small", "uniform couplings", 4_000),
        _turned("small", "uniform couplings"),
        _affnist("small", "uniform couplings", stopped=True),
    ]),
    "capsules stand turns better than pooling over all places": Claim("the article", [_turned("small", "global pooling")]),
    "capsules are more robust than a CNN": Claim("the paper, section 5.2", [
        _turned("small", "CNN"),
        _affnist("small", "CNN", stopped=False),
        _affnist("small", "CNN", stopped=True),
    ]),
    "from scratch, capsules beat ResNet and VGG": Claim("the article", [
        _error_on_all("small", other, size) for size in (100, 4_000) for other in ("ResNet-18", "VGG-11")
    ]),
    "capsules need fewer digits than a CNN": Claim("often said", [_error_on_all("small", "CNN", size) for size in (100, 300, 1_000)]),
    "their dimensions say the pose, better than a CNN's": Claim("the paper, section 5.1", [
        Comparison(f"R² of the {quantity}", read_outs(quantity), "small", "CNN", True, {"kind": "digits"})
        for quantity in ("angle", "shift", "thickness")
    ]),
    "at 28 pixels they cost more than a CNN": Claim("the article", [
        Comparison("MFLOPs per picture", lambda c: c["flops_per_picture"] / 1e6, "small", "CNN", True, {"kind": "digits", "size": 4_000})
    ]),
}  # fmt: skip


def verdict(record: dict, claim: str) -> str:
    """'holds' where every comparison of a claim comes out as claimed, 'holds partly' where some do, else 'does not hold here'.

    'not decided' where seeds are missing.
    """
    differ = [compare(record, comparison).differ for comparison in CLAIMS[claim].comparisons]
    if "one seed" in differ:
        return "not decided"
    return "holds" if {*differ} == {"yes"} else "holds partly" if "yes" in differ else "does not hold here"
