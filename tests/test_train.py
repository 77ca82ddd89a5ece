"""The training command: what interrupts it, what it refuses, and two processes against one."""

import contextlib
import csv
import hashlib
import io
import json
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import short_training
import torch

from capsule_lib import CapsNet, load_weights
from capsule_lib.data import erase, rotate_and_scale, shift, shift_in_margin
from capsule_lib.train import run as running
from capsule_lib.training import Trainer, TrainingConfig
from capsule_lib.weights import read_card

ROOT = Path(__file__).parent.parent
# 360 images: five batches of 70, which convolve in the Fourier domain, and one of 10, which convolves directly.
SHORT = ["--epochs", "4", "--batch-size", "70", "--rotation", "10", "--scaling", "0.1", "--ema-decay", "0.9"]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["capsule_lib.train"])  # a process then starts in a moment


def start(*arguments, log=os.devnull):
    process = SERVER.Process(target=short_training.main, args=[str(a) for a in arguments], kwargs={"log": str(log)})
    process.start()
    return process


def finish(*arguments, log=os.devnull) -> int:
    process = start(*arguments, log=log)
    process.join(120)
    return process.exitcode


def cli(*arguments, **options):
    words = [sys.executable, "-m", "capsule_lib.train", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted, and the seconds that it took."""
    out = tmp_path_factory.mktemp("whole") / "run"
    start = time.monotonic()
    assert finish("--out", out, *SHORT) == 0
    return out, time.monotonic() - start


def wait_for_an_epoch(out, number="1"):
    """Until the run has written that this epoch, else its first, is done."""
    end = time.monotonic() + 120
    while not (out / "metrics.csv").exists() or f"\n{number}," not in (out / "metrics.csv").read_text():
        assert time.monotonic() < end
        time.sleep(0.01)


def checkpoint(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)


def tensors(tree):
    """All tensors of a nested dict, by their path."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{path}", t) for path, t in tensors(value))
        elif isinstance(value, torch.Tensor):
            yield str(key), value


def assert_same_run(out, other):
    ours, theirs = (dict(tensors(checkpoint(folder))) for folder in (out, other))
    assert ours.keys() == theirs.keys() and len(ours) > 20
    assert all(torch.equal(t, theirs[name]) for name, t in ours.items())
    assert (out / "weights.safetensors").read_bytes() == (other / "weights.safetensors").read_bytes()
    histories = [list(csv.DictReader((folder / "metrics.csv").open())) for folder in (out, other)]
    for row in histories[0] + histories[1]:
        assert float(row.pop("seconds")) > 0
    assert histories[0] == histories[1] and [row["number"] for row in histories[0]] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("moment", range(10))
def test_killed_at_any_moment_a_run_resumes_to_the_same_weights_bit_for_bit(whole, tmp_path, moment):
    reference, seconds = whole
    out = tmp_path / "run"
    process = start("--out", out, *SHORT)
    time.sleep((moment + random.Random(moment).random()) / 10 * seconds)
    process.kill()
    process.join()
    if (out / "checkpoint.pt").exists():
        checkpoint(out)  # readable
    assert finish("--out", out, *SHORT, "--resume") == 0
    assert_same_run(out, reference)


@pytest.mark.parametrize("name", ["metrics.csv", "weights.json"])
def test_killed_between_two_files_a_run_resumes_to_both(whole, tmp_path, name):
    """checkpoint.pt is renamed before metrics.csv, the weights before their card."""
    out = shutil.copytree(whole[0], tmp_path / "run")
    if name == "metrics.csv":
        (out / name).write_text("".join((out / name).read_text().splitlines(keepends=True)[:-1]))
    else:
        (out / name).unlink()
    assert finish("--out", out, *SHORT, "--resume") == 0
    assert_same_run(out, whole[0])
    before, after = (read_card(folder / "weights.safetensors") for folder in (whole[0], out))
    before.pop("command"), after.pop("command")  # the folder differs
    assert after == before


