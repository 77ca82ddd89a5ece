"""Files that are written whole or not at all, and read only when their checksum is right."""

import hashlib
import os
from pathlib import Path

import platformdirs


def write_whole(contents: dict[Path, bytes]) -> None:
    """Write files so that they are there whole or not at all: all of them aside first, then renamed."""
    asides = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    try:
        for path, content in contents.items():
            asides[path].write_bytes(content)
        for path, aside in asides.items():
            os.replace(aside, path)
    finally:
        for aside in asides.values():
            aside.unlink(missing_ok=True)


def read_verified(path: Path, sha256: str, remedy: str) -> bytes:
    """The bytes of a file, after a look at its checksum."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {remedy}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} is cut short or altered ({len(content):,} bytes): its sha256 should be {sha256[:12]}... "
            f"and is {found[:12]}...: {remedy}"
        )
    return content


def capsule_home() -> Path:
    """The reader's own folder, outside the course: CAPSULE_HOME, or else where the system keeps a user's data."""
    return Path(os.environ.get("CAPSULE_HOME") or platformdirs.user_data_path("capsule-course"))
