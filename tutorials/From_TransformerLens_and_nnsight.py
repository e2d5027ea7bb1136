# %% [markdown]
# # From TransformerLens and nnsight
#
# Ten tasks of each, and how they are written here. Their code stands in the text; ours runs on SmolLM2 and is checked
# by plain PyTorch hooks. Two differences matter. The model stays the one that transformers made: its weights are not
# converted, norms are not folded, kernels are not replaced. And an edit that never fires is an error.

# %%
import torch

from align_transformers import (
    AdditionIntervention,
    CollectIntervention,
    IntervenableModel,
    NeverFiredError,
    Site,
    VanillaIntervention,
    ZeroIntervention,
    activations,
    attention_patterns,
    attribution,
    describe,
    direct_logit_attribution,
    grid,
    load_model,
    logit_difference,
    logit_lens,
    path_patching,
)

model, tokenizer = load_model("smollm2-135m")
model.requires_grad_(False)
blocks = model.model.layers
SPAIN, ITALY = "The capital of Spain is", "The capital of Italy is"
spain, italy = (tokenizer(text, return_tensors="pt") for text in (SPAIN, ITALY))
madrid, rome = (tokenizer(city)["input_ids"][0] for city in (" Madrid", " Rome"))
plain = model(**spain).logits
done = {"TransformerLens": [], "nnsight": []}


def by_hook(module, edit, inputs):
    """Return the logits with a hand-written hook on a module's output."""
    handle = module.register_forward_hook(lambda _module, _args, output: edit(output))
    try:
        return model(**inputs).logits
    finally:
        handle.remove()


kept = {}
_ = by_hook(blocks[5].mlp, lambda output: kept.update(mlp=output), italy)

# %% [markdown]
# # TransformerLens
#
# ## 1. Names of what is inside
#
# ```python
# model = HookedTransformer.from_pretrained("gpt2"); model.hook_dict
# ```
#
# `hook_resid_post` is `block_output`, `hook_resid_pre` `block_input`, `hook_mlp_out` `mlp_output`, `hook_attn_out`
# `attention_output`, `hook_z` `head_output`, `hook_q` `query_rotary` (`query_output` before rotary), `hook_pattern`
# `attention_pattern`, `mlp.hook_post` `mlp_activation`.

# %%
names = str(describe(model))
print(names[:700])
assert "attention_pattern" in names
done["TransformerLens"].append("names")

# %% [markdown]
# ## 2. `run_with_cache`
#
# ```python
# logits, cache = model.run_with_cache(tokens); cache["resid_post", 5]
# ```

# %%
stream = activations(model, spain, Site("block_output", 5), "all")
seen = {}
_ = by_hook(blocks[5], lambda output: seen.update(stream=output if torch.is_tensor(output) else output[0]), spain)
assert torch.equal(stream, seen["stream"][0])
done["TransformerLens"].append("cache")

# %% [markdown]
# ## 3. `run_with_hooks`: patch an activation
#
# ```python
# def patch(mlp_out, hook): mlp_out[:, 3] = italy_cache["mlp_out", 5][:, 3]; return mlp_out
# model.run_with_hooks(spain, fwd_hooks=[("blocks.5.hook_mlp_out", patch)])
# ```

# %%
swap = IntervenableModel({"layer": 5, "component": "mlp_output", "intervention_type": VanillaIntervention}, model=model)
_, swapped = swap(spain, italy, {"sources->base": 3})


def put(output):
    output = output.clone()
    output[:, 3] = kept["mlp"][:, 3]
    return output


assert torch.equal(swapped.logits, by_hook(blocks[5].mlp, put, spain))
done["TransformerLens"].append("patch")

# %% [markdown]
# ## 4. Ablate a head
#
# ```python
# def ablate(z, hook): z[:, :, 4] = 0; return z
# model.run_with_hooks(spain, fwd_hooks=[("blocks.23.attn.hook_z", ablate)])
# ```

# %%
ablate = IntervenableModel(
    {"layer": 23, "component": "head_output", "unit": "h", "intervention_type": ZeroIntervention}, model=model
)
_, ablated = ablate(spain, None, {"base": 4})
lost = (plain - ablated.logits)[0, -1, madrid].item()
print(f"without head 4 of layer 23 the logit of Madrid falls by {lost:.2f}")
assert lost > 0.5
done["TransformerLens"].append("ablate")

# %% [markdown]
# ## 5. Attention patterns
#
# ```python
# cache["pattern", 23][0, 4]
# ```

# %%
patterns = attention_patterns(model, SPAIN, tokenizer=tokenizer, layers=[23], heads=[4])
row = {one["key"]: one["attention"] for one in patterns.rows() if one["query"] == 4}
print("head 4 of layer 23 looks from `is` at", {key: round(value, 2) for key, value in row.items()})
assert abs(sum(row.values()) - 1) < 1e-5
done["TransformerLens"].append("patterns")