@contextlib.contextmanager
def mounted(disk, folder):
    """An ext4 disk in a file. It commits new names every second, and leaves contents that nobody synced for much later."""
    folder.mkdir()
    options = "loop,commit=1,noauto_da_alloc"
    done = subprocess.run(["mount", "-t", "ext4", "-o", options, disk, folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def pull_the_plug(disk):
    """What has reached the disk: a copy that a second one confirms, because it changes meanwhile."""
    while (copy := disk.read_bytes()) != disk.read_bytes():
        pass
    return copy


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("mkfs.ext4") and shutil.which("mount")), reason="needs Linux's tools for disks")
@pytest.mark.parametrize("after", ["epoch 1", "epoch 3", "the end"])
def test_after_a_pulled_plug_a_run_resumes_to_the_same_weights_bit_for_bit(whole, tmp_path, after):
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(64 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    with mounted(disk, tmp_path / "before") as folder:
        process = start("--out", folder / "run", *SHORT)
        if after == "the end":
            process.join(120)
        else:
            wait_for_an_epoch(folder / "run", after.removeprefix("epoch "))
        time.sleep(2)  # by now the new names are in the disk's journal
        left = pull_the_plug(disk)
        process.kill()
        process.join()
    disk.write_bytes(left)
    with mounted(disk, tmp_path / "after") as folder:
        assert finish("--out", folder / "run", "--resume") == 0
        assert_same_run(folder / "run", whole[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_and_saves_what_resume_needs(whole, tmp_path, number):
    out, log = tmp_path / "run", tmp_path / "log"
    process = start("--out", out, *SHORT, log=log)
    wait_for_an_epoch(out)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 130
    state = checkpoint(out)["training"]
    said = log.read_text()
    assert f"stopped in epoch {state['epoch']} after step {state['step']}" in said and "--resume" in said
    assert finish("--out", out, "--resume") == 0  # the run knows its own settings
    assert_same_run(out, whole[0])


def test_a_finished_run_is_left_as_it_is(whole, tmp_path):
    out, log = whole[0], tmp_path / "log"
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert finish("--out", out, "--resume", log=log) == 0
    assert {path: path.read_bytes() for path in out.iterdir() if path.name != "metrics.csv"}.items() <= before.items()
    assert "test error" in log.read_text()


def test_the_best_epoch_is_what_the_validation_set_says_and_its_card_is_true(whole):
    state, card = checkpoint(whole[0]), read_card(whole[0] / "weights.safetensors")
    scores = [(row["validation_error"], row["validation_mse"]) for row in state["history"]]
    assert scores[card["best_epoch"] - 1] == min(scores)
    net = load_weights(whole[0] / "weights.safetensors")
    for name, t in net.state_dict().items():
        assert torch.equal(t, state["best"]["weights"][name].half().float())
    assert {
        "command",
        "seed",
        "epochs",
        "learning_rate",
        "rotation",
        "ema_decay",
        "start",
        "test_error_percent",
        "test_mse",
        "machine",
    } <= card.keys()
    assert sum(card["live_dimensions"].values()) <= 60 and f"--rotation {card['rotation']}" in card["command"]


def test_a_run_measures_and_keeps_the_averaged_network(tmp_path):
    out = tmp_path / "run"
    assert finish("--out", out, "--epochs", "1", "--batch-size", "50", "--ema-decay", "0.9") == 0
    state = checkpoint(out)
    net, average, best = state["training"]["net"], state["training"]["ema_model"], state["best"]["weights"]
    assert all(torch.equal(t, average[f"module.{name}"]) for name, t in best.items())
    assert not any(torch.equal(t, net[name]) for name, t in best.items())


@pytest.mark.parametrize("preset", ["tiny", "normed"])
def test_averaged_weights_are_the_running_average_of_the_steps(preset):
    def steps(ema_decay):
        config = TrainingConfig(epochs=1, batch_size=6, learning_rate=0.1, ema_decay=ema_decay)
        torch.manual_seed(0)
        net = CapsNet(short_training.PRESETS[preset])
        images = torch.rand(30, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        training = Trainer(net, images, torch.arange(30) % 10, config)
        taken = [{k: t.clone() for k, t in net.state_dict().items()} for _ in training.steps()]
        return training, taken

    plain, taken = steps(0.0)
    training, taken_as_well = steps(0.75)
    assert plain.measured is plain.net and len(taken) == 5
    for name, t in training.measured.state_dict().items():
        if not t.is_floating_point():  # batch norm's count of steps, which nothing uses
            continue
        expected = taken[0][name]
        for step in taken[1:]:
            expected = 0.75 * expected + 0.25 * step[name]
        torch.testing.assert_close(t, expected)
        assert torch.equal(taken[4][name], taken_as_well[4][name])
        # Batch norm takes the mean away again that a bias before it adds: its gradient is 0 but for rounding.
        assert name in ("stem.0.bias", "stem.3.bias") or not torch.allclose(t, taken[4][name], rtol=1e-6, atol=0)


def test_a_run_starts_with_the_network_of_another(whole, tmp_path):
    first = shutil.copytree(whole[0], tmp_path / "first")
    path, out = first / "weights.safetensors", tmp_path / "second"
    # With so small a rate nothing moves, as far as float16 can tell.
    still = ["--epochs", "1", "--batch-size", "50", "--learning-rate", "1e-12"]
    assert finish("--out", out, *still, "--start", path) == 0
    assert (out / "weights.safetensors").read_bytes() == path.read_bytes()
    start, earlier = read_card(out / "weights.safetensors")["start"], read_card(path)
    assert start == {name: earlier[name] for name in ("command", "machine", "test_error_percent", "sha256")}
    shutil.rmtree(first)  # what a run that goes on no longer needs
    (out / "weights.json").unlink()
    assert finish("--out", out, "--resume") == 0
    assert read_card(out / "weights.safetensors")["start"] == start


@pytest.mark.parametrize(
    ("arguments", "field", "message"),
    [
        (["--preset", "other"], {}, "holds a network of another shape than --preset other"),
        (["--seed", "1"], {}, "was trained with --seed 0, not 1: give the same"),
        ([], {"data": "mnist"}, "was trained with --data mnist, not shipped: give the same"),
        (["--start", "nowhere.safetensors"], {}, "there is no file nowhere.safetensors"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(whole, tmp_path, arguments, field, message):
    first, out, log = shutil.copytree(whole[0], tmp_path / "first"), tmp_path / "run", tmp_path / "log"
    card = first / "weights.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), **field}))
    assert finish("--out", out, "--start", first / "weights.safetensors", *arguments, log=log) == 1
    assert message in log.read_text() and "Traceback" not in log.read_text() and not out.exists()


REFUSED = [
    (["--preset", "huge"], 2, "invalid choice: 'huge'.*'paper'.*'small'"),
    (
        ["--data", "cifar"],
        1,
        "no data set 'cifar': choose one of 'shipped', 'mnist', 'fashion', 'overlapping', 'overlapping shipped', or a folder",
    ),
    (["--epochs", "0"], 2, "--epochs: expected a whole number from 1 on; got 0"),
    (["--batch-size", "many"], 2, "--batch-size: expected a whole number from 1 on; got many"),
    (["--learning-rate", "nan"], 2, "--learning-rate: expected a number above 0; got nan"),
    (["--reconstruction-scale", "-1"], 2, "--reconstruction-scale: expected 0 or a number above it; got -1"),
    (["--rotation", "270"], 2, "--rotation: expected degrees from 0 to 180; got 270"),
    (["--scaling", "1"], 2, "--scaling: expected a share of 1, from 0 to less than 1; got 1"),
    (["--ema-decay", "1"], 2, "expected a share of 1, from 0 to less than 1; got 1"),
    (["--weight-decay", "-1"], 2, "--weight-decay: expected 0 or a number above it; got -1"),
    (["--rotation-spread", "181"], 2, "--rotation-spread: expected degrees from 0 to 180; got 181"),
    (["--shift", "edge"], 2, "--shift: invalid choice: 'edge'.*'pixels'.*'margin'"),
    (["--squeeze", "1"], 2, "--squeeze: expected a share of 1, from 0 to less than 1; got 1"),
    (["--erase", "-4"], 2, "--erase: expected 0 or a whole number above it; got -4"),
    (["--erase", "29"], 1, "erase: expected a patch that fits into images of 28 x 28; got one of 29 pixels"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), REFUSED)
def test_unknown_names_are_refused_with_the_known_ones(tmp_path, arguments, code, message):
    done = cli("--out", tmp_path / "run", *arguments)
    assert done.returncode == code and not (tmp_path / "run").exists()
    assert re.search(message, done.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "holds a run already: add --resume"),
        (["--resume", "--preset", "other"], "was begun with preset tiny, not other"),
        (["--resume", "--start", "weights.safetensors"], "was begun with start None, not weights.safetensors"),
        (["--resume", "--batch-size", "64"], "was begun with batch-size 50, not 64"),
        (["--resume", "--precision", "bfloat16"], "was begun with precision float32, not bfloat16"),
    ],
)
def test_a_run_is_not_overwritten_or_gone_on_with_otherwise(tmp_path, arguments, message):
    out, log = tmp_path / "run", tmp_path / "log"
    assert finish("--out", out, "--epochs", "1", "--batch-size", "50", "--precision", "float32") == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert finish("--out", out, *arguments, log=log) == 1
    assert re.search(message, log.read_text()) and "Traceback" not in log.read_text()
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("spoil", [lambda b: b[:-100], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"{}"])
def test_a_checkpoint_that_is_cut_short_is_refused_and_kept(whole, tmp_path, spoil):
    out, log = tmp_path / "run", tmp_path / "log"
    out.mkdir()
    (out / "checkpoint.pt").write_bytes(spoil((whole[0] / "checkpoint.pt").read_bytes()))
    before = (out / "checkpoint.pt").read_bytes()
    assert finish("--out", out, "--resume", log=log) == 1
    assert "cut short or not a checkpoint" in log.read_text() and "Traceback" not in log.read_text()
    assert (out / "checkpoint.pt").read_bytes() == before and len(list(out.iterdir())) == 1


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_folder_of_something_else_is_left_alone(tmp_path, resume):
    log = tmp_path / "log"
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter1.txt").write_text("precious")
    for folder in (out, out / "chapter1.txt"):
        assert finish("--out", folder, *resume, log=log) == 1
        assert "exists and is not a run" in log.read_text()
    assert (out / "chapter1.txt").read_text() == "precious" and len(list(out.iterdir())) == 1


def with_little_room(out, log):
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    short_training.main("--out", str(out), "--resume", log=str(log))


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(whole, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    process = start("--out", out, *SHORT)
    wait_for_an_epoch(out)
    process.kill()
    process.join()
    before = (out / "checkpoint.pt").read_bytes()
    process = SERVER.Process(target=with_little_room, args=(out, log))
    process.start()
    process.join(120)
    assert process.exitcode == 1 and "File too large" in log.read_text() and "Traceback" not in log.read_text()
    assert (out / "checkpoint.pt").read_bytes() == before
    assert {path.name for path in out.iterdir()} == {"checkpoint.pt", "metrics.csv"}
    assert finish("--out", out, "--resume") == 0
    assert_same_run(out, whole[0])


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    assert finish("--out", out, "--learning-rate", "1e30", "--epochs", "2", log=log) == 1
    said = log.read_text()
    assert "not finite at step" in said and "lower learning rate than 1e+30" in said and "Traceback" not in said
    assert all(t.isfinite().all() for _, t in tensors(checkpoint(out)))


def test_help_says_how_to_begin():
    done = cli("--help")
    assert done.returncode == 0 and done.stderr == ""
    for word in ("--preset", "--data", "--epochs", "--resume", "torchrun", "metrics.csv", "load_weights"):
        assert word in done.stdout


def words(out, *arguments, processes=None):
    """The command line of a short training, under torchrun where `processes` says how many share it."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes] if processes else []
    line = [
        sys.executable,
        *launcher,
        ROOT / "tests" / "short_training.py",
        "--out",
        out,
        "--preset",
        "tiny",
        *arguments,
    ]
    return {"args": list(map(str, line)), "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "text": True}


# 360 images: 51 batches of 7 and one of 3, which two processes share as 2 and 1; or one of 359 and one of a single image.
@pytest.mark.parametrize(("batch_size", "epochs", "steps"), [(7, 2, 104), (359, 3, 6)])
def test_two_processes_train_like_one(tmp_path, batch_size, epochs, steps):
    arguments = ["--epochs", epochs, "--batch-size", batch_size, "--precision", "float32"]
    arguments += ["--rotation", "10", "--learning-rate", "0.01", "--ema-decay", "0.5"]
    checkpoints = []
    for processes in (None, 2):
        out = tmp_path / str(processes)
        done = subprocess.run(**words(out, *arguments, processes=processes), capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
        checkpoints.append(checkpoint(out))
    one, two = checkpoints
    assert one["training"]["schedule"]["last_epoch"] == two["training"]["schedule"]["last_epoch"] == steps
    for ours, theirs in zip(two["history"], one["history"], strict=True):
        for name in ("margin", "reconstruction", "error", "validation_error", "validation_mse"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)


@pytest.mark.parametrize("preset", ["tiny", pytest.param("normed", marks=pytest.mark.slow)])
def test_two_processes_go_on_where_they_were_killed(tmp_path, preset):
    arguments = [
        "--epochs",
        "4",
        "--batch-size",
        "14",
        "--precision",
        "float32",
        "--ema-decay",
        "0.9",
        "--preset",
        preset,
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert subprocess.run(**words(whole, *arguments, processes=2), capture_output=True, timeout=120).returncode == 0
    process = subprocess.Popen(
        **words(killed, *arguments, processes=2), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for_an_epoch(killed)
    everyone = psutil.Process(process.pid).children(recursive=True)
    for one in [process, *everyone]:
        one.kill()
    psutil.wait_procs(everyone, timeout=30)
    process.wait()
    assert not (killed / "weights.safetensors").exists()  # it was killed before its end
    resumed = subprocess.run(
        **words(killed, "--resume", "--preset", preset, processes=2), capture_output=True, timeout=120
    )
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(killed, whole)


def test_the_move_of_an_image_depends_on_seed_epoch_and_image_alone(monkeypatch):
    """Whatever the batch size, the place in the order and the other images of the batch."""
    images = torch.rand(30, 1, 28, 28)

    def moves(epochs, **settings):
        found = {}
        training = Trainer(
            CapsNet(short_training.PRESETS["tiny"]), images, torch.arange(30) % 10, TrainingConfig(epochs=3, **settings)
        )
        training.epoch = epochs
        monkeypatch.setattr(
            "capsule_lib.training.trainer.shift",
            lambda x, draws, most: found.update(zip(map(key, x), draws.tolist(), strict=True)) or x,
        )
        list(training.steps())
        return found

    def key(image):
        return image.sum().item()

    first = moves(1, batch_size=4)
    assert len(first) == 30 and len({tuple(draw) for draw in first.values()}) == 30
    assert moves(1, batch_size=7) == first
    assert moves(2, batch_size=4) != first and moves(1, batch_size=4, seed=1) != first


EVERY_MOVE = {
    "rotation": 15.0, "scaling": 0.1, "rotation_spread": 10.0, "shift": "margin", "squeeze": 0.25, "erase": 4,
}  # fmt: skip


def test_every_other_move_of_an_image_depends_on_seed_epoch_and_image_alone():
    images = torch.zeros(30, 1, 28, 28)
    images[:, :, 8:20, 8:20] = 0.1 + 0.9 * torch.rand(30, 1, 12, 12)

    def moved(epoch, **settings):
        config = TrainingConfig(epochs=3, **{**EVERY_MOVE, **settings})
        training = Trainer(CapsNet(short_training.PRESETS["tiny"]), images, torch.arange(30) % 10, config)
        training.epoch, step = epoch, training._take_step
        numbers, seen = [], []
        training._take_step = lambda rows, draws: (numbers.extend(rows.tolist()), step(rows, draws))
        training.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        list(training.steps())
        found = torch.cat(seen)
        assert (found[torch.tensor(numbers).argsort()] != images).any(dim=(1, 2, 3)).all()
        return found[torch.tensor(numbers).argsort()]

    first = moved(1, batch_size=4)
    assert torch.equal(moved(1, batch_size=7), first)
    for name, off in (
        ("rotation", 0.0),
        ("scaling", 0.0),
        ("rotation_spread", 0.0),
        ("shift", "pixels"),
        ("squeeze", 0.0),
        ("erase", 0),
    ):
        assert not torch.equal(moved(1, batch_size=4, **{name: off}), first), name
    assert not torch.equal(moved(2, batch_size=4), first) and not torch.equal(moved(1, batch_size=4, seed=1), first)


@pytest.mark.parametrize("name", EVERY_MOVE)
def test_each_move_alone_moves_the_images(name):
    images = torch.zeros(20, 1, 28, 28)
    images[:, :, 8:20, 8:20] = 0.1 + 0.9 * torch.rand(20, 1, 12, 12)
    config = TrainingConfig(epochs=1, max_shift=0, **{name: EVERY_MOVE[name]})
    trainer, seen = Trainer(CapsNet(short_training.PRESETS["tiny"]), images, torch.arange(20) % 10, config), []
    trainer.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    list(trainer.steps())
    moved = [min((image - other).abs().max().item() for other in images) > 0 for image in seen[0]]
    assert any(moved)


def test_each_move_has_random_numbers_of_its_own(monkeypatch):
    """Seven between 0 and 1 and four normal ones, and no two alike: else an image that is squeezed would also go to the left."""
    drawn, trainer_module = {}, sys.modules["capsule_lib.training.trainer"]
    for name in ("rotate_and_scale", "shift", "shift_in_margin", "erase"):
        monkeypatch.setattr(trainer_module, name, lambda x, draws, *_, name=name: drawn.update({name: draws}) or x)
    images, labels = torch.rand(2_000, 1, 28, 28), torch.zeros(2_000).long()
    for how in ("pixels", "margin"):
        config = TrainingConfig(epochs=1, batch_size=2_000, **{**EVERY_MOVE, "shift": how})
        next(Trainer(CapsNet(short_training.PRESETS["tiny"]), images, labels, config).steps())
    even = torch.cat([drawn["rotate_and_scale"][:, :3], drawn["shift"], drawn["erase"]], dim=1)
    normal = torch.cat([drawn["rotate_and_scale"][:, 3:], drawn["shift_in_margin"]], dim=1)
    assert even.shape == (2_000, 7) and normal.shape == (2_000, 4)
    assert even.min() >= 0 and even.max() < 1 and even.mean(0).sub(0.5).abs().max() < 0.03
    assert normal.mean(0).abs().max() < 0.1 and normal.std(0).sub(1).abs().max() < 0.1
    together = torch.corrcoef(torch.cat([even, normal], dim=1).T) - torch.eye(11)
    assert together.abs().max() < 0.1


@pytest.mark.parametrize("preset", ["tiny", "normed"])
def test_a_training_with_every_move_goes_on_after_any_step_bit_for_bit(preset):
    images, labels = torch.rand(30, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 10
    config = TrainingConfig(epochs=2, batch_size=8, ema_decay=0.5, weight_decay=0.1, **EVERY_MOVE)

    def start():
        torch.manual_seed(0)
        return Trainer(CapsNet(short_training.PRESETS[preset]), images, labels, config)

    def go_on(trainer):
        while trainer.epoch <= 2:
            list(trainer.steps())
            trainer.end_epoch()
        return dict(tensors(trainer.state_dict()))

    whole, cut = go_on(start()), start()
    for step in cut.steps():
        if step == 3:
            break
    stored = io.BytesIO()
    torch.save(cut.state_dict(), stored)
    stored.seek(0)
    resumed = start()
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    again = go_on(resumed)
    assert again.keys() == whole.keys() and all(torch.equal(t, whole[name]) for name, t in again.items())


def test_weight_decay_is_that_of_adamw():
    def trained(optimizer_of):
        torch.manual_seed(0)
        net = CapsNet(short_training.PRESETS["tiny"])
        trainer = Trainer(net, torch.rand(8, 1, 28, 28), torch.arange(8), TrainingConfig(epochs=9, weight_decay=3.0))
        if optimizer_of:
            trainer.optimizer = optimizer_of(net.parameters())
            trainer.schedule = torch.optim.lr_scheduler.OneCycleLR(trainer.optimizer, 2e-3, total_steps=9)
        for _ in range(3):
            list(trainer.steps())
            trainer.end_epoch()
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    right = trained(lambda weights: torch.optim.AdamW(weights, weight_decay=3.0, fused=True))
    assert torch.equal(trained(None), right)
    other = trained(lambda weights: torch.optim.Adam(weights, weight_decay=3.0, fused=True))
    assert not torch.allclose(other, right, rtol=1e-3)


def test_a_run_with_batch_norm_and_every_move_says_on_its_card_what_was_used(tmp_path):
    out = tmp_path / "run"
    options = [w for name, value in EVERY_MOVE.items() for w in (f"--{name.replace('_', '-')}", value)]
    options += ["--weight-decay", "0.01", "--preset", "normed", "--epochs", "1", "--batch-size", "90"]
    log = tmp_path / "log"
    assert finish("--out", out, *options, log=log) == 0, log.read_text()
    card = read_card(out / "weights.safetensors")
    assert {**EVERY_MOVE, "weight_decay": 0.01, "preset": "normed"}.items() <= card.items()
    assert " --rotation-spread 10.0 " in card["command"] and " --shift margin " in card["command"]
    state, best = load_weights(out / "weights.safetensors").state_dict(), checkpoint(out)["best"]["weights"]
    assert state["stem.1.num_batches_tracked"] == best["stem.1.num_batches_tracked"] == 4
    assert torch.equal(state["stem.1.running_var"], best["stem.1.running_var"].half().float())


def corner_dots(count=600):
    """White dots three rows and eight columns from the top left, and their draws."""
    images = torch.zeros(count, 2, 12, 20)
    images[:, 1, 3, 8] = 1
    return images, torch.randn(count, 2, generator=torch.Generator().manual_seed(0))


def test_in_the_margin_every_place_is_reached_and_none_beyond():
    images, draws = corner_dots()
    moved = shift_in_margin(images, 2 * draws)  # so wide that the ends are reached
    assert torch.equal(moved.sum(dim=(2, 3)), images.sum(dim=(2, 3)))
    _, channels, rows, columns = moved.nonzero().T
    assert set(channels.tolist()) == {1}
    assert set(rows.tolist()) == set(range(12)) and set(columns.tolist()) == set(range(20))


def test_a_shift_in_the_margin_follows_its_draws_and_carries_all_ink():
    image = torch.zeros(1, 2, 9, 10)
    image[0, 0, 2:5, 3:5], image[0, 1, 3, 6] = torch.rand(3, 2) + 0.1, 0.001  # free: 2 above, 4 below, 3 left, 3 right
    for draw, (down, right) in [
        ((0.0, 0.0), (0, 0)),
        ((3.0, 3.0), (4, 3)),
        ((-3.0, -9.0), (-2, -3)),
        ((1.5, -1.5), (2, -2)),  # half of 5, and of 4, towards 0
    ]:
        moved = shift_in_margin(image, torch.tensor([draw]))
        expected = torch.zeros_like(image)
        expected[:, :, 2 + down : 5 + down, 3 + right : 7 + right] = image[:, :, 2:5, 3:7]
        assert torch.equal(moved, expected), draw
    black = torch.zeros(2, 1, 5, 5)
    assert torch.equal(shift_in_margin(black, torch.randn(2, 2)), black)
    full = torch.rand(2, 1, 5, 5) + 0.1
    assert torch.equal(shift_in_margin(full, torch.full((2, 2), 2.9)), full)


def test_a_patch_is_blacked_out_where_its_draws_say():
    images = torch.ones(3, 2, 7, 9)
    draws = torch.tensor([[0.0, 0.0], [0.999, 0.999], [0.5, 0.25]])
    for image, (row, column) in zip(erase(images, draws, 3), [(0, 0), (4, 6), (2, 1)], strict=True):
        expected = torch.ones(2, 7, 9)
        expected[:, row : row + 3, column : column + 3] = 0
        assert torch.equal(image, expected)
    assert not erase(images, draws, 7)[:, :, :, 2:7].any()


def test_half_of_the_images_are_rotated_by_the_spread_and_all_are_squeezed():
    image = torch.zeros(1, 1, 41, 41)
    image[0, 0, 20, 36] = 1  # 16 right of the centre
    for draws, spread, squeeze, (row, column) in [
        ((0.49, 3.0, 0.0), 30.0, 0.0, (4, 20)),  # a quarter turn
        ((0.49, -9.0, 0.0), 30.0, 0.0, (36, 20)),  # not further than three of the spread
        ((0.51, 3.0, 0.0), 30.0, 0.0, (20, 36)),  # of the other half
        ((0.9, 0.0, 3.0), 0.0, 0.5, (20, 28)),  # half as wide
        ((0.9, 0.0, -1.5), 0.0, 0.5, (20, 32)),
        ((0.1, 3.0, 9.0), 30.0, 0.5, (4, 20)),  # upright it is squeezed, and stays as tall
        ((0.1, 1.0, 3.0), 45.0, 0.5, (9, 26)),  # rotated by 45 degrees, then squeezed
    ]:
        drawn = rotate_and_scale(image, torch.tensor([[0.5, 0.5, *draws]]), 0.0, 0.0, spread, squeeze)[0, 0]
        assert divmod(drawn.argmax().item(), 41) == (row, column), draws


def test_turning_and_scaling_move_a_dot_where_geometry_says():
    image = torch.zeros(1, 1, 29, 29)
    image[0, 0, 14, 22] = 1  # 8 right of the centre
    for draws, rotation, scaling, (row, column) in [
        ((0.5, 0.5), 90, 0.5, (14, 22)),  # not at all
        ((1.0, 0.5), 90, 0.0, (6, 14)),  # a quarter turn
        ((0.0, 0.5), 90, 0.0, (22, 14)),  # and the other way
        ((0.5, 0.0), 0, 0.5, (14, 18)),  # half the size
        ((0.5, 1.0), 0, 0.5, (14, 26)),
    ]:
        drawn = rotate_and_scale(image, torch.tensor([draws]), rotation, scaling)[0, 0]
        assert divmod(drawn.argmax().item(), 29) == (row, column), draws


def test_shift_follows_its_draws():
    image = torch.zeros(2, 1, 9, 9)
    image[:, 0, 4, 4] = 1
    moved = shift(image, torch.tensor([[0.0, 0.99], [0.5, 0.79]]))
    assert moved.nonzero()[:, 2:].tolist() == [[6, 2], [4, 3]]


# Nothing lost, nothing taken for whole that is not.


def spoil_bit(content: bytes, seed: int) -> bytes:
    place = random.Random(seed).randrange(8 * len(content))
    spoiled = bytearray(content)
    spoiled[place // 8] ^= 1 << place % 8
    return bytes(spoiled)


def refused(out: Path, content: bytes) -> str:
    """What is said of a run whose checkpoint has this content. It is left as it is."""
    (out / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"restore it from a copy, or begin again in another folder") as caught:
        running.find_run(out, resume=True)
    assert (out / "checkpoint.pt").read_bytes() == content
    return str(caught.value)


def test_any_flipped_bit_of_a_checkpoint_is_refused(whole, tmp_path):
    content = (whole[0] / "checkpoint.pt").read_bytes()
    for seed in range(50):
        assert "was altered" in refused(tmp_path, spoil_bit(content, seed))
    for bit in range(
        8 * (len(content) - 64), 8 * len(content), 5
    ):  # in its checksum, and in what says that there is one
        spoiled = bytearray(content)
        spoiled[bit // 8] ^= 1 << bit % 8
        assert "was altered" in refused(tmp_path, bytes(spoiled))


def test_any_truncation_of_a_checkpoint_is_refused(whole, tmp_path):
    content = (whole[0] / "checkpoint.pt").read_bytes()
    for n in range(20):
        refused(tmp_path, content[: n * len(content) // 20])
    refused(tmp_path, content[:-1])


def write_checkpoint(out: Path, state: dict, sealed: bool = True) -> None:
    archive = io.BytesIO()
    torch.save(state, archive)
    seal = running.SEAL + hashlib.sha256(archive.getvalue()).digest() if sealed else b""
    out.mkdir(exist_ok=True)
    (out / "checkpoint.pt").write_bytes(archive.getvalue() + seal)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("training", "epoch"), 99, r"epoch 99 is not in 0\.\.5"),
        (("training", "epoch"), 1.5, "epoch 1.5"),
        (("training", "step"), -1, "step -1"),
        (("training", "sums"), torch.zeros(7), "not the state of a training of this network"),
        (("training", "net"), {}, "not the state of a training of this network"),
        (("settings", "batch_size"), 0, "batch_size: expected a whole number from 1 on; got 0"),
        (("settings", "learning_rate"), math.nan, "learning_rate: expected a number above 0"),
    ],
)
def test_impossible_contents_of_a_checkpoint_are_refused(whole, tmp_path, path, value, words):
    state, out, log = checkpoint(whole[0]), tmp_path / "run", tmp_path / "log"
    state[path[0]][path[1]] = value
    write_checkpoint(out, state)
    assert finish("--out", out, "--resume", log=log) == 1
    assert re.search(words, log.read_text()) and "Traceback" not in log.read_text()


def test_a_checkpoint_from_before_options_existed_is_gone_on_with(whole, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    process = start("--out", out, *SHORT, "--precision", "float32", log=log)
    wait_for_an_epoch(out)
    process.kill()
    process.join()
    state = checkpoint(out)
    state.pop("format"), state.pop("start")
    state["training"]["average"] = state["training"].pop("ema_model")
    settings = state["settings"]
    settings["averaging"], settings["bfloat16"] = settings.pop("ema_decay"), settings.pop("precision") == "bfloat16"
    settings.pop("start"), settings.pop("scaling")  # 0.1 here: the default, 0, is taken
    write_checkpoint(out, state, sealed=False)
    assert finish("--out", out, "--resume", log=log) == 0, log.read_text()
    card = read_card(out / "weights.safetensors")
    assert (card["ema_decay"], card["precision"], card["scaling"], card["rotation"]) == (0.9, "float32", 0.0, 10.0)


def test_two_processes_cannot_train_into_one_folder(whole, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    process = start("--out", out, *SHORT, "--epochs", "400")
    wait_for_an_epoch(out)
    for more in (["--resume"], ["--resume", "--epochs", "400"]):
        assert finish("--out", out, *more, log=log) == 1
        assert "another process is training into" in log.read_text() and "Traceback" not in log.read_text()
    assert process.is_alive()
    process.kill()  # and its lock goes with it
    process.join()
    with running.locked(out):
        assert {p.name for p in out.iterdir()} == {"checkpoint.pt", "metrics.csv"}


@pytest.mark.parametrize("spoil", [lambda b: b"", lambda b: b[:-9], lambda b: spoil_bit(b, 3)])
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.json"])
def test_a_finished_run_that_is_not_whole_is_finished_again(whole, tmp_path, name, spoil):
    out = shutil.copytree(whole[0], tmp_path / "run")
    (out / name).write_bytes(spoil((out / name).read_bytes()))
    assert finish("--out", out, "--resume") == 0
    assert_same_run(out, whole[0])
    assert (
        read_card(out / "weights.safetensors")["test_error_percent"]
        == read_card(whole[0] / "weights.safetensors")["test_error_percent"]
    )


def test_what_killed_runs_left_half_written_is_cleared_away(whole, tmp_path):
    out = shutil.copytree(whole[0], tmp_path / "run")
    (out / ".checkpoint.pt.4711").write_bytes(b"half")
    (out / ".weights.json.12").write_bytes(b"half")
    (out / ".mine").write_text("precious")
    assert finish("--out", out, "--resume") == 0
    assert {p.name for p in out.iterdir() if p.name.startswith(".")} == {".mine"}


def test_a_last_step_that_ruins_the_weights_is_not_called_done(tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    arguments = ["--epochs", "1", "--batch-size", "400", "--learning-rate", "1e38"]  # one step
    assert finish("--out", out, *arguments, log=log) == 1
    assert re.search("not finite.*lower learning rate", log.read_text()) and "done" not in log.read_text()
    assert not (out / "weights.safetensors").exists()


def interrupted_while_measuring(out, log):
    evaluate = running.evaluate

    def interrupted(net, images, labels):
        if len(images) > 100:  # the test set; the validation set has 40
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(net, images, labels)

    running.evaluate = interrupted
    short_training.main("--out", str(out), *SHORT, log=str(log))


def test_ctrl_c_while_the_network_is_measured_loses_nothing(whole, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    process = SERVER.Process(target=interrupted_while_measuring, args=(out, log))
    process.start()
    process.join(120)
    assert process.exitcode == 130 and "stopped while the network was measured" in log.read_text()
    assert not (out / "weights.safetensors").exists()
    assert finish("--out", out, "--resume") == 0
    assert_same_run(out, whole[0])
