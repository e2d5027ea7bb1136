"""A small transformer whose parts can be left out: attention alone, no norms, no mask, weights written by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

from align_transformers._checked import checked, checked_class
from align_transformers._errors import SpecError


@checked_class
@dataclass
class TransformerConfig:
    """The sizes of a transformer, and which parts it has.

    Args:
        vocab_size: number of tokens.
        n_positions: the longest text.
        h_dim: width of the residual stream.
        n_layer: number of blocks.
        n_head: number of heads.
        head_dim: width of a head; default: `h_dim // n_head`.
        mlp_dim: neurons of an MLP; 0: blocks have attention alone.
        n_outputs: number of logits; default: `vocab_size`.
        causal: whether tokens see only those before them.
        norm: whether attention, MLP and unembedding read the stream through a layer norm.

    Raises:
        SpecError: a size is not a number from 1 (`mlp_dim`: from 0), or `h_dim` is no multiple of `n_head`.
    """

    vocab_size: int = 64
    n_positions: int = 64
    h_dim: int = 64
    n_layer: int = 2
    n_head: int = 4
    head_dim: int | None = None
    mlp_dim: int = 0
    n_outputs: int | None = None
    causal: bool = True
    norm: bool = True

    def __post_init__(self) -> None:
        if self.head_dim is None:
            if self.n_head > 0 and self.h_dim % self.n_head:
                raise SpecError(f"h_dim={self.h_dim} is no multiple of n_head={self.n_head}: give head_dim")
            self.head_dim = self.h_dim // max(self.n_head, 1)
        self.n_outputs = self.vocab_size if self.n_outputs is None else self.n_outputs
        for name in ("vocab_size", "n_positions", "h_dim", "n_layer", "n_head", "head_dim", "n_outputs"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} is a number from 1; found {getattr(self, name)}")
        if self.mlp_dim < 0:
            raise SpecError(f"mlp_dim is a number from 0; found {self.mlp_dim}")


@dataclass(eq=False)
class TransformerOutput(ModelOutput):
    """What the model returns.

    Args:
        loss: where labels were given the mean cross entropy of each token's logits with the next label; else `None`.
        logits: `(batch, length, n_outputs)`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None


class Scaling(nn.Module):
    """What stands where a model without norms would have its last: each coordinate times a number, 1 at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the coordinates, each times its number."""
        return hidden_states * self.weight


class SelfAttention(nn.Module):
    """Softmax attention, through the interface that transformers' models use, so that its inside can be seen."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.head_dim, self.is_causal = config.head_dim or 1, config.causal
        inner = config.n_head * self.head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(config.h_dim, inner) for _ in range(3))
        self.o_proj = nn.Linear(inner, config.h_dim)

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        """Return what attention gives, of the shape of the hidden states.

        Args:
            hidden_states: `(batch, length, h_dim)`.
            mask: `(batch, 1, length, length)`, added to the scores.
        """
        each = (*hidden_states.shape[:-1], -1, self.head_dim)
        three = self.q_proj, self.k_proj, self.v_proj
        query, key, value = (projection(hidden_states).view(each).transpose(1, 2) for projection in three)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface("eager", _attend)
        heads, _ = attend(self, query, key, value, mask, scaling=self.head_dim**-0.5)
        return self.o_proj(heads.flatten(2))


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """Return the heads' outputs, `(batch, length, heads, size)`, and the pattern."""
    scores = query @ key.transpose(2, 3) * scaling
    pattern = (scores if mask is None else scores + mask).softmax(-1)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


class MLP(nn.Module):
    """Two linear maps with a ReLU between them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(config.h_dim, config.mlp_dim), nn.Linear(config.mlp_dim, config.h_dim)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return what the neurons give, of the shape of the hidden states."""
        return self.down(F.relu(self.up(hidden_states)))


