# %% [markdown]
# # Happy and sad endings
#
# A story begins "Once upon a time there was". A vector for *happy* or for *sad* is added to the stream while the
# model goes on with it. The ancestor's tutorial does this with TinyStories-33M and shows three stories; it measures
# nothing. Here the stories are of SmolLM2, and a dose-response takes the place of anecdotes: how much of the vector
# gives how much of the mood, and what the text pays for it.
#
# Activation addition: arXiv:2308.10248; contrastive directions: arXiv:2312.06681.

# %%
import os

import torch

from align_transformers import (
    AdditionIntervention,
    IntervenableModel,
    Site,
    activations,
    load_model,
    logit_difference,
    score,
    steer,
)

SMALL = os.environ.get("TUTORIALS") == "small"  # tests run less of everything
LAYER, TOKENS = 9, 10 if SMALL else 30
model, tokenizer = load_model("smollm2-135m")

# %% [markdown]
# ## Three stories
#
# The vector is the difference between what layer 9 holds at the end of happy and of sad sentences. It is added to
# every token that is generated, and to the prompt.

# %%
HEROES = ["boy", "girl", "dog", "cat", "king", "man"]
happy = [f"Once upon a time there was a happy {hero}. Everyone was full of joy and laughed" for hero in HEROES]
sad = [f"Once upon a time there was a sad {hero}. Everyone was full of grief and cried" for hero in HEROES]


def ends(texts):
    tokens = tokenizer(texts, return_tensors="pt", padding=True)
    return activations(model, tokens, Site("block_output", LAYER), "last")


towards = (ends(happy) - ends(sad)).mean(0)
prompt = tokenizer("Once upon a time there was", return_tensors="pt")
add = IntervenableModel(
    {"layer": LAYER, "component": "block_output", "intervention_type": AdditionIntervention}, model=model
)
stories = {}
for name, factor in (("as it is", 0.0), ("happy", 0.7), ("sad", -0.7)):
    _, tokens = add.generate(
        prompt,
        unit_locations={"base": slice(1, None)},  # the first token's state is another thing: attention rests on it
        source_representations=factor * towards,
        intervene_on_prompt=True,
        steps="all",
        max_new_tokens=TOKENS,
        do_sample=False,
    )
    stories[name] = tokenizer.decode(tokens[0])
    print(f"{name}: {stories[name]}\n")
assert len(set(stories.values())) == 3

# %% [markdown]
# ## A judge
#
# Is a story happy? The unsteered model reads it with one more sentence behind it, "In the end, everyone was very",
# and we take its logit of happy minus its logit of sad. The judge is tried on stories whose mood is known.

# %%
sentence = " In the end, everyone was very"
moody = logit_difference(" happy", " sad", tokenizer=tokenizer)


def mood(texts):
    read = [f"Once upon a time there was{text}{sentence}" for text in texts]
    return torch.tensor(score(model, read, moody, tokenizer=tokenizer).columns["metric"])


known = {
    "happy": mood([" a girl who got a puppy for her birthday.", " a boy who won the prize and hugged his friends."]),
    "sad": mood([" a girl whose puppy died in the snow.", " a boy who lost his mother and was left alone."]),
}
print({name: [round(value, 2) for value in values.tolist()] for name, values in known.items()})
assert known["happy"].min() > known["sad"].max()

# %% [markdown]
# ## Dose and response
#
# `steer` fits the same direction, adds it in several doses (shares of the stream's norm), generates a story for each
# prompt, and has the judge read them. Beside each dose stands a random direction of the same length, and the
# perplexity of the stories under the unsteered model.

# %%
beginnings = [f"Once upon a time there was{hero}" for hero in ("", " a boy", " a girl", " a dog", " a king", " a cat")]
table = steer(
    model,
    beginnings[1:3] if SMALL else beginnings,
    mood,
    layers=[LAYER],
    positive=happy,
    negative=sad,
    doses=[-0.4, 0.4] if SMALL else [-0.5, -0.4, -0.3, -0.15, 0.15, 0.3, 0.4, 0.5],
    max_new_tokens=TOKENS,
    control=True,
    seed=0,
    tokenizer=tokenizer,
)
curve = {point["dose"]: point for point in table.meta["curve"]}
print(f"agreement of the pairs' differences: {table.meta['directions'][0]['agreement']:.2f}")
for dose, point in curve.items():
    print(
        f"dose {dose:>5}: mood {point['effect']:>5.2f} [{point['low']:.2f}, {point['high']:.2f}]"
        f"   random direction {point['control_effect']:>5.2f}   perplexity {point['perplexity']:.1f}"
    )
print("recorded: three stories, no number")
unsteered = [row["metric"] for row in table.rows() if row["dose"] == 0]
print(f"mood of the unsteered stories: {sum(unsteered) / len(unsteered):.2f}")
assert SMALL or sum(unsteered) / len(unsteered) > known["happy"].min()
assert curve[-0.4]["effect"] < -1
assert curve[-0.4]["effect"] < curve[-0.4]["control_effect"]
assert curve[0.4]["effect"] - curve[-0.4]["effect"] > 1
assert curve[0.4]["perplexity"] > curve[0]["perplexity"]

# %% [markdown]
# The stories turn sad, by more than a random direction makes them. They do not turn happier: the judge finds the
# unsteered ones about as happy as the known happy ones, and every push costs fluency. Three anecdotes would not have
# said so.

# %%
table.plot()
