"""Language models by the name of their kind, as `(config, tokenizer, model)`."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

from align_transformers._errors import ModelNotFoundError
from align_transformers.models.load import load_model


@dataclass(frozen=True)
class _Kind:
    default: str  # loaded when no name is given
    stand_in: str | None = None  # loaded, with a warning, when the default cannot be had


_KINDS = {
    "gpt2": _Kind(default="gpt2", stand_in="smollm2-135m"),
    "llama": _Kind(default="smollm2-135m"),  # SmolLM2 has the Llama architecture
    "smollm2": _Kind(default="smollm2-135m"),
}


def create_gpt2(
    name: str | os.PathLike[str] | None = None, *, cache_dir: str | os.PathLike[str] | None = None
) -> tuple[Any, Any, Any]:
    """Load a GPT-2 model in float32 and eval mode.

    Args:
        name: a hub name or a local folder. Without one, `"gpt2"`; where that cannot be had (no hub), the embedded
            `"smollm2-135m"`, a Llama-type model, with a warning. A name that is given is never replaced by another.
        cache_dir: see `load_model`.

    Returns:
        The configuration, the tokenizer and the model.

    Raises:
        ModelNotFoundError: the named model, or without a name every candidate, cannot be had.

    Warns:
        UserWarning: another model than asked for stands in.

    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     config, tokenizer, model = create_gpt2()
    >>> model.training
    False
    """
    return _create("gpt2", name, cache_dir)


def create_llama(
    name: str | os.PathLike[str] | None = None, *, cache_dir: str | os.PathLike[str] | None = None
) -> tuple[Any, Any, Any]:
    """Load a Llama-type model in float32 and eval mode.

    Args:
        name: a hub name or a local folder; without one the embedded `"smollm2-135m"`, which is of this type.
        cache_dir: see `load_model`.

    Returns:
        The configuration, the tokenizer and the model.

    Raises:
        ModelNotFoundError: the model cannot be had.

    >>> config, tokenizer, model = create_llama()
    >>> config.model_type, config.num_hidden_layers
    ('llama', 30)
    """
    return _create("llama", name, cache_dir)


def create_smollm2(
    name: str | os.PathLike[str] | None = None, *, cache_dir: str | os.PathLike[str] | None = None
) -> tuple[Any, Any, Any]:
    """Load a SmolLM2 model in float32 and eval mode.

    Args:
        name: a hub name or a local folder; without one the embedded `"smollm2-135m"`.
        cache_dir: see `load_model`.

    Returns:
        The configuration, the tokenizer and the model.

    Raises:
        ModelNotFoundError: the model cannot be had.

    >>> config, tokenizer, model = create_smollm2()
    >>> config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    (576, 9, 3)
    """
    return _create("smollm2", name, cache_dir)


def _create(
    kind: str, name: str | os.PathLike[str] | None, cache_dir: str | os.PathLike[str] | None
) -> tuple[Any, Any, Any]:
    default, stand_in = _KINDS[kind].default, _KINDS[kind].stand_in
    try:
        model, tokenizer = load_model(default if name is None else name, cache_dir=cache_dir)
    except ModelNotFoundError as error:
        if name is not None or stand_in is None:
            raise
        model, tokenizer = load_model(stand_in, cache_dir=cache_dir)
        warnings.warn(
            f"create_{kind}() gives the embedded {stand_in!r} ({type(model).__name__}) instead of {default!r}: {error}",
            UserWarning,
            stacklevel=3,
        )
    return model.config, tokenizer, model
