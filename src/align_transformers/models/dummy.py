"""A dummy input that a model's forward pass accepts, made from the model alone."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import forward_parameters
from .devices import input_device

_KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD
BATCH, LENGTH, ENCODER_LENGTH = 2, 7, 11
"""Small, and all different, so that axes can be told apart."""


def dummy_inputs(model: nn.Module) -> Iterator[Mapping[str, Any]]:
    """Yield inputs to try, the likeliest first: token ids, then waveforms, spectrograms and pictures.

    Args:
        model: a model of transformers, or one whose forward pass takes `input_ids`.
    """
    takes = forward_parameters(model)
    main = getattr(model, "main_input_name", "input_ids")
    if main not in takes:  # a tower may have inherited the name of its model's input
        main = next(
            (name for name in ("input_ids", "pixel_values", "grid_thw", "input_features") if name in takes), main
        )
    open_ended = any(one.kind is one.VAR_KEYWORD for one in takes.values())
    if main not in takes and not open_ended:
        yield from list(_vectors(model, takes)) or _texts(model)
    elif main in ("pixel_values", "grid_thw"):
        yield from _pictures(model, takes)
    elif main in ("input_values", "input_features"):
        yield from _sounds(model, main)
    else:
        yield from _texts(model)
        if "pixel_values" in takes:
            yield from _pictures(model, takes)


def _ids(model: nn.Module, length: int, rows: int = BATCH) -> Tensor:
    """Return token ids that differ along a row, small enough for any vocabulary, on the model's device."""
    table = getattr(model, "get_input_embeddings", lambda: None)
    embeddings = _or_none(table) or next((one for one in model.modules() if isinstance(one, nn.Embedding)), None)
    size = int(getattr(embeddings, "num_embeddings", 0) or 32)
    generator = torch.Generator().manual_seed(0)
    low = min(6, size - 1)
    ids = torch.randint(low, max(low + 1, min(size, 150)), (rows, length), generator=generator)
    return ids.to(input_device(model))


def _or_none(get: Any) -> Any:
    try:
        return get()
    except (NotImplementedError, AttributeError):
        return None


def _texts(model: nn.Module) -> Iterator[Mapping[str, Any]]:
    takes = forward_parameters(model)
    quiet = {"use_cache": False} if "use_cache" in takes or any(p.kind is p.VAR_KEYWORD for p in takes.values()) else {}
    ids = _ids(model, LENGTH)
    if "decoder_input_ids" in takes:
        yield {"input_ids": _ids(model, ENCODER_LENGTH), "decoder_input_ids": ids, **quiet}
    yield {"input_ids": ids, **quiet}
    yield {"input_ids": ids}
    books = int(getattr(model, "num_codebooks", 0) or getattr(getattr(model, "config", None), "num_codebooks", 0) or 0)
    if books:
        yield {"input_ids": _ids(model, LENGTH, BATCH * books), **quiet}


def _vectors(model: nn.Module, takes: Mapping[str, inspect.Parameter]) -> Iterator[Mapping[str, Any]]:
    """Yield vectors for a model that takes no tokens: as wide as what its first layer reads."""
    name = "inputs_embeds" if "inputs_embeds" in takes else next(iter(takes), None)
    width = next(filter(None, map(_reads, model.modules())), None)
    if name is None or width is None or takes[name].kind not in (_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
        return
    length = LENGTH if width != LENGTH else ENCODER_LENGTH
    yield {name: _noise(model, BATCH, length, width)}
    yield {name: _noise(model, BATCH, width)}


def _reads(module: nn.Module) -> int | None:
    """Return how many coordinates a layer reads; `None` where that is not plain to see."""
    return module.in_features if isinstance(module, nn.Linear) else getattr(module, "input_size", None)


def _setting(model: nn.Module, name: str, default: int) -> int:
    """Return a size from the configuration or one of its parts."""
    config = getattr(model, "config", None)
    for part in (config, *(getattr(config, key, None) for key in ("vision_config", "backbone_config", "encoder"))):
        value = getattr(part, name, None)
        if value is not None:
            return int(value[0]) if isinstance(value, list | tuple) else int(value)
    return default


def _pictures(model: nn.Module, takes: Collection[str]) -> Iterator[Mapping[str, Any]]:
    channels = _setting(model, "num_channels", 3)
    if "grid_thw" in takes:  # patches of all pictures in one row
        patch, frames = _setting(model, "patch_size", 14), _setting(model, "temporal_patch_size", 1)
        side = 2 * _setting(model, "spatial_merge_size", 1)
        flat = _noise(model, side * side, _setting(model, "in_channels", channels) * frames * patch * patch)
        grid = torch.tensor([[1, side, side]], device=input_device(model))
        yield {("pixel_values" if "pixel_values" in takes else "hidden_states"): flat, "grid_thw": grid}
    texts = {name: _ids(model, LENGTH) for name in ("input_ids", "decoder_input_ids") if name in takes}
    for size in dict.fromkeys((_setting(model, "image_size", 32), 32, 64, 128, 224)):
        picture = _noise(model, BATCH, channels, size, size)
        yield {"pixel_values": picture}
        for name, ids in texts.items():
            yield {"pixel_values": picture, name: ids}
        if len(texts) == 2:
            yield {"pixel_values": picture, **texts}


def _sounds(model: nn.Module, main: str) -> Iterator[Mapping[str, Any]]:
    more: dict[str, Any] = {}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        more = {"decoder_input_ids": _ids(model, LENGTH), "use_cache": False}
    bins, frames = _setting(model, "num_mel_bins", 16), 2 * _setting(model, "max_source_positions", 64)
    shapes: list[tuple[int, ...]] = [(1600,), (8000,), (16000,)] if main == "input_values" else []
    shapes += [(bins, frames), (40, bins), (128, frames), (40, 80), (40, 160), (1, 64, bins), (1, 1001, 64)]
    shapes += [(_setting(model, "max_length", 64), bins)]
    for shape in shapes:
        yield {main: _noise(model, BATCH, *shape), **more}


def _noise(model: nn.Module, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return torch.randn(*shape, generator=generator).to(input_device(model), dtype)
