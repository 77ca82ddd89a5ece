"""Train a capsule network, from the command line.

python -m capsule_lib.train --help
"""

import argparse
import contextlib
import csv
import dataclasses
import io
import math
import os
import pickle
import shlex
import signal
import sys
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from capsule_lib.data import load_digits
from capsule_lib.device import choose_device, describe_machine, has_bfloat16
from capsule_lib.files import write_whole
from capsule_lib.model import PRESETS, CapsNet
from capsule_lib.training import LIVE, Recipe, Training, dimension_effects, evaluate
from capsule_lib.weights import load_weights, read_card, save_weights

EXAMPLES = """
examples:
  python -m capsule_lib.train --out runs/first
      the small network on the digits that ship with the course: a few minutes on a laptop
  python -m capsule_lib.train --preset paper --data mnist --epochs 20 --out runs/paper
      the paper's network on all of MNIST
  python -m capsule_lib.train --out runs/paper --resume
      go on with a run that was stopped, by Ctrl-C or by anything else
  torchrun --nproc-per-node 2 -m capsule_lib.train --preset paper --data mnist --out runs/paper
      share each batch between two processes, one for each GPU where there are GPUs

OUT then holds checkpoint.pt (what --resume needs, rewritten after every epoch), metrics.csv (a line for each epoch),
and at the end weights.safetensors with its card weights.json: the best epoch's network, measured on the test set.
Read them with capsule_lib.load_weights("OUT/weights.safetensors").
"""


def main() -> int:
    given = vars(parse_arguments())
    out, resume = Path(given.pop("out")), given.pop("resume")
    if "RANK" in os.environ:  # set by torchrun
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        code = run(out, resume, given)
        if dist.is_initialized():
            dist.barrier()  # who leaves first closes connections that the others still use
            # Everything is written. Taking the process group's threads down aborts a process now and then, so leave without.
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        return code
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m capsule_lib.train",
        description="Train a capsule network on handwritten digits and save its weights.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # only what was really given counts when a run is resumed
    )
    add = parser.add_argument
    add("--out", required=True, metavar="FOLDER", help="where the run is kept; a new folder, unless you resume")
    add(
        "--resume",
        action="store_true",
        default=False,
        help="go on with the run in FOLDER, or begin it if there is none",
    )
    add("--preset", choices=PRESETS, help="the network: the paper's, or a quarter of its size (default: small)")
    add(
        "--data",
        choices=["shipped", "mnist", "fashion"],
        help="4,000 digits that come with the course, all of MNIST, or Fashion-MNIST (default: shipped)",
    )
    add("--epochs", type=count, help="passes over the training images (default: 20)")
    add("--batch-size", type=count, help="images a step, over all processes together (default: 128)")
    add(
        "--learning-rate",
        type=numeric(float, "a number above 0", lambda x: 0 < x < math.inf),
        help="its highest value; it rises to it and falls again (default: 0.002)",
    )
    add(
        "--reconstruction-scale",
        type=numeric(float, "0 or a number above it", lambda x: 0 <= x < math.inf),
        help="weight of the squared error summed over an image's pixels; the paper's is 0.0005 (default: 0.01)",
    )
    add(
        "--rotation",
        type=numeric(float, "degrees from 0 to 180", lambda x: 0 <= x <= 180),
        help="turn each training image by up to so many degrees (default: 0)",
    )
    add("--scaling", type=share, help="change the size of each training image by up to this share (default: 0)")
    add(
        "--averaging",
        type=share,
        help="measure and keep a running average of the weights, of which each step's new weights change all but this "
        "share; 0.999 averages over about 1,000 steps (default: 0, no average)",
    )
    add(
        "--start",
        metavar="WEIGHTS",
        help="begin with the network of an earlier run, its weights.safetensors, instead of random weights; "
        "--data and --seed must be that run's, so that the validation set stays unseen",
    )
    add("--iterations", type=count, help="routing iterations (default: 3)")
    add("--seed", type=int, help="of the first weights, the split, the order and the moves (default: 0)")
    add(
        "--precision",
        choices=["auto", "float32", "bfloat16"],
        help="of the convolutions; auto is bfloat16 where the hardware has it (default: auto)",
    )
    return parser.parse_args()


