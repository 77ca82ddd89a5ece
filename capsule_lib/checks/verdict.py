"""What a checker answers, and how it calls a function and compares the result with what is right and with known mistakes."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Verdict(NamedTuple):
    """passed is None while the function is still a stub."""

    passed: bool | None
    message: str

    def __repr__(self) -> str:
        return f"{ {True: '✓', False: '✗', None: '…'}[self.passed] } {self.message}"

    def __bool__(self) -> bool:
        return bool(self.passed)


def call(function: Callable, *inputs: Tensor) -> Tensor | Verdict:
    """The function's result, or a verdict where there is none."""
    try:
        out = function(*(x.clone() if isinstance(x, Tensor) else x for x in inputs))
    except NotImplementedError:
        out = None
    except Exception as error:
        shapes = ", ".join(str(list(x.shape)) for x in inputs if isinstance(x, Tensor))
        return Verdict(False, f"your function stops with {type(error).__name__}: {error} (called with shapes {shapes})")
    if out is None or out is NotImplemented or out is ...:
        return Verdict(None, "nothing to check yet: write the function, then run this cell again")
    if not isinstance(out, Tensor):
        return Verdict(False, f"your function should return a tensor; it returns {type(out).__name__}")
    return out


def compare(
    function: Callable, inputs: tuple[Tensor, ...], right: Tensor, mistakes: list[tuple[Tensor, str]], praise: str = ""
) -> Verdict:
    """Whether the function is right, and what is wrong with it where it is not."""
    out = call(function, *inputs)
    if isinstance(out, Verdict):
        return out
    if out.shape != right.shape:
        return Verdict(False, f"the result should have shape {list(right.shape)}; yours has {list(out.shape)}")
    if torch.allclose(out, right, rtol=1e-4, atol=1e-5):
        return Verdict(True, praise)
    for wrong, says in mistakes:
        if torch.allclose(out, wrong.to(out.dtype), rtol=1e-4, atol=1e-5):
            return Verdict(False, says)
    if not out.isfinite().all():
        return Verdict(False, "some results are not finite numbers")
    return Verdict(
        False,
        f"the result differs from the paper's formula, by up to {(out - right).abs().max():.3g}, and not in a way that this checker knows. Try an input small enough to work out by hand",
    )


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers that are the same every time, and leave the reader's own random state alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def short(vector: Tensor) -> str:
    return "[" + ", ".join(f"{x:.3g}" for x in vector.flatten().tolist()) + "]"
