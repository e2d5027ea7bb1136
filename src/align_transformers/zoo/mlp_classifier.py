"""An MLP classifier made of blocks, for alignment studies that need no language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from align_transformers._checked import checked, checked_class
from align_transformers._errors import SpecError, UnknownNameError, near_misses

ACTIVATIONS: Mapping[str, type[nn.Module]] = MappingProxyType(
    {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
)
MLP_COMPONENTS: Mapping[str, str] = MappingProxyType(
    {"block_input": "input", "block_output": "output", "mlp_activation": "act.output"}
)
"""The places of a block by the names they are known under; each is a path from the block on."""


@checked_class
@dataclass
class MLPConfig:
    """The sizes of an MLP classifier.

    Args:
        h_dim: size of the input and of every layer.
        n_layer: number of blocks.
        num_classes: number of classes.
        activation: one of `ACTIVATIONS`.
        include_bias: whether the layers have a bias.
        squeeze_output: whether logits of inputs of length 1 lose their length axis.
        pdrop: dropout after each block, while training.
        use_cache: for whoever switches it off on every model's configuration; there is no cache.
        activation_function: pyvene's name of `activation`.
        n_labels: pyvene's name of `num_classes`.

    Raises:
        SpecError: a size is not a number from 1, `pdrop` is no probability below 1, or a value came by both its names.
        UnknownNameError: there is no such activation.
    """

    h_dim: int = 64
    n_layer: int = 1
    num_classes: int = 2
    activation: str = "gelu"
    include_bias: bool = True
    squeeze_output: bool = True
    pdrop: float = 0.0
    use_cache: bool = False
    activation_function: InitVar[str | None] = None
    n_labels: InitVar[int | None] = None

    def __post_init__(self, activation_function: str | None, n_labels: int | None) -> None:
        for name, other, value in (
            ("activation", "activation_function", activation_function),
            ("num_classes", "n_labels", n_labels),
        ):
            if value is not None:
                if getattr(self, name) not in (getattr(type(self), name), value):
                    raise SpecError(f"{name}={getattr(self, name)!r} came with {other}={value!r}, another name of it")
                setattr(self, name, value)
        for name in ("h_dim", "n_layer", "num_classes"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} is a number from 1; found {getattr(self, name)}")
        if self.activation not in ACTIVATIONS:
            raise UnknownNameError(f"no activation {self.activation!r}; {near_misses(self.activation, ACTIVATIONS)}")
        if not 0 <= self.pdrop < 1:
            raise SpecError(f"pdrop is a probability below 1; found {self.pdrop}")


@dataclass(eq=False)
class MLPOutput(ModelOutput):
    """What the classifier returns, to be read by name or, without what is `None`, by number.

    Args:
        loss: where labels were given the mean cross entropy; else `None`.
        logits: `(batch, length, num_classes)`; `(batch, num_classes)` for length 1 with `squeeze_output`.
        last_hidden_state: `(batch, length, h_dim)` the last block's output.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None


class MLPBlock(nn.Module):
    """One layer: a linear map, its activation, and dropout while training."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.ff1 = nn.Linear(config.h_dim, config.h_dim, bias=config.include_bias)
        self.act = ACTIVATIONS[config.activation]()
        self.dropout = nn.Dropout(config.pdrop)

    def forward(self, hidden_states: Float[Tensor, "batch length h_dim"]) -> Tensor:
        """Return the next hidden states, of the same shape."""
        return self.dropout(self.act(self.ff1(hidden_states)))


class MLPForClassification(nn.Module):
    """Blocks, and a linear map to the logits of the classes.

    Args:
        config: the sizes.

    >>> import torch
    >>> MLPForClassification(MLPConfig(h_dim=3))(torch.zeros(5, 1, 3)).logits.shape
    torch.Size([5, 2])
    """

    component_paths: ClassVar[Mapping[str, str]] = {
        **{name: f"h[{{layer}}].{path}" for name, path in MLP_COMPONENTS.items()},
        "logits": "score.output",
    }

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        self.h = nn.ModuleList(MLPBlock(config) for _ in range(config.n_layer))
        self.score = nn.Linear(config.h_dim, config.num_classes, bias=config.include_bias)

    @property
    def mlp(self) -> MLPForClassification:
        """The classifier itself: pyvene's keeps its blocks in a model of this name."""
        return self

    def forward(
        self, inputs_embeds: Float[Tensor, "batch length h_dim"], labels: Int64[Tensor, " places"] | None = None
    ) -> MLPOutput:
        """Return the logits, and with labels the loss.

        Args:
            inputs_embeds: the inputs; a single vector an example has length 1.
            labels: the class of each place, `batch * length` of them in order.
        """
        states = inputs_embeds
        for block in self.h:
            states = block(states)
        logits = self.score(states)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels)
        squeezed = logits.squeeze(1) if self.config.squeeze_output else logits
        return MLPOutput(loss, squeezed, states)


@checked
def mlp_path(component: str, layer: int = 0) -> str:
    """Return the dotted path of one of `MLP_COMPONENTS`.

    Args:
        component: its name.
        layer: number of the block, from 0.

    Raises:
        UnknownNameError: there is no such component.

    >>> mlp_path("mlp_activation", 2)
    'h[2].act.output'
    """
    if component not in MLP_COMPONENTS:
        raise UnknownNameError(f"an MLP block has no {component!r}; {near_misses(component, MLP_COMPONENTS)}")
    return MLPForClassification.component_paths[component].format(layer=layer)


@checked
def create_mlp_classifier(config: MLPConfig | None = None) -> tuple[MLPConfig, Any, MLPForClassification]:
    """Return a random MLP classifier in eval mode, with its configuration; it has no tokenizer (`None`).

    Args:
        config: its sizes; default: those of `MLPConfig()`.

    >>> config, tokenizer, model = create_mlp_classifier(MLPConfig(h_dim=3))
    >>> type(model).__name__, config.h_dim, tokenizer
    ('MLPForClassification', 3, None)
    """
    config = config or MLPConfig()
    return config, None, MLPForClassification(config).eval()
