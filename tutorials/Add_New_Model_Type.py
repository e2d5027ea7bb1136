# %% [markdown]
# # A model that nobody has seen
#
# The ancestor's tutorial adds flan-t5 to two tables of the library by hand, and then swaps Spain for Italy in its
# encoder. Here a model is written in the notebook, with names of its own for everything. Nothing has to be added: one
# pass over a small input is watched, and what is seen says where the parts are. What is not seen can be said.

# %%
import matplotlib.pyplot as plt
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from align_transformers import IntervenableModel, SourcelessIntervention, describe, grid, probability, resolve


class Mixer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.inside, self.back = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, t, w = x.shape
        q, k, v = (one.view(b, t, self.heads, -1).transpose(1, 2) for one in self.inside(self.norm(x)).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.back(mixed.transpose(1, 2).reshape(b, t, w))


class Squared(nn.Module):
    def forward(self, x):
        return torch.relu(x) ** 2


class Thinker(nn.Module):  # its two matrices are parameters, no linear layers
    def __init__(self, width):
        super().__init__()
        self.norm, self.squared = nn.LayerNorm(width), Squared()
        self.keys = nn.Parameter(torch.randn(width, 4 * width) * width**-0.5)
        self.values = nn.Parameter(torch.randn(4 * width, width) * (4 * width) ** -0.5)

    def forward(self, x):
        return self.squared(self.norm(x) @ self.keys) @ self.values


class Floor(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.mixer, self.thinker = Mixer(width, heads), Thinker(width)

    def forward(self, x):
        x = x + self.mixer(x)
        return x + self.thinker(x)


class Tower(nn.Module):
    def __init__(self, words, width=64, floors=3, heads=4, length=8):
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.floors = nn.ModuleList(Floor(width, heads) for _ in range(floors))
        self.say = nn.Linear(width, words, bias=False)

    def forward(self, input_ids):
        x = self.words(input_ids) + self.places.weight[: input_ids.shape[1]]
        for floor in self.floors:
            x = floor(x)
        return self.say(x)


# %% [markdown]
# ## It learns some capitals
#
# Its words are those of the sentence, 16 countries and their capitals.

# %%
CAPITALS = {
    "Spain": "Madrid", "Italy": "Rome", "France": "Paris", "Germany": "Berlin", "Portugal": "Lisbon",
    "Austria": "Vienna", "Greece": "Athens", "Poland": "Warsaw", "Hungary": "Budapest", "Russia": "Moscow",
    "Egypt": "Cairo", "Japan": "Tokyo", "China": "Beijing", "Cuba": "Havana", "Peru": "Lima", "Norway": "Oslo",
}  # fmt: skip
spoken = ["?", "The", "capital", "of", "is", *CAPITALS, *CAPITALS.values()]
core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(spoken)}, unk_token="?"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
# The tower takes no attention mask, so the tokenizer makes none.
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="?", model_input_names=["input_ids"])

torch.manual_seed(0)
tower = Tower(len(spoken))
prompts = tokenizer([f"The capital of {country} is" for country in CAPITALS], return_tensors="pt")["input_ids"]
answers = torch.tensor([spoken.index(city) for city in CAPITALS.values()])
adam = torch.optim.Adam(tower.parameters(), lr=3e-3)
for _ in range(60):
    loss = nn.functional.cross_entropy(tower(prompts)[:, -1], answers)
    adam.zero_grad()
    loss.backward()
    adam.step()
tower.eval().requires_grad_(False)
right = (tower(prompts)[:, -1].argmax(-1) == answers).float().mean().item()
print(f"capitals that it knows: {right:.2f}")
assert right == 1

# %% [markdown]
# ## What is found in it

# %%
print(describe(tower))

# %% [markdown]
# Queries, keys and values were told apart by gradients within one matrix, with their heads. Each block is seen to be
# a sum of its parts. `mlp_activation` is refused: the library sees no linear layer there, and does not guess. We know
# where it is.

