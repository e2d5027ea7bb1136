# %% [markdown]
# # Trace a fact
#
# Where is the fact that Madrid is the capital of Spain, on its way through the model? Four studies look at it, and
# they know nothing of each other: restoration under noise (causal tracing, arXiv:2202.05262), activation patching,
# the logit lens, and direct attribution to heads. If the story is right, they put the change at about the same layer.

# %%
import os

import matplotlib.pyplot as plt

from align_transformers import at, causal_tracing, direct_logit_attribution, grid, load_model, logit_lens

SMALL = os.environ.get("TUTORIALS") == "small"  # tests run less of everything
model, tokenizer = load_model("smollm2-135m")
CAPITALS = {"Spain": " Madrid", "Italy": " Rome", "Japan": " Tokyo", "Russia": " Moscow"}
if SMALL:
    CAPITALS = {name: CAPITALS[name] for name in ("Spain", "Italy")}
countries = list(CAPITALS)
facts = {
    "base": [f"The capital of {country} is" for country in countries],
    "base_answer": list(CAPITALS.values()),
    "country": countries,
    "source": [f"The capital of {country} is" for country in countries[::-1]],
    "source_answer": list(CAPITALS.values())[::-1],
    "source_country": countries[::-1],
}
places = {"country": at("{country}"), "last": -1}
LAYERS = [4, 12, 20, 21, 22, 23, 24, 26, 29] if SMALL else list(range(30))

# %% [markdown]
# ## Restoration
#
# Noise is put on the country's embedding, so that the model no longer knows which it is. Then one clean state at a
# time is put back. The indirect effect says how much of the answer's probability returns.

# %%
traced = causal_tracing(
    model,
    facts,
    at("{country}"),
    tokenizer=tokenizer,
    components=["block_output"],
    layers=LAYERS,
    positions=places,
    draws=2 if SMALL else 5,
    seed=0,
)
clean, corrupted = (sum(traced.meta[name]) / len(countries) for name in ("clean", "corrupted"))
print(f"probability of the capital: {clean:.2f}, with noise on the country {corrupted:.2f}")
assert clean > 0.3
assert corrupted < 0.1


def by_place(table, value):
    """Return for each place the mean over facts, layer by layer."""
    rows = list(table.rows())
    return {
        place: [
            sum(picked) / len(picked)
            for layer in LAYERS
            for picked in [[row[value] for row in rows if (row["layer"], row["place"]) == (layer, place)]]
        ]
        for place in places
    }


total = sum(traced.meta["total_effect"]) / len(countries)
restored = {place: [value / total for value in values] for place, values in by_place(traced, "indirect_effect").items()}

# %% [markdown]
# ## Patching
#
# The state of a run about another country instead of noise. 1 is that country's capital.

# %%
patched = grid(
    model, facts, tokenizer=tokenizer, components=["block_output"], layers=LAYERS, positions=places, align="last"
)
moved = by_place(patched, "recovered")

# %% [markdown]
# ## The lens
#
# Each state is read as if it were the last: at which rank among all tokens does the answer stand?

# %%
lens = logit_lens(model, facts, tokenizer=tokenizer, layers=LAYERS, positions=places, top=0)
rank = by_place(lens, "rank")


def taken_over(values, sign):
    """Return the first layer from which on the last token has more than the country's token."""
    behind = [
        number
        for number, (country, last) in enumerate(zip(values["country"], values["last"], strict=True))
        if sign * (last - country) <= 0
    ]
    return LAYERS[max(behind, default=-1) + 1]


layers = {
    "restoration": taken_over(restored, 1),
    "patching": taken_over(moved, 1),
    "lens": taken_over(rank, -1),
}
print("the last token takes over in layer:", layers)
early, late = LAYERS.index(12), LAYERS.index(26)
for name, values in (("restoration", restored), ("patching", moved)):
    numbers = {place: (round(values[place][early], 2), round(values[place][late], 2)) for place in places}
    print(f"{name}, layers 12 and 26: {numbers}")
    assert values["country"][early] > 0.6 > 0.2 > values["last"][early]
    assert values["last"][late] > 0.8 > 0.2 > values["country"][late]
assert all(20 <= layer <= 24 for layer in layers.values())

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
for values, style, name in ((restored, "o-", "restoration"), (moved, "s--", "patching")):
    for place, colour in (("country", "C0"), ("last", "C1")):
        left.plot(LAYERS, values[place], style, color=colour, markersize=3, label=f"{name}, {place}")
left.set(xlabel="layer", ylabel="share of the effect")
left.legend(frameon=False, fontsize=8)
for place, colour in (("country", "C0"), ("last", "C1")):
    right.plot(LAYERS, [value + 1 for value in rank[place]], "o-", color=colour, markersize=3, label=place)
right.set(xlabel="layer", ylabel="rank of the answer + 1", yscale="log")
right.legend(frameon=False, fontsize=8)
figure.tight_layout()

# %% [markdown]
# ## Who brings it?
#
# The logit difference between the two capitals is a sum over heads and MLPs. The largest part belongs to a head of
# the layer in which the last token takes over.

# %%
parts = direct_logit_attribution(
    model, "The capital of Spain is", tokenizer=tokenizer, answers=" Madrid", against=" Rome"
)
ranked = sorted(parts.rows(), key=lambda row: row["contribution"], reverse=True)
for row in ranked[:3]:
    print(f"layer {row['layer']}, head {row['head']}: {row['contribution']:.2f} of {parts.meta['logit'][0]:.2f}")
print(f"the parts sum to {sum(parts.columns['contribution']):.2f}")
assert (ranked[0]["layer"], ranked[0]["head"]) == (23, 4)
assert abs(sum(parts.columns["contribution"]) - parts.meta["logit"][0]) < 1e-3
