"""What all checkers share: the verdict, the guarded call of the reader's code, the comparison with right and wrong results."""

import contextlib
import dis
import functools
import inspect
import itertools
import math
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Mistake = tuple[str, Callable]  # what to say, and a function that makes the mistake

# How far a result may be off, as a share of the largest entry of its row, by its precision; 1e-4 for all others.
TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
REMEDIES = {  # for a result of the wrong kind
    dict: "return the tensor alone",
    float: "return the tensor itself, without .item() or float(), or no gradient can flow",
    list: "make one tensor of it, with torch.stack",
    np.ndarray: "stay with tensors, because no gradient passes through NumPy",
}
HINTS = {  # for an error, by what its message says
    "in-?place": "Write s = s * f instead of s *= f, because the gradient needs the old numbers",
    "same device|expected device|CUDA|cuda": "Make new tensors where the input is, with device=s.device or torch.zeros_like(s)",
    "numpy": "Stay with tensors, because no gradient passes through NumPy",
    "positional argument": "It is called with ({takes})",
    "view size is not compatible": "Use reshape, or .contiguous() before view",
}
NOT_THE_READERS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), sysconfig.get_paths()["stdlib"])
DOES_NOTHING = "RESUME|NOP|CACHE|LOAD_(CONST|GLOBAL|COMMON_CONSTANT)|PUSH_NULL|(PRE)?CALL|POP_TOP|RAISE|RETURN"
UNWRITTEN = "nothing to check yet: write the function, then run this cell again"


class Verdict(NamedTuple):
    """passed is None while there is nothing to check yet."""

    passed: bool | None
    message: str

    def __repr__(self) -> str:
        return f"{ {True: '✓', False: '✗', None: '…'}[self.passed] } {self.message}"

    def __bool__(self) -> bool:
        return bool(self.passed)


class Wrong(Exception):
    """Ends a check with what is wrong, in the reader's words.

    known: how much is known of it: 2 a mistake, 1 a difference, 0 a crash. mistake: a function that makes the same mistake.
    """

    def __init__(self, says: str, known: int = 2, mistake: Callable | None = None):
        super().__init__(says)
        self.known, self.mistake = known, mistake


class Unwritten(Exception):
    """Ends a check because there is nothing to check yet, or something to ask for."""


class NoFunction(TypeError):
    """What was given is no function, layer or tensor."""


def wrong_if(*rules: tuple[bool, str], known: int = 2) -> None:
    """End the check with the words of the first rule that is broken."""
    for broken, says in rules:
        if broken:
            raise Wrong(says, known)


def checker(check: Callable) -> Callable[..., Verdict]:
    """Make a checker of a function that returns its praise, and yields (to go on) or raises (to end) what it finds."""

    def steps(given: tuple, settings: dict) -> Iterator[str]:
        praise = check(*given, **settings)
        return (yield from praise) if inspect.isgenerator(praise) else praise

    @functools.wraps(check)
    def run(*given, **settings) -> Verdict:
        inspect.signature(check).bind(*given, **settings)  # whoever leaves out an argument is told so by Python
        findings, found = [], steps(given, settings)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                while True:
                    findings.append(next(found))
        except StopIteration as end:
            return Verdict(not findings, "; and ".join(findings) or end.value)
        except Unwritten as nothing:
            return Verdict(None, str(nothing))
        except Wrong as last:
            return Verdict(False, "; and ".join([*findings, str(last)]))
        except NoFunction:
            raise
        except Exception as error:  # nothing that a reader passes may end in a traceback of a checker
            says = (str(error).splitlines() or [""])[0][:200]
            return Verdict(
                None,
                f"{check.__name__} can't look at this: {type(error).__name__}: {says}. See help(checks.{check.__name__}) for what it takes",
            )

    run.__annotations__ = {**check.__annotations__, "return": Verdict}
    return run