# %% [markdown]
# ## 6. Logit lens and direct attribution
#
# ```python
# cache.accumulated_resid(apply_ln=True) @ model.W_U; cache.decompose_resid(); cache.stack_head_results()
# ```

# %%
lens = logit_lens(model, SPAIN, tokenizer=tokenizer, answers=" Madrid", positions=[-1], top=0)
parts = direct_logit_attribution(model, SPAIN, tokenizer=tokenizer, answers=" Madrid")
total = sum(parts.columns["contribution"])
print(f"rank of Madrid behind the last layer: {lens.columns['rank'][-1]}")
print(f"heads, MLPs and embeddings sum to {total:.2f}; the logit is {plain[0, -1, madrid]:.2f}")
assert lens.columns["rank"][-1] == 0
assert abs(total - plain[0, -1, madrid].item()) < 1e-3
done["TransformerLens"].append("lens, attribution")

# %% [markdown]
# ## 7. `patching.get_act_patch_resid_pre`: everywhere
#
# ```python
# patching.get_act_patch_resid_pre(model, spain, italy_cache, metric)  # one pass a cell
# ```

# %%
metric = logit_difference(" Rome", " Madrid", tokenizer=tokenizer)
table = grid(
    model, SPAIN, ITALY, tokenizer=tokenizer, components=["block_input"], metric=metric, layers=range(0, 30, 6)
)
print(f"{len(table)} cells, {table.meta['passes']}")
assert len(table) == 25
done["TransformerLens"].append("grid")

# %% [markdown]
# ## 8. Attribution patching
#
# ```python
# # two caches, a backward pass, and (italy - spain) * gradient by hand
# ```
#
# Some cells are measured exactly, so that the estimate has its correlation beside it. Here it says: of these swaps,
# which are large steps, the linear estimate is no guide.

# %%
estimated = attribution(
    model, SPAIN, ITALY, tokenizer=tokenizer, components=["mlp_output"], metric=metric, verify=16, seed=0
)
check = estimated.meta["check"]
print(f"{len(estimated)} cells estimated; correlation with 16 exact ones {check['pearson']:.2f}")
assert len(estimated) == 150
assert check["pearson"] < 0.5
done["TransformerLens"].append("attribution patching")

# %% [markdown]
# ## 9. Path patching
#
# ```python
# path_patch(model, ..., sender_nodes=IterNode("z"), receiver_nodes=Node("resid_post", 29))  # a package of its own
# ```

# %%
paths = path_patching(
    model, SPAIN, ITALY, "logits", senders=["a23.h4", "a29.h1"], freeze="all", tokenizer=tokenizer, metric=metric
)
print({row["sender"]: round(row["recovered"], 2) for row in paths.rows()})
assert paths.columns["recovered"][0] > 0.2
done["TransformerLens"].append("paths")

# %% [markdown]
# ## 10. Generate with a hook
#
# ```python
# with model.hooks(fwd_hooks=[("blocks.12.hook_resid_post", add)]): model.generate(tokens, max_new_tokens=5)
# ```

# %%
add = IntervenableModel(
    {"layer": 12, "component": "block_output", "intervention_type": AdditionIntervention}, model=model
)
france = tokenizer("The capital of France is", return_tensors="pt")
state = {name: activations(model, text, Site("block_output", 12), 3)[0] for name, text in
         {"France": france, "Spain": spain}.items()}  # fmt: skip
_, tokens = add.generate(
    spain,
    unit_locations={"base": 3},
    source_representations=state["France"] - state["Spain"],
    intervene_on_prompt=True,
    max_new_tokens=3,
    do_sample=False,
)
print(tokenizer.decode(tokens[0]))
assert "Paris" in tokenizer.decode(tokens[0])
done["TransformerLens"].append("generate")

# %% [markdown]
# # nnsight
#
# ## 1. Read a module by its path
#
# ```python
# with model.trace("The capital of Spain is"): hidden = model.model.layers[5].mlp.output.save()
# ```

# %%
site = Site("model.layers[5].mlp.output")
found = activations(model, spain, site, "all")
_ = by_hook(blocks[5].mlp, lambda output: seen.update(mlp=output), spain)
assert torch.equal(found, seen["mlp"][0])
done["nnsight"].append("read")

# %% [markdown]
# ## 2. Write to it
#
# ```python
# with model.trace(prompt): model.model.layers[5].mlp.output[:, 3] = 0
# ```

# %%
zero = IntervenableModel(
    {"component": "model.layers[5].mlp.output", "intervention_type": ZeroIntervention}, model=model
)
_, zeroed = zero(spain, None, {"base": 3})


def clear(output):
    output = output.clone()
    output[:, 3] = 0
    return output


assert torch.equal(zeroed.logits, by_hook(blocks[5].mlp, clear, spain))
done["nnsight"].append("write")