def numeric(kind: type, expected: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
    """What argparse reads an argument with: a number of `kind` that `fits`; else the error names what was `expected`."""

    def convert(text: str) -> float:
        with contextlib.suppress(ValueError):
            if fits(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"expected {expected}; got {text}")

    return convert


count = numeric(int, "a whole number from 1 on", lambda n: n >= 1)
share = numeric(float, "a share of 1, from 0 to less than 1", lambda x: 0 <= x < 1)


def run(out: Path, resume: bool, given: dict) -> int:
    stop = listen_for_stop()
    chief = not dist.is_initialized() or dist.get_rank() == 0  # the process that writes, prints and measures
    device = choose_device(int(os.environ.get("LOCAL_RANK", 0)))
    checkpoint = find_run(out, resume)
    settings = agree(given, checkpoint, out, device)

    train_set, validation_set, test_set = split_digits(settings["data"], settings["seed"])
    torch.manual_seed(settings["seed"])
    config = dataclasses.replace(PRESETS[settings["preset"]], iterations=settings["iterations"])
    net = CapsNet(config).to(device)
    fields = {field.name for field in dataclasses.fields(Recipe)}
    recipe = Recipe(**{k: v for k, v in settings.items() if k in fields})
    training = Training(net, *train_set, recipe, settings["averaging"])
    start, history, best = None, [], None
    if checkpoint:
        training.load_state_dict(checkpoint["training"])
        start, history, best = checkpoint["start"], checkpoint["history"], checkpoint["best"]
    elif settings["start"]:
        start = begin_with(settings, net)

    def save():
        if chief:
            content = io.BytesIO()
            state = {"settings": settings, "start": start, "history": history, "best": best}
            torch.save({**state, "training": training.state_dict()}, content)
            write_whole({out / "checkpoint.pt": content.getvalue(), out / "metrics.csv": as_csv(history)})

    if not checkpoint:
        out.mkdir(parents=True, exist_ok=True)
        save()
    elif chief:  # a run that was killed after it wrote one file and before it wrote the other has an epoch too few here
        write_whole({out / "metrics.csv": as_csv(history)})
    if chief:
        print(f"{settings['preset']} on {settings['data']}, {len(train_set[0]):,} images, {describe_machine(device)}")
    steps = training.steps_an_epoch
    with tqdm(
        total=settings["epochs"] * steps,
        initial=(training.epoch - 1) * steps + training.step,
        disable=not chief,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    ) as bar:
        while training.epoch <= settings["epochs"]:
            bar.set_description(f"epoch {training.epoch}/{settings['epochs']}", refresh=False)
            for step in training.steps():
                bar.update()
                if step < steps and anyone(stop, device):
                    break
            else:
                learning_rate = training.schedule.get_last_lr()[0]
                epoch = training.end_epoch()
                if chief:
                    with torch.autocast(device.type, torch.bfloat16, enabled=settings["bfloat16"]):
                        validation = evaluate(training.measured, *validation_set)
                    row = {**epoch._asdict(), "learning_rate": learning_rate}
                    row |= {"validation_error": validation.error, "validation_mse": validation.mse}
                    history.append(row)
                    best = keep_better(best, row, training.measured)
                    tqdm.write(report(row, best))
            save()
            if anyone(stop, device):
                if chief:
                    bar.close()
                    print(
                        f"stopped in epoch {training.epoch} after step {training.step}; go on with\n  {command({'out': out})} --resume"
                    )
                return 130
    if chief:
        finish(out, settings, start, net, best, test_set, device)
    return 0


def find_run(out: Path, resume: bool) -> dict | None:
    """The checkpoint to go on from; None where a new run may begin."""
    path = out / "checkpoint.pt"
    if path.is_file():
        if not resume:
            raise FileExistsError(f"{out} holds a run already: add --resume to go on with it, or choose another folder")
        content = path.read_bytes()
        try:
            checkpoint = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
            itemgetter("settings", "start", "history", "best", "training")(checkpoint)  # all of it is there
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is cut short or not a checkpoint ({len(content):,} bytes): restore it from a copy, "
                "or begin again in another folder"
            ) from error
        return checkpoint
    # A run that was killed while it wrote for the first time leaves nothing, or a hidden unfinished file.
    if out.exists() and (not out.is_dir() or any(not p.name.startswith(".") for p in out.iterdir())):
        raise FileExistsError(f"{out} exists and is not a run (it has no checkpoint.pt): choose another folder")
    return None


def agree(given: dict, checkpoint: dict | None, out: Path, device: torch.device) -> dict:
    """All settings of the run: those of the checkpoint, which the arguments given may not contradict, or new ones."""
    precision = given.pop("precision", "auto")
    if precision != "auto":
        given["bfloat16"] = precision == "bfloat16"
    if not checkpoint:
        defaults = {"preset": "small", "data": "shipped", "start": None, "averaging": 0.0, "iterations": 3}
        recipe = dataclasses.asdict(Recipe(epochs=20))
        return {**recipe, **defaults, "bfloat16": has_bfloat16(device), **given}
    for name, value in given.items():
        if value != (stored := checkpoint["settings"][name]):
            raise ValueError(
                f"the run in {out} was begun with {name.replace('_', '-')} {stored}, not {value}: "
                f"resume it without that argument, or begin another run in another folder"
            )
    return checkpoint["settings"]


