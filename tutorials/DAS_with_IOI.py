# %% [markdown]
# # Indirect object identification with DAS
#
# "When Mary and John went to the store, John gave a drink to" is continued with Mary. To say so a model has to find
# out which name stands only once. We ask three things of SmolLM2: which heads move the name to the end
# (arXiv:2211.00593), where it is known *which position* the right name has, and where it is known *which name* it is.
#
# The ancestor's tutorial asks this of GPT-2 (12 layers) with hundreds of fits. Its numbers stand beside those of
# SmolLM2-135M (30 layers), of which a part is enough here.

# %%
import os

import matplotlib.pyplot as plt

from align_transformers import (
    CausalModel,
    CounterfactualDataset,
    accuracy,
    align,
    load_model,
    path_patching,
    score,
)

SMALL = os.environ.get("TUTORIALS") == "small"  # tests run less of everything
model, tokenizer = load_model("smollm2-135m")

# %% [markdown]
# ## The causal model
#
# Two names, of which one is repeated. `position` says which of the two is the answer; `name` is that name, and the
# output says it.

# %%
NAMES = [
    "Mary", "John", "Tom", "Anna", "James", "Sarah", "Peter", "Kate", "Paul", "Emma",
    "David", "Laura", "Mark", "Jane", "Robert", "Alice", "Daniel", "Lucy", "Adam", "Rose",
]  # fmt: skip
ioi = CausalModel(
    ["first", "second", "repeats_first", "position", "name", "says"],
    values={"first": NAMES, "second": NAMES, "repeats_first": [False, True], "position": [1, 2]},
    parents={"position": ["repeats_first"], "name": ["first", "second", "position"], "says": ["name"]},
    functions={
        "position": lambda repeats_first: 2 if repeats_first else 1,
        "name": lambda first, second, position: (first, second)[position - 1],
        "says": lambda name: name,
    },
)


def write(one):
    again = one["first"] if one["repeats_first"] else one["second"]
    return f"When {one['first']} and {one['second']} went to the store, {again} gave a drink to"


def differ(one):
    return one["first"] != one["second"]


pairs = CounterfactualDataset.sample(ioi, 48 if SMALL else 300, variables="position", where=differ, seed=0)
example = pairs[0]
print("base:  ", write(example["base"]), "->", example["base_label"])
print("source:", write(example["sources"]["position"]))
print("with the source's position:", example["label"])

# %% [markdown]
# ## Can the model do it?

# %%
asked = [pairs[number]["base"] for number in range(16 if SMALL else 100)]
answers = [ioi.run_forward(one)["says"] for one in asked]
right = score(
    model,
    [write(one) for one in asked],
    [accuracy(tokenizer(f" {answer}")["input_ids"][0]) for answer in answers],
    tokenizer=tokenizer,
).mean([], value="metric")
row = next(right.rows())
print(f"accuracy: {row['metric']:.2f} [{row['low']:.2f}, {row['high']:.2f}]    recorded for GPT-2: 0.96")
assert row["metric"] > 0.9

# %% [markdown]
# ## Name movers
#
# In each pair the source repeats the other name. Path patching sends each head's output along the residual stream to
# the logits alone: what it takes away from the right name is what the head brings there directly.

# %%
few = asked[: 1 if SMALL else 8]
flipped = [{**one, "repeats_first": not one["repeats_first"]} for one in few]
names = [tuple(f" {ioi.run_forward(side)['says']}" for side in two) for two in zip(few, flipped, strict=True)]
paths = path_patching(
    model,
    [write(one) for one in few],
    [write(one) for one in flipped],
    "logits",
    freeze="all",
    tokenizer=tokenizer,
    answers=names,
)
heads = paths.mean(("sender", "layer", "head"), value="recovered")
movers = sorted(heads.rows(), key=lambda row: row["recovered"], reverse=True)[:4]
for row in movers:
    print(f"{row['sender']:<7} {row['recovered']:.2f} of the way to the other name")
print("recorded for GPT-2: heads 9 and 6 of layer 9 (of 12)")
against = sorted(heads.rows(), key=lambda row: row["recovered"])[:2]
print("against it:", {row["sender"]: round(row["recovered"], 2) for row in against})
assert all(row["layer"] >= 22 for row in movers)
assert movers[0]["recovered"] > 0.05
assert against[0]["recovered"] < 0

# %%
paths.plot()

# %% [markdown]
# The strongest heads are all in the last quarter of the model, as the recorded ones are. Some work against the name:
# the IOI paper has such negative name movers, too.
#
# ## Which position, which name
#
# At the last token, layer by layer: one direction that carries `position`, and for `name` the whole vector and a
# subspace of 20 dimensions. Sources have other names than bases, so a swap of the position must bring the *base's*
# other name, and a swap of the name the *source's*.


# %%
def search(variable, layers, **how):
    data = CounterfactualDataset.sample(ioi, 160 if SMALL else 700, variables=variable, where=differ, seed=0)
    return align(
        model,
        ioi,
        data.split((0.5, 0.15, 0.35), seed=0),
        template=write,
        tokenizer=tokenizer,
        layers=layers,
        batch_size=16,
        lr=0.02,
        loss="answers",
        **how,
    )


position = search(
    "position",
    [22] if SMALL else [18, 20, 21, 22, 23, 26],
    methods="das",
    ranks=1,
    max_steps=25 if SMALL else 80,
    controls=() if SMALL else ("random",),
    draws=9,
)
name = search(
    "name",
    [18, 26] if SMALL else [18, 22, 23, 24, 26],
    methods="swap" if SMALL else ["swap", "das"],
    ranks=20,
    max_steps=50,
    controls=(),
)
print("recorded for GPT-2 (12 layers): position: 0.11, 0.70, 0.44, 0.04 in layers 7, 8, 9, 10")
print("                                name: 0.16, 0.83, 0.85 in layers 9, 10, 11; in 20 dimensions 0.32, 0.83, 0.77")
found = {}
for title, result in {"position": position, "name": name}.items():
    for row in result.table.rows():
        method = "swap" if row["method"] == "swap" else f"{row['rank']} dimensions"
        found.setdefault(f"{title}, {method}", {})[row["layer"]] = row["iia"]
        print(f"{title}, layer {row['layer']}, {method}: {row['iia']:.2f} [{row['low']:.2f}, {row['high']:.2f}]")
at_position, at_name = found["position, 1 dimensions"], found["name, swap"]
best = max(at_position, key=at_position.get)
first = min(layer for layer, iia in at_name.items() if iia > 0.5)
print(f"position: best in layer {best}; name: from layer {first} of those on")
assert 20 <= best <= 22 < first
assert at_position[best] > 0.5
assert SMALL or max(at_position[18], at_position[26]) < 0.1
assert at_name[18] < 0.1
assert at_name[26] > 0.7

# %%
figure, axes = plt.subplots(figsize=(6.5, 3.2))
for label, values in found.items():
    axes.plot(list(values), list(values.values()), "o-", label=label.replace("1 dimensions", "1 dimension"))
axes.set(xlabel="layer", ylabel="IIA at the last token", ylim=(-0.03, 1.03))
axes.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# The same order as in GPT-2: first the position is known at the last token, in a few layers before the name movers;
# then, behind them, the name itself. The position's direction is used up there: it steers the heads and is no longer
# read.
