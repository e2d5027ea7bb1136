"""The forms in which dictionaries are found: their layouts, and what they compute, by formulas written out by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.untyped import untyped
from torch import Tensor, nn

from align_transformers import IntervenableModel, SiteError, SpecError
from align_transformers.interventions import AutoencoderIntervention, SubspaceIntervention
from align_transformers.operations import Add, Clamp, Collect, Function, Mean, Scale, Subtract, Swap, Zero
from align_transformers.subspaces import Dictionary, Mask

WIDTH, LATENTS, OUT = 4, 6, 3


def weights(*names: str, inputs: int = WIDTH, width: int = WIDTH) -> dict[str, Tensor]:
    shapes = {"W_enc": (inputs, LATENTS), "W_dec": (LATENTS, width), "b_dec": (width,), "W_skip": (width, inputs)}
    return {name: torch.randn(shapes.get(name, (LATENTS,))) for name in ("W_enc", "W_dec", "b_dec", *names)}


def write(folder, state, **cfg):
    """Write a folder as SAELens does."""
    base = {"d_in": len(state["W_enc"]), "d_sae": LATENTS, "dtype": "float32", "device": "cpu"}
    (folder / "cfg.json").write_text(json.dumps({**base, **cfg}), encoding="utf-8")
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "sae_weights.safetensors")
    return folder


def top(z: Tensor, k: int) -> Tensor:
    """Keep the k largest of each row, where they are above 0; row by row."""
    out = torch.zeros_like(z)
    for row, kept in zip(z.view(-1, z.shape[-1]), out.view(-1, z.shape[-1]), strict=True):
        for j in sorted(range(len(row)), key=lambda j: -float(row[j]))[:k]:
            kept[j] = row[j].clamp_min(0)
    return out


def by_hand(state: dict[str, Tensor], cfg: dict[str, Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return latents and reconstruction of vectors, as SAELens's documentation says what its settings mean."""
    scaling, transcodes = cfg.get("normalize_activations"), cfg.get("architecture", "").endswith("transcoder")
    inner, factor, centre = x, 1.0, 0.0
    if scaling == "constant_norm_rescale":
        factor = x.norm(dim=-1, keepdim=True) / WIDTH**0.5
        inner = x / factor
    elif scaling == "layer_norm":
        centre, factor = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        inner = (x - centre) / (factor + 1e-5)
    if cfg.get("apply_b_dec_to_input", True) and not transcodes:
        inner = inner - state["b_dec"]
    z = inner @ state["W_enc"]
    if "b_gate" in state:
        latents = (z + state["b_gate"] > 0) * torch.relu(z * state["r_mag"].exp() + state["b_mag"])
    else:
        z = z + state["b_enc"]
        norms = state["W_dec"].norm(dim=-1) if cfg.get("rescale_acts_by_decoder_norm") else torch.ones(LATENTS)
        z = z * norms
        k = cfg.get("k") or cfg.get("activation_fn_kwargs", {}).get("k")
        threshold = state.get("threshold", state.get("topk_threshold", torch.zeros(())))
        latents = top(z, k) if k else torch.relu(z) * (z > threshold)
        state = {**state, "W_dec": state["W_dec"] / norms.unsqueeze(1)}
    scaled = latents * state["scaling_factor"] if cfg.get("finetuning_scaling_factor") else latents
    out = scaled @ state["W_dec"] + state["b_dec"]
    if transcodes:
        return latents, out + (x @ state["W_skip"].T if "W_skip" in state else 0)
    return latents, out * factor + centre


LAYOUTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "standard": (("b_enc",), {"architecture": "standard", "normalize_activations": "none"}),
    "of old": (("b_enc",), {"activation_fn_str": "relu", "normalize_activations": False, "hook_name": "x"}),
    "jumprelu": (("b_enc", "threshold"), {"architecture": "jumprelu", "apply_b_dec_to_input": False}),
    "topk": (("b_enc",), {"architecture": "topk", "k": 2}),
    "topk of old": (
        ("b_enc",), {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}
    ),
    "topk by decoder norm": (("b_enc",), {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True}),
    "batchtopk, trained": (("b_enc", "threshold"), {"architecture": "jumprelu", "k": None}),
    "batchtopk, in training": (("b_enc", "topk_threshold"), {"architecture": "batchtopk"}),
    "gated": (("b_gate", "b_mag", "r_mag"), {"architecture": "gated"}),
    "gated, layer norm": (
        ("b_gate", "b_mag", "r_mag"), {"architecture": "gated", "normalize_activations": "layer_norm"}
    ),
    "layer norm": (("b_enc",), {"normalize_activations": "layer_norm"}),
    "constant norm": (("b_enc",), {"architecture": "topk", "k": 2, "normalize_activations": "constant_norm_rescale"}),
    "expected average": (("b_enc",), {"normalize_activations": "expected_average_only_in"}),
    "fine-tuned": (("b_enc", "scaling_factor"), {"finetuning_scaling_factor": True}),
    "not fine-tuned": (("b_enc", "scaling_factor"), {"finetuning_scaling_factor": False}),
    "heads": (("b_enc",), {"reshape_activations": "hook_z"}),
}  # fmt: skip
TRANSCODERS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "transcoder": (("b_enc",), {"architecture": "transcoder", "d_out": OUT, "apply_b_dec_to_input": False}),
    "skip": (("b_enc", "W_skip"), {"architecture": "skip_transcoder", "d_out": OUT}),
    "jumprelu": (("b_enc", "threshold"), {"architecture": "jumprelu_transcoder", "d_out": OUT}),
    "jumprelu skip": (
        ("b_enc", "threshold", "W_skip"), {"architecture": "jumprelu_skip_transcoder", "d_out": OUT}
    ),
}  # fmt: skip


def layout(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    names, cfg = LAYOUTS[name]
    state = weights(*names)
    state |= {name: state[name].abs() for name in ("threshold", "scaling_factor") if name in state}
    return ({**state, "topk_threshold": torch.tensor(0.3)} if "topk_threshold" in names else state), cfg


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_of_saelens(name, tmp_path):
    state, cfg = layout(name)
    one = Dictionary.from_saelens(write(tmp_path, state, **cfg))
    x = 2 * torch.randn(5, 3, WIDTH) + 1
    latents, reconstructed = by_hand(state, cfg, x)
    torch.testing.assert_close(one.encode(x), latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.decode(latents, x), reconstructed, rtol=1e-4, atol=1e-4)
    assert 0 < float((latents > 0).float().mean()) < 1
    # Ablating a latent takes from the vector what the reconstruction loses, in units of the vector.
    without = latents.clone()
    without[..., 2] = 0
    lost = reconstructed - one.decode(without, x)
    ablate = SubspaceIntervention(Zero(), one, coordinates=[2])
    torch.testing.assert_close(ablate(x), x - lost, rtol=1e-4, atol=1e-4)
    replaced = SubspaceIntervention(Scale(1.0), Dictionary.from_saelens(tmp_path, include_error=False))
    torch.testing.assert_close(replaced(x), reconstructed, rtol=1e-4, atol=1e-4)


def test_a_factor_that_is_not_in_the_weights(tmp_path):
    state = weights("b_enc")
    write(tmp_path, state, normalize_activations="expected_average_only_in")
    one, x = Dictionary.from_saelens(tmp_path, scaling_factor=2.5), torch.randn(7, WIDTH)
    latents, reconstructed = by_hand(state, {}, 2.5 * x)
    torch.testing.assert_close(one.encode(x), latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.decode(latents), reconstructed / 2.5, rtol=1e-4, atol=1e-5)
    write(tmp_path, state)
    with pytest.raises(SpecError, match="scaling_factor is for autoencoders with 'expected_average_only_in'"):
        Dictionary.from_saelens(tmp_path, scaling_factor=2.5)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (
            {"architecture": "temporal"},
            "architecture 'temporal' with activation 'relu' is not supported; known: standard",
        ),
        ({"architecture": "gated", "activation_fn": "topk"}, "'gated' with activation 'topk' is not supported"),
        ({"activation_fn_str": "tanh-relu"}, "'standard' with activation 'tanh-relu' is not supported"),
        ({"normalize_activations": "batch_norm"}, "normalize_activations='batch_norm' is not supported; known: 'none'"),
        ({"normalize_activations": ["none"]}, r"normalize_activations=\['none'\] is not supported"),
        ({"architecture": "topk"}, "a topk dictionary says what k is; found None"),
    ],
)
def test_what_is_not_known_is_refused(cfg, message, tmp_path):
    write(tmp_path, weights("b_enc"), **cfg)
    with pytest.raises(SpecError, match=message):
        Dictionary.from_saelens(tmp_path)


