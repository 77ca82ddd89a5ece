"""The explorer's code as one module, and the explorer as one HTML file that needs neither Python nor a network."""

import base64
import dataclasses
import gzip
import hashlib
import json
import re
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from capsule_lib.data import load_digits
from capsule_lib.explorer.spreads import Spreads, load_spreads
from capsule_lib.layers import Decoder, DigitCaps, PrimaryCaps
from capsule_lib.model import CapsNet
from capsule_lib.weights import load_pretrained

ROOM = Path(__file__).parent


def module() -> str:
    """network.js and explorer.js as one ES module, without comments: a file on a stick and a widget can't import another file."""
    network = re.sub(r"^export ", "", (ROOM / "network.js").read_text(), flags=re.MULTILINE)
    explorer = re.sub(r"^import .*\n", "", (ROOM / "explorer.js").read_text(), flags=re.MULTILINE)
    return re.sub(r"^ *(//|/\*\*| \*).*\n| +// .*|^ +", "", network + explorer, flags=re.MULTILINE)


def style() -> str:
    return (ROOM / "explorer.css").read_text()


def for_page(net: CapsNet) -> dict:
    """What the page needs of a network, in half precision where that loses nothing: `_config`, `_weights` and `_network`, its name.

    Raises:
        ValueError: no decoder, or other layers than the page can run.
    """
    if not net.decoder:
        raise ValueError("this network has no decoder, so it can't redraw a capsule: build it with decoder_hidden")
    for layer, kind in ((net.primary_caps, PrimaryCaps), (net.digit_caps, DigitCaps), (net.decoder, Decoder)):
        if type(layer) is not kind:
            raise ValueError(
                f"the page runs networks with {kind.__name__}; this one has {type(layer).__name__} instead"
            )
    # Its class layer and its decoder may not be those that it was built with.
    classes, _, _, dim = net.digit_caps.weight.shape
    now = {"classes": classes, "class_dim": dim, "iterations": net.digit_caps.iterations}
    weights = {name: t.detach().cpu().contiguous() for name, t in net.state_dict().items()}
    # All but batch norm's counts of batches: these stay whole, since half precision would round them.
    floats = {name: t.float() for name, t in weights.items() if t.is_floating_point()}
    name = hashlib.sha256(floats["digit_caps.weight"].numpy().tobytes()).hexdigest()[:8]
    if all(t.half().float().equal(t) for t in floats.values()):
        floats = {name: t.half() for name, t in floats.items()}
    config = dataclasses.asdict(net.config) | now | {"decoder_hidden": net.decoder.hidden}
    return {"_config": config, "_weights": save(weights | floats), "_network": name}


def digits_for_page(images: Tensor, labels: Tensor) -> bytes:
    """Digits as bytes, where they were read from bytes, else as they are."""
    images, labels = images.float().cpu().contiguous(), labels.float().cpu()
    whole = (255 * images).round().byte()
    return save({"images": whole if (whole.float() / 255).equal(images) else images, "labels": labels})


def spreads_for_page(spreads: Spreads) -> bytes:
    return save({name: t.contiguous() for name, t in spreads._asdict().items()})


def stand_alone(name: str = "small") -> str:
    """The page: the weights that ship under this name, their spreads, the 1,000 test digits, and all the code."""
    values = for_page(load_pretrained(name)) | {"label": 4, "pad": True, "_link": True}
    values |= {
        "_spreads": spreads_for_page(load_spreads(name)),
        "_digits": digits_for_page(*load_digits("shipped", "test")),
    }
    packed = {
        key: base64.b64encode(gzip.compress(values.pop(key), 9, mtime=0)).decode()
        for key in ("_weights", "_spreads", "_digits")
    }
    parts = {"style": style(), "module": module(), "packed": json.dumps(packed), "values": json.dumps(values)}
    return re.sub(r"%(\w+)%", lambda name: parts[name[1]], (ROOM / "page.html").read_text())
