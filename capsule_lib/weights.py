"""Weights as safetensors files, each with a JSON card beside it that says what the file is."""

import dataclasses
import hashlib
import json
import reprlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from capsule_lib.device import unwrapped
from capsule_lib.files import DATA, RESTORE, check_new, find, read_shipped, read_verified, writable_path, write_whole
from capsule_lib.layers import DigitCaps
from capsule_lib.model import CapsNet, CapsNetConfig

WEIGHTS = DATA / "weights"


def save_weights(net: CapsNet, path: str | Path, *, half: bool = False, **card) -> Path:
    """Write `path`, a .safetensors file, and its card, the same name with .json. Each is written whole or not at all.

    A relative path that leads into a read-only folder, such as a course that many share, goes to `capsule_home()` instead,
    and a line says so; `load_weights` finds it there under the same name.

    The network may be compiled, or wrapped for several devices; its class layer and decoder may have been replaced by others.

    Args:
        half: store float16, half the size. Loading converts back to float32.
        card: anything else that the card should say: data, seed, epochs, measured error ...

    Returns:
        The path of the weights.

    Raises:
        ValueError: another file name, weights that are not finite, or a network that could not be loaded again.
        FileExistsError: a file that is not an earlier network of this function's; it is left as it is.
        PermissionError: an absolute path in a read-only folder.
    """
    asked, path = Path(path), writable_path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"weights are saved as .safetensors; got {path.name!r}")
    net = unwrapped(net)
    if not isinstance(net, CapsNet):
        raise TypeError(
            f"save_weights takes a CapsNet; got {type(net).__name__}: copy its weights into a CapsNet(config)"
        )
    tensors = {name: t.detach().cpu().contiguous() for name, t in net.state_dict().items()}
    if half:
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}  # a count stays whole
    config = _config_of(net)
    _check_fit(config, tensors, "this network can't be saved", "build a CapsNet of that config and copy what fits")
    if wrong := [name for name, t in tensors.items() if not t.isfinite().all()]:
        raise ValueError(
            f"{wrong[0]} holds values that are not finite{' in float16' if half else ''}, so nothing was saved: train again "
            f"with a lower learning rate{', or save without half=True' if half else ''}"
        )
    for there in (path, path.with_suffix(".json")):
        if there.exists() and not _is_card(path.with_suffix(".json")):
            check_new(there)  # only a network that was saved here before is replaced
    content = save(tensors)
    facts = {"config": dataclasses.asdict(config), **card, "sha256": hashlib.sha256(content).hexdigest()}
    as_json = json.dumps(facts, indent=2, allow_nan=False) + "\n"
    write_whole({path: content, path.with_suffix(".json"): as_json.encode()})
    if path != asked:
        print(f"{asked.absolute().parent} is read-only, so the weights were saved as {path}")
    return path


def load_weights(path: str | Path) -> CapsNet:
    """The network that `save_weights` wrote, on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: no weights or no card.
        ValueError: the file does not match its card's checksum, or the tensors do not fit the card's network.
    """
    path = find(path)
    card = read_card(path)
    content = read_verified(path, card["sha256"], "restore the file and its card, or train and save the network again")
    try:
        tensors, config = load(content), CapsNetConfig(**card["config"])
    except (SafetensorError, TypeError, ValueError) as error:
        raise ValueError(f"{path} and its card do not describe a CapsNet ({error}): save the network again") from error
    _check_fit(config, tensors, f"{path} does not fit the network on its card", "save the network again")
    with torch.device("meta"):  # no random numbers are drawn for weights that are about to be replaced
        net = CapsNet(config).to_empty(device="cpu")
    net.load_state_dict(tensors)
    return net.eval()


def _config_of(net: CapsNet) -> CapsNetConfig:
    """What the network is now: its class layer or its decoder may not be those that it was built with."""
    if not isinstance(net.digit_caps, DigitCaps):
        return net.config
    classes, _, _, dim = net.digit_caps.weight.shape
    hidden, iterations = net.decoder.hidden if net.decoder else None, net.digit_caps.iterations
    return dataclasses.replace(net.config, classes=classes, class_dim=dim, iterations=iterations, decoder_hidden=hidden)


def _check_fit(config: CapsNetConfig, tensors: dict, fault: str, remedy: str) -> None:
    """Raise a ValueError that names the first tensor that a network of this config does not have in this shape."""
    with torch.device("meta"):
        expected = {name: list(t.shape) for name, t in CapsNet(config).state_dict().items()}
    found = {name: list(t.shape) for name, t in tensors.items()}
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        name = wrong[0]
        raise ValueError(
            f"{fault}: {name} should be {expected.get(name, 'absent')} and is {found.get(name, 'absent')}: {remedy}"
        )


def load_pretrained(name: str = "small") -> CapsNet:
    """A network that ships with the course, on the CPU, in evaluation mode. `data/weights/NAME.json` says how it was trained."""
    names = [p.stem for p in sorted(WEIGHTS.glob("*.safetensors")) if "." not in p.stem]
    if not names:
        raise FileNotFoundError(f"the weights of the course are missing from {WEIGHTS}: {RESTORE}")
    if name not in names:
        raise ValueError(f"no weights ship under the name {reprlib.repr(name)}: choose {', '.join(map(repr, names))}")
    read_shipped(f"weights/{name}.json")  # the card vouches for the weights, and the course for the card
    return load_weights(WEIGHTS / f"{name}.safetensors")


def _is_card(path: Path) -> bool:
    try:
        return bool(read_card(path))
    except (ValueError, OSError):
        return False


def read_card(path: str | Path) -> dict:
    """The card beside a weights file."""
    weights = find(path)
    path = weights.with_suffix(".json")
    try:
        card = json.loads(path.read_text())
        if not (isinstance(card["sha256"], str) and isinstance(card["config"], dict)):
            raise ValueError("'sha256' should be text and 'config' an object")
    except FileNotFoundError:
        if not weights.is_file():
            there = ", ".join(sorted(p.name for p in weights.parent.glob("*.safetensors"))) or "no weights"
            raise FileNotFoundError(f"there is no file {weights}: its folder holds {there}") from None
        raise FileNotFoundError(
            f"{path}, the card of the weights, is missing: keep it beside them, or save the network again"
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not the card of a weights file ({error}): restore it, or save the network again"
        ) from None
    return card
