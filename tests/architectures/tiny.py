"""`tiny_model`: any entry of transformers' mappings as a tiny random model that runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
import transformers.models.auto.modeling_auto as auto
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .inputs import Inputs, input_candidates
from .shrink import SMALL_HEADS, Fields, Sizes, hints, shrink

MAPPINGS = (
    "CAUSAL_LM",
    "MASKED_LM",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "IMAGE_TEXT_TO_TEXT",
    "SPEECH_SEQ_2_SEQ",
    "IMAGE_CLASSIFICATION",
    "AUDIO_CLASSIFICATION",
    "VISION_TOWER",
)
"""Those of transformers, and the image encoders of the models that read images and text, on their own."""
_MANY_PARAMETERS = 60_000_000
_OUTPUTS = ("logits", "prediction_logits", "logits_per_image", "last_hidden_state", "spectrogram")


@dataclass(frozen=True, eq=False)
class TinyModel:
    """A tiny random model that runs, what to run it with, and how it was made."""

    model: nn.Module
    inputs: Mapping[str, Any]
    notes: tuple[str, ...]


class NotBuiltError(Exception):
    """No variant of the tiny configuration gave a model that runs."""


class NoSuchPartError(NotBuiltError):
    """The model has not got the part that was asked for, however its configuration is made."""


def entries(mapping: str) -> tuple[str, ...]:
    """Return the model types of one of the mappings."""
    return tuple(_classes(mapping))


def _classes(mapping: str) -> Mapping[str, Any]:
    name = "IMAGE_TEXT_TO_TEXT" if mapping == "VISION_TOWER" else mapping
    return getattr(auto, f"MODEL_FOR_{name}_MAPPING_NAMES")


def output_of(result: Any) -> Tensor:
    """Return what a model answers with, in one tensor: its logits; an encoder's last hidden state and what it pools."""
    found = [getattr(result, name, None) for name in _OUTPUTS]
    tensors = [value for value in found if isinstance(value, Tensor)][:1]
    pooled = getattr(result, "pooler_output", None)
    parts = pooled if isinstance(pooled, tuple | list) else (pooled,)
    if not hasattr(result, "logits"):
        tensors += [part for part in parts if isinstance(part, Tensor)]
    if not tensors:
        first = result if isinstance(result, Tensor) else result[0]
        tensors = [first[0] if isinstance(first, tuple | list) else first]
    return tensors[0] if len(tensors) == 1 else torch.cat([tensor.flatten() for tensor in tensors])


def tiny_model(mapping: str, model_type: str, seed: int = 0) -> TinyModel:
    """Return a tiny random model of one entry of a mapping.

    Args:
        mapping: one of `MAPPINGS`.
        model_type: the entry's name.
        seed: of the weights and of the inputs.

    Raises:
        NotBuiltError: no variant of the configuration gives a model that runs; with the reasons.
    """
    failures: dict[str, None] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for note, make in _variants(mapping, model_type):
            try:
                model = _build(mapping, model_type, make(), seed)
                inputs = _inputs_that_run(model, mapping, model_type, seed)
                _settle_batch_norms(model, inputs)
            except NoSuchPartError:
                raise
            except Exception as error:  # a variant may fail in any way; the next one may work
                failures[f"{type(error).__name__}: {error}".replace("\n", " ")[:240]] = None
                continue
            return TinyModel(model, inputs, (note,) if note else ())
    raise NotBuiltError(" || ".join(failures))


