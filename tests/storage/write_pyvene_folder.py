"""Writes `pyvene_folder/`: interventions as pyvene 0.1.8 itself saves them, and what they compute.

Kept for the record; not a test. Run with pyvene 0.1.8, transformers 4.57.6 and torch 2.13.0:

    python tests/storage/write_pyvene_folder.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

FOLDER = Path(__file__).parent / "pyvene_folder"
WIDTH, LATENTS = 8, 5
SEED, STEPS = 5, 3


def tiny_model() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=11, n_positions=8, n_embd=WIDTH, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=None)
    ).eval()


def representations(kinds: Any) -> list[dict[str, Any]]:
    return [
        {
            "layer": 0,
            "component": "block_output",
            "low_rank_dimension": 3,
            "intervention_type": kinds.LowRankRotatedSpaceIntervention,
        },
        {
            "layer": 1,
            "component": "mlp_output",
            "subspace_partition": [[0, 3], [3, 8]],
            "intervention_type": kinds.RotatedSpaceIntervention,
        },
        {"layer": 1, "component": "block_output", "intervention_type": kinds.BoundlessRotatedSpaceIntervention},
        {"layer": 0, "component": "mlp_output", "intervention_type": kinds.SigmoidMaskIntervention},
        {"layer": 0, "component": "block_input", "intervention_type": kinds.SigmoidMaskRotatedSpaceIntervention},
        {
            "layer": 0,
            "component": "attention_output",
            "intervention_type": kinds.VanillaIntervention,
            "intervention_link_key": 0,
        },
        {
            "layer": 1,
            "component": "attention_output",
            "intervention_type": kinds.VanillaIntervention,
            "intervention_link_key": 0,
        },
        {
            "component": "transformer.h[1].mlp.output",
            "intervention_type": kinds.AdditionIntervention,
            "source_representation": torch.arange(float(WIDTH)),
        },
        {
            "layer": 0,
            "component": "block_output",
            "low_rank_dimension": LATENTS,
            "intervention_type": kinds.JumpReLUAutoencoderIntervention,
        },
        {
            "layer": 0,
            "component": "mlp_input",
            "latent_dim": LATENTS,
            "intervention_type": kinds.AutoencoderIntervention,
        },
        {
            "layer": 0,
            "component": "block_output",
            "max_number_of_units": 2,
            "low_rank_dimension": 2,
            "intervention_type": kinds.LowRankRotatedSpaceIntervention,
        },
        {"layer": 1, "component": "mlp_input", "intervention_type": kinds.SubtractionIntervention},
    ]


def perturb(intervention: torch.nn.Module) -> None:
    """Move the parameters away from where they begin, as a fit would."""
    named = intervention.named_parameters()
    free = [value for name, value in named if value.requires_grad and name != "temperature"]
    optimiser = torch.optim.SGD(free, lr=0.3)
    for _ in range(STEPS):
        optimiser.zero_grad()
        # Of a rotation the loss sees the orthonormal matrix: the free one has entries that must not change.
        rotation = [intervention.rotate_layer.weight] if hasattr(intervention, "rotate_layer") else []
        others = [
            value for name, value in intervention.named_parameters() if value.requires_grad and "rotate" not in name
        ]
        sum((torch.randn_like(value) * value).sum() for value in (*rotation, *others)).backward()
        optimiser.step()


def width_of(representation: dict) -> int:
    return WIDTH * representation.get("max_number_of_units", 1)


def main() -> None:
    import pyvene  # not installed where the tests are run

    written = representations(pyvene)
    shutil.rmtree(FOLDER, ignore_errors=True)
    torch.manual_seed(SEED)
    intervenable = pyvene.IntervenableModel(pyvene.IntervenableConfig(written), tiny_model())
    modules = list(intervenable.interventions.values())
    for module in modules:
        if isinstance(module, pyvene.TrainableIntervention):
            perturb(module)
    modules[1].set_interchange_dim(6)
    modules[2].set_temperature(torch.tensor(1.5))
    modules[3].set_temperature(torch.tensor(0.5))
    modules[4].set_temperature(torch.tensor(20.0))
    modules[8].set_interchange_dim(3)
    modules[9].set_interchange_dim(2)
    intervenable.save(str(FOLDER))

    loaded = pyvene.IntervenableModel.load(str(FOLDER), tiny_model())
    recorded = []
    for representation, module in zip(written, loaded.interventions.values(), strict=True):
        base, source = torch.randn(3, width_of(representation)), torch.randn(3, width_of(representation))
        with torch.no_grad():
            output = module(base.clone(), source.clone())
            parts = None
            if representation.get("subspace_partition"):
                parts = module(base.clone(), source.clone(), [[1], [1], [1]]).tolist()
        recorded.append(
            {"base": base.tolist(), "source": source.tolist(), "output": output.tolist(), "second_part": parts}
        )
    (FOLDER / "recorded.json").write_text(json.dumps(recorded))


if __name__ == "__main__":
    main()
