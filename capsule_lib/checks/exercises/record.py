"""What a reader has predicted and solved, kept in a folder of their own, one small file for each notebook."""

import json
from pathlib import Path

from IPython.display import display

from capsule_lib.checks.exercises import answer_key
from capsule_lib.files import capsule_home, write_whole

KINDS = ("predictions", "exercises")


def progress(reset: bool = False) -> None:
    """Display how many predictions and exercises of the course are done; `reset` forgets them all."""
    if reset:
        for path in _folder().glob("*.json"):
            path.unlink(missing_ok=True)
    display({"text/plain": counted()}, raw=True)


def counted() -> str:
    """Such as '7 of 40 predictions, 9 of 34 exercises'. What the course no longer asks does not count."""
    done = {kind: set() for kind in KINDS}
    for path in _folder().glob("*.json"):
        for kind, keys in _read(path).items():
            done[kind] |= keys.keys()
    counts = [(len(done[kind] & answer_key.keys(kind)), len(answer_key.keys(kind)), kind) for kind in KINDS]
    return ", ".join(f"{n} of {total} {kind}" for n, total, kind in counts)


def chosen(key: str) -> str | None:
    """What the reader once chose for a prediction."""
    return _read(_path(key))["predictions"].get(key)


def record(kind: str, key: str, what: str = "done") -> str:
    """Keep that something is done. Where that fails, say so in words and go on: '' if all is well."""
    path = _path(key)
    try:
        known = _read(path)  # again each time: the same notebook may be open twice
        known[kind][key] = what
        write_whole({path: json.dumps(known, indent=1, sort_keys=True).encode()})
    except OSError as error:
        return f" (This could not be kept for next time: {error.strerror or error}. CAPSULE_HOME names another folder.)"
    return ""


def _folder() -> Path:
    return capsule_home() / "progress"


def _path(key: str) -> Path:
    return _folder() / f"{key.split('.')[0]}.json"


def _read(path: Path) -> dict[str, dict[str, str]]:
    """A file's content; nothing where it is missing, unreadable or not ours."""
    try:
        found = json.loads(path.read_bytes())
        return {kind: {str(key): str(what) for key, what in found[kind].items()} for kind in KINDS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {kind: {} for kind in KINDS}