class TransformerBlock(nn.Module):
    """Attention, and an MLP behind it if there is one; both add to the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.h_dim) if config.norm else nn.Identity()
        self.attention = SelfAttention(config)
        if config.mlp_dim:
            self.mlp_norm = nn.LayerNorm(config.h_dim) if config.norm else nn.Identity()
            self.mlp = MLP(config)

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        """Return the next hidden states."""
        hidden_states = hidden_states + self.attention(self.attention_norm(hidden_states), mask)
        return hidden_states + self.mlp(self.mlp_norm(hidden_states)) if hasattr(self, "mlp") else hidden_states


class TransformerLMHeadModel(nn.Module):
    """Embeddings of tokens and positions, blocks, a last norm, and a linear map to the logits.

    Args:
        config: the sizes, and which parts there are.

    >>> import torch
    >>> model = TransformerLMHeadModel(TransformerConfig(vocab_size=10, h_dim=8, n_head=2))
    >>> model(torch.tensor([[1, 2, 3]])).logits.shape
    torch.Size([1, 3, 10])
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.h_dim)
        self.positions = nn.Embedding(config.n_positions, config.h_dim)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.h_dim) if config.norm else Scaling(config.h_dim)
        self.unembedding = nn.Linear(config.h_dim, config.n_outputs or config.vocab_size, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding of tokens."""
        return self.tokens

    def get_output_embeddings(self) -> nn.Module:
        """Return the layer that makes the logits."""
        return self.unembedding

    def forward(
        self,
        input_ids: Int64[Tensor, "batch length"] | None = None,
        attention_mask: Int64[Tensor, "batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length h_dim"] | None = None,
        labels: Int64[Tensor, "batch length"] | None = None,
    ) -> TransformerOutput:
        """Return the logits, and with labels the loss.

        Args:
            input_ids: the tokens.
            attention_mask: 1 for a token, 0 for padding; positions are counted over the tokens.
            inputs_embeds: in place of the tokens, what their embedding gives.
            labels: the tokens; each is compared with the logits of the one before. Negative ones are left out.

        Raises:
            SpecError: neither tokens nor embeddings are given, or both, or the text is longer than `n_positions`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise SpecError("give input_ids or inputs_embeds, and one of them only")
        states = self.tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if states.shape[1] > self.config.n_positions:
            raise SpecError(f"there are {states.shape[1]} tokens, the model knows {self.config.n_positions} positions")
        there = torch.ones(states.shape[:2], dtype=torch.int64, device=states.device)
        there = there if attention_mask is None else attention_mask
        states = states + self.positions((there.cumsum(-1) - 1).clamp(min=0))
        mask = self._mask(there, states.dtype)
        for block in self.blocks:
            states = block(states, mask)
        logits = self.unembedding(self.final_norm(states))
        if labels is None:
            return TransformerOutput(None, logits)
        return TransformerOutput(F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), logits)

    def _mask(self, there: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what is added to the scores, `(batch, 1, length, length)`: nothing where a token is seen."""
        seen = there[:, None, None, :].bool().expand(-1, 1, there.shape[1], -1)
        seen = seen.tril() if self.config.causal else seen
        return torch.zeros(seen.shape, dtype=dtype, device=there.device).masked_fill(~seen, torch.finfo(dtype).min)


@checked
def create_transformer_lm(
    config: TransformerConfig | None = None,
) -> tuple[TransformerConfig, Any, TransformerLMHeadModel]:
    """Return a random transformer in eval mode, with its configuration; it has no tokenizer (`None`).

    Args:
        config: its sizes and parts; default: those of `TransformerConfig()`, two layers of attention alone.

    >>> config, tokenizer, model = create_transformer_lm(TransformerConfig(h_dim=8, n_head=2))
    >>> type(model).__name__, config.head_dim, tokenizer
    ('TransformerLMHeadModel', 4, None)
    """
    config = config or TransformerConfig()
    return config, None, TransformerLMHeadModel(config).eval()


@checked
def create_induction_lm() -> tuple[TransformerConfig, Any, TransformerLMHeadModel]:
    """Return a trained model of two layers of attention alone that goes on with what was said before.

    It was trained on texts of 48 tokens, of 64, that repeat themselves: 6 to 24 different random tokens, again and
    again. It comes with the package (160 kB; in the repository `tests/truth/make_induction.py` makes it).

    Returns:
        The configuration, no tokenizer (`None`), and the model in eval mode.

    >>> config, tokenizer, model = create_induction_lm()
    >>> text = torch.tensor([[5, 9, 2, 7, 60, 33, 5, 9, 2, 7, 60]])
    >>> model(text).logits[0, -1].argmax().item()
    33
    """
    config, tokenizer, model = create_transformer_lm(TransformerConfig(n_positions=48, head_dim=32))
    weights = load_file(Path(__file__).with_name("induction.safetensors"))
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    return config, tokenizer, model
