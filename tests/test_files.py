"""Digits and weights on disk: what ships is right, and a damaged file is never used."""

import dataclasses
import hashlib
import json
import os
import re
import runpy
import shutil
import struct
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import yaml

from capsule_lib import CapsNet, CapsNetConfig, evaluate, load_digits, load_pretrained, load_weights, save_weights
from capsule_lib.data import digits as data
from capsule_lib.morphometry import LIVE, dimension_effects
from capsule_lib.train import split_digits
from capsule_lib.weights import WEIGHTS, read_card

ROOT = Path(__file__).parent.parent
WHOLE = os.environ.get("CAPSULE_DATA", "")
TINY = CapsNetConfig((1, 9, 9), classes=3, stem_channels=4, kernel_size=3, types=2, class_dim=5, decoder_hidden=(8, 9))
needs_mnist = pytest.mark.skipif(not WHOLE, reason="CAPSULE_DATA is not set: no whole MNIST")


@pytest.mark.parametrize(("split", "each"), [("train", 400), ("test", 100)])
def test_shipped_digits(split, each):
    images, labels = load_digits("shipped", split=split)
    assert images.shape == (10 * each, 1, 28, 28) and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert images.min() == 0 and images.max() == 1
    assert labels.bincount().tolist() == [each] * 10


def test_no_digit_is_in_both_parts():
    train, test = ({x.numpy().tobytes() for x in load_digits(split=split)[0]} for split in ("train", "test"))
    assert len(train) == 4000 and len(test) == 1000 and not train & test


def pixels(images):
    """Each image as bytes 0..255: the same image is the same bytes, whatever set it came from."""
    return [image.tobytes() for image in (images * 255).round().byte().numpy()]


@needs_mnist
def test_shipped_digits_are_mnist_training_digits():
    images, labels = load_digits("mnist", split="train")
    official, official_labels = load_digits("mnist", split="test")
    assert (len(images), len(labels), len(official), len(official_labels)) == (60_000, 60_000, 10_000, 10_000)
    whole, unseen = dict(zip(pixels(images), labels.tolist(), strict=True)), set(pixels(official))
    for split in ("train", "test"):
        images, labels = load_digits(split=split)
        assert [whole.get(image) for image in pixels(images)] == labels.tolist()
        assert unseen.isdisjoint(pixels(images))


def test_loading_twice_gives_the_same_and_draws_no_random_numbers():
    state = torch.get_rng_state()
    for a, b in zip(load_digits(), load_digits("shipped", "train"), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)


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


