"""Edits of the latents of sparse autoencoders, and the layouts in which these come."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from align_transformers import SpecError
from align_transformers.interventions import AutoencoderIntervention, JumpReLUAutoencoderIntervention

WIDTH, LATENTS = 4, 6
KINDS = [AutoencoderIntervention, JumpReLUAutoencoderIntervention]
every = pytest.mark.parametrize("kind", KINDS)


def weights(kind) -> dict[str, torch.Tensor]:
    state = {
        "W_enc": torch.randn(WIDTH, LATENTS),
        "b_enc": torch.randn(LATENTS),
        "W_dec": torch.randn(LATENTS, WIDTH),
        "b_dec": torch.randn(WIDTH),
    }
    return {**state, "threshold": torch.rand(LATENTS)} if kind is JumpReLUAutoencoderIntervention else state


def encode(state: dict[str, torch.Tensor], x: torch.Tensor, subtract: bool = True) -> torch.Tensor:
    """Return the latents, one by one."""
    x = x - state["b_dec"] if subtract else x
    columns = []
    for j in range(LATENTS):
        z = (x * state["W_enc"][:, j]).sum(-1) + state["b_enc"][j]
        threshold = float(state["threshold"][j]) if "threshold" in state else 0.0
        columns.append(torch.where(z > threshold, z, torch.zeros_like(z)))
    return torch.stack(columns, -1)


def decode(state: dict[str, torch.Tensor], latents: torch.Tensor) -> torch.Tensor:
    return latents @ state["W_dec"] + state["b_dec"]


@every
@pytest.mark.parametrize("subtract", [True, False])
def test_encoding_and_decoding(kind, subtract):
    state, x = weights(kind), torch.randn(50, WIDTH)
    one = kind.from_state_dict(state, subtract_decoder_bias=subtract)
    latents = one.encode(x)
    torch.testing.assert_close(latents, encode(state, x, subtract), rtol=1e-5, atol=1e-5)
    assert 0 < float((latents > 0).float().mean()) < 1
    torch.testing.assert_close(one.decode(latents), decode(state, latents))


OPERATIONS = {
    "swap": ({}, lambda f, g: g),
    "add": ({"value": 1.5}, lambda f, g: f + 1.5),
    "ablate": ({"value": 9.0}, lambda f, g: 0 * f),
    "clamp": ({"value": 2.5}, lambda f, g: 0 * f + 2.5),
}


@every
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("include_error", [True, False])
def test_operations_on_chosen_latents(kind, operation, include_error):
    options, new = OPERATIONS[operation]
    state, base, source = weights(kind), torch.randn(3, 2, WIDTH), torch.randn(3, 2, WIDTH)
    one = kind.from_state_dict(state, operation=operation, latents=[4, 1], include_error=include_error, **options)
    f, g = encode(state, base), encode(state, source)
    edited = f.clone()
    for j in (1, 4):
        edited[..., j] = new(f, g)[..., j]
    wanted = decode(state, edited) + (base - decode(state, f) if include_error else 0)
    needs = operation == "swap"
    assert one.source_kind == ("run" if needs else "none")
    torch.testing.assert_close(one(base, source if needs else None), wanted, rtol=1e-4, atol=1e-4)
    assert one.latents == [1, 4]


@every
def test_an_untouched_set_of_latents_is_the_identity(kind):
    state, base, source = weights(kind), torch.randn(3, 2, WIDTH), torch.randn(3, 2, WIDTH)
    one = kind.from_state_dict(state)
    assert torch.equal(one(base, source, ((),) * 3), base)
    assert torch.equal(one(base, base.clone()), base)  # every latent swapped for its own value
    assert torch.equal(one(base, source, ((0,), (), (1, 2)))[1], base[1])
    assert not torch.allclose(kind.from_state_dict(state, include_error=False)(base, base), base)
    half = base.bfloat16()
    assert torch.equal(one(half, half.clone()), half)


@every
def test_subspaces_of_a_call_outrank_the_latents(kind):
    state, base, source = weights(kind), torch.randn(2, 1, WIDTH), torch.randn(2, 1, WIDTH)
    few = kind.from_state_dict(state, latents=[0])
    every_latent = kind.from_state_dict(state)
    choice = ((2, 3), (5,))
    assert torch.equal(few(base, source, choice), every_latent(base, source, choice))
    assert torch.equal(few(base, source), every_latent(base, source, ((0,), (0,))))


@every
def test_the_dictionary_is_frozen(kind):
    one = kind(embed_dim=WIDTH, latent_dim=LATENTS)
    assert list(one.parameters()) == []
    base = torch.randn(1, 1, WIDTH, requires_grad=True)
    one(base, torch.randn(1, 1, WIDTH)).sum().backward()
    assert base.grad is not None


@every
def test_a_configuration_gives_the_number_of_latents_as_a_rank(kind):
    assert kind(embed_dim=WIDTH, low_rank_dimension=LATENTS).latent_dim == LATENTS
    with pytest.raises(SpecError, match=r"needs latent_dim \(in a configuration: low_rank_dimension\)"):
        kind(embed_dim=WIDTH)


def test_layers_as_linear_modules_save_them():
    encoder, decoder = nn.Linear(WIDTH, LATENTS), nn.Linear(LATENTS, WIDTH)
    state = nn.ModuleDict({"encoder": encoder, "decoder": decoder}).state_dict()
    one = AutoencoderIntervention.from_state_dict(state, subtract_decoder_bias=False)
    x = torch.randn(7, WIDTH)
    torch.testing.assert_close(one.encode(x), torch.relu(encoder(x)))
    torch.testing.assert_close(one.decode(one.encode(x)), decoder(torch.relu(encoder(x))))
    assert one.dictionary.W_enc.data_ptr() != encoder.weight.data_ptr()


# --- SAELens ---------------------------------------------------------------------------------------------------------


def write(folder, state, **cfg):
    """Write a folder as SAELens does."""
    base = {"d_in": WIDTH, "d_sae": LATENTS, "dtype": "float32", "device": "cpu", "normalize_activations": "none"}
    (folder / "cfg.json").write_text(json.dumps({**base, **cfg}), encoding="utf-8")
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "sae_weights.safetensors")
    return folder


@every
@pytest.mark.parametrize("subtract", [True, False])
def test_a_folder_of_saelens(kind, subtract, tmp_path):
    state = weights(kind)
    name = "jumprelu" if kind is JumpReLUAutoencoderIntervention else "standard"
    folder = write(tmp_path, state, architecture=name, apply_b_dec_to_input=subtract, metadata={"hook_name": "x"})
    one = kind.from_saelens(folder, operation="ablate", latents=[2])
    x = torch.randn(9, WIDTH)
    torch.testing.assert_close(one.encode(x), encode(state, x, subtract), rtol=1e-5, atol=1e-5)
    assert (one.operation, one.subtract_decoder_bias) == ("ablate", subtract)
    other = KINDS[1 - KINDS.index(kind)]
    with pytest.raises(SpecError, match=r"holds a dictionary with .*relu .*; .*Intervention has .*relu"):
        other.from_saelens(folder)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"has no cfg.json and no sae_weights.safetensors"):
        AutoencoderIntervention.from_saelens(tmp_path)


# --- refused ---------------------------------------------------------------------------------------------------------


def test_state_dicts_that_do_not_fit():
    state = weights(AutoencoderIntervention)
    with pytest.raises(SpecError, match=r"has W_enc, b_enc, W_dec, b_dec .* found W_enc, b_dec, b_enc"):
        AutoencoderIntervention.from_state_dict({n: v for n, v in state.items() if n != "W_dec"})
    with pytest.raises(SpecError, match="found W_dec, W_enc, b_dec, b_enc, colour"):
        AutoencoderIntervention.from_state_dict({**state, "colour": torch.zeros(1)})
    with pytest.raises(SpecError, match=r"b_enc has shape \(5,\); with W_enc \(4, 6\) it has \(6,\)"):
        AutoencoderIntervention.from_state_dict({**state, "b_enc": torch.zeros(5)})
    with pytest.raises(SpecError, match="JumpReLUAutoencoderIntervention has a threshold, the state dict has none"):
        JumpReLUAutoencoderIntervention.from_state_dict(state)
    with pytest.raises(SpecError, match="AutoencoderIntervention has no threshold, the state dict has one"):
        AutoencoderIntervention.from_state_dict(weights(JumpReLUAutoencoderIntervention))


@every
def test_wrong_options(kind):
    size = {"embed_dim": WIDTH, "latent_dim": LATENTS}
    with pytest.raises(SpecError, match="latents are numbers from 0 to 5, at least one; found"):
        kind(**size, latents=[6])
    with pytest.raises(SpecError, match="at least one"):
        kind(**size, latents=[])
    with pytest.raises(SpecError, match="the dictionary is one of width 4; the vectors have 3"):
        kind(**size)(torch.zeros(1, 1, 3), torch.zeros(1, 1, 3))
    with pytest.raises(SpecError, match="a dictionary has latents of vectors; asked for 0 latents of width 4"):
        kind(embed_dim=WIDTH, latent_dim=0)
