"""The files of a saved folder, and whether a folder's files may be read."""

from __future__ import annotations

import os
from pathlib import Path

from .._errors import ArtifactError
from .._files import leftovers
from ..hub import PREFIX, is_hub_name

FORMAT = "align-transformers intervention"
FORMAT_VERSION = 2
READABLE = (1, 2)  # before 2 nothing was known of the values of the model's weights

RECORD, WEIGHTS, CARD = "intervention.json", "weights.safetensors", "README.md"
OWN_FILES = (RECORD, WEIGHTS, CARD)
LEGACY_RECORD, LEGACY_WEIGHTS = "config.json", "intkey_*.bin"
LEGACY_FILES = (LEGACY_RECORD, LEGACY_WEIGHTS)


def local_folder(name_or_path: str | os.PathLike[str]) -> Path | None:
    """Return the folder that is meant, or `None` where a name on the hub is.

    The hub is meant only by `user/name` where there is no such folder, and no folder `user` either, and by
    `hf://user/name`. Everything else is a folder, and has to be there.

    Raises:
        ArtifactError: there is no such folder.

    >>> local_folder("hf://me/x") is None
    True
    """
    name = os.fspath(name_or_path)
    if isinstance(name_or_path, str) and name.startswith(PREFIX) and is_hub_name(name.removeprefix(PREFIX)):
        return None
    folder = expanded(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ArtifactError(f"{name!r} is a file; the folder with {RECORD} is wanted")
    looked = f"there is no folder {name!r} (looked at {folder.absolute()})"
    left = leftovers(folder.parent, folder.name)
    if left:
        whole = [one.name for one in left if all((one / file).is_file() for file in OWN_FILES)]
        advice = f": give {' or '.join(whole)}, which is whole, that name, or save again" if whole else ": save again"
        raise ArtifactError(f"{looked}, because a save to it was interrupted{advice}")
    if not isinstance(name_or_path, str) or not is_hub_name(name):
        raise ArtifactError(f"{looked}. The hub was not asked: a hub name has the form user/name")
    if folder.parent.is_dir():
        raise ArtifactError(
            f"{looked}. The hub was not asked, because there is a folder {str(folder.parent)!r}; "
            f"write {PREFIX + name!r} if the hub is meant"
        )
    return None


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return the path with the home folder in the place of `~`.

    Raises:
        ArtifactError: it begins with `~` and the name of nobody here.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ArtifactError(f"there is no folder {os.fspath(path)!r}: {error} (the hub was not asked)") from error


def checked_file(folder: Path, name: str, within: Path) -> Path:
    """Return the file `name` of a folder, or refuse it.

    Args:
        folder: the saved folder.
        name: one of the names above, or one that was read from the folder's own list of files; never one from a file.
        within: where links may lead: the folder itself, or the cache of a download.

    Raises:
        ArtifactError: it is not there, is no ordinary file, or is a link that leads out of `within`.
    """
    path = folder / name
    if not path.exists():
        held = ", ".join(sorted(os.listdir(folder))[:8]) or "nothing"
        raise ArtifactError(f"{folder} has no file {name!r}; it holds: {held}")
    real = path.resolve()
    if not real.is_relative_to(within.resolve()):
        raise ArtifactError(f"{path} is a link that leads out of the folder, to {real}: it is not followed")
    if not real.is_file():
        raise ArtifactError(f"{path} is no ordinary file")
    return real