@pytest.mark.parametrize("name", ["topk", "gated", "layer norm"])
def test_the_class_of_relu_says_who_takes_the_others(name, tmp_path):
    state, cfg = layout(name)
    with pytest.raises(SpecError, match=r"Dictionary.from_saelens\(folder\)\) takes any"):
        AutoencoderIntervention.from_saelens(write(tmp_path, state, **cfg))


def test_a_mean_latent_is_not_the_latent_of_the_mean():
    one, x = Dictionary.from_state_dict(weights("b_enc")), torch.randn(9, WIDTH)
    mean = Mean.of(x, one)
    torch.testing.assert_close(mean.values, torch.stack([one.encode(row) for row in x]).mean(0))
    assert not torch.allclose(mean.values, one.encode(x.mean(0)))


# --- transcoders -----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A network with a module as wide as its input; where it is not, the engine refuses to read one for the other."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.mlp, self.after = nn.Linear(5, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def read(self, x: Tensor) -> Tensor:
        return torch.tanh(self.before(x))

    def write(self, x: Tensor) -> Tensor:
        return self.after(torch.tanh(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self.mlp(self.read(x)))


def run(model: nn.Module, ones: list[SubspaceIntervention], base: Tensor, sources: list[Tensor]) -> Tensor:
    places = [{"component": "mlp.output", "intervention": one} for one in ones]
    return IntervenableModel(places, model)(base, sources)[1]


@pytest.mark.parametrize("name", TRANSCODERS)
def test_a_transcoder_reads_the_modules_input_and_writes_its_output(name, tmp_path):
    names, cfg = TRANSCODERS[name]
    state = weights(*names)
    one = Dictionary.from_saelens(write(tmp_path, state, **{**cfg, "d_out": WIDTH}))
    assert (one.inputs, one.width, one.size) == (WIDTH, WIDTH, LATENTS)
    model, base, source = Block(), torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    read = model.read(base)
    (f, whole), (g, _) = by_hand(state, cfg, read), by_hand(state, cfg, model.read(source))
    torch.testing.assert_close(one.encode(read), f, rtol=1e-4, atol=1e-5)

    def wanted(new: Tensor) -> Tensor:
        """Return the output with latents 1 and 4 made new, and the transcoder's error kept."""
        edited = f.clone()
        edited[..., [1, 4]] = new[..., [1, 4]]
        return model.write(model.mlp(read) + (edited - f) @ state["W_dec"])

    # An operation without a source edits the latents of the base: its own input is its source.
    for operation, new in ((Zero(), 0 * f), (Scale(3.0), 3 * f), (Clamp(2.0), 0 * f + 2)):
        got = run(model, [SubspaceIntervention(operation, one, coordinates=[4, 1])], base, [base])
        torch.testing.assert_close(got, wanted(new), rtol=1e-4, atol=1e-4)
    # The latents of the source are added, those of the base subtracted: both together are a swap.
    both = [SubspaceIntervention(kind(), one, coordinates=[1, 4]) for kind in (Add, Subtract)]
    torch.testing.assert_close(run(model, both, base, [source, base]), wanted(g), rtol=1e-4, atol=1e-4)
    # Without the error the module's output is the transcoder's.
    replaced = Dictionary.from_saelens(tmp_path, include_error=False)
    got = run(model, [SubspaceIntervention(Scale(1.0), replaced)], base, [base])
    torch.testing.assert_close(got, model.write(whole), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TRANSCODERS)
def test_a_transcoder_between_places_of_other_widths(name, tmp_path):
    names, cfg = TRANSCODERS[name]
    state = weights(*names, width=OUT)
    one = Dictionary.from_saelens(write(tmp_path, state, **cfg))
    output, inputs = torch.randn(2, 3, OUT), torch.randn(2, 3, WIDTH)
    f, whole = by_hand(state, cfg, inputs)
    got = SubspaceIntervention(Scale(3.0), one)(output, inputs)
    torch.testing.assert_close(got, output + 2 * f @ state["W_dec"], rtol=1e-4, atol=1e-4)
    replaced = Dictionary.from_saelens(tmp_path, include_error=False)
    got = SubspaceIntervention(Scale(1.0), replaced)(output, inputs)
    torch.testing.assert_close(got, whole, rtol=1e-4, atol=1e-4)


def test_a_transcoder_under_a_mask_and_collected():
    one = Dictionary.from_state_dict(weights("b_enc", width=OUT), transcoder=True)
    output, inputs = torch.randn(2, 3, OUT), torch.randn(2, 3, WIDTH)
    collect = SubspaceIntervention(Collect(), one, coordinates=[5])
    assert torch.equal(collect(output, inputs), one.encode(inputs)[..., 5:])
    masked = SubspaceIntervention(Zero(), Mask(one))  # at first half of every latent
    torch.testing.assert_close(masked(output, inputs), output - 0.5 * one.encode(inputs) @ one.W_dec)
    again = SubspaceIntervention(**json.loads(json.dumps(masked.arguments())))
    again.load_state_dict(masked.state_dict())
    assert torch.equal(again(output, inputs), masked(output, inputs))
    with pytest.raises(SpecError, match=r"the source \(2, 3, 3\) does not fit"):
        collect(output, output)
    with pytest.raises(SpecError, match="needs a source"):
        collect(output)


@pytest.mark.parametrize("operation", [Swap(), Function(lambda base, source: source)])
def test_what_needs_two_inputs_is_refused(operation):
    one = Dictionary.from_state_dict(weights("b_enc", width=OUT), transcoder=True)
    with pytest.raises(SpecError, match="in Dictionary: a transcoder reads one input only"):
        SubspaceIntervention(operation, one)


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "gelu"}, "'relu', 'jumprelu', 'topk' or 'gated'; found 'gelu'; did you mean 'relu'"),
        ({"normalise": "batch"}, "'constant_norm_rescale' or 'layer_norm'; found 'batch'"),
        ({"activation": "topk"}, "topk has a k, from 1 to the 6 latents"),
        ({"activation": "topk", "k": 7}, "found k=7"),
        ({"k": 2}, "no other activation has; found k=2"),
        ({"skip": True}, "only a transcoder has a skip connection"),
        ({"inputs": 0}, "asked for 6 latents of width 4"),
    ],
)
def test_wrong_options(options, message):
    with untyped(), pytest.raises(SpecError, match=message):
        Dictionary(WIDTH, LATENTS, **options)


