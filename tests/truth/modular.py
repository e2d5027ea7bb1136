"""Modular addition: a one-layer transformer that has learned `a + b mod p` (Nanda et al. 2023, arXiv:2301.05217).

The input is `a, b, =` and the answer is read at `=`. Before the layer the residual stream at `a` is all that is known
of `a`: its swap gives the sum of the source's `a` and the base's `b`. The MLP at `=` makes the answer: the swap of its
output gives the source's sum, although the attention's output of the base stays in the stream.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from align_transformers import IntervenableModel

from .fact import Fact

P, WIDTH = 31, 64
INPUT, MLP, OUTPUT = "transformer.h[0].input", "transformer.h[0].mlp.output", "transformer.h[0].output"
AT_A, AT_EQUALS = 0, 2
CHANCE = 0.06  # the answers of 1 in 31 pairs are equal by chance


def _tokens(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([a, b, torch.full_like(a, P)], 1)


def _answers(model: GPT2LMHeadModel, tokens: Tensor) -> Tensor:
    return model(tokens, logits_to_keep=1).logits[:, -1]


@cache
def trained(seed: int = 0, share: float = 0.7, steps: int = 2250, check: int = 125) -> tuple[GPT2LMHeadModel, float]:
    """Return a model that was trained on 70 % of all sums until it knew the others, and its accuracy on these."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": P + 1, "n_positions": 3, "n_embd": WIDTH, "n_layer": 1, "n_head": 4}
    plain = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None}
    model = GPT2LMHeadModel(GPT2Config(activation_function="relu", tie_word_embeddings=False, **sizes, **plain))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=WIDTH**-0.5)
    a, b = torch.cartesian_prod(torch.arange(P), torch.arange(P)).T
    tokens, sums, order = _tokens(a, b), (a + b) % P, torch.randperm(P * P)
    known, others = order[: int(share * P * P)], order[int(share * P * P) :]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1.0, betas=(0.9, 0.98))
    accuracy = 0.0
    for step in range(1, steps + 1):
        loss = nn.functional.cross_entropy(_answers(model, tokens[known]), sums[known])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % check == 0:
            with torch.no_grad():
                accuracy = (_answers(model, tokens[others]).argmax(-1) == sums[others]).float().mean().item()
            if accuracy == 1.0 and loss.item() < 0.01:
                break
    return model.eval().requires_grad_(False), accuracy


def swapped(component: str, position: int, *, takes_b: bool, pairs: int = 4000) -> float:
    """Return the IIA of a swap.

    Args:
        component: where.
        position: at which token.
        takes_b: whether the sum that is expected takes `b` from the source, too, and not only `a`.
        pairs: how many random pairs of base and source.
    """
    generator = torch.Generator().manual_seed(1)
    a, b, source_a, source_b = torch.randint(P, (4, pairs), generator=generator)
    made = IntervenableModel({"component": component}, trained()[0])
    base, source = {"input_ids": _tokens(a, b)}, {"input_ids": _tokens(source_a, source_b)}
    _, output = made(base, source, {"sources->base": position})
    expected = (source_a + (source_b if takes_b else b)) % P
    return (output.logits[:, -1].argmax(-1) == expected).float().mean().item()


def _fact(what: str, component: str, position: int, takes_b: bool, right: bool) -> Fact:
    low, high = (0.999, 1.0) if right else (0.0, CHANCE)
    if right and component == MLP:
        low = 0.95  # what attention writes past the MLP stays the base's; how much that is depends on the training
    name = f"sums mod {P}: IIA, {what}{'' if right else ' (wrong)'}"
    return Fact(name, lambda: swapped(component, position, takes_b=takes_b), low, high)


FACTS = [
    Fact(f"sums mod {P}: accuracy on sums not trained on", lambda: trained()[1], 1.0, 1.0),
    _fact("residual at a before the layer, a of the source", INPUT, AT_A, takes_b=False, right=True),
    _fact("MLP at =, both of the source", MLP, AT_EQUALS, takes_b=True, right=True),
    _fact("residual at = after the layer, both", OUTPUT, AT_EQUALS, takes_b=True, right=True),
    _fact("residual at a after the layer, a", OUTPUT, AT_A, takes_b=False, right=False),
    _fact("residual at = before the layer, both", INPUT, AT_EQUALS, takes_b=True, right=False),
    _fact("MLP at a, both", MLP, AT_A, takes_b=True, right=False),
]