class Asked:
    """The reader's function as checkers call it: on copies of the input, guarded, its result made a tensor.

    takes, returns: names and axes, such as "u_hat [B, I, J, D], iterations" and "[B, J, D]". Verdicts speak in these.
    numbers: whether plain numbers are as good as a tensor.
    dress, undress: make of a checker's inputs what the function takes, and of its result what the checker compares.
    """

    def __init__(self, function: Callable, takes: str, returns: str, numbers=False, dress=lambda *x: x, undress=lambda out, *x: out):  # fmt: skip
        if function is None or function is ...:
            raise Unwritten(UNWRITTEN)
        result = isinstance(function, Tensor | np.ndarray | list | tuple | dict | float)
        wrong_if((result, "this is a result: give the function itself, without calling it"))
        if not callable(function):
            raise NoFunction(f"a checker takes a function or a layer; got {type(function).__name__}")
        self.dress, self.undress = dress, undress
        self.function, self.takes, self.returns, self.numbers = function, takes, returns, numbers
        self.inputs = [(name, re.findall(r"\w+", axes)) for name, axes in re.findall(r"(\w+)(?: (\[.*?\]))?", takes)]
        self.changed: list[str] = []  # inputs that the function has written into

    def __call__(self, *inputs) -> Tensor:
        dressed = self.dress(*inputs)
        given = [x.clone() if isinstance(x, Tensor) else x for x in dressed]
        try:
            out = self.function(*given)
        except Exception as error:
            if not (isinstance(error, NotImplementedError) and _is_stub(self.function)):
                raise Wrong(self._crash(error, dressed), known=0) from None
            out = None
        for (name, _), after, before in zip(self.inputs, given, dressed, strict=True):
            if name not in self.changed and isinstance(before, Tensor) and not torch.equal(after, before):
                self.changed.append(name)
        if out is None or out is ... or out is NotImplemented:
            if _is_stub(self.function):
                raise Unwritten(UNWRITTEN)
            raise Wrong(f"your function returned {out}: did you forget return? (print shows a value and hands nothing back)")  # fmt: skip
        return self.undress(self.as_tensor(out), *inputs)

    def gradient(self, inputs: Sequence) -> tuple[Tensor, float]:
        """The gradient of the results' weighted sum with respect to the first input, and how far it may be off."""
        leaf = inputs[0].clone().requires_grad_()
        out = self(leaf, *inputs[1:])
        if not out.requires_grad:
            return torch.zeros_like(leaf), 0.0
        try:
            (gradient,) = torch.autograd.grad(weighted_sum(out), leaf, materialize_grads=True, allow_unused=True)
        except Exception as error:
            raise Wrong(self._crash(error, self.dress(*inputs), "the backward pass of your function stops")) from None
        return gradient, max(1e-3, 2 * TOLERANCES.get(out.dtype, 0))

    def check_gradient(self, inputs: Sequence, *references: Callable) -> int:
        """Which of the references has the same gradient with respect to the first input."""
        got, tolerance = self.gradient(inputs)
        wrong_if((not got.any(), f"the numbers are right but no gradient reaches {self.inputs[0][0]}: nothing could be learned. detach, no_grad, .data, .item and NumPy cut it off"))  # fmt: skip
        for number, reference in enumerate(references):
            leaf = inputs[0].clone().requires_grad_()
            (wanted,) = torch.autograd.grad(weighted_sum(reference(leaf, *inputs[1:])), leaf)
            if close(got.flatten(), wanted.flatten(), tolerance):
                return number
        wrong_if((len(references) > 1, "the numbers are right but the gradient is neither of the two in use: detach the votes in all but the last iteration, or nothing"))  # fmt: skip
        raise Wrong("the numbers are right but the gradient is not: a part of it is cut off, by detach or no_grad")

    def check_inputs(self) -> None:
        """`Wrong` where the function has written into its inputs."""
        wrong_if((bool(self.changed), f"the result is right, but your function changes its input {', '.join(self.changed)} in place: whoever called it finds other numbers there afterwards. Write s = s * f instead of s *= f, or work on a copy, s.clone()"))  # fmt: skip

    def capsules(self, x: Tensor) -> Tensor:
        """The capsules [B, number, dimension] that a layer makes of x, in at least float32."""
        out = without_trailing(self(x).detach(), 3)
        fits = out.dim() == 3 and len(out) == len(x)
        hint = ": is a batch size written into your code? Use len(x)" * (out.dim() == 3)
        wrong_if((not fits, f"capsules should come as {self.returns} with B = {len(x)}, got shape {list(out.shape)}{hint}"))  # fmt: skip
        return out.double() if out.dtype == torch.float64 else out.float()

    def shaped(self, out: Tensor, wanted: Sequence[int], inputs: Sequence) -> Tensor:
        """The result without trailing axes of size 1, after a look at its shape, which is named in the reader's letters."""
        out, letters = without_trailing(out, len(wanted)), {}
        if out.shape == tuple(wanted):
            return out
        for (_, axes), x in zip(self.inputs, self.dress(*inputs), strict=True):
            for letter, size in zip(axes, getattr(x, "shape", ()), strict=False):
                letters.setdefault(size, set()).add(letter)
        named = [min(letters[n]) if len(letters.get(n, ())) == 1 else str(n) for n in out.shape]
        expected = f"should have shape {self.returns} = {list(wanted)}" if wanted else "should be one number"
        raise Wrong(f"the result {expected}; yours has shape [{', '.join(named)}] = {list(out.shape)}")

    def called_with(self, inputs: Sequence) -> str:
        """The inputs in words: 'u_hat [B, I, J, D] = [3, 7, 4, 5], iterations = 3'."""
        words = []
        for (name, axes), x in zip(self.inputs, inputs, strict=True):
            if isinstance(x, Tensor):
                half = " in float16" * (x.dtype == torch.float16)
                axes = f" [{', '.join(axes)}]" * bool(axes)
                words.append(f"{name}{axes} = {list(x.shape)}{half}" if x.dim() else f"{name} = {x:.3g}")
            elif not callable(x):
                words.append(f"{name} = {x}")
        return ", ".join(words)

    def as_tensor(self, out) -> Tensor:
        if isinstance(out, list | tuple) and out:
            if all(np.isscalar(x) or (isinstance(x, Tensor) and x.numel() == 1) for x in out):
                return torch.stack([torch.as_tensor(x).reshape(()).double() for x in out])
            out = out[0] if isinstance(out, tuple) and isinstance(out[0], Tensor) else out  # capsules, and couplings
        if self.numbers and isinstance(out, int | float | np.ndarray | np.number):
            out = torch.as_tensor(out)
        if not isinstance(out, Tensor):
            remedy = next((f": {says}" for kind, says in REMEDIES.items() if isinstance(out, kind)), "")
            kind = "NumPy array" if isinstance(out, np.ndarray) else type(out).__name__
            raise Wrong(f"your function should return a tensor; it returns {kind}{remedy}")
        wrong_if((out.is_complex(), "your function returns complex numbers: the square root of something negative?"))
        return out

    def _crash(self, error: Exception, inputs: Sequence, what: str = "your function stops") -> str:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(NOT_THE_READERS)]
        where = f" at line {frames[-1].lineno}, `{frames[-1].line}`," if frames else ""
        says = (str(error).splitlines() or [""])[0][:200]
        hints = [f". {hint}".format(takes=self.takes) for words, hint in HINTS.items() if re.search(words, says)]
        hint = hints[0] if hints else ""
        return f"{what}{where} with {type(error).__name__}: {says}{hint} (called with {self.called_with(inputs)})"


