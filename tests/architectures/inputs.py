"""Inputs for a tiny model: candidates, made from its signature and configuration; the first that runs is taken."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .shrink import hints

Inputs = dict[str, Any]
BATCH, LENGTH, ENCODER_LENGTH = 2, 7, 11


def input_candidates(model: nn.Module, mapping: str, model_type: str, seed: int) -> Iterator[Inputs]:
    """Yield keyword arguments for `model`, likelier ones first."""
    generator = torch.Generator().manual_seed(seed)
    named = hints()["inputs"].get(f"{mapping}:{model_type}") or hints()["inputs"].get(model_type)
    if named is not None:
        yield {name: _from_hint(value, generator) for name, value in named.items()}
        return
    if mapping == "VISION_TOWER":
        yield from _patches(model, generator)
        return
    main = getattr(model, "main_input_name", "input_ids")
    if main == "pixel_values" and mapping != "CAUSAL_LM":
        yield from _images(model, generator)
    elif main in ("input_values", "input_features"):
        yield from _audio(model, main, generator)
    yield _text(model, mapping, generator)


def _from_hint(value: Any, generator: torch.Generator) -> Any:
    if isinstance(value, list):
        return tuple(_from_hint(item, generator) for item in value)
    if not isinstance(value, dict):
        return value
    if "values" in value:
        return torch.tensor(value["values"])
    if "shape" not in value:
        return {name: _from_hint(item, generator) for name, item in value.items()}
    shape = value["shape"]
    if "below" in value:
        numbers = torch.randint(value.get("from", 0), value["below"], shape, generator=generator)
        if "first" in value:  # the places that an image's (or a sound's) features take
            numbers[:, : value["first"]] = value["token"]
        return numbers
    if "fill" in value:
        return torch.full(shape, value["fill"])
    if "uniform" in value:
        return torch.rand(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    if "numbered" in value:  # columns that hold a patch's row and column
        noise[..., : value["numbered"]] = torch.arange(shape[1]).float()[:, None]
    return noise


def _tokens(rows: int, length: int, generator: torch.Generator) -> Tensor:
    return torch.randint(6, 150, (rows, length), generator=generator)


def _text(model: Any, mapping: str, generator: torch.Generator) -> Inputs:
    takes = inspect.signature(model.forward).parameters
    books = getattr(model, "num_codebooks", None) or getattr(getattr(model, "decoder", None), "num_codebooks", None)
    if mapping == "CAUSAL_LM" and isinstance(books, int) and "decoder_input_ids" not in takes:
        return {"input_ids": _tokens(BATCH * books, LENGTH, generator), "use_cache": False}
    inputs: Inputs = {"input_ids": _tokens(BATCH, LENGTH, generator)}
    if model.config.is_encoder_decoder and "decoder_input_ids" in takes:
        inputs = {"input_ids": _tokens(BATCH, ENCODER_LENGTH, generator), "decoder_input_ids": inputs["input_ids"]}
    if mapping != "MASKED_LM" or "decoder_input_ids" in inputs:
        inputs["use_cache"] = False
    return inputs


def _setting(model: Any, name: str, default: Any) -> Any:
    """Return a configuration value, looked for in the parts that a preprocessor would serve too."""
    config = model.config
    for part in (config, *(getattr(config, key, None) for key in ("vision_config", "backbone_config", "encoder"))):
        value = getattr(part, name, None)
        if value is not None:
            return value
    return default


def _images(model: Any, generator: torch.Generator) -> Iterator[Inputs]:
    size, channels = _setting(model, "image_size", 32), _setting(model, "num_channels", 3)
    side = size if isinstance(size, int) else size[0]
    decoder = _decoder(model, generator)
    for edge in dict.fromkeys((side, 32, 64, 128, 224)):
        yield {"pixel_values": torch.randn(BATCH, channels, edge, edge, generator=generator), **decoder}


def _patches(tower: Any, generator: torch.Generator) -> Iterator[Inputs]:
    """Yield images for an encoder on its own: whole, or cut into patches, packed, with a grid of their places."""
    names = [name for name in inspect.signature(tower.forward).parameters if name != "kwargs"]
    channels = _setting(tower, "in_channels", None) or _setting(tower, "num_channels", 3)
    patch, frames = _setting(tower, "patch_size", 8), _setting(tower, "temporal_patch_size", 1)
    side = _setting(tower, "image_size", 32)
    for edge in dict.fromkeys((side if isinstance(side, int) else side[0], 32, 64)):
        image = torch.randn(BATCH, channels, edge, edge, generator=generator)
        yield {names[0]: image}
        sizes = {name: torch.tensor([[edge, edge]] * BATCH) for name in names if name == "image_sizes"}
        yield {names[0]: image, **sizes}
    rows = 4
    flat = torch.randn(BATCH, rows * rows, channels * frames * patch * patch, generator=generator)
    for grid in ([1, rows, rows], [rows, rows]):
        for images in (1, BATCH):  # several images are several calls of the attention
            packed = flat[:images].flatten(0, 1)
            places = {name: torch.tensor([grid] * images) for name in names if "grid" in name}
            places |= {name: torch.tensor([2] * images) for name in names if name == "merge_sizes"}
            yield {names[0]: packed, **places}
            if frames == 1:
                yield {names[0]: packed.reshape(len(packed), channels, patch, patch), **places}
                yield {names[0]: packed.reshape(1, len(packed), channels, patch, patch), **places}
    mask = torch.ones(BATCH, rows * rows, dtype=torch.long)
    masks = {name: mask for name in names if name in ("pixel_attention_mask", "attention_mask")}
    spatial = {name: torch.tensor([[rows, rows]] * BATCH) for name in names if name == "spatial_shapes"}
    yield {names[0]: flat, **masks, **spatial}
    places = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(rows), indexing="ij"), -1).reshape(1, -1, 2)
    yield {names[0]: flat, **{name: places.expand(BATCH, -1, -1) for name in names if "position_ids" in name}}


def _audio(model: Any, main: str, generator: torch.Generator) -> Iterator[Inputs]:
    mel, span = _setting(model, "num_mel_bins", 16), _setting(model, "max_source_positions", 64)
    decoder = _decoder(model, generator)
    if main == "input_values":
        for length in (1600, 8000, 16000):
            yield {main: torch.randn(BATCH, length, generator=generator), **decoder}
    shapes = ((mel, 2 * span), (40, mel), (128, 2 * span), (40, 80), (40, 160), (1, 64, mel), (1, 1001, 64))
    for shape in (*shapes, (_setting(model, "max_length", 64), mel), (1, 1920)):
        yield {main: torch.randn(BATCH, *shape, generator=generator), **decoder}


def _decoder(model: Any, generator: torch.Generator) -> Inputs:
    if not model.config.is_encoder_decoder:
        return {}
    return {"decoder_input_ids": _tokens(BATCH, LENGTH, generator), "use_cache": False}
