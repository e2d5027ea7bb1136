"""Models of transformers by the name of their kind, as `(config, tokenizer, model)`."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

from align_transformers._checked import checked
from align_transformers._errors import ModelNotFoundError, SpecError
from align_transformers.models.load import load_model

Name = str | os.PathLike[str] | None
Trio = tuple[Any, Any, Any]
"""A configuration, a tokenizer (or `None`) and a model."""


@dataclass(frozen=True)
class _Family:
    default: str  # loaded when no name is given
    stand_in: str | None = None  # loaded, with a warning, when the default cannot be had
    model_class: str = ""  # made, with random weights, from a configuration


_FAMILIES = {
    "gpt2": _Family("gpt2", "smollm2-135m", "GPT2LMHeadModel"),
    "gpt2_lm": _Family("gpt2", "smollm2-135m", "GPT2LMHeadModel"),
    "llama": _Family("smollm2-135m", None, "LlamaForCausalLM"),  # SmolLM2 has the Llama architecture
    "smollm2": _Family("smollm2-135m", None, "LlamaForCausalLM"),
    "gpt_neo": _Family("EleutherAI/gpt-neo-125m", None, "GPTNeoForCausalLM"),
    "gpt_neox": _Family("EleutherAI/pythia-70m", None, "GPTNeoXForCausalLM"),
    "blip": _Family("Salesforce/blip-vqa-base", None, "BlipForQuestionAnswering"),
    "blip_itm": _Family("Salesforce/blip-itm-base-coco", None, "BlipForImageTextRetrieval"),
}


@checked
def create_gpt2(name: Name = None, *, config: Any = None, cache_dir: str | os.PathLike[str] | None = None) -> Trio:
    """Load a GPT-2 model in float32 and eval mode.

    Args:
        name: a hub name or a local folder. Without one, `"gpt2"`; where that cannot be had (no hub), the embedded
            `"smollm2-135m"`, a Llama-type model, with a warning. A name that is given is never replaced by another.
        config: instead of a name, a configuration of this kind: the weights are random and the tokenizer is `None`.
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
    return _create("gpt2", name, config, cache_dir)


@checked
def create_llama(name: Name = None, *, config: Any = None, cache_dir: str | os.PathLike[str] | None = None) -> Trio:
    """Load a Llama-type model in float32 and eval mode.

    Args:
        name: a hub name or a local folder; without one the embedded `"smollm2-135m"`, which is of this type.
        config: instead of a name, a configuration of this kind: the weights are random and the tokenizer is `None`.
        cache_dir: see `load_model`.

    Returns:
        The configuration, the tokenizer and the model.

    Raises:
        ModelNotFoundError: the model cannot be had.

    >>> config, tokenizer, model = create_llama()
    >>> config.model_type, config.num_hidden_layers
    ('llama', 30)
    """
    return _create("llama", name, config, cache_dir)


@checked
def create_smollm2(name: Name = None, *, config: Any = None, cache_dir: str | os.PathLike[str] | None = None) -> Trio:
    """Load a SmolLM2 model in float32 and eval mode.

    Args:
        name: a hub name or a local folder; without one the embedded `"smollm2-135m"`.
        config: instead of a name, a configuration of this kind: the weights are random and the tokenizer is `None`.
        cache_dir: see `load_model`.

    Returns:
        The configuration, the tokenizer and the model.

    Raises:
        ModelNotFoundError: the model cannot be had.

    >>> config, tokenizer, model = create_smollm2()
    >>> config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    (576, 9, 3)
    """
    return _create("smollm2", name, config, cache_dir)


@checked
def create_gpt2_lm(name: Name = None, *, config: Any = None, cache_dir: str | os.PathLike[str] | None = None) -> Trio:
    """Load a GPT-2 language model, as `create_gpt2` does.

    Args:
        name: a hub name or a local folder; without one what `create_gpt2` gives.
        config: instead of a name, a configuration of this kind: the weights are random and the tokenizer is `None`.
        cache_dir: see `load_model`.

    Returns:
        The configuration, the tokenizer and the model.

    Raises:
        ModelNotFoundError: the model cannot be had.
    """
    return _create("gpt2_lm", name, config, cache_dir)