def begin_with(settings: dict, net: CapsNet) -> dict:
    """Give `net` the weights of the file settings["start"]; returns what the new card says of it."""
    path, card = settings["start"], read_card(settings["start"])
    earlier = load_weights(path)
    if dataclasses.replace(earlier.config, iterations=net.config.iterations) != net.config:
        raise ValueError(
            f"{path} holds a network of another shape than --preset {settings['preset']}: choose its preset"
        )
    for name in ("data", "seed"):
        if card.get(name) != settings[name]:
            raise ValueError(
                f"{path} was trained with --{name} {card.get(name)}, not {settings[name]}: give the same here, so that "
                "the images that choose the best epoch are those that it has not seen either"
            )
    net.load_state_dict(earlier.state_dict())
    return {name: card.get(name) for name in ("command", "machine", "test_error_percent", "sha256")}


def split_digits(data: str, seed: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Training, validation and test set. Up to 5,000 training images are set aside to choose the best epoch.

    The 1,000 shipped test digits come from MNIST's training set; they are left out of it, so that they stay unseen.
    """
    images, labels = load_digits(data, "train")
    held_out = {image.numpy().tobytes() for image in load_digits("shipped", "test")[0]}
    keep = torch.tensor([image.numpy().tobytes() not in held_out for image in images])
    images, labels = images[keep], labels[keep]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    aside = min(5_000, len(images) // 10)
    validation, training = order[:aside], order[aside:]
    return (images[training], labels[training]), (images[validation], labels[validation]), load_digits(data, "test")


def listen_for_stop() -> list[int]:
    """A list that fills when Ctrl-C or SIGTERM asks the run to stop; the step under way is finished first."""
    asked: list[int] = []

    def note(number: int, frame: object) -> None:
        if not asked:
            tqdm.write("stopping after this step ...")
        asked.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return asked


def anyone(stop: list[int], device: torch.device) -> bool:
    """Whether any process was asked to stop: all stop after the same step."""
    asked = torch.tensor(float(len(stop)), device=device)
    if dist.is_initialized():
        dist.all_reduce(asked)
    return bool(asked)


def keep_better(best: dict | None, row: dict, net: CapsNet) -> dict:
    """The best epoch so far, with its weights: fewest mistakes on the validation set, then the smallest squared error."""
    if best and (best["validation_error"], best["validation_mse"]) <= (row["validation_error"], row["validation_mse"]):
        return best
    return {**row, "weights": {name: t.cpu().clone() for name, t in net.state_dict().items()}}


def report(row: dict, best: dict) -> str:
    return (
        f"epoch {row['number']:3}  margin {row['margin']:.4f}  reconstruction {row['reconstruction']:.4f}  "
        f"validation {row['validation_error']:.2f} %, mse {row['validation_mse']:.4f}  {row['seconds']:.0f} s"
        + ("  best so far" if best["number"] == row["number"] else "")
    )


def as_csv(history: list[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, history[0] if history else ["number"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()


def command(settings: dict) -> str:
    """The command line with these settings."""
    words = ["python", "-m", "capsule_lib.train"]
    for name, value in settings.items():
        if value is None:
            continue
        name, value = ("precision", "bfloat16" if value else "float32") if name == "bfloat16" else (name, value)
        words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def finish(
    out: Path, settings: dict, start: dict | None, net: CapsNet, best: dict, test_set: tuple, device: torch.device
) -> None:
    """Save the best epoch's network with a card of what it does. The test set is looked at here, and only here."""
    path = out / "weights.safetensors"
    if path.is_file() and path.with_suffix(".json").is_file():
        card = read_card(path)
    else:
        # The file holds float16. What the card says is measured on what will be read back from it.
        net.load_state_dict({name: t.half().float() for name, t in best["weights"].items()})
        test = evaluate(net, *test_set)
        shipped = test if settings["data"] == "shipped" else evaluate(net, *load_digits("shipped", "test"))
        effects = dimension_effects(net, *load_digits("shipped", "train"))
        card = {
            **settings,
            "start": start,
            "command": command({**settings, "out": out}),
            "machine": describe_machine(device),
            "best_epoch": best["number"],
            "validation_error_percent": round(best["validation_error"], 3),
            "test_error_percent": round(test.error, 3),
            "test_mse": round(test.mse, 5),
            "shipped_test_error_percent": round(shipped.error, 3),
            "shipped_test_mse": round(shipped.mse, 5),
            "live_dimensions": {str(j): int(row.ge(LIVE).sum()) for j, row in enumerate(effects)},
            "smallest_effect": round(effects.min().item(), 4),
        }
        save_weights(net, path, half=True, **card)
    print(
        f"done: the network of epoch {card['best_epoch']} is in {path}\n"
        f"test error {card['test_error_percent']:.2f} %, mean squared error {card['test_mse']:.4f}"
    )
