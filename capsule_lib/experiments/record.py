"""The record of an experiment: one JSON file that is whole after every finished cell, and refuses cells of another kind."""

import json
import math
import platform
import shlex
import statistics
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from capsule_lib.device import describe_machine
from capsule_lib.files import write_whole

ANOTHER = "give another file to --out, or remove this one"


class Record:
    """The cells of an experiment's table that are finished, each a dict under its name, in a file that holds them and what made them.

    Args:
        path: the file. If it is there, the record goes on; else it is made, so that a place that can't be written to is found out
            before anything is computed.
        experiment: its name. number: its version, raised whenever the same settings would give other numbers.
        settings: all that the cells depend on, such as epochs and seeds, as JSON has it.
        device: that the cells are computed on.
        command: that made the record. Every one that added to it is kept.

    Raises:
        ValueError: a file that is not such a record, or one of another experiment, version, machine or other settings; it says
            what differs, and the file is left as it is.
        OSError: the file can't be written.
    """

    def __init__(self, path: Path, experiment: str, number: int, settings: dict, device: torch.device, command: str):
        libraries = {name: version(name) for name in ("torch", "torchvision")}
        self.path = path
        self.head = {
            "experiment": experiment,
            "version": number,
            "settings": json.loads(json.dumps(settings)),  # as it comes back from the file
            "machine": describe_machine(device),
            "versions": {"python": platform.python_version(), **libraries},
        }
        there = self._read()
        for left in path.parent.glob(f".{path.name}.*"):  # by a process that was killed while it wrote
            if not psutil.pid_exists(int(left.suffix[1:])):
                left.unlink(missing_ok=True)
        self.commands = [*dict.fromkeys([*there.get("commands", []), command])]
        self.cells: dict[str, dict] = there.get("cells", {})
        self._write()

    def add(self, name: str, cell: dict) -> None:
        """Write a finished cell, beside those that another process may have written meanwhile.

        Whoever stops the process loses at most the cell under way.
        """
        self.cells |= self._read().get("cells", {}) | {name: cell}
        self._write()

    def _write(self) -> None:
        content = json.dumps({**self.head, "commands": self.commands, "cells": self.cells}, indent=1, allow_nan=False)
        write_whole({self.path: content.encode() + b"\n"})

    def _read(self) -> dict:
        """What the file holds, if its cells are of the same kind as those to come; an empty dict where there is none."""
        if not self.path.exists():
            return {}
        try:
            there = json.loads(self.path.read_text())
            if not (isinstance(there["cells"], dict) and isinstance(there["commands"], list)):
                raise TypeError("its cells should be an object and its commands a list")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is not the record of an experiment ({error!r}): {ANOTHER}") from error
        if differs := [line for key in self.head for line in _differences(key, there.get(key), self.head[key])]:
            raise ValueError(
                f"{self.path} was made otherwise, and cells are not mixed: {'; '.join(differs)}: {ANOTHER}"
            )
        return there


def by_network(record: dict, value: Callable[[dict], float | None], **which) -> dict[str, tuple[float, float]]:
    """What the seeds of each network gave: mean and standard deviation, NaN of a single seed.

        record = json.loads(read_shipped("experiments/robustness.json"))
        by_network(record, lambda cell: cell["errors"]["turned 30°"], kind="digits", size=4_000)["CNN"]

    Args:
        value: what counts of a cell; None leaves it out.
        which: entries of the cells that count. Those without a network are read-outs of `features`, and stand under their name.

    Raises:
        ValueError: the record has no such cell.
    """
    values: dict[str, list[float]] = {}
    for cell in record["cells"].values():
        if which.items() <= cell.items() and (found := value(cell)) is not None:
            values.setdefault(cell.get("network") or cell["features"], []).append(found)
    if not values:
        raise ValueError(
            f"no cell of this record has {which}: its kinds are {sorted({c['kind'] for c in record['cells'].values()})}"
        )
    return {name: (statistics.mean(v), statistics.stdev(v) if len(v) > 1 else math.nan) for name, v in values.items()}


def _differences(name: str, there: object, here: object) -> list[str]:
    """What differs between two values, entry by entry where both are dicts."""
    if isinstance(there, dict) and isinstance(here, dict):
        return [line for key in [*here, *(there.keys() - here)] for line in _differences(f"{name}.{key}", there.get(key), here.get(key))]  # fmt: skip
    return [] if there == here else [f"{name} is {there!r} there and {here!r} here"]


def this_command() -> str:
    """The command line that this process was started with."""
    return shlex.join(["python", "-m", "capsule_lib.experiments", *sys.argv[1:]])
