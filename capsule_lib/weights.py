"""Weights as safetensors files, each with a JSON card beside it that says what the file is."""

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from capsule_lib.data import DATA
from capsule_lib.files import read_verified, write_whole
from capsule_lib.model import CapsNet, CapsNetConfig

WEIGHTS = DATA / "weights"


def save_weights(net: CapsNet, path: str | Path, *, half: bool = False, **card) -> Path:
    """Write `path`, a .safetensors file, and its card, the same name with .json. Each is written whole or not at all.

    Args:
        half: store float16, half the size. Loading converts back to float32.
        card: anything else that the card should say: data, seed, epochs, measured error ...

    Returns:
        The path of the weights.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"weights are saved as .safetensors; got {path.name!r}")
    tensors = {name: t.detach().cpu().contiguous() for name, t in net.state_dict().items()}
    if half:
        tensors = {name: t.half() for name, t in tensors.items()}
    content = save(tensors)
    facts = {"config": dataclasses.asdict(net.config), **card, "sha256": hashlib.sha256(content).hexdigest()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole({path: content, path.with_suffix(".json"): (json.dumps(facts, indent=2) + "\n").encode()})
    return path


def load_weights(path: str | Path) -> CapsNet:
    """The network that `save_weights` wrote, on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: no weights or no card.
        ValueError: the file does not match its card's checksum, or the tensors do not fit the card's network.
    """
    path = Path(path)
    card = read_card(path)
    content = read_verified(path, card["sha256"], "restore the file and its card, or train and save the network again")
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in card["config"].items()}
    try:
        tensors = load(content)
        with torch.device("meta"):  # no random numbers are drawn for weights that are about to be replaced
            net = CapsNet(CapsNetConfig(**config)).to_empty(device="cpu")
    except (SafetensorError, TypeError) as error:
        raise ValueError(f"{path} and its card do not describe a CapsNet ({error}): save the network again") from error
    expected = {name: list(t.shape) for name, t in net.state_dict().items()}
    found = {name: list(t.shape) for name, t in tensors.items()}
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ValueError(
            f"{path} does not fit the network on its card: {wrong[0]} should be {expected.get(wrong[0], 'absent')} "
            f"and is {found.get(wrong[0], 'absent')}: save the network again"
        )
    net.load_state_dict(tensors)
    return net.eval()


def load_pretrained(name: str = "small") -> CapsNet:
    """A network that ships with the course, on the CPU, in evaluation mode. `data/weights/NAME.json` says how it was trained."""
    path = WEIGHTS / f"{name}.safetensors"
    if not path.is_file():
        names = ", ".join(repr(p.stem) for p in sorted(WEIGHTS.glob("*.safetensors")) if "." not in p.stem)
        raise ValueError(f"no weights ship under the name {name!r}: choose {names or 'none: the folder is empty'}")
    return load_weights(path)


def read_card(path: str | Path) -> dict:
    """The card beside a weights file."""
    path = Path(path).with_suffix(".json")
    try:
        card = json.loads(path.read_text())
        if not (isinstance(card["sha256"], str) and isinstance(card["config"], dict)):
            raise ValueError("'sha256' should be text and 'config' an object")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}, the card of the weights, is missing: keep it beside them, or save the network again"
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not the card of a weights file ({error}): restore it, or save the network again"
        ) from None
    return card
