"""Digits and weights on disk: what ships is right, and a damaged file is never used."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from capsule_lib import CapsNet, CapsNetConfig, data, evaluate, load_digits, load_pretrained, load_weights, save_weights
from capsule_lib.train import LIVE, dimension_effects
from capsule_lib.weights import WEIGHTS, read_card

ROOT = Path(__file__).parent.parent
TINY = CapsNetConfig((1, 9, 9), classes=3, stem_channels=4, kernel_size=3, types=2, class_dim=5, decoder_hidden=(8, 9))
needs_mnist = pytest.mark.skipif(not os.environ.get("CAPSULE_DATA"), reason="CAPSULE_DATA is not set: no whole MNIST")


@pytest.mark.parametrize(("split", "each"), [("train", 400), ("test", 100)])
def test_shipped_digits(split, each):
    images, labels = load_digits("shipped", split=split)
    assert images.shape == (10 * each, 1, 28, 28) and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert images.min() == 0 and images.max() == 1
    assert labels.bincount().tolist() == [each] * 10


def test_no_digit_is_in_both_parts():
    train, test = ({x.numpy().tobytes() for x in load_digits(split=split)[0]} for split in ("train", "test"))
    assert len(train) == 4000 and len(test) == 1000 and not train & test


@needs_mnist
def test_shipped_digits_are_mnist_training_digits():
    shipped = {x.numpy().tobytes(): int(y) for x, y in zip(*load_digits(split="test"), strict=True)}
    whole = {x.numpy().tobytes(): int(y) for x, y in zip(*load_digits("mnist", split="train"), strict=True)}
    official = {x.numpy().tobytes() for x in load_digits("mnist", split="test")[0]}
    assert all(whole[image] == label for image, label in shipped.items()) and not shipped.keys() & official


def test_unknown_names():
    with pytest.raises(ValueError, match="'mnst'.*'shipped', 'mnist' or 'fashion'"):
        load_digits("mnst")
    with pytest.raises(ValueError, match="'held_out'.*'train' or 'test'"):
        load_digits(split="held_out")


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b[:5000] + bytes([b[5000] ^ 1]) + b[5001:]])
def test_damaged_shipped_digits(tmp_path, monkeypatch, damage):
    name = "shipped_digits.safetensors"
    (tmp_path / name).write_bytes(damage((data.DATA / name).read_bytes()))
    monkeypatch.setattr(data, "DATA", tmp_path)
    with pytest.raises(ValueError, match=r"cut short or altered.*sha256.*git checkout"):
        load_digits()


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_no_data_and_no_network(tmp_path, monkeypatch, name):
    from torchvision import datasets

    def half_a_download(root, download):
        folder = Path(root) / "MNIST" / "raw"
        folder.mkdir(parents=True)
        (folder / "train-images-idx3-ubyte.gz").write_bytes(b"half")
        raise URLError("no network")

    half_a_download.__name__ = {"mnist": "MNIST", "fashion": "FashionMNIST"}[name]
    monkeypatch.setattr(datasets, half_a_download.__name__, half_a_download)
    monkeypatch.setattr(data, "DATA", tmp_path)
    monkeypatch.setenv("CAPSULE_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"(?s)elsewhere.*no network.*CAPSULE_DATA.*load_digits\('shipped'\)"):
        load_digits(name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_damaged_whole_set(tmp_path, monkeypatch, name):
    folder = tmp_path / {"mnist": "MNIST", "fashion": "FashionMNIST"}[name] / "raw"
    folder.mkdir(parents=True)
    for stem in ("train", "t10k"):
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + bytes(50))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + bytes(50))
    monkeypatch.setenv("CAPSULE_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"delete that folder.*load_digits\('shipped'\)"):
        load_digits(name)


def test_shipped_weights_are_what_their_card_says():
    start = time.perf_counter()
    net = load_pretrained("small")
    assert time.perf_counter() - start < 1
    card = read_card(WEIGHTS / "small.safetensors")
    assert (WEIGHTS / "small.safetensors").stat().st_size <= 5e6
    assert card["test_error_percent"] <= 0.7 and card["test_mse"] <= 0.014
    result = evaluate(net, *load_digits(split="test"))
    assert result.error == pytest.approx(card["shipped_test_error_percent"], abs=0.11)
    assert result.mse == pytest.approx(card["shipped_test_mse"], abs=1e-4)
    live = (dimension_effects(net, *load_digits(split="test")) >= LIVE).sum(dim=1)
    assert (live >= 14).all()


@needs_mnist
def test_shipped_weights_on_the_official_test_set():
    result, card = evaluate(load_pretrained("small"), *load_digits("mnist", "test")), read_card(WEIGHTS / "small.json")
    assert result.error == pytest.approx(card["test_error_percent"], abs=0.021)
    assert result.mse == pytest.approx(card["test_mse"], abs=1e-4)


def test_the_official_test_set_is_used_after_the_epoch_is_chosen():
    source = (WEIGHTS / "make_small.py").read_text()  # mistake 18
    assert (
        source.index("images[validation]")
        < source.index("net = load_weights(PATH)")
        < source.index('load_digits("mnist", "test")')
    )
    assert source.count('load_digits("mnist", "test")') == 1


@pytest.mark.parametrize("half", [False, True])
def test_round_trip(tmp_path, half):
    net, images = CapsNet(TINY), torch.rand(2, 1, 9, 9)
    if half:
        net.half().float()
    loaded = load_weights(save_weights(net, tmp_path / "new" / "net.safetensors", half=half, note="mine"))
    assert not loaded.training and all(p.requires_grad for p in loaded.parameters())
    for a, b in zip(net(images), loaded(images), strict=True):
        assert torch.equal(a, b)
    assert read_card(tmp_path / "new" / "net.safetensors")["note"] == "mine"


def break_card(path, **changes):
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(card | changes))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-7]), ValueError, "cut short or altered"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"x"), ValueError, "cut short or altered"),
        (lambda p: p.unlink(), FileNotFoundError, "missing"),
        (lambda p: p.with_suffix(".json").unlink(), FileNotFoundError, "card.*missing"),
        (lambda p: p.with_suffix(".json").write_text("{"), ValueError, "not the card"),
        (lambda p: break_card(p, sha256="0"), ValueError, "sha256 should be 0"),
        (lambda p: break_card(p, config={"colour": 1}), ValueError, "do not describe a CapsNet"),
    ],
)
def test_damaged_weights_are_refused(tmp_path, damage, error, message):
    path = save_weights(CapsNet(TINY), tmp_path / "net.safetensors")
    damage(path)
    with pytest.raises(error, match=message):
        load_weights(path)


def test_weights_of_another_network_are_refused(tmp_path):
    path = save_weights(CapsNet(TINY), tmp_path / "net.safetensors")  # mistake 17
    config = json.loads(path.with_suffix(".json").read_text())["config"]
    break_card(path, config=config | {"class_dim": 6})
    with pytest.raises(ValueError, match=r"does not fit.*should be \[.*and is \["):
        load_weights(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_weights(CapsNet(TINY), tmp_path / "net.safetensors")
    old = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        save_weights(CapsNet(TINY), path)
    assert path.read_bytes() == old and sorted(p.name for p in tmp_path.iterdir()) == ["net.json", "net.safetensors"]


def test_wrong_names():
    with pytest.raises(ValueError, match="'huge'.*'small'"):
        load_pretrained("huge")
    with pytest.raises(ValueError, match=r"\.safetensors; got 'net.pt'"):
        save_weights(CapsNet(TINY), "net.pt")


def test_importing_is_quick_and_does_no_work():
    script = """
import sys, time, torch
start = time.perf_counter()
import capsule_lib
seconds = time.perf_counter() - start
heavy = {"matplotlib", "torchvision", "IPython", "ipywidgets"} & set(sys.modules)
print(seconds, *heavy)
"""
    runs = [subprocess.check_output([sys.executable, "-c", script], text=True).split() for _ in range(3)]
    assert all(len(run) == 1 for run in runs), runs
    assert min(float(run[0]) for run in runs) <= 0.5


def test_environment_is_in_step_with_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["test"],
        f"python{project['requires-python']}",
    ]
    conda_names = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
    wanted = {re.sub(r"^[a-z]+", lambda m: conda_names.get(m[0], m[0]), line) for line in wanted}
    listed = set(re.findall(r"^  - ([^\s:]+)$", (ROOT / "environment.yml").read_text(), re.M)) - {"conda-forge", "pip"}
    assert listed == wanted and shutil.which("python")
