"""The command: which cells an experiment has, in which order, what is done already, and how long the rest takes."""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from capsule_lib.device import choose_device, describe_machine
from capsule_lib.experiments.networks import NETWORKS, build
from capsule_lib.experiments.record import Record, this_command
from capsule_lib.experiments.robustness import CONDITIONS, READ_OUT, VERSION, Robustness, flops, recipe

EXAMPLES = """
examples:
  python -m capsule_lib.experiments robustness --out robustness.json
      100 to 4,000 digits, 8 networks, 3 seeds: hours; again after it was stopped, by anything: the same command
  python -m capsule_lib.experiments robustness --out robustness-mnist.json --data mnist --networks small CNN
      all of MNIST; later with other networks into the same file
  python -m capsule_lib.experiments robustness --out try.json --quick
      everything once and tiny, to see that it works
"""


class Task(NamedTuple):
    """A cell: its name in the record, its network, the pictures that it takes (as forward passes, of so many pixels), how to get it."""

    name: str
    network: str
    pictures: int
    pixels: int
    work: Callable[[], dict]


def main() -> int:
    """Run the command with the arguments that the process was given; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m capsule_lib.experiments",
        description="Measure what the course claims, and write a record that the notebooks quote.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", choices=["robustness"], help="which experiment")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="its record, a JSON file; if it is there, it goes on"
    )
    parser.add_argument(
        "--data", default="shipped", choices=["shipped", "mnist", "fashion"], help="which pictures (default: shipped)"
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        default=[*NETWORKS],
        choices=[*NETWORKS],
        metavar="NETWORK",
        help=f"some of {', '.join(map(repr, NETWORKS))} (default: all)",
    )
    parser.add_argument("--quick", action="store_true", help="everything once and tiny, in a minute")
    given = parser.parse_args()
    try:
        run(given.out, given.data, given.quick, given.networks, this_command())
    except KeyboardInterrupt:
        print(f"\nstopped: every finished cell is in {given.out}; the same command goes on", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    return 0


def run(out: Path, data: str, quick: bool, networks: list[str], command: str) -> Record:
    """Compute the cells that the record `out` does not have yet, each written as soon as it is finished."""
    settings, device = recipe(data, quick), choose_device()
    experiment = Robustness(settings, lambda pictures: bar.update(min(pictures * cost, end - bar.n)))
    settings |= {"conditions": CONDITIONS, "test": experiment.test_name}
    record = Record(out, "robustness", VERSION, settings, device, command)
    tasks = list(plan(experiment, networks, record))
    costs = {(t.network, t.pixels): 0 for t in tasks}
    costs |= {key: flops(build(*key), key[1]) / 1e12 for key in costs}
    left = [t for t in tasks if t.name not in record.cells]
    print(f"robustness on {data}, {describe_machine(device)}: {len(left)} of {len(tasks)} cells to do")
    total, end = sum(t.pictures * costs[t.network, t.pixels] for t in left), 0.0
    form = "{percentage:3.0f} % |{bar}| {elapsed} < {remaining}, {desc}"
    with tqdm(total=total, smoothing=0, bar_format=form, mininterval=0.5 if sys.stderr.isatty() else 30) as bar:
        for task in left:
            cost = costs[task.network, task.pixels]
            end = min(end + task.pictures * cost, total)
            bar.set_description_str(task.name, refresh=False)
            record.add(task.name, task.work())
            bar.update(end - bar.n)
    print(f"done: {len(record.cells)} cells in {out}")
    return record


def plan(experiment: Robustness, networks: list[str], record: Record) -> Iterator[Task]:
    """All cells: first the learning rates, by which each network's best is chosen; then everything for one seed after the other."""
    s = experiment.settings
    for network in networks:
        for rate in s["learning_rates"]:
            pictures = s["tuning_digits"] * (3 * s["tuning_epochs"] + 1)
            yield Task(
                f"{network}, learning rate {rate}",
                network,
                pictures,
                28,
                lambda n=network, r=rate: experiment.tune(n, r),
            )

    def rate_of(network: str) -> float:
        tries = [c for c in record.cells.values() if c["kind"] == "learning rate" and c["network"] == network]
        return min((c["validation_error"], c["learning_rate"]) for c in tries)[1]

    for seed in s["seeds"]:
        for placed, key in ((False, "epochs"), (True, "placed_epochs")):
            for size, epochs in ((int(size), epochs) for size, epochs in s[key].items()):
                for network in networks:
                    pictures = 3 * size * epochs + s["test_digits"] * (4 if placed else 2 * len(CONDITIONS))
                    yield Task(
                        f"{network}, {size} digits{' placed on 40 x 40' * placed}, seed {seed}", network, pictures,
                        40 if placed else 28,
                        lambda n=network, z=size, i=seed, p=placed: experiment.cell(n, z, i, rate_of(n), p),
                    )  # fmt: skip
        for features in ("untrained", "pixels") if set(networks) & set(READ_OUT) else ():
            yield Task(
                f"read-out of {features}, seed {seed}",
                "small",
                0,
                28,
                lambda f=features, i=seed: experiment.control(f, i),
            )
