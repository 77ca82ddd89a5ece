"""A run of the training command: from the first step or a checkpoint to verified weights and their card."""

import contextlib
import csv
import dataclasses
import hashlib
import io
import os
import shlex
import signal
import sys
import zipfile
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from capsule_lib.data import load_digits, overlapping_digits, without
from capsule_lib.device import choose_device, describe_machine, has_bfloat16
from capsule_lib.files import explained, write_whole
from capsule_lib.model import PRESETS, CapsNet
from capsule_lib.morphometry import LIVE, dimension_effects
from capsule_lib.own_pictures import common_shape, split_pictures
from capsule_lib.training import Trainer, TrainingConfig, evaluate
from capsule_lib.weights import load_weights, read_card, save_weights

FORMER_NAMES = {"averaging": "ema_decay"}  # of settings, on older cards and checkpoints


try:
    import fcntl
except ImportError:  # Windows has none: there nothing keeps two runs apart
    fcntl = None

CHECKPOINT = "checkpoint.pt"
DIGITS = ("shipped", "mnist", "fashion")  # what `load_digits` knows by name
PAIRS = {"overlapping": "mnist", "overlapping shipped": "shipped"}  # two on top of each other, of which digits
SEAL = b"\nsha256 of all before: "  # stands between a checkpoint's archive and its checksum
BEGIN_AGAIN = "restore it from a copy, or begin again in another folder"


def run(out: Path, resume: bool, given: dict) -> int:
    """Train into the folder `out` with the settings given; returns the exit code: 0, or 130 where it was asked to stop."""
    stop = listen_for_stop()
    is_main = not dist.is_initialized() or dist.get_rank() == 0  # the process that writes, prints and measures
    device = choose_device(int(os.environ.get("LOCAL_RANK", 0)))
    config = resolve_settings(given, find_run(out, resume), out, device)  # nothing is written for what is refused
    with locked(out) if is_main else contextlib.nullcontext():
        return train_and_finish(out, resume, config, device, is_main, stop)


def train_and_finish(
    out: Path, resume: bool, config: TrainingConfig, device: torch.device, is_main: bool, stop: list[int]
) -> int:
    """What `run` does once the folder is its own."""
    checkpoint = find_run(out, resume)  # once more: another process may have begun a run meanwhile
    train_set, validation_set, test_set = split_digits(config.data, config.seed)
    torch.manual_seed(config.seed)
    (images, labels), test_labels = train_set, test_set[1]
    classes = test_labels.shape[1] if config.margin else max(int(labels.max()), int(test_labels.max())) + 1
    image_shape = (images.shape[1], *(side + 2 * config.margin for side in images.shape[2:]))
    shape = dataclasses.replace(
        PRESETS[config.preset], iterations=config.iterations, image_shape=image_shape, classes=classes
    )
    net = CapsNet(shape).to(device)
    trainer = Trainer(net, *train_set, config)
    start, history, best = None, [], None
    if checkpoint:
        try:
            trainer.load_state_dict(checkpoint["training"])
        except ValueError as error:
            raise ValueError(f"{out / CHECKPOINT} is not a checkpoint of this run ({error}): {BEGIN_AGAIN}") from error
        start, history, best = checkpoint["start"], checkpoint["history"], checkpoint["best"]
    elif config.start:
        start = begin_with(config, net)

    def save():
        if is_main:
            content = io.BytesIO()
            state = {"settings": dataclasses.asdict(config), "start": start, "history": history, "best": best}
            torch.save({**state, "training": trainer.state_dict(), "format": 2}, content)
            checked = content.getvalue() + SEAL + hashlib.sha256(content.getvalue()).digest()
            write_whole({out / CHECKPOINT: checked, out / "metrics.csv": as_csv(history)})

    if not checkpoint:
        save()
    elif is_main:  # a run that was killed between the writing of two files has an epoch too few here
        write_whole({out / "metrics.csv": as_csv(history)})
    if is_main:
        print(f"{config.preset} on {config.data}, {len(train_set[0]):,} images, {describe_machine(device)}")
    steps = trainer.steps_per_epoch
    with tqdm(
        total=config.epochs * steps,
        initial=(trainer.epoch - 1) * steps + trainer.step,
        disable=not is_main,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    ) as bar:
        while trainer.epoch <= config.epochs:
            bar.set_description(f"epoch {trainer.epoch}/{config.epochs}", refresh=False)
            for step in trainer.steps():
                bar.update()
                if step < steps and stop_requested(stop, device):
                    break
            else:
                learning_rate = trainer.schedule.get_last_lr()[0]
                epoch = trainer.end_epoch()
                if is_main:
                    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                        validation = evaluate(trainer.measured, *validation_set)
                    row = {**epoch._asdict(), "learning_rate": learning_rate}
                    row |= {"validation_error": validation.error, "validation_mse": validation.mse}
                    history.append(row)
                    best = keep_better(best, row, trainer.measured)
                    tqdm.write(report(row, best))
            save()
            if stop_requested(stop, device):
                if is_main:
                    bar.close()
                    print(
                        f"stopped in epoch {trainer.epoch} after step {trainer.step}; go on with\n  {command({'out': out})} --resume"
                    )
                return 130
    if is_main:
        stop_at_once()  # what is still to be measured can be measured again
        finish(out, config, start, net, best, train_set, test_set, device)
    return 0


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone. The lock dies with the process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explained(error, folder / CHECKPOINT) from error
    handle = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if fcntl:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in (CHECKPOINT, "metrics.csv", "weights.safetensors", "weights.json"):
            for left in folder.glob(f".{name}.*"):  # by a run that was killed while it wrote
                left.unlink(missing_ok=True)
        yield
    except BlockingIOError:
        raise FileExistsError(
            f"another process is training into {folder} now: wait until it ends, or choose another folder"
        ) from None
    finally:
        if fcntl:
            os.close(handle)
        with contextlib.suppress(OSError):  # there is something in it
            folder.rmdir()