def test_state_dicts_that_do_not_fit():
    with pytest.raises(SpecError, match=r"W_dec has shape \(6, 3\); with W_enc \(4, 6\) it has \(6, 4\); for a transc"):
        Dictionary.from_state_dict(weights("b_enc", width=OUT))
    with pytest.raises(
        SpecError, match=r"a gated one has b_gate, b_mag, r_mag, no b_enc; .*; found W_dec, W_enc, b_dec"
    ):
        Dictionary.from_state_dict(weights("b_gate", "b_mag"))
    with pytest.raises(SpecError, match=r"W_skip has shape \(3, 4\); with W_enc \(4, 6\) it has \(4, 4\)"):
        Dictionary.from_state_dict({**weights("b_enc"), "W_skip": torch.zeros(3, 4)})


def test_a_transcoder_in_a_model_whose_module_gives_another_width():
    """The engine lets a transcoder read more coordinates than it writes, and refuses a wrong number of them."""
    model = nn.Sequential(nn.Linear(5, WIDTH), nn.Linear(WIDTH, OUT), nn.Linear(OUT, 2))
    state = weights("b_enc", width=OUT)
    one, base = Dictionary.from_state_dict(state, transcoder=True), torch.randn(2, 5)
    place = {"component": "1.output", "intervention": SubspaceIntervention(Zero(), one)}
    got = IntervenableModel(place, model)(base, [base])[1]
    read = model[0](base)
    torch.testing.assert_close(got, model[2](model[1](read) - one.encode(read) @ state["W_dec"]))
    other = Dictionary.from_state_dict(weights("b_enc", inputs=WIDTH + 1, width=OUT), transcoder=True)
    wrong = {"component": "1.output", "intervention": SubspaceIntervention(Zero(), other)}
    with pytest.raises(SiteError, match="5 coordinates are needed, but 4 are read"):
        IntervenableModel(wrong, model)(base, [base])
