"""In half precision passes are packed as in full: a fixed tolerance once refused that to SmolLM2 in bfloat16."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from tests.fast.families import prompts

from align_transformers import Edit, Plan, Positions, Read, Run, Site, VanillaIntervention, bind, execute, one_by_one
from align_transformers.fast import planned
from align_transformers.plan import Logits

LAYERS = 4
TIMES = 4.0  # of the error that one pass a run has: rows of other passes are rounded otherwise, but no worse


def smollm2_like(dtype: torch.dtype):
    """Return a Llama of SmolLM2's proportions: 3 heads a key, tied embeddings, a norm before each layer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 128, "num_attention_heads": 6, "num_key_value_heads": 2}
    more = {"vocab_size": 61, "num_hidden_layers": LAYERS, "tie_word_embeddings": True, "rope_theta": 100000.0}
    config = transformers.LlamaConfig(**sizes, **more, initializer_range=0.3, max_position_embeddings=64)
    return transformers.LlamaForCausalLM(config).to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_grid_is_packed_and_as_exact_as_one_by_one(dtype):
    model = smollm2_like(dtype)
    inputs = {name: prompts("llama", (6, 4), "left", seed) for seed, name in enumerate("xy")}
    cells = [(example, position) for example in range(2) for position in range(2, 6)]
    examples, at = tuple(example for example, _ in cells), Positions(tuple((position,) for _, position in cells))
    runs = [Run("base", "x"), Run("source", "y")]
    for layer in range(LAYERS):
        site = Site("block_output", layer)
        swap = Edit(f"swap {layer}", site, "swap", at, source=Read("source", site, at, examples))
        runs.append(Run(f"run {layer}", "x", (swap,), examples))
    plan = Plan(tuple(runs), tuple(run.name for run in runs), Logits())

    def logits(model, planner):
        with torch.no_grad():
            outcome = execute(bind(model, plan, inputs, {"swap": VanillaIntervention()}), planner)
        return torch.cat([outcome.outputs[run.name].double() for run in runs]), outcome.passes

    (slow, _), (fast, passes) = logits(model, one_by_one), logits(model, planned)
    truth, _ = logits(copy.deepcopy(model).double(), one_by_one)
    assert [one.way for one in passes] == ["full", "full", "packed"], passes[-1].refused
    noise = max(float((slow - truth).abs().max()), torch.finfo(dtype).eps * float(truth.abs().max()))
    assert float((fast - truth).abs().max()) <= TIMES * noise
    assert float((truth[2:] - truth[:1]).abs().max()) > 10 * TIMES * noise  # an edit that is not made would be seen
