"""One report of several checks: what was looked at, what is wrong, and what was not looked at."""

from collections.abc import Mapping
from html import escape
from typing import Any, NamedTuple

from capsule_lib.checks import capsules, inputs, layers, losses, networks, routing
from capsule_lib.checks.verdict import Verdict

CHECKERS = {
    check.__name__: check
    for check in [
        capsules.squash, capsules.primary_caps, layers.capsule_layer, layers.routing_layer, layers.weights, routing.dynamic_routing, routing.couplings,
        losses.margin_loss, losses.reconstruction_loss, losses.mask, networks.network, networks.loader, inputs.images, inputs.random_shift,
    ]
}  # fmt: skip


class Report(NamedTuple):
    """Verdicts by the names of their checkers, and what nobody looked at. It prints as text, and in a notebook as a table."""

    verdicts: Mapping[str, Verdict]
    missing: Mapping[str, str]

    def __bool__(self) -> bool:
        return bool(self.verdicts) and all(self.verdicts.values())

    def __repr__(self) -> str:
        looked = [f"{name}: {verdict}" for name, verdict in self.verdicts.items()]
        return "\n".join([*looked, *(f"{name}: not looked at. {what}" for name, what in self.missing.items())])

    def _repr_html_(self) -> str:
        cells = [(name, repr(verdict)[0], verdict.message) for name, verdict in self.verdicts.items()]
        cells += [(name, "not looked at", what) for name, what in self.missing.items()]
        rows = "".join(f"<tr><th scope='row'>{escape(name)}</th><td>{escape(mark)}</td><td style='text-align: left'>{escape(says)}</td></tr>" for name, mark, says in cells)  # fmt: skip
        return f"<table><tr><th>checker</th><th>verdict</th><th>what it says</th></tr>{rows}</table>"


def report(**given: Any) -> Report:
    """Run several checkers, and list what they say beside what was not looked at.

        checks.report(squash=my_squash, capsule_layer=(layer, u), routing_layer=checks.routing_layer(layer, "W", "1ijdk"))

    Each argument is named like a checker. It is what that checker takes: one thing, or a tuple of several; or its verdict.
    """
    verdicts = {name: _verdict(name, what) for name, what in given.items()}
    missing = {name: check.__doc__.partition("\n")[0] for name, check in CHECKERS.items() if name not in given}
    return Report(verdicts, missing)


def _verdict(name: str, what: Any) -> Verdict:
    if isinstance(what, Verdict):
        return what
    if name not in CHECKERS:
        return Verdict(None, f"no checker has this name: choose one of {', '.join(CHECKERS)}")
    try:
        return CHECKERS[name](*what) if isinstance(what, tuple) else CHECKERS[name](what)
    except TypeError as error:
        return Verdict(None, f"it can't be looked at: {error}")
