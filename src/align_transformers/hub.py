"""The model hub: a folder's files up to it, and down from it. Knows nothing of what is in the files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._errors import ArtifactError

PREFIX = "hf://"
"""In front of `user/name`: the hub is meant, whatever folders there are."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")


@dataclass(frozen=True)
class Snapshot:
    """Files of one commit.

    Args:
        name: of the repository.
        folder: where they are on this machine; a cache that others share, so do not write there.
        within: the part of the cache that links in `folder` lead to.
        commit: the commit's full hash.
    """

    name: str
    folder: Path
    within: Path
    commit: str


def is_hub_name(name: str) -> bool:
    """Whether `name` has the form `user/name`.

    >>> is_hub_name("me/gender-in-gpt2"), is_hub_name("./me/x"), is_hub_name("gpt2"), is_hub_name("a/b/c")
    (True, False, False, False)
    """
    return _NAME.fullmatch(name) is not None


def download(
    name: str,
    *,
    files: Sequence[str],
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Snapshot:
    """Fetch the files of a hub repository that match `files`, or find them in the cache.

    Args:
        name: `user/name`.
        files: patterns; nothing else is fetched.
        revision: a branch, tag or commit; the default branch without one.
        token: an access token; without one that of `hf auth login`.
        cache_dir: instead of the hub's own cache.

    Raises:
        ArtifactError: there is no such repository or revision, or the hub cannot be reached. The message has no token.
    """
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            name,
            revision=revision,
            token=token,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            allow_patterns=list(files),
            library_name=_US,
        )
    except Exception as error:  # of whichever HTTP library the hub's client uses
        at = "" if revision is None else f" at revision {revision!r}"
        raise _failure(f"cannot get {name!r}{at} from the hub", error, token) from None
    folder = Path(found)
    return Snapshot(name, folder, folder.parent.parent, folder.name)


def upload(
    folder: str | os.PathLike[str],
    name: str,
    *,
    files: Sequence[str],
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    message: str | None = None,
) -> str:
    """Put the files of a folder that match `files` into a hub repository, in one commit; make it where there is none.

    Args:
        folder: a local folder.
        name: `user/name`.
        files: patterns; nothing else is sent.
        private: whether a new repository is; the account's default without it.
        revision: the branch to write to, which must exist; the default branch without one.
        token: an access token; without one that of `hf auth login`.
        message: the commit's.

    Returns:
        The commit's hash.

    Raises:
        ArtifactError: `name` is no hub name, or the hub refuses or cannot be reached. The message holds no token.
    """
    from huggingface_hub import HfApi

    name = name.removeprefix(PREFIX)
    if not is_hub_name(name):
        raise ArtifactError(f"a hub name has the form user/name; found {name!r}")
    api = HfApi(token=token, library_name=_US)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=Path(folder),
            allow_patterns=list(files),
            revision=revision,
            commit_message=message,
        )
    except Exception as error:  # of whichever HTTP library the hub's client uses
        raise _failure(f"cannot put {name!r} on the hub", error, token) from None
    return commit.oid


_US = "align-transformers"


def _failure(what: str, error: Exception, token: Any) -> ArtifactError:
    """Return the error that tells what went wrong.

    It is raised without a cause: what the HTTP libraries raise holds the request with its headers, and may quote them.
    """
    from huggingface_hub import get_token

    text = " ".join(str(error).split()) or "no reason given"
    for secret in (token, get_token()):
        if isinstance(secret, str) and secret.strip():
            text = text.replace(secret, "***").replace(secret.strip(), "***")
    text = re.sub(r"\bhf_\w{8,}", "***", text)
    return ArtifactError(f"{what}: {type(error).__name__}: {text[:400]}")