def test_missing_shipped_digits(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DATA", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"shipped_digits.safetensors is missing.*git checkout"):
        load_digits()


def write_idx(raw: Path, stem: str, count: int, claimed: int | None = None) -> None:
    """A pair of black image and label files like MNIST's, whose headers claim `claimed` entries."""
    raw.mkdir(parents=True, exist_ok=True)
    claimed = claimed or count
    (raw / f"{stem}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, claimed, 28, 28) + bytes(784 * count))
    (raw / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, claimed) + bytes(count))


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The folder that CAPSULE_DATA names, and one in the place of `data/`; where to download is up to the test."""
    from torchvision import datasets

    named, own = tmp_path / "named", tmp_path / "data"
    own.mkdir()
    monkeypatch.setattr(data, "DATA", own)
    monkeypatch.setenv("CAPSULE_DATA", str(named))
    monkeypatch.setattr(datasets.MNIST, "download", lambda self: pytest.fail("nothing should be downloaded"))
    return named / "FashionMNIST" / "raw", own / "FashionMNIST" / "raw"


def test_the_named_folder_goes_first_then_data(places):
    named, own = places
    write_idx(own, "t10k", 10_000)
    write_idx(named, "train", 2)  # the other split only: not here, then
    images, labels = load_digits("fashion", "test")
    assert images.shape == (10_000, 1, 28, 28) and images.dtype == torch.float32
    assert labels.tolist() == 10_000 * [0] and labels.dtype == torch.int64
    write_idx(named, "t10k", 5)  # a wrong one: it is looked at nevertheless
    with pytest.raises(ValueError, match=r"named.*should hold 10,000 images of 28 x 28.*\[5, 28, 28\].*shipped"):
        load_digits("fashion", "test")


def test_of_mnist_the_menu_offers_what_is_here_and_downloads_nothing(places):
    named, own = (place.parent.parent / "MNIST" / "raw" for place in places)
    assert list(data.digit_sets()) == ["shipped"]
    write_idx(own, "train", 2)
    assert list(data.digit_sets()) == ["shipped", "MNIST training"]
    write_idx(named, "t10k", 2)
    sets = data.digit_sets()
    assert list(sets) == ["shipped", "MNIST test", "MNIST training"]
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte is cut short"):
        sets["MNIST test"]()
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is cut short"):
        sets["MNIST training"]()


def test_the_menus_shipped_digits_are_those_the_networks_have_not_seen():
    images, labels = data.digit_sets()["shipped"]()
    expected, expected_labels = load_digits("shipped", "test")
    assert images.equal(expected) and labels.equal(expected_labels)


@pytest.mark.parametrize("split", ["train", "test"])
def test_mnist_files_that_are_not_mnists(tmp_path, monkeypatch, split):
    stem = {"train": "train", "test": "t10k"}[split]
    write_idx(tmp_path / "MNIST" / "raw", stem, 10_000)
    monkeypatch.setenv("CAPSULE_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=rf"{stem}-images-idx3-ubyte is cut short or altered.*sha256.*shipped"):
        load_digits("mnist", split)


@needs_mnist
@pytest.mark.parametrize("kind", ["images-idx3-ubyte", "labels-idx1-ubyte"])
def test_one_altered_byte_of_mnist(tmp_path, monkeypatch, kind):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (Path(WHOLE) / "MNIST" / "raw").glob("t10k-*-ubyte"):
        shutil.copyfile(path, raw / path.name)
    content = (raw / f"t10k-{kind}").read_bytes()
    (raw / f"t10k-{kind}").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    monkeypatch.setenv("CAPSULE_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=f"t10k-{kind} is cut short or altered"):
        load_digits("mnist", "test")


@pytest.mark.parametrize("content", [b"", b"\0\0", b"no header at all" * 10])
def test_a_whole_set_without_a_header(places, content):
    write_idx(places[0], "t10k", 5)
    (places[0] / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=r"FashionMNIST.*can't be read.*shipped"):
        load_digits("fashion", "test")


def test_a_download_ends_whole_in_data_and_is_used_from_then_on(places, monkeypatch):
    from torchvision import datasets

    def download(self):
        write_idx(Path(self.raw_folder), "train", 2)
        write_idx(Path(self.raw_folder), "t10k", 10_000)

    with monkeypatch.context() as patch:
        patch.setattr(datasets.MNIST, "download", download)
        assert len(load_digits("fashion", "test")[0]) == 10_000
    assert len(load_digits("fashion", "test")[0]) == 10_000
    assert [path.name for path in data.DATA.iterdir()] == ["FashionMNIST"]


@pytest.mark.parametrize("error", [RuntimeError("Error downloading"), OSError("timed out"), KeyboardInterrupt()])
def test_a_download_that_stops_leaves_nothing(places, monkeypatch, error):
    from torchvision import datasets

    def download(self):
        write_idx(Path(self.raw_folder), "train", 2)
        raise error

    monkeypatch.setattr(datasets.MNIST, "download", download)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else FileNotFoundError):
        load_digits("mnist")
    assert list(data.DATA.iterdir()) == []


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
    assert (
        card["preset"] == "small"
        and card["best_epoch"] <= card["epochs"]
        and {"data", "seed", "command"} <= card.keys()
    )
    assert (WEIGHTS / "small.safetensors").stat().st_size <= 5e6
    assert card["test_error_percent"] <= 0.7 and card["test_mse"] <= 0.014
    result = evaluate(net, *load_digits(split="test"))
    assert result.error == pytest.approx(card["shipped_test_error_percent"], abs=0.11)
    assert result.mse == pytest.approx(card["shipped_test_mse"], abs=1e-4)
    live = (dimension_effects(net, *load_digits(split="test")) >= LIVE).sum(dim=1)
    assert (live >= 14).all()


def test_the_papers_network_is_what_its_card_says():
    card = read_card(WEIGHTS / "paper.safetensors")
    assert card["preset"] == "paper" and (WEIGHTS / "paper.safetensors").stat().st_size <= 17e6
    result = evaluate(load_pretrained("paper"), *load_digits(split="test"))
    assert result.error == pytest.approx(card["shipped_test_error_percent"], abs=0.11)
    assert result.mse == pytest.approx(card["shipped_test_mse"], abs=1e-4)


@needs_mnist
@pytest.mark.slow
def test_the_papers_network_on_the_official_test_set():
    result, card = evaluate(load_pretrained("paper"), *load_digits("mnist", "test")), read_card(WEIGHTS / "paper.json")
    assert result.error == pytest.approx(card["test_error_percent"], abs=0.021)
    assert result.mse == pytest.approx(card["test_mse"], abs=1e-4)


@needs_mnist
def test_shipped_weights_on_the_official_test_set():
    result, card = evaluate(load_pretrained("small"), *load_digits("mnist", "test")), read_card(WEIGHTS / "small.json")
    assert result.error == pytest.approx(card["test_error_percent"], abs=0.021)
    assert result.mse == pytest.approx(card["test_mse"], abs=1e-4)


def test_training_validation_and_test_digits_are_apart():
    training, validation, test = split_digits("shipped", 0)
    sets = [{image.numpy().tobytes() for image in images} for images, _ in (training, validation, test)]
    assert [len(digits) for digits in sets] == [3_600, 400, 1_000]
    assert len(set.union(*sets)) == 5_000
    assert not torch.equal(split_digits("shipped", 1)[1][1], validation[1])  # another seed, another split


@needs_mnist
def test_no_shipped_test_digit_is_trained_on_or_chosen_by():
    training, validation, _ = split_digits("mnist", 0)
    assert (len(training[0]), len(validation[0])) == (54_000, 5_000)
    seen = {image.numpy().tobytes() for image in torch.cat([training[0], validation[0]])}
    assert not seen & {image.numpy().tobytes() for image in load_digits("shipped", "test")[0]}


def test_the_results_are_those_of_the_cards_and_the_readme_has_three_of_them():
    page = runpy.run_path(WEIGHTS / "make_results.py")["page"]()
    assert (WEIGHTS / "results.md").read_text() == page
    rows = rows_of(ROOT / "README.md", "test error %")
    assert len(rows) == 3 and set(rows) <= set(page.splitlines())


def rows_of(page, column):
    """The rows of the table that has this column, without its head."""
    _, table = page.read_text().split(f" {column} ")
    return table.split("\n\n")[0].splitlines()[2:]


def test_notebook_04_has_the_results_of_both_reconstruction_weights():
    results = (WEIGHTS / "results.md").read_text()
    notebook = (ROOT / "notebooks/04_loss.ipynb").read_text()
    for words, weight in [("0.0005 × sum = 0.392 × mean", "0.0005"), ("0.01 × sum = 7.84 × mean", "0.01")]:
        (row,) = re.findall(rf"`small`.* \| 3 \| {weight} \| 20 epochs \| ([\d.]+).*? \| ([\d.]+).*? \|", results)
        assert f"| {words} | {row[0]} % | {row[1]} |" in notebook


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("half", [False, True])
def test_round_trip(tmp_path, half):
    net, images = CapsNet(TINY), torch.rand(2, 1, 9, 9)
    path = save_weights(net, tmp_path / "new" / "net.safetensors", half=half, note="mine")
    if half:
        net.half().float()  # rounds
    state = torch.get_rng_state()
    loaded = load_weights(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert path.stat().st_size == pytest.approx(count(net) * (2 if half else 4), rel=0.2)
    assert loaded.config == net.config
    for name, weight in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight) and loaded.state_dict()[name].dtype == torch.float32
    assert not loaded.training and all(p.requires_grad for p in loaded.parameters())
    for a, b in zip(net(images), loaded(images), strict=True):
        assert torch.equal(a, b)
    assert read_card(tmp_path / "new" / "net.safetensors")["note"] == "mine"


def test_batch_norms_count_of_steps_stays_whole_in_half_precision(tmp_path):
    net = CapsNet(dataclasses.replace(TINY, stem=((3, 3, 1), (16, 2, 1)), depthwise=True))
    net(torch.rand(4, 1, 9, 9))
    net.stem[1].num_batches_tracked += 70_001  # more than float16 can hold, or tell from 70,002
    again = load_weights(save_weights(net, tmp_path / "net.safetensors", half=True)).state_dict()
    assert again.keys() == net.state_dict().keys() and again["stem.1.num_batches_tracked"].item() == 70_002
    for name, t in net.state_dict().items():
        assert again[name].dtype == t.dtype
        torch.testing.assert_close(again[name], t, rtol=1e-3, atol=1e-6)


def test_a_card_from_before_there_were_other_stems_is_read(tmp_path):
    net = CapsNet(TINY)
    path = save_weights(net, tmp_path / "net.safetensors")
    config = read_card(path)["config"]
    break_card(path, config={name: value for name, value in config.items() if name not in ("stem", "depthwise")})
    assert load_weights(path).config == net.config


def break_card(path, **changes):
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(card | changes))


def pickled(path):
    """Weights as a pickle that would run code, with a card that fits."""
    torch.save({"weight": Bomb()}, path)
    break_card(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was read",))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-7]), ValueError, "cut short or altered"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"x"), ValueError, "cut short or altered"),
        (lambda p: p.unlink(), FileNotFoundError, "missing"),
        (lambda p: p.with_suffix(".json").unlink(), FileNotFoundError, "card.*missing"),
        (lambda p: p.with_suffix(".json").write_text("{"), ValueError, "not the card"),
        (lambda p: p.with_suffix(".json").write_text("[1]"), ValueError, "not the card"),
        (lambda p: p.with_suffix(".json").write_text("{}"), ValueError, "not the card"),
        (lambda p: p.with_suffix(".json").write_bytes(b"\xff\xfe"), ValueError, "not the card"),
        (lambda p: break_card(p, config=[1, 2]), ValueError, "not the card"),
        (lambda p: break_card(p, sha256=None), ValueError, "not the card"),
        (pickled, ValueError, "do not describe a CapsNet"),
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


@pytest.mark.parametrize("failing", ["the first rename", "writing the card"])
def test_a_failed_write_leaves_the_old_file_and_its_card(tmp_path, monkeypatch, failing):
    path = save_weights(CapsNet(TINY), tmp_path / "net.safetensors")
    old = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    write = Path.write_bytes

    def full(*_):
        raise OSError("no space left")

    def full_after_half_a_card(self, content):
        write(self, content[: len(content) // 2] if "json" in self.name else content)
        if "json" in self.name:
            full()

    if failing == "the first rename":
        monkeypatch.setattr(os, "replace", full)
    else:
        monkeypatch.setattr(Path, "write_bytes", full_after_half_a_card)
    with pytest.raises(OSError, match="no space"):
        save_weights(CapsNet(TINY), path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old


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
    conda_names = {"torch": "pytorch", "matplotlib": "matplotlib-base", "playwright": "playwright-python"}
    wanted = {re.sub(r"^[a-z]+", lambda m: conda_names.get(m[0], m[0]), line) for line in wanted}
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *listed, own = environment["dependencies"]
    assert set(listed) == wanted | {"pip"}
    assert own == {"pip": ["--editable ."]}
    assert environment["channels"] == ["conda-forge"]


def test_the_records_of_benchmarks_are_quoted_as_they_are():
    """Ratios only: seconds belong to one machine. All rows beside the records, and three of them in the README."""

    def read(name):
        return json.loads((WEIGHTS.parent / "benchmarks" / f"{name}.json").read_text())

    page, bench, large = WEIGHTS.parent / "benchmarks/README.md", read("two-cores"), read("256-pixels")
    without_bfloat16 = read("two-cores-without-bfloat16")
    assert bench["machines"] and without_bfloat16["machines"] and large["machine"]
    rows = [
        (f"routing layer, {row['in_capsules']:,} capsules, {row['batch']} images", row)
        for row in bench["layers"]
        if row["form"] == "vote-free"
    ]
    rows += [
        (f"routing layer, {row['in_capsules']:,} capsules, {row['batch']} images, beside two busy processes", row)
        for row in bench["beside_two_busy_processes"]
        if row["form"] == "vote-free"
    ]
    rows += [
        (f"training step of the paper's network, {row['form']}{where}", row)
        for record, where in [(bench, ""), (without_bfloat16, ", on a machine without bfloat16")]
        for row in record["steps"]
        if row["form"].startswith("vote-free")
    ]
    lines = [f"| {name} | {row['times_faster']:.0f} | {row['times_less_memory']:.0f} |" for name, row in rows[:4]]
    lines += [f"| {name} | {row['times_faster']:.1f} | {row['times_less_memory']:.1f} |" for name, row in rows[4:]]
    assert rows_of(page, "times less memory") == lines
    in_readme = rows_of(ROOT / "README.md", "times less memory")
    assert len(in_readme) == 3 and set(in_readme) <= set(lines)
    says = f"fit with {large['vote-free']} images per batch; with the broadcast product they fit with {large['naive'] or 'none'}."
    assert says in page.read_text(), says
