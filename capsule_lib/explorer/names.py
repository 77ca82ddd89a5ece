"""The reader's names of dimensions, in a JSON file."""

import json
from pathlib import Path

from capsule_lib.files import write_whole


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