def find_run(out: Path, resume: bool) -> dict | None:
    """The checkpoint to go on from; None where a new run may begin."""
    path = out / CHECKPOINT
    if path.is_file():
        if not resume:
            raise FileExistsError(f"{out} holds a run already: add --resume to go on with it, or choose another folder")
        content = path.read_bytes()
        try:
            checkpoint = read_checkpoint(content)
        except Exception as error:  # a damaged archive can raise nearly anything
            raise ValueError(
                f"{path} is cut short or not a checkpoint, or was altered ({len(content):,} bytes; {error}): {BEGIN_AGAIN}"
            ) from error
        if "average" in checkpoint["training"]:  # its name in older checkpoints
            checkpoint["training"]["ema_model"] = checkpoint["training"].pop("average")
        return {"start": None, **checkpoint}
    # A run that was killed while it wrote for the first time leaves nothing, or a hidden unfinished file.
    if out.exists() and (not out.is_dir() or any(not p.name.startswith(".") for p in out.iterdir())):
        raise FileExistsError(f"{out} exists and is not a run (it has no checkpoint.pt): choose another folder")
    return None


def read_checkpoint(content: bytes) -> dict:
    """What `torch.save` wrote, if every byte of it is as it was written."""
    archive, seal, digest = content.rpartition(SEAL)
    if sealed := bool(seal) and len(digest) == 32:
        if hashlib.sha256(archive).digest() != digest:
            raise ValueError("its checksum is not that of its contents")
    else:  # older ones have no checksum but those of their archive's members
        archive = content
        if bad := zipfile.ZipFile(io.BytesIO(archive)).testzip():
            raise ValueError(f"{bad} in it is damaged")
    checkpoint = torch.load(io.BytesIO(archive), weights_only=True, map_location="cpu")
    itemgetter("settings", "history", "best", "training")(checkpoint)  # all of it is there
    if checkpoint.get("format") and not sealed:
        raise ValueError("its checksum is missing")
    recorded_settings(checkpoint["settings"])
    return checkpoint


def resolve_settings(given: dict, checkpoint: dict | None, out: Path, device: torch.device) -> TrainingConfig:
    """All settings of the run: those of the checkpoint, which the arguments given may not contradict, or new ones."""
    if given.get("precision") == "auto" or (not checkpoint and "precision" not in given):
        given = {**given, "precision": "bfloat16" if has_bfloat16(device) else "float32"}
        if checkpoint:
            given.pop("precision")
    if not checkpoint:
        return TrainingConfig(**given)
    config = recorded_settings(checkpoint["settings"])
    for name, value in given.items():
        if value != (stored := getattr(config, name)):
            raise ValueError(
                f"the run in {out} was begun with {name.replace('_', '-')} {stored}, not {value}: "
                f"resume it without that argument, or begin another run in another folder"
            )
    return config


def recorded_settings(record: dict) -> TrainingConfig:
    """The settings on a card or in a checkpoint, older ones included: options that did not exist yet have their defaults."""
    settings = {FORMER_NAMES.get(name, name): value for name, value in record.items()}
    if "bfloat16" in settings:
        settings["precision"] = "bfloat16" if settings["bfloat16"] else "float32"
    if isinstance(settings.get("start"), dict):  # on a card it says what that network was
        settings["start"] = None
    names = {setting.name for setting in dataclasses.fields(TrainingConfig)}
    return TrainingConfig(**{name: value for name, value in settings.items() if name in names})


def begin_with(config: TrainingConfig, net: CapsNet) -> dict:
    """Give `net` the weights of the file `config.start`; returns what the new card says of it."""
    path, card = config.start, read_card(config.start)
    earlier = load_weights(path)
    if dataclasses.replace(earlier.config, iterations=net.config.iterations) != net.config:
        raise ValueError(f"{path} holds a network of another shape than --preset {config.preset}: choose its preset")
    for name in ("data", "seed"):
        if card.get(name) != (own := getattr(config, name)):
            raise ValueError(
                f"{path} was trained with --{name} {card.get(name)}, not {own}: give the same here, so that "
                "the images that choose the best epoch are those that it has not seen either"
            )
    net.load_state_dict(earlier.state_dict())
    return {name: card.get(name) for name in ("command", "machine", "test_error_percent", "sha256")}