# %% [markdown]
# ## 3. Any function
#
# ```python
# with model.trace(prompt): model.model.layers[5].mlp.output *= 2
# ```

# %%
double = IntervenableModel({"component": "model.layers[5].mlp.output", "intervention": lambda base: 2 * base}, model)
_, doubled = double(spain, None, None)
assert torch.equal(doubled.logits, by_hook(blocks[5].mlp, lambda output: 2 * output, spain))
done["nnsight"].append("function")

# %% [markdown]
# ## 4. Two prompts in one trace
#
# ```python
# with model.trace() as tracer:
#     with tracer.invoke(italy): state = model.model.layers[12].output[0][:, 3]
#     with tracer.invoke(spain): model.model.layers[12].output[0][:, 3] = state
# ```

# %%
cross = IntervenableModel({"layer": 12, "component": "block_output"}, model=model)
_, crossed = cross(spain, italy, {"sources->base": 3})
print("Spain with Italy's state:", tokenizer.decode(crossed.logits[0, -1].argmax()))
assert crossed.logits[0, -1].argmax() == rome
done["nnsight"].append("two prompts")

# %% [markdown]
# ## 5. Several edits, and a read behind them
#
# ```python
# with model.trace(prompt):
#     model.model.layers[5].mlp.output[:] = 0
#     after = model.model.layers[6].output[0].save()
# ```

# %%
both = IntervenableModel(
    [
        {"component": "model.layers[5].mlp.output", "intervention_type": ZeroIntervention},
        {"layer": 6, "component": "block_output", "intervention_type": CollectIntervention},
    ],
    model=model,
)
after = both(spain, None, {"base": [[[3]], [[-1]]]}, return_dict=True).collected_activations[0]
print("read behind the edit:", tuple(after.shape))
assert after.shape[-1] == model.config.hidden_size
done["nnsight"].append("edit and read")

# %% [markdown]
# ## 6. Gradients
#
# ```python
# with model.trace(prompt):
#     hidden = model.model.layers[5].output[0]; hidden.requires_grad_(True); ...; loss.backward(); hidden.grad.save()
# ```
#
# Interventions with parameters have gradients; a constant source of yours has one, too.

# %%
push = torch.zeros(model.config.hidden_size, requires_grad=True)
adding = IntervenableModel({"layer": 5, "component": "block_output", "intervention_type": AdditionIntervention}, model)
_, output = adding(spain, None, {"base": 3}, source_representations=push)
output.logits[0, -1, madrid].backward()
print(f"norm of the gradient at the country, layer 5: {push.grad.norm():.2f}")
assert push.grad.norm() > 0
done["nnsight"].append("gradients")

# %% [markdown]
# ## 7. Scan shapes without running
#
# ```python
# with model.scan(prompt): print(model.model.layers[5].output[0].shape)
# ```

# %%
widths = [line for line in str(describe(model)).splitlines() if "mlp_activation" in line]
print(widths[0].strip("│ "))
assert str(model.config.intermediate_size) in widths[0]
done["nnsight"].append("shapes")

# %% [markdown]
# ## 8. Generation, token by token
#
# ```python
# with model.generate(prompt, max_new_tokens=3) as tracer:
#     for step in tracer.iter[1]: model.model.layers[20].output[0][:] += vector
# ```

# %%
vector = 300 * torch.nn.functional.normalize(torch.ones(model.config.hidden_size), dim=0)
_, first = add.generate(spain, source_representations=vector, steps=[1], max_new_tokens=3, do_sample=False)
none = model.generate(**spain, max_new_tokens=3, do_sample=False)
print(repr(tokenizer.decode(first[0])), "instead of", repr(tokenizer.decode(none[0])))
assert torch.equal(first[0, :7], none[0, :7])  # the edit at token 1 acts on what comes after it
assert not torch.equal(first, none)
done["nnsight"].append("steps")

# %% [markdown]
# ## 9. Keep an edit
#
# ```python
# with model.edit() as edited: edited.model.layers[5].mlp.output *= 2
# ```

# %%
with double.applied():
    inside = model(**spain).logits
assert torch.equal(inside, doubled.logits)
assert torch.equal(model(**spain).logits, plain)
done["nnsight"].append("keep")

# %% [markdown]
# ## 10. The edit that does nothing
#
# ```python
# with model.trace(prompt): ...  # a module that this input never calls: nothing happens
# ```
#
# Here it is an error.

# %%
model.spare = torch.nn.Linear(2, 2)
try:
    IntervenableModel({"component": "spare.output", "intervention_type": ZeroIntervention}, model=model)(spain)
except NeverFiredError as error:
    print(f"{type(error).__name__}: {error}")
    done["nnsight"].append("no silent no-op")
finally:
    del model.spare
print({name: len(tasks) for name, tasks in done.items()})
assert all(len(tasks) == 10 for tasks in done.values())

# %%
table.plot()
