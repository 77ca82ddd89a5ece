"""The command: which cells an experiment has, in which order, what is done already, and how long the rest takes."""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from capsule_lib.device import choose_device, describe_machine
from capsule_lib.experiments import family, wall
from capsule_lib.experiments.networks import NETWORKS, PRETRAINED_VIT
from capsule_lib.experiments.record import Record, this_command
from capsule_lib.experiments.robustness import CONDITIONS, READ_OUT, SIZES, VERSION, Robustness, flops, recipe
from capsule_lib.routings import ROUTINGS

EXAMPLES = """
examples:
  python -m capsule_lib.experiments robustness --out robustness.json
      100 to 4,000 digits, 11 networks, 3 seeds: some hours; after it was stopped, by anything, the same command goes on
  python -m capsule_lib.experiments robustness --out robustness-mnist.json --data mnist --networks small CNN
      all of MNIST; later with other networks into the same file
  python -m capsule_lib.experiments routings --out routings.json
      the network compact with each of 6 routings, 1,000 and 4,000 digits, 3 seeds; --networks chooses among the routings
  python -m capsule_lib.experiments robustness --out robustness-pretrained.json --networks "pretrained ViT"
      fine-tunes a vision transformer that was trained on ImageNet; needs a network once, and a graphics card
  python -m capsule_lib.experiments museum --out museum.json
      the working network and 21 mistakes in it, after the same short training, 3 seeds: about an hour
  python -m capsule_lib.experiments robustness --out try.json --quick
      everything once and tiny, to see that it works
"""
NAMES = {"robustness": NETWORKS, "routings": ROUTINGS, "museum": wall.EXHIBITS}  # what each experiment compares
BAR = "{percentage:3.0f} % |{bar}| {elapsed} < {remaining}, {desc}"


class Task(NamedTuple):
    """A cell to come: its name, its network, for pictures of which size, how many forward passes it takes, and what computes it."""

    name: str
    network: str
    pixels: int
    pictures: int
    compute: Callable[[], dict]


def main() -> int:
    """Run the command with the arguments that the process was given; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m capsule_lib.experiments",
        description="Measure what the course claims, and write a record that the notebooks quote.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("experiment", choices=[*NAMES], help="which experiment")
    words = "its record, a JSON file; if it is there, it goes on"
    add("--out", required=True, type=Path, metavar="FILE", help=words)
    add("--data", default="shipped", choices=[*SIZES], help="which pictures (default: shipped)")
    words = f"some of {', '.join(map(repr, NETWORKS))}; of the routings some of {', '.join(map(repr, ROUTINGS))}; of the museum some "
    words += "of its rooms' names (default: all, without the one whose weights are downloaded)"
    add("--networks", nargs="+", metavar="NETWORK", help=words)
    add("--quick", action="store_true", help="everything once and tiny, in a minute")
    given = parser.parse_args()
    names = NAMES[given.experiment]
    if unknown := [name for name in given.networks or [] if name not in names]:
        parser.error(
            f"argument --networks: no {unknown[0]!r} in {given.experiment}: choose from {', '.join(map(repr, names))}"
        )
    try:
        run(
            given.out,
            given.data,
            given.quick,
            given.networks or [n for n in names if n != PRETRAINED_VIT],
            this_command(),
            given.experiment,
        )
    except KeyboardInterrupt:
        print(f"\nstopped: every finished cell is in {given.out}; the same command goes on", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    return 0


def run(out: Path, data: str, quick: bool, networks: list[str], command: str, name: str = "robustness") -> None:
    """Compute the cells of an experiment that the record `out` does not have yet, each written as soon as it is finished.

    Raises:
        ValueError: an unknown network or data set, or a record that can't go on: see `Record`.
        FileNotFoundError: MNIST or Fashion-MNIST is not at hand.
    """
    device = choose_device()
    if name == "robustness":
        experiment, number, cells = Robustness(recipe(data, quick)), VERSION, robustness_cells
        facts = {"conditions": CONDITIONS, "test": experiment.test_name}
    elif name == "routings":
        experiment, number, cells = family.Family(family.recipe(data, quick)), family.VERSION, routing_cells
        facts = {"test": experiment.test_name}
    else:
        experiment, number, cells = wall.Wall(wall.recipe(data, quick)), wall.VERSION, exhibit_cells
        facts = {"test": experiment.test_name}
    record = Record(out, name, number, experiment.settings | facts, device, command)
    tasks = [*tries(experiment, networks), *cells(experiment, networks, record)]
    kinds = {(task.network, task.pixels) for task in tasks}
    costs = {kind: flops(experiment.build(*kind), kind[1]) / 1e12 for kind in kinds}
    left = [task for task in tasks if task.name not in record.cells]
    print(f"{name} on {data}, {describe_machine(device)}: {len(left)} of {len(tasks)} cells to do")
    ends = [0.0]
    for task in left:
        ends.append(ends[-1] + task.pictures * costs[task.network, task.pixels])
    with tqdm(total=ends[-1], smoothing=0, bar_format=BAR, mininterval=0.5 if sys.stderr.isatty() else 30) as bar:
        for task, end in zip(left, ends[1:], strict=True):

            def progress(pictures: int, cost: float = costs[task.network, task.pixels], end: float = end) -> None:
                bar.update(min(pictures * cost, end - bar.n))

            experiment.progress = progress
            bar.set_description_str(task.name, refresh=False)
            record.add(task.name, task.compute())
            bar.update(end - bar.n)
    print(f"done: {len(record.cells)} cells in {out}")


def tries(experiment: Robustness, networks: list[str]) -> Iterator[Task]:
    """The tries at learning rates, of which each network's best is taken."""
    s = experiment.settings
    for network in networks:
        for rate in s.get("learning_rates", []):
            pictures = s["tuning_digits"] * (3 * s["tuning_epochs"] + 1)
            compute = partial(experiment.tune, network, rate)
            yield Task(f"{network}, learning rate {rate}", network, 28, pictures, compute)


