# %% [markdown]
# # From pyvene
#
# Ten things that one does with pyvene, and how they are written here. pyvene's code stands in the text (`pv` is
# pyvene); ours runs, on a GPT-2 with random weights, and is checked by hand-made forward passes. Most lines are the
# same: configurations, names of components, locations and calls are understood as pyvene writes them.

# %%
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from align_transformers import (
    AdditionIntervention,
    CollectIntervention,
    IntervenableConfig,
    IntervenableModel,
    LowRankRotatedSpaceIntervention,
    RepresentationConfig,
    VanillaIntervention,
    ZeroIntervention,
    grid,
)

torch.manual_seed(0)
sizes = {"vocab_size": 50, "n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 64, "initializer_range": 0.3}
gpt2 = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval().requires_grad_(False)
base, source = ({"input_ids": torch.randint(1, 50, (2, 6))} for _ in range(2))
plain, other = gpt2(**base).logits, gpt2(**source).logits
blocks = gpt2.transformer.h
done = []

# %% [markdown]
# ## 1. Swap an activation
#
# ```python
# pv_gpt2 = pv.IntervenableModel({"layer": 1, "component": "mlp_output",
#                                 "intervention_type": pv.VanillaIntervention}, model=gpt2)
# _, intervened = pv_gpt2(base, [source], {"sources->base": 3})
# ```

# %%
swap = IntervenableModel({"layer": 1, "component": "mlp_output", "intervention_type": VanillaIntervention}, model=gpt2)
_, intervened = swap(base, [source], {"sources->base": 3})


def by_hook(module, edit, inputs):
    """Return the logits with a hand-written hook on a module's output."""
    handle = module.register_forward_hook(lambda _module, _args, output: edit(output.clone()))
    try:
        return gpt2(**inputs).logits
    finally:
        handle.remove()


kept = []
by_hook(blocks[1].mlp, lambda output: kept.append(output) or output, source)


def put(output):
    output[:, 3] = kept[0][:, 3]
    return output


assert torch.equal(intervened.logits, by_hook(blocks[1].mlp, put, base))
done.append("swap")

# %% [markdown]
# ## 2. A configuration object
#
# ```python
# config = pv.IntervenableConfig([pv.RepresentationConfig(0, "block_output", "pos", 1)],
#                                intervention_types=pv.VanillaIntervention)
# ```

# %%
config = IntervenableConfig([RepresentationConfig(0, "block_output", "pos", 1)], intervention_types=VanillaIntervention)
_, intervened = IntervenableModel(config, gpt2)(base, [source], {"sources->base": ([[[2], [3]]], [[[4], [5]]])})
assert not torch.equal(intervened.logits, plain)
done.append("configuration")

# %% [markdown]
# ## 3. Zero, or add a constant
#
# ```python
# pv.IntervenableModel({"layer": 0, "component": "mlp_output", "intervention_type": pv.ZeroIntervention}, model=gpt2)
# pv.IntervenableModel({"layer": 0, "component": "mlp_output", "source_representation": vector,
#                       "intervention_type": pv.AdditionIntervention}, model=gpt2)
# ```

# %%
vector = torch.ones(32)
zero = IntervenableModel({"layer": 0, "component": "mlp_output", "intervention_type": ZeroIntervention}, model=gpt2)
add = IntervenableModel(
    {
        "layer": 0,
        "component": "mlp_output",
        "intervention_type": AdditionIntervention,
        "source_representation": vector,
    },
    model=gpt2,
)
_, zeroed = zero(base, None, None)
_, added = add(base, None, None)
assert torch.equal(zeroed.logits, by_hook(blocks[0].mlp, torch.zeros_like, base))
assert torch.allclose(added.logits, by_hook(blocks[0].mlp, lambda output: output + 1, base), atol=1e-5)
done.append("zero and add")

# %% [markdown]
# ## 4. Collect activations
#
# ```python
# collect = pv.IntervenableModel({"layer": 2, "component": "block_output",
#                                 "intervention_type": pv.CollectIntervention}, model=gpt2)
# (_, [activations]), _ = collect(base, unit_locations={"base": [1, 3]})
# ```
#
# Here `{"base": [1, 3]}` means positions 1 and 3; pyvene reads two numbers as a source's and a base's.

# %%
collect = IntervenableModel(
    {
        "layer": 2,
        "component": "block_output",
        "intervention_type": CollectIntervention,
        "max_number_of_units": 2,
    },
    model=gpt2,
)
found = collect(base, None, {"base": [1, 3]}, return_dict=True).collected_activations[0]

seen = []
by_hook(blocks[2], lambda output: seen.append(output) or output, base)
assert torch.equal(found, seen[0][:, [1, 3]])
done.append("collect")

# %% [markdown]
# ## 5. One attention head
#
# ```python
# {"layer": 1, "component": "head_attention_value_output", "unit": "h.pos", ...}
# {"sources->base": ([[[[2]], [[5]]] * ...  # heads first, then positions
# ```

# %%
head = IntervenableModel(
    {
        "layer": 1,
        "component": "head_attention_value_output",
        "unit": "h.pos",
        "intervention_type": VanillaIntervention,
    },
    model=gpt2,
)
places = [[[[2]] * 2, [[5]] * 2]]
_, by_head = head(base, source, {"sources->base": (places, places)})
assert torch.equal(by_head.logits[:, :5], plain[:, :5])
assert not torch.equal(by_head.logits[:, 5], plain[:, 5])
done.append("head")

# %% [markdown]
# ## 6. Several sources, and chains of them
#
# ```python
# pv.IntervenableConfig([...], mode="serial")
# pv_gpt2(base, [source_0, source_1], {"source_0->source_1": 4, "source_1->base": 5})
# ```

# %%
chain = IntervenableModel(
    IntervenableConfig(
        [{"layer": layer, "component": "block_output", "intervention_type": VanillaIntervention} for layer in (0, 1)],
        mode="serial",
    ),
    gpt2,
)
_, chained = chain(base, [source, base], {"source_0->source_1": 4, "source_1->base": 5})
assert not torch.equal(chained.logits, plain)
done.append("serial")

# %% [markdown]
# ## 7. Any module, any function
#
# ```python
# pv.IntervenableModel({"component": "transformer.h[1].mlp.output", "intervention": lambda base, source: ...},
#                      model=gpt2)
# ```

# %%
double = IntervenableModel({"component": "transformer.h[1].mlp.output", "intervention": lambda base: 2 * base}, gpt2)
_, doubled = double(base, None, None)
assert torch.equal(doubled.logits, by_hook(blocks[1].mlp, lambda output: 2 * output, base))
done.append("function")

# %% [markdown]
# ## 8. Train a rotation (DAS)
#
# ```python
# das = pv.IntervenableModel({"layer": 1, "component": "block_output", "low_rank_dimension": 4,
#                             "intervention_type": pv.LowRankRotatedSpaceIntervention}, gpt2)
# das.train_alignment(dataloader, compute_loss, compute_metrics, inputs_collator)
# ```
#
# Loss and metric have defaults here; each step, each score and its interval are in what comes back.

# %%
torch.manual_seed(0)
das = IntervenableModel(
    {
        "layer": 2,
        "component": "block_output",
        "low_rank_dimension": 4,
        "intervention_type": LowRankRotatedSpaceIntervention,
    },
    gpt2,
)
batch = {
    "input_ids": torch.randint(1, 50, (64, 6)),
    "source_input_ids": torch.randint(1, 50, (64, 6)),
    "source_0->base.0.pos": torch.full((64, 1), 5),
    "source_0->base.1.pos": torch.full((64, 1), 5),
}
batch["labels"] = gpt2(batch["source_input_ids"]).logits[:, -1].argmax(-1)
fitted = das.train_alignment([batch], epochs=60, lr=0.03)
losses = [row["loss"] for row in fitted.history]
scores = das.eval_alignment([batch])
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, IIA on the pairs of the fit {scores['iia']:.2f}")
assert losses[-1] < 0.8 * losses[0]
done.append("train")

# %% [markdown]
# ## 9. Generate
#
# ```python
# pv_gpt2.generate(prompt, unit_locations={"base": 3}, intervene_on_prompt=True, max_new_tokens=8, do_sample=False)
# ```
#
# Beams, sampling, left padding and running without a cache give what a loop by hand gives. `steps` says which
# generated tokens are edited.

# %%
prompt = {"input_ids": base["input_ids"][:1], "attention_mask": torch.ones(1, 6, dtype=torch.long)}
_, tokens = add.generate(prompt, steps=[0, 2], max_new_tokens=8, do_sample=False)
assert tokens.shape[1] > 6
done.append("generate")

# %% [markdown]
# ## 10. Save and load; and a sweep
#
# ```python
# das.save("das"); pv.IntervenableModel.load("das", model=gpt2)
# for layer in ...: for position in ...: pv.IntervenableModel(...)(...)
# ```
#
# Folders that pyvene wrote are read, too. The loop over layers and positions is one call, which counts its passes.

# %%
with tempfile.TemporaryDirectory() as folder:
    das.save(folder, overwrite=True)
    again = IntervenableModel.load(folder, model=gpt2)
place = {"sources->base": 5}
assert torch.equal(again(base, source, place)[1].logits, das(base, source, place)[1].logits)
table = grid(
    gpt2, {"input_ids": base["input_ids"][:1]}, {"input_ids": source["input_ids"][:1]}, answers=(4, 5),
    components=["mlp_output", "attention_output"],
)  # fmt: skip
done.append("save, load, sweep")
print(f"{len(done)} of 10 done: {', '.join(done)}")
print(f"{len(table)} swaps in {sum(table.meta['passes'].values())} passes")
assert len(done) == 10

# %%
table.plot()
