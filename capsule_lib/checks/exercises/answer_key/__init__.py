"""What the notebooks' exercises and predictions expect, one file for each notebook.

`notebook_03.py` holds EXERCISES and PREDICTIONS, dicts by keys such as "03.2". An exercise expects a number, a choice or a
truth value (`Expected`), or is a function that takes what the reader gives, such as a checker, and returns a Verdict.
"""

import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from capsule_lib.checks.verdict import Verdict

SLIPS = {  # what a wrong number may be a multiple of the right one by
    -1: "the size is right, the sign is not",
    100: "it is too large by a factor of 100: is a share wanted, not a percentage?",
    1 / 100: "it is too small by a factor of 100: is a percentage wanted, not a share?",
    1000: "it is too large by a factor of 1,000: look at the unit",
    1 / 1000: "it is too small by a factor of 1,000: look at the unit",
    1e6: "it is too large by a factor of a million: look at the unit",
    1 / 1e6: "it is too small by a factor of a million: look at the unit",
    1000 / 1024: "1 MB is 1,000,000 bytes, 1 MiB is 1,048,576: look at the unit",
    1e6 / 1024**2: "1 MB is 1,000,000 bytes, 1 MiB is 1,048,576: look at the unit",
    1e9 / 1024**3: "1 GB is 1,000,000,000 bytes, 1 GiB is 1,073,741,824: look at the unit",
}


class Truth(NamedTuple):
    """How a prediction turns out. `measured` is a Python expression on the notebook's names, true after the cell; tests run it."""

    option: str
    measured: str


class Expected(NamedTuple):
    """The right answer of an exercise.

    value: a number, several numbers in a list, True or False, or words such as "b" (capitals don't matter).
    says: why it is so, in a sentence; said when the answer is right.
    within: tolerance, as a share of the value; 1 % where the value is a float, exact where it is an integer.
    mistakes: known wrong answers, each with what to say. For a choice these are all the other options.
    """

    value: float | str | bool | Sequence[float]
    says: str = ""
    within: float | None = None
    mistakes: Mapping[Any, str] = {}

    def judge(self, given) -> Verdict:
        given = _plain(given)
        if wrong := self._another_kind(given):
            return Verdict(False, wrong)
        if self._same(given, self.value):
            return Verdict(True, self.says or "right")
        for mistake, says in self.mistakes.items():
            if self._same(given, mistake):
                return Verdict(False, says)
        return Verdict(False, self._hint(given))

    def _another_kind(self, given) -> str:
        """What is wrong with the kind of answer: '' where it is the kind that is asked for."""
        if callable(given):
            return "this is a function, not its result: call it, with parentheses"
        if isinstance(self.value, bool):
            return "" if isinstance(given, bool) else f"expected True or False, got {given!r}"
        if isinstance(self.value, str):
            options = sorted({self.value, *self.mistakes}) if self.mistakes else []
            if not isinstance(given, str):
                return f"expected words in quotes{', one of ' * bool(options)}{', '.join(map(repr, options))}; got {given!r}"
            known = not options or any(self._same(given, option) for option in options)
            return "" if known else f"expected one of {', '.join(map(repr, options))}; got {given!r}"
        if isinstance(self.value, list | tuple):
            if not isinstance(given, list) or len(given) != len(self.value):
                return f"expected {len(self.value)} numbers in a list; got {_short(given)}"
            return next(filter(None, map(_no_number, given)), "")
        return _no_number(given)

    def _same(self, given, value) -> bool:
        if isinstance(value, list | tuple):
            return all(map(self._same, given, value))
        if isinstance(value, str | bool):
            return str(given).strip().casefold() == str(value).casefold()
        within = self.within if self.within is not None else 0 if isinstance(value, int) else 0.01
        return math.isclose(given, value, rel_tol=max(within, 1e-9), abs_tol=max(within, 1e-9) if value == 0 else 0)

    def _hint(self, given) -> str:
        if isinstance(self.value, str | bool):
            return "not this one"
        if isinstance(self.value, list | tuple):
            return f"{sum(map(self._same, given, self.value))} of the {len(given)} numbers are right"
        if self.value:
            for slip, says in SLIPS.items():
                if math.isclose(given, slip * self.value, rel_tol=0.001):
                    return says
        return f"{given:g} is too {'large' if given > self.value else 'small'}"


def look_up(kind: str, key: str) -> Truth | Expected | Callable[[Any], Verdict]:
    """What is expected for an exercise or a prediction."""
    known = _all(kind)
    if key not in known:
        raise KeyError(
            f"there is no {key!r} among the {kind}: choose one of {', '.join(sorted(known)) or '(none yet)'}"
        )
    return known[key]


def keys(kind: str) -> set[str]:
    """All keys of the course, of "exercises" or "predictions"."""
    return set(_all(kind))


@cache
def _all(kind: str) -> dict:
    files = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return {key: what for file in files for key, what in getattr(file, kind.upper()).items()}


def _plain(given):
    """Tensors, arrays and NumPy's numbers as Python's own; one number out of its brackets."""
    if isinstance(given, Tensor | np.ndarray | np.generic):
        flat = given.reshape(-1).tolist()
        return flat[0] if len(flat) == 1 else flat
    return [_plain(x) for x in given] if isinstance(given, list | tuple) else given


def _no_number(given) -> str:
    if isinstance(given, str):
        return f"{given!r} is text: leave out the quotes and units"
    if isinstance(given, bool) or not isinstance(given, int | float):
        return f"expected a number, got {_short(given)}"
    return "" if math.isfinite(given) else f"{given} is not a finite number"


def _short(given) -> str:
    if isinstance(given, list):
        return f"{len(given)} values"
    return f"{given}" if isinstance(given, bool | int | float | complex) else f"a {type(given).__name__}"
