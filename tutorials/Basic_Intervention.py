# %% [markdown]
# # Basic intervention: where does the answer come from?
#
# "The capital of Spain is" makes a language model say Madrid. Where, inside, is it decided? We put activations that
# the model has for Italy into its run on Spain, one place at a time, and read the probabilities of Madrid and Rome.
# Then two stricter experiments: path patching (which part tells the answer directly?) and causal scrubbing (does a
# hypothesis about the whole computation hold?).
#
# The ancestor of this library ran the first experiment on GPT-2. Its numbers stand beside ours, which are of
# SmolLM2-135M. Papers: interchange interventions, arXiv:2106.02997; path patching, arXiv:2211.00593; causal
# scrubbing, Chan et al. 2022.

# %%
import os

import matplotlib.pyplot as plt

from align_transformers import (
    Claim,
    IntervenableModel,
    Site,
    VanillaIntervention,
    causal_scrubbing,
    grid,
    load_model,
    path_patching,
    probability,
)  # fmt: skip

SMALL = os.environ.get("TUTORIALS") == "small"  # tests run less of everything
model, tokenizer = load_model("smollm2-135m")
SPAIN, ITALY = "The capital of Spain is", "The capital of Italy is"

# %% [markdown]
# ## One swap
#
# An intervention is named by a layer, a component and what is done there. Here the MLP of layer 0 gets, at the
# country's token (position 3), the output that it has for Italy. The call returns what the model said before and
# after.

# %%
swap = IntervenableModel({"layer": 0, "component": "mlp_output", "intervention_type": VanillaIntervention}, model=model)
base, source = (tokenizer(text, return_tensors="pt") for text in (SPAIN, ITALY))
before, after = swap(base, source, {"sources->base": 3}, output_original_output=True)
words = [tokenizer.decode(output.logits[0, -1].argmax()) for output in (before, after)]
print("before:", words[0], " after:", words[1])
assert words == [" Madrid", " Rome"]

# %% [markdown]
# One vector, in the first layer, turned the answer over.
#
# ## Every swap
#
# `grid` makes that swap at each layer and token, for the MLP's output and for what the attention reads. Swaps that
# have a prefix in common are computed together: the last line below counts the forward passes.

# %%
COMPONENTS = ["mlp_output", "attention_input"]
table = grid(
    model, SPAIN, ITALY, tokenizer=tokenizer, components=COMPONENTS, layers=[0, 12, 22, 23, 29] if SMALL else "all",
    metrics={"Madrid": probability(" Madrid", tokenizer=tokenizer), "Rome": probability(" Rome", tokenizer=tokenizer)},
)  # fmt: skip
clean = {"P(Madrid|Spain)": table.meta["base_Madrid_value"], "P(Rome|Italy)": table.meta["source_Rome_value"]}
recorded = {"P(Madrid|Spain)": 0.1050, "P(Rome|Italy)": 0.1573}
for name, value in clean.items():
    print(f"{name}: {value:.3f}    recorded for GPT-2: {recorded[name]:.3f}")
print(len(table), "swaps,", table.meta["passes"])

# %% [markdown]
# The strongest swaps, by the probability of Rome. For GPT-2 the first MLP at the country was the strongest there,
# too, and after it the input of late attention layers at the same token.

# %%
strongest = sorted(table.rows(), key=lambda row: row["Rome"], reverse=True)[:4]
for row in strongest:
    what = f"{row['component']} of layer {row['layer']} at{row['token']}"
    print(f"{what:<38} P(Rome) {row['Rome']:.3f}   P(Madrid) {row['Madrid']:.3f}")
print("recorded for GPT-2: mlp_output of layer 0 at Spain, P(Rome) about 0.12, P(Madrid) about 0")

first = strongest[0]
assert (first["component"], first["layer"], first["token"]) == ("mlp_output", 0, " Spain")
assert first["Rome"] > 0.95 * clean["P(Rome|Italy)"]
assert first["Madrid"] < 0.01
assert all(row["token"] == " Spain" for row in strongest[:2])

# %%
table.plot("Rome")