@checked
def create_gpt_neo(name: Name = None, *, config: Any = None, cache_dir: str | os.PathLike[str] | None = None) -> Trio:
    """Load a GPT-Neo language model in float32 and eval mode.

    Args:
        name: a hub name or a local folder; without one `"EleutherAI/gpt-neo-125m"`.
        config: instead of a name, a configuration of this kind: the weights are random and the tokenizer is `None`.
        cache_dir: see `load_model`.

    Returns:
        The configuration, the tokenizer and the model.

    Raises:
        ModelNotFoundError: the model cannot be had.
    """
    return _create("gpt_neo", name, config, cache_dir)


@checked
def create_gpt_neox(name: Name = None, *, config: Any = None, cache_dir: str | os.PathLike[str] | None = None) -> Trio:
    """Load a GPT-NeoX language model in float32 and eval mode.

    Args:
        name: a hub name or a local folder; without one `"EleutherAI/pythia-70m"`.
        config: instead of a name, a configuration of this kind: the weights are random and the tokenizer is `None`.
        cache_dir: see `load_model`.

    Returns:
        The configuration, the tokenizer and the model.

    Raises:
        ModelNotFoundError: the model cannot be had.
    """
    return _create("gpt_neox", name, config, cache_dir)


@checked
def create_blip(name: Name = None, *, config: Any = None, cache_dir: str | os.PathLike[str] | None = None) -> Trio:
    """Load a BLIP model that answers questions about pictures, in float32 and eval mode.

    Args:
        name: a hub name or a local folder; without one `"Salesforce/blip-vqa-base"`.
        config: instead of a name, a configuration of this kind: the weights are random and the tokenizer is `None`.
        cache_dir: see `load_model`.

    Returns:
        The configuration, the tokenizer and the model.

    Raises:
        ModelNotFoundError: the model cannot be had.
    """
    return _create("blip", name, config, cache_dir)


@checked
def create_blip_itm(name: Name = None, *, config: Any = None, cache_dir: str | os.PathLike[str] | None = None) -> Trio:
    """Load a BLIP model that matches pictures and texts, in float32 and eval mode.

    Args:
        name: a hub name or a local folder; without one `"Salesforce/blip-itm-base-coco"`.
        config: instead of a name, a configuration of this kind: the weights are random and the tokenizer is `None`.
        cache_dir: see `load_model`.

    Returns:
        The configuration, the tokenizer and the model.

    Raises:
        ModelNotFoundError: the model cannot be had.
    """
    return _create("blip_itm", name, config, cache_dir)


def _create(kind: str, name: Name, config: Any, cache_dir: str | os.PathLike[str] | None) -> Trio:
    default, stand_in = _FAMILIES[kind].default, _FAMILIES[kind].stand_in
    if config is not None:
        return _make(kind, name, config)
    try:
        model, tokenizer = load_model(default if name is None else name, cache_dir=cache_dir)
    except ModelNotFoundError as error:
        if name is not None:
            raise
        if stand_in is None:
            hint = f"{error}. A random model: create_{kind}(config=...)"
            raise ModelNotFoundError(hint) from error
        model, tokenizer = load_model(stand_in, cache_dir=cache_dir)
        warnings.warn(
            f"create_{kind}() gives the embedded {stand_in!r} ({type(model).__name__}) instead of {default!r}: {error}",
            UserWarning,
            stacklevel=4,
        )
    return model.config, tokenizer, model


def _make(kind: str, name: Name, config: Any) -> Trio:
    """Return a random model of a kind."""
    import transformers

    if name is not None:
        raise SpecError(f"create_{kind} takes a name or a configuration, not both; found {name!r} and {config!r:.80}")
    model_class = getattr(transformers, _FAMILIES[kind].model_class)
    if not isinstance(config, model_class.config_class):
        raise SpecError(f"create_{kind} takes a {model_class.config_class.__name__}; found {type(config).__name__}")
    model = model_class(config).eval()
    return model.config, None, model
