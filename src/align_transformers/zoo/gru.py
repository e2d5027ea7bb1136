"""A GRU written as cells, so that its gates and sums are modules: by itself, as a language model, as a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from align_transformers._checked import checked, checked_class
from align_transformers._errors import SpecError, UnknownNameError, near_misses

_GATES = ("reset", "update", "new")
GRU_COMPONENTS: Mapping[str, str] = MappingProxyType(
    {f"{name}_{side}": f"{name}.{side}" for name in (f"{gate}_gate" for gate in _GATES) for side in ("input", "output")}
    | {f"{name}_output": f"{name}.output" for name in ("x2h", "h2h")}
    | {f"{gate}_{name}_output": f"{gate}_{name}.output" for gate in _GATES for name in ("x2h", "h2h")}
    | {"cell_input": "input", "cell_output": "output"}
)
"""The places of a cell by the names they are known under; each is a path from the cell on."""


@checked_class
@dataclass
class GRUConfig:
    """The sizes of a GRU.

    Args:
        h_dim: size of the hidden state, and of the inputs.
        n_layer: number of cells on top of each other.
        include_bias: whether sums have a bias.
        pdrop: dropout of the inputs and between the layers, while training.
        vocab_size: number of tokens, for a language model.
        num_classes: number of classes, for a classifier.
        use_cache: for whoever switches it off on every model's configuration; there is no cache.

    Raises:
        SpecError: a size is not a number from 1, or `pdrop` is no probability below 1.
    """

    h_dim: int = 64
    n_layer: int = 1
    include_bias: bool = True
    pdrop: float = 0.0
    vocab_size: int = 64
    num_classes: int = 2
    use_cache: bool = False

    def __post_init__(self) -> None:
        for name in ("h_dim", "n_layer", "vocab_size", "num_classes"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} is a number from 1; found {getattr(self, name)}")
        if not 0 <= self.pdrop < 1:
            raise SpecError(f"pdrop is a probability below 1; found {self.pdrop}")


@dataclass(eq=False)
class GRUOutput(ModelOutput):
    """What these models return, to be read by name or, without what is `None`, by number.

    Args:
        loss: where labels were given the mean cross entropy; else `None`.
        logits: `(batch, steps, vocab_size)` of a language model, `(batch, num_classes)` of a classifier; else `None`.
        last_hidden_state: `(batch, steps, h_dim)` the last layer's hidden state after each step.
        hidden: `(n_layer, batch, h_dim)` each layer's hidden state after the last step.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden: Tensor | None = None


def _paths(inside: str = "", **ends: str) -> dict[str, str]:
    """Return where the components of a model are whose cells are in a model inside it."""
    return {name: f"{inside}cells[{{layer}}].{path}" for name, path in GRU_COMPONENTS.items()} | ends