def compare(
    asked: Asked,
    cases: Sequence[tuple],
    right: Callable,
    mistakes: Iterable[Mistake],
    *,
    gradient: bool = False,
    tolerance: float | None = None,
    explain: Callable[[Tensor, Tensor], str] = lambda out, expected: "",
) -> None:
    """Whether the function is right in each case; `Wrong` says what is wrong where it is not.

    Args:
        cases: inputs for the function, of several sizes, so that none can be written into the code.
        right: the reference, a function of the same inputs.
        mistakes: searched, in their order, for one with the reader's results in every case.
        gradient: whether a gradient has to reach the first input, as in `right`.
        explain: takes the result and the right one of a case, and knows more to say about an unknown mistake.
    """
    pairs, fine, mistakes = [], [], list(mistakes)
    for inputs in cases:
        expected = right(*inputs)
        try:
            pairs.append((asked.shaped(asked(*inputs), expected.shape, inputs), expected))
        except Wrong as error:
            if fine and all(fine):
                raise Wrong(f"right with {asked.called_with(asked.dress(*cases[0]))}, but not with other sizes: {error}. Is a size written into your code?") from None  # fmt: skip
            if not fine:
                raise
            break  # there is a mistake to be named already
        fine.append(close(*pairs[-1], tolerance))
    if all(fine):
        asked.check_inputs()
        if gradient:
            asked.check_gradient(cases[0], right)
        return
    _unusable(asked, cases, pairs, right)
    # The last round is for a mistake that only looks like one where a size is written into the code besides.
    for some in [pairs] if fine[0] else [pairs, pairs[:1]]:
        for says, mistake in mistakes:
            alike = (close(out, mistake(*x), tolerance) for (out, _), x in zip(some, cases, strict=False))
            if all(alike):
                raise Wrong(says, mistake=mistake)
    raise Wrong(_unknown(asked, cases, pairs, fine, explain) + f". Your function also changes its input {', '.join(asked.changed)} in place: that may be why" * bool(asked.changed), known=1)  # fmt: skip


