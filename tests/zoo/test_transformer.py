"""The small transformer computes what PyTorch's layers do, with or without its parts, and all its places are found."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from align_transformers import Site, SpecError, path_patching, resolve
from align_transformers.zoo import TransformerConfig, TransformerLMHeadModel, create_induction_lm, create_transformer_lm

SIZES = {"vocab_size": 11, "n_positions": 9, "h_dim": 12, "n_layer": 2, "n_head": 3}
KINDS = {
    "attention alone": {},
    "no norms": {"norm": False},
    "MLPs": {"mlp_dim": 10},
    "MLPs, no norms": {"mlp_dim": 10, "norm": False},
    "both ways": {"mlp_dim": 10, "causal": False},
}


def by_pytorch(model: TransformerLMHeadModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits as PyTorch's own attention gives them."""
    length, config = tokens.shape[1], model.config
    states = model.tokens.weight[tokens] + model.positions.weight[:length]
    hidden = torch.full((length, length), float("-inf")).triu(1) if config.causal else None
    for block in model.blocks:
        theirs, ours = nn.MultiheadAttention(config.h_dim, config.n_head, batch_first=True), block.attention
        three = ours.q_proj, ours.k_proj, ours.v_proj
        theirs.in_proj_weight.data = torch.cat([one.weight.data for one in three])
        theirs.in_proj_bias.data = torch.cat([one.bias.data for one in three])
        theirs.out_proj = ours.o_proj
        read = block.attention_norm(states)
        states = states + theirs(read, read, read, attn_mask=hidden, need_weights=False)[0]
        if config.mlp_dim:
            states = states + block.mlp.down(block.mlp.up(block.mlp_norm(states)).relu())
    return model.final_norm(states) @ model.unembedding.weight.T


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_it_equals_pytorchs(kind):
    torch.manual_seed(0)
    config, tokenizer, model = create_transformer_lm(TransformerConfig(**SIZES, **kind))
    assert (tokenizer, model.training, config.head_dim) == (None, False, 4)
    tokens = torch.randint(11, (3, 7))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, by_pytorch(model, tokens), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            model(inputs_embeds=model.tokens(tokens)).logits, model(tokens).logits, atol=0, rtol=0
        )


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side):
    torch.manual_seed(0)
    _, _, model = create_transformer_lm(TransformerConfig(**SIZES))
    tokens, there = torch.randint(11, (2, 5)), torch.ones(2, 5, dtype=torch.int64)
    more, none = torch.randint(11, (2, 3)), torch.zeros(2, 3, dtype=torch.int64)
    order = ((more, tokens), (none, there)) if side == "left" else ((tokens, more), (there, none))
    padded, mask = (torch.cat(two, 1) for two in order)
    with torch.no_grad():
        found = model(padded, attention_mask=mask).logits
        own = found[:, 3:] if side == "left" else found[:, :5]
        torch.testing.assert_close(own, model(tokens).logits, atol=1e-5, rtol=0)


def test_the_loss_is_that_of_the_next_token():
    torch.manual_seed(0)
    _, _, model = create_transformer_lm(TransformerConfig(**SIZES))
    tokens = torch.randint(11, (2, 5))
    labels = torch.where(torch.tensor([True, True, False, True, True]), tokens, -100)
    with torch.no_grad():
        found, logits = model(tokens, labels=labels).loss, model(tokens).logits.log_softmax(-1)
    each = [-logits[row, at, tokens[row, at + 1]] for row in (0, 1) for at in (0, 2, 3)]
    torch.testing.assert_close(found, torch.stack(each).mean())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_all_its_places_are_found(kind):
    torch.manual_seed(0)
    model = TransformerLMHeadModel(TransformerConfig(**SIZES, **kind)).eval()
    found = resolve(model)
    names = ["query_output", "key_output", "value_output", "attention_value_output", "attention_pattern", "head_output"]
    names += ["mlp_input", "mlp_activation", "mlp_output"] if kind.get("mlp_dim") else []
    for name in ("embedding_output", "final_norm_output", "logits"):
        assert found.find(Site(name)) is not None
    for name in names:
        assert found.find(Site(name, 1)) is not None, found.why(name, 1)
    assert found.stacks[""][0].flags["additive"]


def test_a_path_can_be_patched_where_there_is_no_mlp():
    torch.manual_seed(0)
    model = TransformerLMHeadModel(TransformerConfig(**SIZES)).eval()
    base, source = ({"input_ids": torch.randint(11, (1, 5))} for _ in range(2))
    table = path_patching(model, base, source, "a1.h0<k>", senders="all", answers=(1, 2), freeze="all")
    assert list(table.columns["sender"]) == ["input", "a0.h0", "a0.h1", "a0.h2"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"n_layer": 0}, "n_layer is a number from 1"),
        ({"h_dim": 10, "n_head": 4}, "no multiple of n_head"),
        ({"mlp_dim": -1}, "mlp_dim is a number from 0"),
        ({"n_head": 0}, "n_head is a number from 1"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(wrong, says):
    with pytest.raises(SpecError, match=says):
        TransformerConfig(**wrong)


def test_an_input_is_tokens_or_embeddings():
    model = TransformerLMHeadModel(TransformerConfig(**SIZES))
    with pytest.raises(SpecError, match="one of them only"):
        model()
    with pytest.raises(SpecError, match="one of them only"):
        model(torch.zeros(1, 2, dtype=torch.int64), inputs_embeds=torch.zeros(1, 2, 12))
    with pytest.raises(SpecError, match=r"10 tokens.*9 positions"):
        model(torch.zeros(1, 10, dtype=torch.int64))


def test_the_induction_model_repeats():
    config, tokenizer, model = create_induction_lm()
    assert (tokenizer, model.training, config.n_layer, config.mlp_dim) == (None, False, 2, 0)
    words = torch.stack([torch.randperm(64, generator=torch.Generator().manual_seed(n))[:17] for n in range(20)])
    text = words.repeat(1, 3)[:, :48]
    with torch.no_grad():
        right = model(text).logits[:, :-1].argmax(-1) == text[:, 1:]
    assert right[:, 24:].float().mean() > 0.97
    assert right[:, :16].float().mean() < 0.1  # before anything was repeated there is nothing to be known