class GRUCell(nn.Module):
    """One step of one layer: `h' = (1 - z) * n + z * h`, as in `torch.nn.GRU`.

    Rows of the weights stand in PyTorch's order: reset, update, new.

    Args:
        h_dim: size of the input and of the hidden state.
        bias: whether both sums have a bias.

    >>> GRUCell(3)(torch.zeros(2, 3), torch.zeros(2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, h_dim: int, bias: bool = True) -> None:
        super().__init__()
        self.x2h, self.h2h = nn.Linear(h_dim, 3 * h_dim, bias=bias), nn.Linear(h_dim, 3 * h_dim, bias=bias)
        for gate in _GATES:  # names for the parts of the sums
            self.add_module(f"{gate}_x2h", nn.Identity())
            self.add_module(f"{gate}_h2h", nn.Identity())
        self.reset_gate, self.update_gate, self.new_gate = nn.Sigmoid(), nn.Sigmoid(), nn.Tanh()
        for weight in self.parameters():
            nn.init.uniform_(weight, -(h_dim**-0.5), h_dim**-0.5)

    def forward(self, x: Float[Tensor, "batch h_dim"], h: Float[Tensor, "batch h_dim"]) -> Tensor:
        """Return the hidden state after this step, `(batch, h_dim)`."""
        from_x = dict(zip(_GATES, self.x2h(x).chunk(3, -1), strict=True))
        from_h = dict(zip(_GATES, self.h2h(h).chunk(3, -1), strict=True))
        for gate in _GATES:
            from_x[gate] = self.get_submodule(f"{gate}_x2h")(from_x[gate])
            from_h[gate] = self.get_submodule(f"{gate}_h2h")(from_h[gate])
        reset = self.reset_gate(from_x["reset"] + from_h["reset"])
        update = self.update_gate(from_x["update"] + from_h["update"])
        new = self.new_gate(from_x["new"] + reset * from_h["new"])
        return (1 - update) * new + update * h


class GRUModel(nn.Module):
    """Cells in layers: at each step one layer after the other, then the next step.

    Args:
        config: the sizes.

    >>> GRUModel(GRUConfig(h_dim=3))(torch.zeros(2, 5, 3)).last_hidden_state.shape
    torch.Size([2, 5, 3])
    """

    component_paths: ClassVar[Mapping[str, str]] = _paths()

    def __init__(self, config: GRUConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(config.pdrop)
        self.cells = nn.ModuleList(GRUCell(config.h_dim, config.include_bias) for _ in range(config.n_layer))

    def forward(
        self,
        inputs_embeds: Float[Tensor, "batch steps h_dim"],
        hidden: Float[Tensor, "n_layer batch h_dim"] | None = None,
    ) -> GRUOutput:
        """Run the cells over a sequence.

        Args:
            inputs_embeds: the inputs.
            hidden: each layer's hidden state before the first step; default: zeros.
        """
        zeros = inputs_embeds.new_zeros(len(inputs_embeds), self.config.h_dim)
        states = [zeros] * len(self.cells) if hidden is None else list(hidden)
        outputs = []
        for x in inputs_embeds.unbind(1):
            for layer, cell in enumerate(self.cells):
                x = states[layer] = cell(self.dropout(x), states[layer])
            outputs.append(x)
        return GRUOutput(last_hidden_state=torch.stack(outputs, 1), hidden=torch.stack(states))


class GRULMHeadModel(nn.Module):
    """A language model: token embeddings, a GRU, and logits for the next token after each step.

    Args:
        config: the sizes.

    >>> GRULMHeadModel(GRUConfig(h_dim=3, vocab_size=7))(torch.tensor([[1, 2]])).logits.shape
    torch.Size([1, 2, 7])
    """

    component_paths: ClassVar[Mapping[str, str]] = _paths(
        "gru.", embedding_output="wte.output", logits="lm_head.output"
    )

    def __init__(self, config: GRUConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.h_dim)
        self.gru = GRUModel(config)
        self.lm_head = nn.Linear(config.h_dim, config.vocab_size, bias=False)

    def forward(
        self, input_ids: Int64[Tensor, "batch steps"], labels: Int64[Tensor, "batch steps"] | None = None
    ) -> GRUOutput:
        """Return the logits after each step.

        Args:
            input_ids: tokens.
            labels: the same tokens, for the loss of predicting each from those before it; -100 is left out.
        """
        out = self.gru(self.wte(input_ids))
        logits = self.lm_head(out.last_hidden_state)
        loss = None if labels is None else F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return GRUOutput(loss, logits, out.last_hidden_state, out.hidden)


class GRUForClassification(nn.Module):
    """A classifier of sequences: logits from the last layer's hidden state after the last step.

    Args:
        config: the sizes.

    >>> GRUForClassification(GRUConfig(h_dim=3))(torch.zeros(2, 5, 3)).logits.shape
    torch.Size([2, 2])
    """

    component_paths: ClassVar[Mapping[str, str]] = _paths("gru.", logits="score.output")

    def __init__(self, config: GRUConfig) -> None:
        super().__init__()
        self.config = config
        self.gru = GRUModel(config)
        self.score = nn.Linear(config.h_dim, config.num_classes, bias=False)

    def forward(
        self, inputs_embeds: Float[Tensor, "batch steps h_dim"], labels: Int64[Tensor, " batch"] | None = None
    ) -> GRUOutput:
        """Return the logits of the classes, and with labels the loss."""
        out = self.gru(inputs_embeds)
        logits = self.score(out.last_hidden_state[:, -1])
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return GRUOutput(loss, logits, out.last_hidden_state, out.hidden)


@checked
def gru_path(model: nn.Module, component: str, layer: int = 0) -> str:
    """Return the dotted path of one of `GRU_COMPONENTS` in one of these models.

    Args:
        model: `GRUModel`, `GRULMHeadModel` or `GRUForClassification`.
        component: its name.
        layer: number of the cell, from 0.

    Raises:
        UnknownNameError: there is no such component.

    >>> gru_path(create_gru_classifier(GRUConfig())[2], "reset_gate_output")
    'gru.cells[0].reset_gate.output'
    """
    if component not in GRU_COMPONENTS:
        raise UnknownNameError(f"a GRU cell has no {component!r}; {near_misses(component, GRU_COMPONENTS)}")
    said: Mapping[str, str] = model.component_paths  # type: ignore[assignment]
    return said[component].format(layer=layer)


@checked
def create_gru(config: GRUConfig | None = None) -> tuple[GRUConfig, Any, GRUModel]:
    """Return a random GRU in eval mode, with its configuration; it has no tokenizer (`None`).

    Args:
        config: its sizes; default: those of `GRUConfig()`.

    >>> config, tokenizer, model = create_gru(GRUConfig(h_dim=3))
    >>> type(model).__name__, config.h_dim, tokenizer
    ('GRUModel', 3, None)
    """
    config = config or GRUConfig()
    return config, None, GRUModel(config).eval()


@checked
def create_gru_lm(config: GRUConfig | None = None) -> tuple[GRUConfig, Any, GRULMHeadModel]:
    """Return a random GRU language model in eval mode, with its configuration; it has no tokenizer (`None`).

    Args:
        config: its sizes; default: those of `GRUConfig()`.

    >>> config, tokenizer, model = create_gru_lm(GRUConfig(h_dim=3, vocab_size=7))
    >>> type(model).__name__, config.h_dim, tokenizer
    ('GRULMHeadModel', 3, None)
    """
    config = config or GRUConfig()
    return config, None, GRULMHeadModel(config).eval()


@checked
def create_gru_classifier(config: GRUConfig | None = None) -> tuple[GRUConfig, Any, GRUForClassification]:
    """Return a random GRU classifier in eval mode, with its configuration; it has no tokenizer (`None`).

    Args:
        config: its sizes; default: those of `GRUConfig()`.

    >>> config, tokenizer, model = create_gru_classifier(GRUConfig(h_dim=3))
    >>> type(model).__name__, config.h_dim, tokenizer
    ('GRUForClassification', 3, None)
    """
    config = config or GRUConfig()
    return config, None, GRUForClassification(config).eval()