# %%
found = resolve(tower, overrides={"mlp_activation": ("thinker.squared", "output")})
print(found.why("query_output", 0))
print(found.why("mlp_activation", 0))
assert "caller's word" in found.why("mlp_activation", 0)

# %% [markdown]
# ## Spain becomes Italy
#
# Everything that takes a model takes this one. Components have the names that they have everywhere. A dotted path
# names any other module: further down, the normed stream that the thinker of each floor gets.

# %%
table = grid(
    tower,
    "The capital of Spain is",
    "The capital of Italy is",
    tokenizer=tokenizer,
    components=["mlp_output", "attention_input"],
    metrics={name: probability(name, tokenizer=tokenizer) for name in ("Madrid", "Rome")},
)
clean = table.meta["base_Madrid_value"], table.meta["source_Rome_value"]
print(f"P(Madrid|Spain) {clean[0]:.3f}   recorded for flan-t5 0.081")
print(f"P(Rome|Italy)   {clean[1]:.3f}   recorded for flan-t5 0.031")
strongest = sorted(table.rows(), key=lambda row: -row["Rome"])[:3]
for row in strongest:
    print(
        f"{row['component']} {row['layer']} at {row['token']}: P(Rome) {row['Rome']:.3f}, P(Madrid) {row['Madrid']:.3f}"
    )
print("recorded for flan-t5: at Spain, in any layer, P(Rome) 0.025 to 0.030 and P(Madrid) about 0")
before = max(abs(row["Rome_effect"]) for row in table.rows() if row["position"] < 3)
print(f"largest effect at a token before the country: {before:.1e}")
assert strongest[0]["token"] == "Spain"
assert strongest[0]["component"] == "mlp_output"
assert strongest[0]["Rome"] > 0.5
assert before < 1e-5

# %%
table.plot("Rome")

# %%
path = grid(
    tower,
    "The capital of Spain is",
    "The capital of Italy is",
    tokenizer=tokenizer,
    components=[f"floors[{floor}].thinker.norm.output" for floor in range(3)],
    metrics={"Rome": probability("Rome", tokenizer=tokenizer)},
    positions=[3],
)
for row in path.rows():
    print(f"{row['component']}: P(Rome) {row['Rome']:.3f}")
named = next(row["Rome"] for row in table.rows() if row["component"] == "mlp_output" and row["position"] == 3)
assert abs(path.columns["Rome"][0] - named) < 1e-4  # what goes in decides what comes out

# %% [markdown]
# What the first thinker is given at the country decides what it writes there, so both swaps have one number.
#
# ## An intervention of one's own
#
# The ancestor's tutorial adds the embedding of Rome, and has to subclass for it. So do we: a class with a `forward`
# is all. It moves the stream at the last token from Madrid's direction of the unembedding to Rome's, by a dose.


# %%
class AddRome(SourcelessIntervention):
    def __init__(self, dose, **kwargs):
        super().__init__(**kwargs)
        rome, madrid = (tower.say.weight[spoken.index(city)] for city in ("Rome", "Madrid"))
        self.step = dose * (rome - madrid)

    def forward(self, base, source=None, subspaces=None):
        return base + self.step


spain = tokenizer("The capital of Spain is", return_tensors="pt")
doses, chances = [0, 10, 20, 25, 30, 35, 40, 50], []
for dose in doses:
    moved = IntervenableModel({"layer": 2, "component": "block_output", "intervention": AddRome(dose)}, model=tower)
    _, logits = moved(spain, None, {"base": -1})
    chances.append([logits[0, -1].softmax(-1)[spoken.index(city)].item() for city in ("Madrid", "Rome")])
for dose, (madrid, rome) in zip(doses, chances, strict=True):
    print(f"dose {dose:>2}: P(Madrid) {madrid:.3f}, P(Rome) {rome:.3f}")
assert chances[0][0] > 0.9
assert chances[-1][1] > 0.9

# %%
figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(doses, chances, "o-", label=["Madrid", "Rome"])
axes.set(xlabel="dose", ylabel="probability", title="The tower on Spain, moved towards Rome")
axes.legend(frameon=False)
figure.tight_layout()
