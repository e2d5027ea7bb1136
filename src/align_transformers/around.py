"""A module around a model: the model moves, and changes its mode, with it, but is none of the modules in it."""

from __future__ import annotations

from typing import Any

from torch import nn

_MODELS_OWN = (
    *("activation_checkpointing_enable", "activation_checkpointing_disable", "is_activation_checkpointing"),
    *("gradient_checkpointing_enable", "gradient_checkpointing_disable", "is_gradient_checkpointing"),
    *("generation_config", "get_input_embeddings", "hf_device_map", "main_input_name", "model_tags"),
    "quantization_method",
)
"""What a `Trainer` asks its model for, or sets there, by name."""


class AroundModel(nn.Module):
    """A module whose parameters and state are without those of the model that it is around.

    So an optimiser or a `Trainer` that gets it changes and saves what learns and never the model.

    Args:
        model: the user's.
    """

    model: nn.Module

    accepts_loss_kwargs = False  # a Trainer then divides the loss by its accumulation steps itself
    _keys_to_ignore_on_save = None  # a Trainer reads it where a checkpoint lacks something

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; the model is no child, and what is its own is set there."""
        if name == "model":
            vars(self)[name] = value
        elif name in _MODELS_OWN:
            setattr(self.model, name, value)
        else:
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """Return what a `Trainer` asks the model for by name."""
        return getattr(self.model, name) if name in _MODELS_OWN else super().__getattr__(name)

    def _apply(self, *given: Any, **options: Any) -> Any:
        """Move or cast the model, too."""
        self.model._apply(*given, **options)
        return super()._apply(*given, **options)

    def train(self, mode: bool = True) -> Any:
        """Switch the model, too, between training and eval mode.

        Args:
            mode: True for training.
        """
        self.model.train(mode)
        return super().train(mode)

    def extra_repr(self) -> str:
        """Name the model."""
        return f"model: {type(self.model).__name__}"
