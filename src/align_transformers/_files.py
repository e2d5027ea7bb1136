"""Writing files and folders so that a reader never sees half of one, and clearing away what killed processes left."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MARK = re.compile(r"\.(?P<name>.+)\.(?P<host>[\w-]+)-(?P<pid>\d+)-[0-9a-f]{32}\.(?P<kind>new|old)")
_PATIENCE = 24 * 3600  # seconds after which what a process of another machine left is taken for forgotten
_EXCHANGE, _AT_CWD = 2, -100  # of Linux's renameat2


def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path` in one step: a killed write leaves the old file, or none.

    Args:
        path: the file to write; missing folders above it are made, an existing file is replaced.
        data: the whole content.

    Returns:
        The path written.

    Raises:
        OSError: the folder cannot be written to; nothing is left behind.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(target, "new")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target` to be filled; at the end it is gone, unless `put_folder` has moved it.

    What dead processes left beside `target` is cleared away first; missing folders above it are made.

    Args:
        target: where the folder will be put.

    Raises:
        OSError: the folder above cannot be written to.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(target.parent, target.name)
    place = _beside(target, "new")
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def put_folder(new: Path, target: Path) -> None:
    """Give a finished folder its name: a reader sees all of it, or all of what was there before.

    Its files are on the disk before. Where the system cannot exchange two folders in one step, there is a moment
    without `target`: who is killed then leaves both folders, and `leftovers` finds them.

    Args:
        new: of `new_folder`.
        target: beside it.

    Raises:
        OSError: it cannot be moved; what was there before is there again.
    """
    for path in (*new.iterdir(), new):
        flush(path)
    if not target.exists():
        os.rename(new, target)
    elif not exchange(new, target):
        old = _beside(target, "old")
        os.rename(target, old)
        try:
            os.rename(new, target)
        except OSError:
            os.rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def exchange(first: Path, second: Path) -> bool:
    """Exchange two folders of one file system in one step; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return bool(rename(_AT_CWD, os.fsencode(first), _AT_CWD, os.fsencode(second), _EXCHANGE) == 0)


def leftovers(folder: Path, name: str | None = None) -> list[Path]:
    """Return what was begun in a folder and is neither finished nor cleared away, by whichever process.

    Args:
        folder: any; there need not be one.
        name: of the file or folder that was to be made; `None` for all.
    """
    try:
        held = os.listdir(folder)
    except OSError:  # none is there, or nobody may look into it
        return []
    marks = (_MARK.fullmatch(one) for one in sorted(held))
    return [folder / mark[0] for mark in marks if mark is not None and name in (None, mark["name"])]


def clear_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what dead processes left in a folder; one that was moved away last, and not replaced, is put back.

    Args:
        folder: any; there need not be one.
        name: of the file or folder that was to be made; `None` for all.
    """
    for path in leftovers(folder, name):
        mark = _MARK.fullmatch(path.name)
        assert mark is not None
        if not _is_dead(path, mark["host"], int(mark["pid"])):
            continue
        target = path.with_name(mark["name"])
        if mark["kind"] == "old" and not target.exists():
            os.rename(path, target)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have the system write a file, or a folder's list of files, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(target: Path, kind: str) -> Path:
    """Return a name of its own beside `target` that tells which process made it."""
    return target.with_name(f".{target.name}.{_host()}-{os.getpid()}-{uuid.uuid4().hex}.{kind}")


def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname())[:64] or "_"


def _is_dead(path: Path, host: str, process: int) -> bool:
    """Whether the process that made a leftover is no more; of another machine's, whether it is long forgotten."""
    if host != _host():
        return time.time() - path.stat().st_mtime > _PATIENCE
    if os.name == "nt":
        return process != os.getpid() and time.time() - path.stat().st_mtime > _PATIENCE  # a signal there is an end
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
