# %% [markdown]
# # First ten minutes
#
# A language model says that the capital of Spain is Madrid. In ten minutes: what is inside it, one intervention, all
# of them at once, what an edit did, and what happens if you ask for something that is not there. The model is
# SmolLM2-135M; any PyTorch model of yours goes where it goes.

# %%
import torch

from align_transformers import (
    AdditionIntervention,
    AlignError,
    IntervenableModel,
    Site,
    VanillaIntervention,
    ZeroIntervention,
    activations,
    describe,
    grid,
    load_model,
    where,
)

model, tokenizer = load_model("smollm2-135m")
spain = tokenizer("The capital of Spain is", return_tensors="pt")
italy = tokenizer("The capital of Italy is", return_tensors="pt")


def says(logits):
    chance, token = logits[0, -1].softmax(-1).max(-1)
    return f"{tokenizer.decode(token)} ({chance:.2f})"


with torch.no_grad():
    print("Spain:", says(model(**spain).logits), "  Italy:", says(model(**italy).logits))

# %% [markdown]
# ## Minute 1: what is in there
#
# `describe` watches one small pass and says what it saw: the blocks, and in each the components with their widths and
# heads. These names are used everywhere.

# %%
print(describe(model))

# %% [markdown]
# ## Minute 3: one swap
#
# An intervention says where (layer and component) and what. The call says at which token: here the country's, number
# 3. `sources->base` reads: from the source's run into the base's.

# %%
swap = IntervenableModel(
    {"layer": 12, "component": "block_output", "intervention_type": VanillaIntervention}, model=model
)
result = swap(spain, italy, {"sources->base": 3}, return_dict=True)
print("Spain, with Italy's state at the country:", says(result.intervened_outputs.logits))
assert says(result.intervened_outputs.logits).startswith(" Rome")

# %% [markdown]
# ## Minute 4: what it did
#
# Every edit is counted: how often it fired, what it touched, how large the change was. An edit that never fires is an
# error.

# %%
for effect in result.effects:
    print(f"{effect.site}: fired {effect.fired}, {effect.positions} position, change {effect.change:.1f}")
assert (result.effects[0].fired, result.effects[0].positions) == (1, 1)

# %% [markdown]
# ## Minute 5: other operations
#
# Not all need a source. Zero takes something away. A constant vector can be added: here what France differs by from
# Spain, in another sentence, whose token is found by its text.

# %%
zero = IntervenableModel({"layer": 0, "component": "mlp_output", "intervention_type": ZeroIntervention}, model=model)
add = IntervenableModel(
    {"layer": 12, "component": "block_output", "intervention_type": AdditionIntervention}, model=model
)
site = Site("block_output", 12)
france = tokenizer("The capital of France is", return_tensors="pt")
difference = (activations(model, france, site, 3) - activations(model, spain, site, 3))[0]
text = "My friend says that the capital of Spain is"
friend = tokenizer(text, return_tensors="pt")
with torch.no_grad():
    _, without = zero(spain, None, {"base": 3})
    _, moved = add(friend, None, {"base": where(tokenizer, [text], "Spain")}, source_representations=difference)
    unmoved = says(model(**friend).logits)
print("without what the first MLP writes at the country:", says(without.logits))
print(f"{text}: {unmoved}; with the difference between France and Spain added: {says(moved.logits)}")
assert not says(without.logits).startswith(" Madrid")
assert unmoved.startswith(" Madrid")
assert says(moved.logits).startswith(" Paris")

# %% [markdown]
# ## Minute 7: all swaps
#
# `grid` makes the swap at every layer and every token. 0 is the model's answer to the base, 1 that to the source.

# %%
table = grid(model, "The capital of Spain is", "The capital of Italy is", tokenizer=tokenizer)
at_country = [row["recovered"] for row in table.rows() if row["position"] == 3]
at_last = [row["recovered"] for row in table.rows() if row["position"] == 4]
taken_over = next(layer for layer in range(30) if at_last[layer] > at_country[layer])
print(f"{len(table)} swaps in {sum(table.meta['passes'].values())} passes")
print(f"country's token, layer 12: {at_country[12]:.2f}; last token, layer 12: {at_last[12]:.2f}")
print(f"the last token takes over in layer {taken_over}")
assert at_country[12] > 0.9
assert abs(at_last[12]) < 0.1
assert 22 <= taken_over <= 24

# %%
table.plot()

# %% [markdown]
# The answer stays at the country's token up to that layer, and is at the last token from there on.
#
# ## Minute 9: when it is wrong
#
# A mistake is refused before the model runs, and the message says what there is.

# %%
mistakes = {
    "a misspelt component": lambda: IntervenableModel({"layer": 3, "component": "block_ouput"}, model=model),
    "a layer too many": lambda: IntervenableModel({"layer": 30, "component": "block_output"}, model=model),
    "a token too many": lambda: swap(spain, italy, {"sources->base": 9}),
}
refused = 0
for name, mistake in mistakes.items():
    try:
        mistake()
    except AlignError as error:
        refused += 1
        print(f"{name}: {type(error).__name__}: {error}\n")
assert refused == len(mistakes)
