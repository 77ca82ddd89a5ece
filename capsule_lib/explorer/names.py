"""The reader's names: of dimensions, in a JSON file; and of the network and the digits, in a notebook."""

import json
from pathlib import Path

from IPython import get_ipython

from capsule_lib.data import digit_sets
from capsule_lib.explorer.spreads import Spreads
from capsule_lib.files import write_whole
from capsule_lib.model import CapsNet


def read_names(path: Path) -> dict[str, str]:
    """A ValueError says what is wrong with the file; it is left as it is."""
    try:
        names = json.loads(path.read_text()) if path.exists() else {}
        if not (isinstance(names, dict) and all(isinstance(name, str) for name in names.values())):
            raise ValueError("it should be an object of texts")
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path} is no file of names ({error}). It is left as it is, and new names are not kept: repair it, or move it away"
        ) from error
    return names


def keep_names(path: Path, old: dict[str, str], new: dict[str, str]) -> None:
    """Write what is new into the file, which is read again: another explorer may have written meanwhile."""
    typed = {key: new.get(key, "") for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    names = {key: name for key, name in (read_names(path) | typed).items() if name}
    write_whole({path: (json.dumps(names, indent=2, ensure_ascii=False) + "\n").encode()})


def called(model: CapsNet, digits: tuple | dict, spreads: Spreads | None) -> str:
    """The explorer's arguments as the notebook calls them, such as "net, (images, labels), spreads"."""
    shell = get_ipython()
    names = {id(x): name for name, x in (shell.user_ns if shell else {}).items() if not name.startswith("_")}
    if isinstance(digits, tuple) and all(id(part) in names for part in digits):
        names.setdefault(id(digits), f"({', '.join(names[id(part)] for part in digits)})")
    if isinstance(digits, dict) and digits.keys() == digit_sets().keys():
        names.setdefault(id(digits), "capsule_lib.digit_sets()")
    given = {"model": model, "digits": digits} | ({"spreads": spreads} if spreads else {})
    return ", ".join(names.get(id(x), name) for name, x in given.items())
