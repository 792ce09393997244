"""Files and folders that appear whole or not at all, writable output folders, JSON with clear errors."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from videoxl.errors import DataError
from videoxl.utils.digest import digest


@contextmanager
def whole_file(path: str | Path, sweep: bool = False) -> Iterator[Path]:
    """Yield a draft file beside `path`; on success it is flushed to disk and renamed to `path`, otherwise deleted.

    The finished file gets the mode of the user's other new files, whichever library wrote the draft. `sweep`: remove
    drafts of the same file that killed processes of this machine left behind; this lists the folder.
    """
    path = Path(path)
    if sweep:
        sweep_drafts(path)
    handle, name = tempfile.mkstemp(prefix=f"{_draft_stem(path)}{os.getpid()}-", suffix=".tmp", dir=path.parent)
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        publish_mode(draft)
        sync(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, replaces: bool = False) -> Iterator[Path]:
    """Yield a new folder beside `path`; on success it is renamed to `path` (over an existing one if it `replaces`).

    The replaced folder is set aside until the new one has its name, and restored if that fails.

    Raises:
        DataError: the folder around `path` cannot be written, or `path` is a file.
    """
    if path.exists() and not path.is_dir():
        raise DataError(f"{path} is a file; name another folder")
    claim_output(path.parent)
    sweep_drafts(path)
    draft = Path(tempfile.mkdtemp(prefix=f"{_draft_stem(path)}{os.getpid()}-", suffix=".tmp", dir=path.parent))
    aside = draft.with_suffix(".old")
    try:
        yield draft
        for file in draft.rglob("*"):
            if file.is_file():
                publish_mode(file)
                sync(file)
        draft.chmod(0o777 & ~umask())
        if replaces and path.exists():
            path.rename(aside)
        draft.rename(path)
    except BaseException:
        if aside.exists() and not path.exists():
            aside.rename(path)
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)


def sweep_drafts(path: Path) -> None:
    """Remove drafts of a file or folder whose process, of this machine, is gone."""
    stem = _draft_stem(path)
    for draft in path.parent.glob(f"{glob.escape(stem)}*.tmp"):
        number = draft.name.removeprefix(stem).partition("-")[0]
        if number.isdigit() and not _is_alive(int(number)):
            if draft.is_dir() and not draft.is_symlink():
                shutil.rmtree(draft, ignore_errors=True)
            else:
                with suppress(OSError):
                    draft.unlink()


def _draft_stem(path: Path) -> str:
    """How the drafts of a file begin on this machine; the number of the process follows."""
    # Names have at most 255 bytes, and a draft's needs some 50 more than the file's.
    name = path.name.encode()[:180].decode(errors="ignore")
    return f".{name}.{digest(platform.node(), _process_space(), path.name, digits=8)}-"


def _process_space() -> str:
    """Containers may share a host's name but not its numbers of processes."""
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return ""


def _is_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the right to write a file as long as this lasts. Raises `DataError` if another process holds it."""
    lock = path.with_name(f".{path.name}.lock")
    while True:
        try:
            file = lock.open("a")
        except OSError as error:
            raise DataError(f"cannot write beside {path}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise DataError(f"another process writes to {path}; wait for it, or name another file") from error
        except OSError:  # a file system without locks
            break
        with suppress(OSError):
            if os.fstat(file.fileno()).st_ino == lock.stat().st_ino:
                break
        file.close()  # its owner removed it between the two calls: it locks nothing
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        file.close()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any, indent: int | None = 1) -> None:
    """Write a JSON file with a newline at its end, whole or not at all."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file. Raises `DataError`; where it cannot be read, the message calls it `what`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {what} {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON file: {error}") from error


def claim_output(folder: Path) -> None:
    """Create an output folder. Raises `DataError` if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror}; name another folder") from error


def publish_mode(path: Path) -> None:
    """Give a file the mode of a user's new file; some libraries write files that only their owner may read."""
    path.chmod(0o666 & ~umask())


def sync(path: Path) -> None:
    """Flush a file to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