def split_digits(data: str, seed: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Training, validation and test set: of digits by name, or of a folder of pictures, which are taken as they are. Up to 5,000
    training images, at most a tenth, are set aside to choose the best epoch.

    The 1,000 shipped test digits come from MNIST's training set; they are left out of it, so that they stay unseen. Of two overlapping
    digits the training set has the single ones, which the trainer lays over each other; the other two sets are pairs.
    """
    if data in PAIRS:
        training, validation, test_set = split_digits(PAIRS[data], seed)
        return training, overlapping_digits(*validation), overlapping_digits(*test_set)
    if data in DIGITS:
        (images, labels), test_set = load_digits(data, "train"), load_digits(data, "test")
    elif Path(data).is_dir():
        size, channels = common_shape(data)
        (images, labels), test_set = (tuple(p) for p in split_pictures(data, size, None, channels, seed))
    else:
        raise ValueError(
            f"no data set {data!r}: choose one of {', '.join(map(repr, (*DIGITS, *PAIRS)))}, or a folder of pictures"
        )
    images, labels = without(images, labels, load_digits("shipped", "test")[0])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    aside = max(1, min(5_000, len(images) // 10))
    validation, training = order[:aside], order[aside:]
    return (images[training], labels[training]), (images[validation], labels[validation]), test_set


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


def stop_at_once() -> None:
    """From here on Ctrl-C and SIGTERM raise KeyboardInterrupt."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def stop_requested(stop: list[int], device: torch.device) -> bool:
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
    """A line on an epoch."""
    return (
        f"epoch {row['number']:3}  margin {row['margin']:.4f}  reconstruction {row['reconstruction']:.4f}  "
        f"validation {row['validation_error']:.2f} %, mse {row['validation_mse']:.4f}  {row['seconds']:.0f} s"
        + ("  best so far" if best["number"] == row["number"] else "")
    )


def as_csv(history: list[dict]) -> bytes:
    """metrics.csv: a line per epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, history[0] if history else ["number"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()


def command(settings: dict, processes: int = 1) -> str:
    """The command line with these settings."""
    words = ["python"] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes)]
    words += ["-m", "capsule_lib.train"]
    for name, value in settings.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def finished(path: Path) -> dict:
    """The card of weights that are there whole, with all that a card says; else an empty dict, and they are written again."""
    try:
        load_weights(path)
        card = read_card(path)
        itemgetter("command", "best_epoch", "test_error_percent", "test_mse", "live_dimensions", "smallest_effect")(
            card
        )
        return card
    except (ValueError, OSError, KeyError):
        return {}


def finish(
    out: Path,
    config: TrainingConfig,
    start: dict | None,
    net: CapsNet,
    best: dict,
    train_set: tuple,
    test_set: tuple,
    device: torch.device,
) -> None:
    """Save the best epoch's network with a card of what it does. The test set is looked at here, and only here."""
    path = out / "weights.safetensors"
    if not (card := finished(path)):
        for left in (path, path.with_suffix(".json")):  # of this run's own, which was cut short
            left.unlink(missing_ok=True)
        # The file holds float16. What the card says is measured on what will be read back from it.
        net.load_state_dict({name: t.half() if t.is_floating_point() else t for name, t in best["weights"].items()})
        test = evaluate(net, *test_set)
        digits = config.data in (*DIGITS, *PAIRS)  # of pictures of a reader's own, the shipped digits are no measure
        seen, unseen = (load_digits("shipped", split) for split in ("train", "test"))
        if config.margin:
            seen, unseen = (F.pad(seen[0], 4 * [config.margin]), seen[1]), overlapping_digits(*unseen)
        shipped = evaluate(net, *unseen) if digits else test
        effects = dimension_effects(net, *(seen if digits else train_set))
        processes = dist.get_world_size() if dist.is_initialized() else 1
        settings = dataclasses.asdict(config)
        card = {
            **settings,
            "reconstruction_scale": config.scale_for(test_set[0][0].numel()),
            "start": start,
            "command": command({**settings, "out": out}, processes),
            "machine": describe_machine(device),
            "processes": processes,
            "best_epoch": best["number"],
            "validation_error_percent": round(best["validation_error"], 3),
            "test_error_percent": round(test.error, 3),
            "test_mse": round(test.mse, 5),
            **({"test_digit_error_percent": round(test.digit_error, 3)} if config.margin else {}),
            **(
                {"shipped_test_error_percent": round(shipped.error, 3), "shipped_test_mse": round(shipped.mse, 5)}
                if digits
                else {}
            ),
            "live_dimensions": {str(j): int(row.ge(LIVE).sum()) for j, row in enumerate(effects)},
            "smallest_effect": round(effects.min().item(), 4),
        }
        save_weights(net, path, half=True, **card)
    print(
        f"done: the network of epoch {card['best_epoch']} is in {path}\n"
        f"test error {card['test_error_percent']:.2f} %, mean squared error {card['test_mse']:.4f}"
    )
