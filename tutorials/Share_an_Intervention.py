# %% [markdown]
# # Share an intervention
#
# You found a direction and want a colleague to have it: the numbers, what they belong to, and a refusal when they are
# put into another model. A folder holds all three. The same folder goes to and from the model hub.

# %%
import json
import tempfile
from copy import deepcopy
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from align_transformers import (
    AdditionIntervention,
    AlignError,
    IntervenableModel,
    Site,
    SourcelessIntervention,
    activations,
    load_model,
    logit_difference,
    score,
)

model, tokenizer = load_model("smollm2-135m")
LAYER = 12

# %% [markdown]
# ## Something to share
#
# A direction from hate to love, with the dose in it.

# %%
SUBJECTS = ["film", "play", "meal", "trip", "book", "game"]


def ends(verb, word):
    texts = [f"I {verb} this {subject}, it is {word}" for subject in SUBJECTS]
    return activations(model, tokenizer(texts, return_tensors="pt"), Site("block_output", LAYER), "last")


direction = (ends("love", "great") - ends("hate", "awful")).mean(0)
praise = IntervenableModel(
    {
        "layer": LAYER,
        "component": "block_output",
        "intervention": AdditionIntervention(source_representation=direction),
    },
    model=model,
)
texts = ["I think that the film was", "I think that the trip was", "I think that the party was"]
measure = logit_difference(" good", " bad", tokenizer=tokenizer)


def praises(intervenable):
    with intervenable.applied({"base": slice(1, None)}):  # all tokens but the first, on which attention rests
        return score(model, texts, measure, tokenizer=tokenizer).columns["metric"]


before, steered = score(model, texts, measure, tokenizer=tokenizer).columns["metric"], praises(praise)
for text, one, other in zip(texts, before, steered, strict=True):
    print(f"{text!r}: logit of good minus bad {one:.2f}, steered {other:.2f}")
assert all(other > one for one, other in zip(before, steered, strict=True))

# %% [markdown]
# ## The folder

# %%
folder = Path(tempfile.mkdtemp()) / "praise"
praise.save(folder, metrics={"good minus bad": sum(steered) / len(steered)}, tokenizer=tokenizer)
for path in sorted(folder.iterdir()):
    print(f"{path.name}: {path.stat().st_size} bytes")
written = json.loads((folder / "intervention.json").read_text())
print("it says:", ", ".join(written))
print((folder / "README.md").read_text()[:600])
assert sorted(path.name for path in folder.iterdir()) == ["README.md", "intervention.json", "weights.safetensors"]

# %% [markdown]
# Plain data, weights, and a card for readers. Loading runs nothing that a file names.
#
# ## On the other side

# %%
again = IntervenableModel.load(folder, model=model)
print("loaded, the same numbers:", praises(again) == steered)
assert praises(again) == steered

# %% [markdown]
# ## What is refused
#
# Another model, and one of the same shape whose weights are others. And a class of yours that the other side does not
# have: it is not looked for, it has to be handed over.

# %%
other = deepcopy(model)
with torch.no_grad():
    other.model.layers[3].mlp.down_proj.weight.mul_(1.01)


class Halve(SourcelessIntervention):
    def forward(self, base, source=None, subspaces=None):
        return base / 2


mine = Path(tempfile.mkdtemp()) / "halve"
IntervenableModel({"layer": 3, "component": "mlp_output", "intervention": Halve()}, model=model).save(mine)
refused = {}
for name, load in {
    "weights changed by 1 %": lambda: IntervenableModel.load(folder, model=other),
    "a class that nobody handed over": lambda: IntervenableModel.load(mine, model=model),
}.items():
    try:
        load()
    except AlignError as error:
        refused[name] = str(error)
        print(f"{name}: {type(error).__name__}: {error}\n")
assert len(refused) == 2
assert IntervenableModel.load(mine, model=model, classes=[Halve]) is not None
print("with classes=[Halve] it is loaded")

# %%
figure, axes = plt.subplots(figsize=(6.5, 2.6))
place = range(len(texts))
axes.barh([one + 0.2 for one in place], before, 0.38, label="as it is", color="C7")
axes.barh([one - 0.2 for one in place], praises(again), 0.38, label="with the loaded intervention", color="C0")
axes.set(yticks=list(place), yticklabels=texts, xlabel="logit of good minus bad")
axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.4, 1))
figure.tight_layout()
