# %% [markdown]
# # Align your own hypothesis
#
# You have a network, and an idea of how it computes its answer. Write the idea as a Python function, ask `align`
# where the network keeps its variables, and let the controls say whether you were right. Here the network adds three
# digits, and two ideas of it are wrong.
#
# Causal abstraction: arXiv:2106.02997; DAS: arXiv:2303.02536; how such searches go wrong: arXiv:2311.17030.

# %%
import os
import tempfile

import torch
from torch import nn

from align_transformers import CounterfactualDataset, IntervenableModel, align, causal_model, evaluate

SMALL = os.environ.get("TUTORIALS") == "small"  # tests run less of everything

# %% [markdown]
# ## The network
#
# Its first part sees a and b, its second part what comes of them and c. That is drawn on purpose: we know the answer.


# %%
class Adder(nn.Module):
    def __init__(self):
        super().__init__()
        self.digits, self.answer = nn.Embedding(10, 16), nn.Linear(32, 28)
        self.first = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())

    def forward(self, three):
        a, b, c = self.digits(three).unbind(1)
        return self.answer(self.second(torch.cat([self.first(torch.cat([a, b], 1)), c], 1)))


torch.manual_seed(0)
adder, three = Adder(), torch.cartesian_prod(*[torch.arange(10)] * 3)
adam = torch.optim.Adam(adder.parameters(), lr=1e-2)
for _ in range(300):
    loss = nn.functional.cross_entropy(adder(three), three.sum(1))
    adam.zero_grad()
    loss.backward()
    adam.step()
adder.eval().requires_grad_(False)
accuracy = (adder(three).argmax(-1) == three.sum(1)).float().mean().item()
print(f"accuracy on all {len(three)} sums: {accuracy:.3f}")
assert accuracy > 0.99

# %% [markdown]
# ## Three ideas
#
# All three give the right sums. They differ in what is computed on the way.


# %%
@causal_model(values={name: range(10) for name in "abc"})
def a_and_b(a, b, c):
    x = a + b
    return x + c


@causal_model(values={name: range(10) for name in "abc"})
def b_and_c(a, b, c):
    x = b + c
    return a + x


@causal_model(values={name: range(10) for name in "abc"})
def a_and_c(a, b, c):
    x = a + c
    return x + b


base, source = {"a": 1, "b": 2, "c": 3}, {"a": 9, "b": 9, "c": 0}
for idea in (a_and_b, b_and_c, a_and_c):
    output = idea.run_interchange(base, {"x": source})["output"]
    print(f"1 + 2 + 3, with x from 9 + 9 + 0, says {output}")

# %% [markdown]
# ## The search
#
# For each idea: counterfactual pairs, and a grid of hypotheses (place, rank). Of each, directions are fitted on some
# inputs, chosen on others, and scored on inputs that neither has seen.


# %%
def search(idea):
    data = CounterfactualDataset.sample(idea, 2500 if SMALL else 6000, variables="x", seed=0)
    return align(
        adder,
        idea,
        data,
        encode=lambda one: {"three": torch.tensor([one["a"], one["b"], one["c"]])},
        sites=["first.output"] if SMALL else ["first.output", "second.output"],
        methods="das",
        ranks=[8] if SMALL else [4, 8],
        max_steps=150,
    )


results = {"x = a + b": search(a_and_b), "x = b + c": search(b_and_c)}
if not SMALL:
    results["x = a + c"] = search(a_and_c)
for name, result in results.items():
    best = result.best()
    of = f"IIA {best['iia']:.2f} [{best['low']:.2f}, {best['high']:.2f}]"
    print(f"{name}: {best['component']}, rank {best['rank']}, {of}")
    for control in ("full", "random", "permuted", "reinitialised"):
        print(f"    {control:<14} {best[control]:.2f}")
    print("   ", *result.verdict)
right, *wrong = (result.best() for result in results.values())
assert right["component"] == "first.output"
assert right["iia"] > 0.9
assert max(right["random"], right["permuted"], right["reinitialised"]) < 0.5
assert all(row["high"] < right["low"] for row in wrong)

# %% [markdown]
# The first idea stands out from all its controls. The others are refused by the network: no part of it can be swapped
# as they say.
#
# `full` swaps the whole vector: no subspace should do better than its container does. `random` are random subspaces
# of the same rank, `permuted` is a fit to shuffled labels, `reinitialised` the same fit in a network with new
# weights.

# %%
results["x = a + b"].plot()

# %%
results["x = b + c"].plot()

# %% [markdown]
# ## Keep what was found
#
# The table and the chosen interventions go into a folder; what is loaded scores what was told.

# %%
with tempfile.TemporaryDirectory() as folder:
    results["x = a + b"].save(folder)
    again = IntervenableModel.load(f"{folder}/x", model=adder)
fresh = CounterfactualDataset.sample(a_and_b, 1000, variables="x", seed=7)
loader = fresh.batches(250, encode=lambda one: {"three": torch.tensor([one["a"], one["b"], one["c"]])})
again_iia = evaluate(again, loader)["iia"]
print(f"loaded, on 1000 new pairs: IIA {again_iia:.2f}")
assert again_iia > 0.9
