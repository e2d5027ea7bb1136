# %% [markdown]
# # Interventions on a GRU
#
# A recurrent network calls the same cell once a time step. The unit `t` counts these calls, so that a state can be
# taken from one step of one run and put into another step of another. The hidden state is all that passes from step
# to step: whatever was put in before the last edited step cannot matter. The ancestor's tutorial checks this for a
# random GRU with a hidden state of 2, on 10 sequences of 10 steps, and prints True twice.

# %%
import matplotlib.pyplot as plt
import torch

from align_transformers import (
    GRUConfig,
    IntervenableModel,
    LowRankRotatedSpaceIntervention,
    VanillaIntervention,
    create_gru_classifier,
    describe,
)

torch.manual_seed(0)
WIDTH, BATCH, STEPS = 2, 10, 10
config, _, gru = create_gru_classifier(GRUConfig(h_dim=WIDTH))
base, source = ({"inputs_embeds": torch.randn(BATCH, STEPS, WIDTH)} for _ in range(2))
with torch.no_grad():
    plain, other = gru(**base), gru(**source)
print(describe(gru))

# %% [markdown]
# ## The bottleneck
#
# Steps 0, 2 and 4 of the source go into steps 0, 5 and 7 of the base; then step 4 into 7 alone.

# %%
swap = IntervenableModel(
    {
        "layer": 0,
        "component": "cell_output",
        "unit": "t",
        "max_number_of_units": 3,
        "intervention_type": VanillaIntervention,
    },
    model=gru,
)
with torch.no_grad():
    _, three = swap(base, source, {"sources->base": ([0, 2, 4], [0, 5, 7])})
    _, one = swap(base, source, {"sources->base": (4, 7)})
    state = gru.gru(source["inputs_embeds"][:, :5]).hidden  # by hand: the source's state after step 4 ...
    rest = gru.gru(base["inputs_embeds"][:, 8:], state)  # ... and the base's steps 8 and 9 from there
print("three swaps give what the last one gives:", torch.equal(three.logits, one.logits))
print("that is a run continued by hand:         ", torch.equal(one.logits, gru.score(rest.last_hidden_state[:, -1])))
print(
    "steps before the edit are as they were:  ",
    torch.equal(one.last_hidden_state[:, :7], plain.last_hidden_state[:, :7]),
)
print("recorded: True, True (the third was not looked at)")
assert torch.equal(three.logits, one.logits)
assert torch.equal(one.logits, gru.score(rest.last_hidden_state[:, -1]))
assert torch.equal(one.last_hidden_state[:, :7], plain.last_hidden_state[:, :7])
assert not torch.allclose(one.logits, plain.logits)

# %% [markdown]
# ## Rotated, and linked
#
# At the last step the state is all that the classifier reads. A swap of both directions of a rotated basis there
# gives the source's output; so do two linked sites with one direction each.

# %%
last = {"layer": 0, "component": "cell_output", "unit": "t"}
das = LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=WIDTH, subspace_partition=[[0, 1], [1, 2]])
whole = IntervenableModel({**last, "intervention": das}, model=gru.requires_grad_(False))
linked = IntervenableModel([{**last, "intervention": das, "intervention_link_key": 0}] * 2, model=gru)
parts = [[[0]] * BATCH, [[1]] * BATCH]
_, rotated = whole(base, source, {"sources->base": STEPS - 1})
_, two = linked(base, [source, source], {"sources->base": STEPS - 1}, subspaces=parts)
_, first = linked(base, [source, None], {"sources->base": STEPS - 1}, subspaces=parts)
for name, output in {"rotated": rotated, "two linked parts": two, "one of them": first}.items():
    print(f"{name:<17} off by {(output.logits - other.logits).abs().max():.1e}")
torch.nn.functional.cross_entropy(first.logits, other.logits.argmax(-1)).backward()
gradient = next(one.grad for one in das.parameters() if one.requires_grad)
print(f"norm of the rotation's gradient: {gradient.norm():.3f}")
assert (rotated.logits - other.logits).abs().max() < 1e-5
assert (two.logits - other.logits).abs().max() < 1e-5
assert (first.logits - other.logits).abs().max() > 1e-2
assert gradient.norm() > 0

# %% [markdown]
# ## Inside the cell
#
# Gates have names, too. Each is swapped at each step by itself, and the change of the logits is measured: early steps
# are mostly forgotten, and no gate does at the last step what the state does.

# %%
COMPONENTS = ["cell_output", "update_gate_output", "reset_gate_output", "new_gate_output"]
effect = torch.zeros(len(COMPONENTS), STEPS)
for row, component in enumerate(COMPONENTS):
    gate = IntervenableModel({**last, "component": component, "intervention_type": VanillaIntervention}, model=gru)
    for step in range(STEPS):
        with torch.no_grad():
            _, output = gate(base, source, {"sources->base": step})
        effect[row, step] = (output.logits - plain.logits).norm(dim=-1).mean()
for component, values in zip(COMPONENTS, effect, strict=True):
    print(f"{component:<20} step 0 {values[0]:.3f}   step 5 {values[5]:.3f}   step 9 {values[9]:.3f}")
print(f"the state's swap at step 9 does {effect[0, 9] / effect[0, 0]:.0f} times as much as that at step 0")
assert effect[0, 9] > 5 * effect[0, 0]
assert effect[0, 9] > effect[1:, 9].max()

# %%
figure, axes = plt.subplots(figsize=(6.5, 2.4))
image = axes.imshow(effect.numpy(), cmap="Blues", vmin=0, aspect="auto")
axes.set(yticks=range(len(COMPONENTS)), yticklabels=COMPONENTS, xticks=range(STEPS), xlabel="step that is swapped")
figure.colorbar(image, label="change of the logits")
figure.tight_layout()