def best_rate(record: Record, network: str) -> float:
    """The learning rate with the smallest error in a network's tries."""
    tried = [c for c in record.cells.values() if c["kind"] == "learning rate" and c["network"] == network]
    return min((c["validation_error"], c["learning_rate"]) for c in tried)[1]


def seed_by_seed(
    experiment: Robustness, networks: list[str], tests: int, compute: Callable[[str, int, int], dict]
) -> Iterator[Task]:
    """A cell for each seed, size and network, in this order; `tests`: how many pictures it measures besides those it is trained on."""
    for seed in experiment.settings["seeds"]:
        for size, epochs in experiment.settings["epochs"].items():
            for network in networks:
                pictures = 3 * int(size) * epochs + tests
                compute_cell = partial(compute, network, int(size), seed)
                yield Task(f"{network}, {size} digits, seed {seed}", network, 28, pictures, compute_cell)


def routing_cells(experiment: family.Family, networks: list[str], record: Record) -> Iterator[Task]:
    """All other cells of the routings."""

    def compute(network: str, size: int, seed: int) -> dict:
        return experiment.cell(network, size, seed, best_rate(record, network))

    s = experiment.settings
    return seed_by_seed(experiment, networks, 2 * s["all_test_digits"] + s["test_digits"], compute)


def exhibit_cells(experiment: wall.Wall, networks: list[str], record: Record) -> Iterator[Task]:
    """All cells of the museum."""
    return seed_by_seed(experiment, networks, experiment.settings["all_test_digits"], experiment.cell)


def robustness_cells(experiment: Robustness, networks: list[str], record: Record) -> Iterator[Task]:
    """All other cells of the robustness: one seed after the other."""

    def compute_cell(network: str, size: int, seed: int, placed: bool) -> dict:
        return experiment.cell(network, size, seed, best_rate(record, network), placed)

    s = experiment.settings
    for seed in s["seeds"]:
        for placed, pixels, key, tests in ((False, 28, "epochs", len(CONDITIONS)), (True, 40, "placed_epochs", 2)):
            for size, epochs in s[key].items():
                for network in networks:
                    name = f"{network}, {size} digits{' placed on 40 x 40' * placed}, seed {seed}"
                    pictures = 3 * int(size) * epochs + 2 * tests * s["test_digits"] + s["all_test_digits"]
                    yield Task(name, network, pixels, pictures, partial(compute_cell, network, int(size), seed, placed))
        if set(networks) & set(READ_OUT):
            for features in ("untrained", "pixels"):
                compute = partial(experiment.control, features, seed)
                yield Task(f"read-out of {features}, seed {seed}", "small", 28, 0, compute)