def _unusable(asked: Asked, cases: Sequence[tuple], pairs: Sequence, right: Callable) -> None:
    """`Wrong` for a result that no formula explains: not finite, always the same, or random, though it was given tensors."""
    random = not any(isinstance(x, Tensor) for x in cases[0])
    out = pairs[0][0]
    turned = [x.flip(0) * 0.7 if isinstance(x, Tensor) and x.is_floating_point() and x.dim() else x for x in cases[0]]
    alike = len(pairs) > 1 and all(torch.equal(other, out) for other, _ in pairs)
    if out.is_floating_point() and not close(right(*turned), pairs[0][1], 0.01):
        with contextlib.suppress(Wrong):
            alike = alike or torch.equal(asked(*turned).view_as(out), out)
    wrong_if(
        (any(not x.isfinite().all() for x, _ in pairs), "some results are not finite numbers"),
        (not (random or torch.equal(asked(*cases[0]).view_as(out), out)), "the same input gives other results each time: take the randomness out, or call .eval() first if it is dropout"),
        (alike, f"the result is the same, whatever the input is: does your function use {asked.takes}?"),
        known=1,
    )  # fmt: skip


def in_any_dress(dresses: Sequence[tuple[str, Callable]]) -> str:
    """What to say of the first check that finds nothing; else the `Wrong` that knows most."""
    problems = []
    for says, check in dresses:
        try:
            check()
            return says
        except Wrong as problem:
            problems.append(problem)
    raise max(problems, key=lambda problem: problem.known)


def _unknown(asked: Asked, cases: Sequence, pairs: Sequence, fine: list[bool], explain: Callable) -> str:
    """What is left to say of a result that no known mistake gives."""
    n = fine.index(False)
    kind, (out, right) = pairs[n][0].dtype, (x.detach().cpu().double() for x in pairs[n])
    if not kind.is_floating_point and not right.equal(right.round()):
        return f"your result holds whole numbers ({kind}), which lose all that comes after the point"
    if any(fine):
        good, bad = (asked.called_with(asked.dress(*cases[m])) for m in (fine.index(True), n))
        return f"right with {good}, but not with {bad}: is a size or a number written into your code?"
    factor = (out * right).sum() / right.square().sum()
    if abs(factor - 1) > 0.01 and factor and all(close(got, factor * wanted, 1e-3) for got, wanted in pairs):
        return f"the result is {factor:.4g} times what it should be, everywhere"
    return explain(out, right) or f"the result differs from what is right, by up to {(out - right).abs().max():.3g} where the largest entry is {right.abs().max():.3g}, and not in a way that this checker knows. Try an input small enough to work out by hand"  # fmt: skip


def combined(make: Callable, kinds: Sequence[Sequence[tuple[str, dict]]], counts=(1, 2, 3), **always) -> Iterator[Mistake]:  # fmt: skip
    """Known mistakes, first each by itself, then two and three of different kinds at once.

    kinds: for each kind its mistakes: what to say, and the change to `make` that makes it. always: changes made in any case.
    """
    for count in counts:
        for some in itertools.combinations(kinds, count):
            for chosen in itertools.product(*some):
                changes = always | {name: value for _, change in chosen for name, value in change.items()}
                yield "; and ".join(says for says, _ in chosen), functools.partial(make, **changes)


def close(out: Tensor, right: Tensor, tolerance: float | None = None) -> bool:
    """Whether all entries agree to within a share of the largest of their row, at the precision of `out`."""
    tolerance = tolerance or TOLERANCES.get(out.dtype, 1e-4)
    out, right = (x.detach().cpu().double() for x in (out, right))
    size = right.abs().amax(-1, keepdim=True) if right.dim() else right.abs()
    return out.shape == right.shape and bool(((out - right).abs() <= tolerance * size).all())


