"""A network of vectors, one an example: there are no places, so copies of several runs are not rows of one pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from align_transformers import Edit, Plan, Positions, Run, Site, VanillaIntervention, bind, execute, one_by_one
from align_transformers.plan import Constant, Logits
from align_transformers.zoo import MLPConfig, MLPForClassification


class Classifier(MLPForClassification):
    """A classifier that takes vectors without an axis of places, too."""

    component_paths = {  # noqa: RUF012
        "block_input": "h[{layer}].input",
        "block_output": "h[{layer}].output",
        "logits": "score.output",
    }

    def __init__(self):
        super().__init__(MLPConfig(h_dim=12, n_layer=3, num_classes=4))
        self.h = nn.ModuleList(nn.Sequential(nn.Linear(12, 12), nn.ReLU()) for _ in range(3))

    def forward(self, inputs_embeds):
        states = inputs_embeds
        for block in self.h:
            states = block(states)
        return self.score(states)


@pytest.mark.parametrize(("shape", "way"), [((4, 12), "partial"), ((4, 1, 12), "together")])
@torch.no_grad()
def test_runs_that_start_from_one_donor(shape, way):
    torch.manual_seed(0)
    model = Classifier().eval()
    inputs, new, copies = torch.randn(*shape), torch.randn(6, *shape[1:]), (0, 0, 1, 2, 3, 3)
    edited = tuple(
        Run(
            name,
            "x",
            (Edit(f"at {name}", Site("block_output", k), "swap", Positions(), source=Constant("new")),),
            copies,
        )
        for k, name in enumerate(("first", "second"))
    )
    plan = Plan((Run("clean", "x"), *edited), ("clean", "first", "second"), Logits())
    bound = bind(model, plan, {"x": inputs}, {"swap": VanillaIntervention()}, {"new": new})
    found, each = execute(bound), execute(bound, one_by_one).outputs
    by_hand = model.score(model.h[2](new)).view(6, 4)
    assert torch.equal(found.outputs["second"].view(6, 4), by_hand)
    for name, logits in each.items():
        assert torch.allclose(found.outputs[name], logits, atol=1e-6)
    assert {one.way for one in found.passes} == {"full", way}
