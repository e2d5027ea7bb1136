# %% [markdown]
# # Steer, and measure the damage
#
# A direction makes a model say what you want. What else does it change? We steer SmolLM2 towards praise, dose by
# dose, and put three things beside the effect: a random direction of the same length, how fluent the text is, and
# whether the model still knows capitals while it is steered.
#
# Contrastive directions: arXiv:2312.06681; what they do not do: arXiv:2407.12404.

# %%
import os

import matplotlib.pyplot as plt
import torch

from align_transformers import (
    AdditionIntervention,
    IntervenableModel,
    accuracy,
    load_model,
    logit_difference,
    score,
    steer,
)

SMALL = os.environ.get("TUTORIALS") == "small"  # tests run less of everything
model, tokenizer = load_model("smollm2-135m")
LAYER = 12
SUBJECTS = ["film", "play", "meal", "trip", "book", "game", "song", "party"]
DOSES = [-0.4, 0.4, 1.2] if SMALL else [-1.2, -0.8, -0.4, -0.2, 0.2, 0.4, 0.8, 1.2]

# %% [markdown]
# ## The effect
#
# The direction is the difference of means over pairs of sentences. A dose of 1 adds as much as the stream is long.
# What is measured is the logit of " good" minus that of " bad", and what the model writes.

# %%
some = SUBJECTS[:3] if SMALL else SUBJECTS
table = steer(
    model,
    [f"I think that the {subject} was" for subject in some],
    logit_difference(" good", " bad", tokenizer=tokenizer),
    layers=[LAYER],
    positive=[f"I love this {subject}, it is great" for subject in SUBJECTS],
    negative=[f"I hate this {subject}, it is awful" for subject in SUBJECTS],
    doses=DOSES,
    max_new_tokens=8 if SMALL else 20,
    control=True,
    seed=0,
    tokenizer=tokenizer,
)
curve = {point["dose"]: point for point in table.meta["curve"]}
for dose, point in curve.items():
    print(
        f"dose {dose:>4}: effect {point['effect']:>5.2f} [{point['low']:.2f}, {point['high']:.2f}], "
        f"random {point['control_effect']:>5.2f}, wrong way {point['wrong_way']:.2f}, "
        f"perplexity {point['perplexity']:.1f}"
    )
for row in table.rows():
    if row["prompt"] == 0 and row["dose"] in (0, 0.4, 1.2):
        print(f"dose {row['dose']}: ...{row['text']!r}")
up, down = max(dose for dose in curve if dose < 1), min(curve)
assert curve[up]["effect"] > 0 > curve[down]["effect"]
assert abs(curve[up]["effect"]) > abs(curve[up]["control_effect"])
assert curve[1.2]["effect"] < curve[0.4]["effect"]
assert curve[0.4]["perplexity"] < 2 * curve[0]["perplexity"]
assert curve[1.2]["perplexity"] > 2 * curve[0]["perplexity"]

# %%
table.plot()

# %% [markdown]
# ## The damage
#
# The same direction, while the model answers questions about capitals. `applied` keeps an intervention in place for
# whatever calls the model. The first token is left out, as `steer` leaves it out: attention rests on it, and whatever
# is added there breaks the model.

# %%
CAPITALS = {"Spain": " Madrid", "Italy": " Rome", "France": " Paris", "Japan": " Tokyo", "Germany": " Berlin",
            "China": " Beijing", "Russia": " Moscow", "Cuba": " Havana", "Egypt": " Cairo",
            "Poland": " Warsaw"}  # fmt: skip
questions = [f"The capital of {country} is" for country in CAPITALS]
right = [accuracy(tokenizer(capital)["input_ids"][0]) for capital in CAPITALS.values()]
fitted = table.meta["directions"][0]
direction, norm = torch.tensor(fitted["direction"]), fitted["norm"]
noise = torch.randn(direction.shape, generator=torch.Generator().manual_seed(0))
noise /= noise.norm()
add = IntervenableModel(
    {"layer": LAYER, "component": "block_output", "intervention_type": AdditionIntervention}, model=model
)


def knows(vector):
    tokens = tokenizer(questions, return_tensors="pt", padding=True)
    with add.applied({"base": slice(1, None)}, source_representations=vector), torch.no_grad():
        said = model(**tokens).logits
    last = tokens["attention_mask"].sum(1) - 1
    found = said[torch.arange(len(questions)), last].argmax(-1)
    wanted = torch.tensor([tokenizer(capital)["input_ids"][0] for capital in CAPITALS.values()])
    return (found == wanted).float().mean().item()


unsteered = sum(score(model, questions, right, tokenizer=tokenizer).columns["metric"]) / len(questions)
known = {dose: (knows(dose * norm * direction), knows(dose * norm * noise)) for dose in sorted({0, *DOSES})}
print(f"capitals right without steering: {unsteered:.2f}")
for dose, (steered, random) in known.items():
    print(f"dose {dose:>4}: {steered:.2f}, along a random direction {random:.2f}")
assert abs(known[0][0] - unsteered) < 1e-6
assert known[0.4][0] < unsteered - 0.2
assert max(known[1.2]) < 0.2

# %%
figure, axes = plt.subplots(figsize=(6.5, 3.2))
axes.plot(list(known), [values[0] for values in known.values()], "o-", label="the direction")
axes.plot(list(known), [values[1] for values in known.values()], "s--", color="gray", label="a random one")
axes.set(xlabel="dose", ylabel="capitals right", ylim=(-0.03, 1.03))
axes.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# A small dose gives most of the effect. A larger one gives no more of it, and takes from the model what it knew long
# before the text reads badly: at a dose of 0.4 the praise still reads well, and most capitals are gone. A random
# direction of that length does damage, too: it is the length that costs.