def _variants(mapping: str, model_type: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the ladder of configurations: head_dim apart from hidden / heads first, then what models insist on."""
    models = hints()["models"]
    config_class, hint = CONFIG_MAPPING[model_type], models.get(f"{mapping}:{model_type}", models.get(model_type))
    wide, small = Sizes(), SMALL_HEADS

    def variant(sizes: Sizes, extra: Fields | None = None) -> Callable[[], Any]:
        return lambda: tiny_config(config_class, sizes, extra)

    if hint is not None:
        yield "hint", variant(wide, hint)
        yield "hint, small heads", variant(small, hint)
    yield "", variant(wide)
    yield "small heads", variant(small)
    yield "8 layers", variant(replace(small, layers=8))
    yield "full attention", variant(small, {"layer_types": ["full_attention"] * small.layers})
    yield "as a decoder", variant(small, {"is_decoder": True})
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    yield "multi-axis rotary", variant(small, {"rope_parameters": rope})
    yield "multi-axis rotary in the text part", variant(small, {"text_config": {"rope_parameters": rope}})
    yield "no shared key/value heads", variant(replace(small, kv=None))


def tiny_config(config_class: Any, sizes: Sizes, extra: Fields | None = None) -> Any:
    """Return an instance of a configuration class, tiny.

    Args:
        config_class: one of transformers' configuration classes.
        sizes: how tiny.
        extra: fields that override, merged into those of parts; `_init` gives those with which the defaults
            themselves are built; a part with `_class` is replaced by one of that model type.
    """
    extra = dict(extra or {})
    base = config_class(**extra.pop("_init", {}))
    fields = shrink(base, sizes)
    if "expand" in base.to_dict() and "num_heads" in fields and "head_dim" in fields:  # Mamba-2 says it twice
        fields["num_heads"] = base.expand * sizes.hidden // fields["head_dim"]
    fields = _merge(fields, extra)
    try:
        config = config_class(**fields)
    except Exception as error:  # a list whose length no longer fits, most often
        plain = {k: v for k, v in fields.items() if not isinstance(v, dict)}
        doubtful = [k for k, v in plain.items() if isinstance(v, list) or k in str(error)]
        if not set(doubtful) - set(extra):
            raise
        config = config_class(**{k: v for k, v in fields.items() if k not in doubtful or k in extra})
    for name, value in extra.items():
        if isinstance(value, dict) and "_class" in value:
            part = tiny_config(CONFIG_MAPPING[value["_class"]], sizes)
            _replace_part(config, name, part, {**getattr(config, name).to_dict(), **value})
    return config


def _replace_part(config: Any, name: str, part: Any, more: Fields) -> None:
    """Put a part of another model type in the place of one which needs a package that is not installed."""
    for key, value in more.items():
        if not hasattr(part, key):
            setattr(part, key, value)
    object.__setattr__(config, name, part)  # past the check of types


def _merge(fields: Fields, extra: Fields) -> Fields:
    merged = dict(fields)
    for name, value in extra.items():
        if isinstance(value, dict) and "_class" in value:
            continue
        known = fields.get(name)
        merged[name] = _merge(known, value) if isinstance(value, dict) and isinstance(known, dict) else value
    return merged


def _build(mapping: str, model_type: str, config: Any, seed: int) -> Any:
    name = _classes(mapping)[model_type]
    model_class = getattr(transformers, name if isinstance(name, str) else name[0])
    wanted = model_class.config_class
    if wanted is not None and not isinstance(config, wanted):
        parts = [getattr(config, key, None) for key in getattr(config, "sub_configs", {})]
        found = next((part for part in parts if isinstance(part, wanted)), None)
        text = config if found is not None else config.get_text_config()
        config = found or (text if isinstance(text, wanted) else config)
    if mapping == "CAUSAL_LM" and hasattr(config, "is_decoder") and not config.is_encoder_decoder:
        config.is_decoder = True
    with torch.device("meta"):
        parameters = sorted(model_class(config).named_parameters(), key=lambda item: -item[1].numel())
    count = sum(parameter.numel() for _, parameter in parameters)
    if count > _MANY_PARAMETERS:
        shapes = ", ".join(f"{name} {tuple(parameter.shape)}" for name, parameter in parameters[:3])
        raise NotBuiltError(f"{count / 1e6:.0f} million parameters, such as {shapes}")
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    if hasattr(model, "set_default_language"):
        model.set_default_language(config.languages[0])
    randomise(model, seed)
    return _tower(model) if mapping == "VISION_TOWER" else model


def _tower(model: Any) -> Any:
    tower = model.get_encoder(modality="image")
    if tower is None or tower is model or next(tower.parameters(), None) is None:
        raise NoSuchPartError("no image encoder of its own")
    return tower


def randomise(model: nn.Module, seed: int) -> None:
    """Fill the parameters so that nothing is zero or so small that an effect could hide in it."""
    generator = torch.Generator().manual_seed(seed)

    def noise(parameter: Tensor, scale: float) -> Tensor:
        return torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * scale

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.ndim >= 2 and parameter.shape[-1] > 1:
                fan_in = parameter[0].numel() / 2 if parameter.ndim > 3 else max(parameter.shape[-2:])
                parameter.copy_(noise(parameter, fan_in**-0.5))  # twice as strong in convolutions: they come in series
            elif name.endswith("bias"):
                parameter.add_(noise(parameter, 0.1))
            elif parameter.abs().max() < 0.01:  # gates and layer scales that start shut
                parameter.copy_(0.5 + noise(parameter, 0.1))
            else:
                parameter.add_(noise(parameter, 0.05))


def _settle_batch_norms(model: nn.Module, inputs: Inputs) -> None:
    """Give batch norms the statistics of these inputs: else what goes through many of them fades away."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        model(**inputs)
    model.eval()


def _inputs_that_run(model: nn.Module, mapping: str, model_type: str, seed: int) -> Inputs:
    failures: dict[str, None] = {}
    for candidate in input_candidates(model, mapping, model_type, seed + 1):
        try:
            with torch.no_grad():
                answer = output_of(model(**candidate))
            if not torch.isfinite(answer).all():
                raise ValueError("the output is not finite")
        except Exception as error:  # the next candidate may fit
            failures[f"{type(error).__name__}: {error}"[:150]] = None
            continue
        return candidate
    raise NotBuiltError("does not run: " + " | ".join(failures))
