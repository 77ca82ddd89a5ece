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
    """Write files, and make their folders: they are there whole or not at all, also when the power fails.

    All go aside first and onto the disk itself, and are then renamed. What was there before stays until then.

    Raises:
        FileExistsError: a path is a folder, a device, or a link, whose target would be lost.
        OSError: a read-only folder (PermissionError), a full disk, or what else the system says, with a remedy.
    """
    for path in contents:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            kind = "a link" if path.is_symlink() else "a folder" if path.is_dir() else "not an ordinary file"
            raise FileExistsError(f"{path} is {kind}, and is left as it is: choose another name")
    asides = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            asides[path].write_bytes(content)
            _sync(asides[path])
        for path, aside in asides.items():
            os.replace(aside, path)
        for folder in {path.parent for path in contents}:
            _sync(folder)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        for aside in asides.values():
            with contextlib.suppress(OSError):  # it is not there, or neither is its folder
                aside.unlink()


def explained(error: OSError, path: Path) -> OSError:
    """What kept `path` from being written, with a remedy."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "choose a folder of your own, by its full path or as CAPSULE_HOME"
        return PermissionError(f"{path} can't be written, because its folder is read-only: {remedy}")
    remedy = "make room there, or choose another folder; what was there before is as it was"
    return OSError(error.errno, f"{path} can't be written ({error.strerror or error}): {remedy}")


def check_new(path: Path) -> Path:
    """The path, if nothing is there yet; else a FileExistsError: what a reader names is never overwritten unasked."""
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists already, and is left as it is: choose another name, or remove it first")
    return path


def _sync(path: Path) -> None:
    """Bring a file's contents, or a folder's new names, onto the disk itself."""
    with contextlib.suppress(PermissionError):  # Windows opens no folder, and syncs no file that is open for reading
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_verified(path: Path, sha256: str, remedy: str) -> bytes:
    """Read a file and verify its SHA-256.

    Raises:
        FileNotFoundError, ValueError: it is missing, cut short or altered; `remedy` says what to do.
    """
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


def read_sums(record: Path) -> dict[str, str]:
    """SHA-256 by file name, from a list as `sha256sum` writes it; empty where there is no such list."""
    return dict(line.split()[::-1] for line in record.read_text().splitlines()) if record.is_file() else {}


def read_shipped(name: str) -> bytes:
    """Read a file that ships with the course and verify it with data/SHA256SUMS, which lists them all.

    Raises:
        FileNotFoundError, ValueError: as `read_verified`, or a file that the list does not name.
    """
    record = DATA / "SHA256SUMS"
    sums = read_sums(record)
    if name not in sums:
        raise ValueError(f"{record} does not name {name}: {RESTORE}, or list it anew with  make sums")
    return read_verified(DATA / name, sums[name], RESTORE)


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