# %% [markdown]
# ## Path patching: who tells the last token?
#
# A swap says that a part matters, not along which way. Path patching sends a head's output for Italy along the
# residual stream to the logits alone, with all else held at what it is for Spain. What it changes is the direct
# effect of that head.

# %%
paths = path_patching(model, SPAIN, ITALY, "logits", freeze="all", tokenizer=tokenizer)
heads = sorted(paths.rows(), key=lambda row: row["recovered"], reverse=True)
for row in heads[:3]:
    print(f"{row['sender']:<7} goes {row['recovered']:.0%} of the way from Madrid to Rome")
late = sum(row["recovered"] > 0.05 for row in heads if row["layer"] >= 23)
early = sum(row["recovered"] > 0.05 for row in heads if row["layer"] < 23)
print(f"heads above 5 %: {late} in layers 23 to 29, {early} in layers 0 to 22")
assert heads[0]["sender"] == "a23.h4"
assert 0.3 < heads[0]["recovered"] < 0.5
assert early == 0

# %%
paths.plot()

# %% [markdown]
# One head of layer 23 tells the most, and no head before that layer tells the logits more than 5 % directly. What the
# early MLP wrote at the country's token reaches the last token by way of these heads.
#
# ## Causal scrubbing: is that the whole story?
#
# The hypothesis: up to some layer the country's token carries all that matters, and from there on the last token
# does. To scrub it, everything that the hypothesis does not mention is taken from prompts about other countries, and
# the claimed state from a prompt about the same country. If the hypothesis is right, the loss is what it was: 1 of it
# is recovered. If it is wrong, the model does as badly as with a random prompt: 0.

# %%
CAPITALS = {"Spain": " Madrid", "Italy": " Rome", "France": " Paris", "Japan": " Tokyo", "Germany": " Berlin",
            "China": " Beijing", "Russia": " Moscow", "Cuba": " Havana"}  # fmt: skip
prompts = [f"The capital of {country} is" for country in CAPITALS]
same_first = ["S" if country in ("Spain", "Italy", "France", "Germany") else "other" for country in CAPITALS]


def recovered(layer, position, feature):
    claim = Claim(Site("block_output", layer), feature=feature, positions=[position])
    return causal_scrubbing(
        model, prompts, [claim], tokenizer=tokenizer, answers=list(CAPITALS.values()), draws=3 if SMALL else 10
    )


tokens, scrubbed = {"country's token": 3, "last token": -1}, {}
LAYERS = [10, 25] if SMALL else [0, 5, 10, 15, 18, 20, 21, 22, 23, 24, 25, 29]
for name, position in tokens.items():
    scrubbed[name] = [recovered(layer, position, list(CAPITALS)).meta["recovered"] for layer in LAYERS]
for layer in (10, 25):
    at_layer = {name: f"{values[LAYERS.index(layer)]:.2f}" for name, values in scrubbed.items()}
    print(f"layer {layer}: loss recovered by {at_layer}")
taken_over = min(layer for layer, *two in zip(LAYERS, *scrubbed.values(), strict=True) if two[1] > two[0])
print(f"from layer {taken_over} on the last token recovers more")
wrong = recovered(10, 3, same_first)
print(f"layer 10, country's token, but only by western Europe or not: {wrong.meta['recovered']:.2f}")
assert scrubbed["country's token"][LAYERS.index(10)] > 0.9
assert scrubbed["country's token"][LAYERS.index(25)] < 0.3
assert scrubbed["last token"][LAYERS.index(10)] < 0.3
assert scrubbed["last token"][LAYERS.index(25)] > 0.9
assert 22 <= taken_over <= 25
assert wrong.meta["recovered"] < 0.7

# %%
figure, axes = plt.subplots(figsize=(6.5, 3.2))
for (name, values), style in zip(scrubbed.items(), ("o-", "s--"), strict=True):
    axes.plot(LAYERS, values, style, label=f"claim: the {name} carries it")
axes.set(xlabel="layer", ylabel="loss recovered", title="Causal scrubbing of two claims, layer by layer")
axes.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# Both claims are right, each in its layers, and the change is where path patching found the head. A hypothesis that
# keeps only the part of the world recovers a fifth: the country itself matters.
