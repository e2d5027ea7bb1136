"""Circuits by hand: plain hooks and explicit sums, a whole forward pass for every part of every block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import lru_cache
from typing import Any

import torch
import transformers
from tests.fast.families import blocks, build, shared
from tests.helpers import HIDDEN, VOCAB, tokens
from tests.studies.test_edge_attribution import final_norm, norms
from tests.studies.test_path_patching import Places, kv_heads, watched
from torch import Tensor

from align_transformers import Metric, graph
from align_transformers.studies._pairs import pair_up
from align_transformers.studies.circuits.circuit_runner import Answered, CircuitRunner

FAMILIES = ("gpt2", "llama", "neox", "gemma2", "granite")
LAYERS, HEADS, LENGTH = 3, 4, 5
Edge = tuple[str, str]

torch.manual_seed(0)
_WEIGHTS = torch.randn(VOCAB)
SENSITIVE = Metric("a sum over all logits", lambda logits: logits @ _WEIGHTS)


def sensitive(logits: Tensor) -> Tensor:
    """What `SENSITIVE` is, of logits at all tokens."""
    return logits[:, -1].float() @ _WEIGHTS


@lru_cache(maxsize=1)
def granite() -> Any:
    state = torch.get_rng_state()
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 40, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
        "initializer_range": 0.3, "residual_multiplier": 0.7, "embedding_multiplier": 3.0, "logits_scaling": 2.0,
        "attention_multiplier": 0.4,
    }  # fmt: skip
    made = transformers.GraniteForCausalLM(transformers.GraniteConfig(**sizes)).eval()
    torch.set_rng_state(state)
    return made


@lru_cache(maxsize=2)
def biased(family: str) -> Any:
    """A model whose biases are not 0, as they are when it is made."""
    made = build(family)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name.endswith("bias"):
                value.add_(torch.randn(value.shape, generator=generator) * 0.3)
    return made


def model_of(family: str) -> Any:
    return granite() if family == "granite" else biased(family) if family in ("gpt2", "neox") else shared(family)


def pair_of(number: int = 0, count: int = 1) -> tuple[Tensor, Tensor]:
    return tokens(count, LENGTH, number)["input_ids"], tokens(count, LENGTH, number + 50)["input_ids"]


def runner_of(family: str, base: Any, source: Any, model: Any = None, **options: Any) -> CircuitRunner:
    model = model_of(family) if model is None else model
    sides = [{"input_ids": one} if isinstance(one, Tensor) else one for one in (base, source)]
    pairs = pair_up(sides[0], sides[1], None, model, None, None, None, None)
    metric = options.pop("metric", SENSITIVE)
    return CircuitRunner(model, graph(model, experts=False), pairs, Answered([metric] * len(pairs)), **options)


def keep_last(seen: dict[Any, Tensor], name: Any) -> Callable[[Tensor], None]:
    return lambda value: seen.__setitem__(name, value.clone())


class Slow:
    """A model's circuits, run one part after the other.

    `given` are values that a pass takes on: what queries, keys, values and MLPs read instead of what they would.
    """

    def __init__(self, family: str, model: Any = None) -> None:
        self.family, self.model = family, model_of(family) if model is None else model
        self.places = [Places(family, self.model, layer) for layer in range(LAYERS)]
        self.scale = 0.7 if family == "granite" else 1.0

    def values(self, ids: Tensor) -> dict[str, Tensor]:
        """What each sender adds in a plain run."""
        found = {"input": self._pass(ids, {})["in", 0]}
        for layer in range(LAYERS):
            found |= self._heads(ids, {}, layer) | self._mlp(ids, {}, layer)
        return found

    def logits(self, base: Tensor, other: Mapping[str, Tensor], absent: set[Edge]) -> Tensor:
        """The logits of a run whose absent edges carry other values, `(prompts, tokens, vocab)`."""
        given: dict[Any, Tensor] = {}
        own = {"input": self._pass(base, {})["in", 0]}
        counts = {"q": HEADS, "k": kv_heads(self.family), "v": kv_heads(self.family)}
        for layer in range(LAYERS):
            first, second = norms(self.family, self.model, layer)
            earlier = list(own)
            for letter, count in counts.items():
                for head in range(count):
                    stream = self._stream(own, other, earlier, absent, f"a{layer}.h{head}<{letter}>")
                    module, rows, _ = self.places[layer].reader(letter, head)
                    given["head", layer, letter, head] = module.forward(first.forward(stream))[..., rows]
            heads = self._heads(base, given, layer)
            seen = earlier if self.family == "neox" else [*earlier, *heads]
            stream = self._stream({**own, **heads}, other, seen, absent, f"m{layer}")
            given["mlp", layer] = second.forward(stream)
            own |= heads | self._mlp(base, given, layer)
        given["end"] = self._stream(own, other, list(own), absent, "logits")
        return self._pass(base, given)["logits"]

    def _stream(
        self, own: Mapping[str, Tensor], other: Mapping[str, Tensor], names: list[str], absent: set[Edge], receiver: str
    ) -> Tensor:
        parts = [other[name].expand_as(own[name]) if (name, receiver) in absent else own[name] for name in names]
        biases = [self.places[int(name[1])].after_heads.bias for name in names if name.endswith(".h0")]
        return torch.stack(parts).sum(0) + sum(bias for bias in biases if bias is not None)

    def _heads(self, ids: Tensor, given: Mapping[Any, Tensor], layer: int) -> dict[str, Tensor]:
        seen, place = self._pass(ids, given), self.places[layer]
        weight: Any = place.after_heads.weight
        weight = weight.T if self.family == "gpt2" else weight
        found = {}
        for head in range(HEADS):
            own = place.head(head)
            share = seen["z", layer][..., own] @ weight[:, own].T * self.scale
            if self.family == "gemma2":
                norm: Any = place.block.post_attention_layernorm
                size = seen["joined", layer].square().mean(-1, keepdim=True)
                share = share * (size + norm.eps).rsqrt() * (1 + norm.weight)
            found[f"a{layer}.h{head}"] = share.detach()
        return found

    def _mlp(self, ids: Tensor, given: Mapping[Any, Tensor], layer: int) -> dict[str, Tensor]:
        return {f"m{layer}": self._pass(ids, given)["mlp", layer] * self.scale}

    @torch.no_grad()
    def _pass(self, ids: Tensor, given: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
        """Run the whole model under hooks, and return what was seen."""
        seen: dict[Any, Tensor] = {}
        with ExitStack() as stack:
            for layer, place in enumerate(self.places):
                for key, value in given.items():
                    if key[:2] == ("head", layer):
                        module, rows, _ = place.reader(key[2], key[3])
                        stack.enter_context(watched(module, "output", _putting(value, rows)))
                if ("mlp", layer) in given:
                    stack.enter_context(watched(place.mlp, "input", _putting(given["mlp", layer], slice(None))))
                out: Any = place.block.post_feedforward_layernorm if self.family == "gemma2" else place.mlp
                spots: list[Any] = [(place.after_heads, "input", "z"), (out, "output", "mlp")]
                spots.append((blocks(self.model)[layer], "input", "in"))
                if self.family == "gemma2":
                    spots.append((place.block.post_attention_layernorm, "input", "joined"))
                for module, side, name in spots:
                    stack.enter_context(watched(module, side, keep_last(seen, (name, layer))))
            if "end" in given:
                end = final_norm(self.family, self.model)
                stack.enter_context(watched(end, "input", _putting(given["end"], slice(None))))
            seen["logits"] = self.model(input_ids=ids).logits
        return seen


def _putting(value: Tensor, rows: slice) -> Callable[[Tensor], Tensor]:
    def act(old: Tensor) -> Tensor:
        new = old.clone()
        new[..., rows] = value
        return new

    return act
