"""Where files are, and how: written whole or not at all, and read only when their checksum is right."""

import contextlib
import errno
import hashlib
import os
import tempfile
from pathlib import Path

import platformdirs

INSTALLED = Path(__file__).parent / "shipped"  # where a wheel has what is in the repository's data/
DATA = INSTALLED if INSTALLED.is_dir() else Path(__file__).parent.parent / "data"
RESTORE = "bring data/ back with  git checkout -- data, or install the course again from its whole folder:  pip install FOLDER"


def write_whole(contents: dict[Path, bytes]) -> None:
    """Write files, and make their folders: they are there whole or not at all, since all go aside first and are then renamed.

    Raises:
        PermissionError: a folder is read-only.
    """
    asides = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            asides[path].write_bytes(content)
        for path, aside in asides.items():
            os.replace(aside, path)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        remedy = "choose a folder of your own, by its full path or as CAPSULE_HOME"
        raise PermissionError(f"{path} can't be written, because its folder is read-only: {remedy}") from error
    finally:
        for aside in asides.values():
            with contextlib.suppress(OSError):  # it is not there, or neither is its folder
                aside.unlink()


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


def is_writable(folder: Path) -> bool:
    """Whether files can be written in a folder. It is tried: permissions do not tell of a file system mounted read-only."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def writable_path(path: str | Path) -> Path:
    """Where the reader's file goes: to `path`; or, where that is relative and leads into a read-only folder, to `capsule_home()`."""
    path = Path(path)
    nearest = next(folder for folder in path.absolute().parents if folder.is_dir())
    return path if path.is_absolute() or is_writable(nearest) else capsule_home() / path.name


def find(path: str | Path) -> Path:
    """Where the reader's file is: where `writable_path` puts it, if it is there, else at `path`."""
    return own if (own := writable_path(path)).exists() else Path(path)
