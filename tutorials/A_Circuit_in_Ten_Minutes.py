# %% [markdown]
# # A circuit in ten minutes
#
# Which edges between heads and MLPs does a model need for what it does? Here is a model of two layers that goes on with
# what was said before, so that the answer is known beforehand (Olsson et al. 2022, arXiv:2209.11895): a head of the
# first layer notes at each token which one came before it, and a head of the second layer looks for the token whose
# note is the present one. The note reaches the second head through its keys.

# %%
import matplotlib.pyplot as plt
import torch

from align_transformers import circuit, create_induction_lm, edge_attribution, evaluate_circuit, graph

_, _, model = create_induction_lm()
draw = torch.Generator().manual_seed(0)
said = torch.stack([torch.randperm(62, generator=draw)[:8] for _ in range(64)])
base = torch.cat([said, said[:, :5]], 1)  # a b c d e f g h a b c d e: now comes f
source = base.clone()
source[:, [4, 6]] = base[:, [6, 4]]  # a b c d g f e h a b c d e: now comes h
answers = [(int(one[5]), int(one[7])) for one in base]
found_on, held_out = slice(0, 32), slice(32, 64)
clean = model(base).logits[:, -1].argmax(-1)
right = (clean == base[:, 5]).float().mean().item()
other = (model(source).logits[:, -1].argmax(-1) == base[:, 7]).float().mean().item()
print(f"the model goes on rightly in {right:.2f} of the bases and {other:.2f} of the sources")
assert min(right, other) > 0.9

# %% [markdown]
# ## All edges
#
# What reads the residual stream are the queries, keys and values of each head, each MLP, and the logits; what writes
# into it are the embeddings, the heads and the MLPs. An edge is absent where its reader gets what the sender does for
# the other prompt. The two prompts have the same tokens in the end, and behind both places that may be looked for: what
# differs is which token came before.

# %%
nodes = graph(model)
print(f"{len(nodes)} edges between {[node.name for node in nodes.senders]} and what reads them")
pair = {"base": {"input_ids": base[found_on]}, "source": {"input_ids": source[found_on]}, "answers": answers[found_on]}
table = edge_attribution(model, **pair, method="eap-ig", verify=24)
strongest = sorted(table.rows(), key=lambda row: -abs(row["score"]))[:5]
for row in strongest:
    print(f"{row['sender']} -> {row['receiver']}: {row['score']:+.1f}")
check = table.meta["check"]
print(f"against {check['n']} edges measured exactly: Pearson {check['pearson']:.2f}, Spearman {check['spearman']:.2f}")
assert check["pearson"] > 0.5

# %% [markdown]
# Scores by gradient are estimates; the table says how good they are here. A search that tries each edge is exact.

# %% [markdown]
# ## Edges that are enough
#
# ACDC (Conmy et al. 2023, arXiv:2304.14997) leaves out one edge after the other, for good, if the model's distribution
# moves by less than a threshold. It tries them in a second order, too, since the result may depend on it.

# %%
prompts = {"base": pair["base"], "source": pair["source"]}
found = circuit(
    model, **prompts, method="acdc", threshold=0.01
)  # nats of KL(model || circuit), as no answers are named
print(found, "in", found.facts["passes"]["circuit"], "passes of circuits")
for sender, receiver in found.edges():
    print(f"  {sender} -> {receiver}")
notes = [sender for sender, receiver in found.edges() if receiver == "a1.h0<k>" and sender != "input"]
print("what the second layer's head looks for is noted by", notes)
assert notes == ["a0.h3"]
assert len(found) < 12

# %% [markdown]
# Token, note, keys, answer: that is the whole of it. The edge into the second head's keys is the note.

# %%
found.plot()

# %% [markdown]
# ## Is it a circuit?
#
# Each circuit is run exactly, on pairs that it was not found on: 1 is the whole model, 0 the model without any edge.
# What is left without the circuit should be nothing, and random circuits of its size should keep nothing.

# %%
rest = {"base": {"input_ids": base[held_out]}, "source": {"input_ids": source[held_out]}, "answers": answers[held_out]}
measured = evaluate_circuit(model, found, **rest, controls=5, sizes=())
by_kind = {}
for row in measured.rows():
    by_kind.setdefault(row["circuit"], []).append(row)
for kind in ("circuit", "complement", "random"):
    for row in by_kind[kind][:1]:
        print(f"{kind}: {row['edges']} edges keep {row['faithfulness']:.2f} [{row['low']:.2f}, {row['high']:.2f}]")
assert by_kind["circuit"][0]["faithfulness"] > 0.8
assert abs(by_kind["complement"][0]["faithfulness"]) < 0.1
assert all(row["faithfulness"] < 0.2 for row in by_kind["random"])
print(measured.meta["held_out"]["note"])

# %% [markdown]
# How much less the circuit keeps without each of its edges:

# %%
without = sorted(by_kind["without an edge"], key=lambda row: row["effect"])
for row in without:
    print(f"without {row['sender']} -> {row['receiver']}: {row['effect']:+.2f}")
assert without[0]["effect"] < -0.5

# %%
axes = plt.figure(figsize=(6, 3)).subplots()
kinds = ["circuit", "complement", "random"]
axes.bar(kinds, [by_kind[kind][0]["faithfulness"] for kind in kinds], color=["#2a6fb0", "#999999", "#999999"])
axes.set_ylabel("faithfulness")
axes.set_title(f"{len(found)} of {len(nodes)} edges, 32 pairs held out")
plt.show()