def answered(given, axes: str, sizes: Sequence[int | None] = (), low: float = -np.inf, high: float = np.inf) -> Tensor:
    """The tensor that a reader gives as an answer, after a look at its shape (None for any size) and its range."""
    if given is None or given is ...:
        raise Unwritten("not answered yet")
    try:
        tensor = without_trailing(torch.as_tensor(given).detach().cpu(), len(sizes) or 99)
    except Exception:
        raise Wrong(f"give a tensor {axes}; this is {type(given).__name__}") from None
    fits = not sizes or (tensor.dim() == len(sizes) and all(n in (None, m) for n, m in zip(sizes, tensor.shape, strict=True)))  # fmt: skip
    wrong_if(
        (not fits or not tensor.numel(), f"give a tensor {axes}; yours has shape {list(tensor.shape)}"),
        (tensor.is_complex() or not tensor.isfinite().all(), "some entries are not finite numbers"),
    )
    least, most = tensor.min().item(), tensor.max().item()
    wrong_if((least < low or most > high, f"entries should lie in {low:g}..{high:g}; yours run from {least:.4g} to {most:.4g}"))  # fmt: skip
    return tensor


def arrange(x: Tensor, axes: str, layout: str) -> Tensor:
    """x, with axes named by letters, in the order of a layout such as "1ijdk" or "ik(jd)": 1 is a new axis, parentheses join axes."""
    x = x.permute([axes.index(letter) for letter in re.sub("[1()]", "", layout)])
    return x.reshape(_sizes(layout, dict(zip(re.sub("[1()]", "", layout), x.shape, strict=True))))


def restore(x: Tensor, axes: str, layout: str, sizes: Mapping[str, int]) -> Tensor:
    """The way back from `arrange`. Where x hasn't the shape of the layout, it is returned as it is."""
    letters = re.sub("[1()]", "", layout)
    if list(x.shape) != _sizes(layout, sizes):
        return x
    return x.reshape([sizes[letter] for letter in letters]).permute([letters.index(letter) for letter in axes])


def groups_of(layout: str) -> list[str]:
    """The axes of a layout: "ik(jd)" has three."""
    return [joined or single for joined, single in re.findall(r"\((.*?)\)|(\w)", layout)]


def _sizes(layout: str, sizes: Mapping[str, int]) -> list[int]:
    return [math.prod(sizes.get(letter, 1) for letter in group) for group in groups_of(layout)]


def layout_of(layout: str, axes: str, may: str = "1") -> str:
    """A layout in small letters, if it names each of the axes once; `may` stand in it besides."""
    letters = re.sub(f"[{may}()]", "", layout.lower()) if isinstance(layout, str) else ""
    wrong_if(
        (
            sorted(letters) != sorted(axes),
            f"layout names each of the axes {', '.join(axes)} once, such as {axes!r}; got {layout!r}",
        )
    )
    return layout.lower()


def in_words(layout: str) -> str:
    """Such as [B, 1, I, D] for "b1id"."""
    return f"[{', '.join(groups_of(layout.upper()))}]"


def without_trailing(x: Tensor, axes: int) -> Tensor:
    """x without axes of size 1 at its end, beyond the number of axes that are wanted."""
    return without_trailing(x.squeeze(-1), axes) if x.dim() > axes and x.shape[-1] == 1 else x


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers that are the same every time, and leave the reader's own random state alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), device="cpu")


def weighted_sum(out: Tensor) -> Tensor:
    """One number in which each entry counts differently, so that its gradient shows each of them."""
    return (out.double().flatten() * torch.linspace(1, 2, out.numel(), device=out.device)).sum()


def _is_stub(function: Callable) -> bool:
    """Whether a function's body does nothing: it is empty, `...`, `pass`, or only raises NotImplementedError."""
    function = inspect.unwrap(getattr(function, "func", function))  # out of functools.partial and wrappers
    function = getattr(function, "forward", function)
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return code is not None and set(code.co_names) <= {"NotImplementedError"} and all(
        re.match(DOES_NOTHING, step.opname) for step in dis.get_instructions(code)
    )  # fmt: skip
