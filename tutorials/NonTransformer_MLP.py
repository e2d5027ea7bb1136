# %% [markdown]
# # Interventions on an MLP
#
# Nothing here needs a transformer. In a classifier with one block, the block's output is all that the logits are made
# of, so what a swap there must give is known beforehand: with the whole vector swapped, in whatever basis, the output
# is the source's. The ancestor's tutorial prints the logits of both, 0.1747 and -0.1433 twice, from a random network.
# Ours are random, too, so the numbers differ; that they are equal does not.
#
# Rotated subspaces: DAS, arXiv:2303.02536.

# %%
import matplotlib.pyplot as plt
import torch

from align_transformers import (
    IntervenableModel,
    LowRankRotatedSpaceIntervention,
    MLPConfig,
    RotatedSpaceIntervention,
    VanillaIntervention,
    create_mlp_classifier,
    describe,
)

torch.manual_seed(0)
WIDTH, BATCH = 32, 10
config, _, mlp = create_mlp_classifier(MLPConfig(h_dim=WIDTH, n_layer=1))
base, source, third = ({"inputs_embeds": torch.randn(BATCH, 1, WIDTH)} for _ in range(3))
print(describe(mlp))

# %% [markdown]
# ## All of it, in a rotated basis
#
# The site is a component of the block. The rotation is random and has two parts of 16 coordinates; both are swapped.

# %%
HALVES = [[0, WIDTH // 2], [WIDTH // 2, WIDTH]]
rotated = IntervenableModel(
    {
        "layer": 0,
        "component": "block_output",
        "intervention_type": RotatedSpaceIntervention,
        "subspace_partition": HALVES,
    },
    model=mlp,
)
with torch.no_grad():
    _, swapped = rotated(base, source, {"sources->base": 0}, subspaces=[0, 1])
    _, half = rotated(base, source, {"sources->base": 0}, subspaces=[0])
    expected = mlp(**source).logits
print("first example, swapped:", swapped.logits[0].tolist())
print("first example, source: ", expected[0].tolist())
error = (swapped.logits - expected).abs().max().item()
apart = (half.logits - expected).abs().max().item()
print(f"largest difference: both parts {error:.1e}, one part {apart:.2f}")
print("recorded: 0.1747, -0.1433 both times")
assert error < 1e-5  # float32, after a rotation and back
assert apart > 0.05

# %% [markdown]
# One part alone is not enough: the outputs differ. So the equality above is not there because nothing was done.
#
# ## Two sources, one part each
#
# Two sites that are linked share one intervention, and each example may choose the part it swaps. Where both sources
# are the same, the output is the source's. Where they differ, it is made of one half of each; without a rotation we
# can write that down by hand.

# %%
link = {"layer": 0, "component": "block_output", "intervention_link_key": 0}
das = LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=WIDTH, subspace_partition=HALVES)
plain = VanillaIntervention(subspace_partition=HALVES)
parts = [[[0]] * BATCH, [[1]] * BATCH]
linked = IntervenableModel([{**link, "intervention": das}] * 2, model=mlp)
_, both = linked(base, [source, source], {"sources->base": 0}, subspaces=parts)
same = (both.logits - expected).abs().max().item()

mixed = IntervenableModel([{**link, "intervention": plain}] * 2, model=mlp)
with torch.no_grad():
    _, two = mixed(base, [source, third], {"sources->base": 0}, subspaces=parts)
    block = [mlp.h[0](one["inputs_embeds"]) for one in (source, third)]
    by_hand = mlp.score(torch.cat([block[0][..., :16], block[1][..., 16:]], -1))[:, 0]
print(f"the same source twice, rotated: off by {same:.1e}")
print("two sources, one half of each: equal to the hand-made ones", torch.equal(two.logits, by_hand))
assert same < 1e-5
assert torch.equal(two.logits, by_hand)

# %% [markdown]
# ## It can be learned
#
# The output depends on the rotation where not all of it is swapped, so a loss has a gradient there. The network
# itself gets none.

# %%
one_direction = IntervenableModel(
    {
        "layer": 0,
        "component": "block_output",
        "intervention_type": LowRankRotatedSpaceIntervention,
        "low_rank_dimension": 1,
    },
    model=mlp.requires_grad_(False),
)
_, moved = one_direction(base, source, {"sources->base": 0})
torch.nn.functional.cross_entropy(moved.logits, expected.argmax(-1)).backward()
learned = [parameter for parameter in one_direction.parameters() if parameter.requires_grad]
print("parameters that learn:", [tuple(parameter.shape) for parameter in learned])
print(f"norm of their gradient: {learned[0].grad.norm():.3f}")
assert all(parameter.grad is None for parameter in mlp.parameters())
assert learned[0].grad.norm() > 0

# %% [markdown]
# ## How many directions?
#
# Of a random rotation more and more coordinates are swapped. The distance from the source's output falls, and is zero
# only when all are swapped: a random basis spreads what the two logits read over all coordinates.

# %%
rotation = RotatedSpaceIntervention(embed_dim=WIDTH)
every = IntervenableModel({"layer": 0, "component": "block_output", "intervention": rotation}, model=mlp)
counts = [1, 2, *range(4, WIDTH + 1, 4)]
distance = []
for count in counts:
    with torch.no_grad():  # without a partition, `subspaces` names coordinates
        _, output = every(base, source, {"sources->base": 0}, subspaces=list(range(count)))
    distance.append((output.logits - expected).norm(dim=-1).mean().item())
assert distance[-1] < 1e-5
assert distance[-2] > 0.01
print({count: round(value, 3) for count, value in zip(counts, distance, strict=True)})

# %%
figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(counts, distance, "o-")
axes.set(xlabel="coordinates of a random rotation that are swapped", ylabel="distance from the source's logits")
figure.tight_layout()
