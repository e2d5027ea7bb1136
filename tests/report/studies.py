"""Small tables as studies give them, with planted values."""

from __future__ import annotations

from align_transformers.table import Table

TOKENS = ["The", " Space", " Needle", " is"]
ROLES = ["first subject token", "middle subject tokens", "last subject token", "last token"]


def tracing(prompts: int = 1, draws: int = 4, noise: float | None = 0.1) -> Table:
    """Layer 1 of `block_output` at the last subject token brings 0.75 back, layer 2 at the last token takes 0.25."""
    rows = []
    for component in ("block_output", "mlp_output"):
        for layer in range(3):
            for prompt in range(prompts):
                for place, token in enumerate(TOKENS):
                    value = {(1, 2): 0.75, (2, 3): -0.25}.get((layer, place), 0.0) * (component == "block_output")
                    value += 0.125 * prompt
                    rows.append(
                        {
                            "component": component, "layer": layer, "position": place, "token": token,
                            "role": ROLES[place], "prompt": prompt, "indirect_effect": value,
                            "low": value - 0.1 if draws > 1 else None, "high": value + 0.2 if draws > 1 else None,
                            "restored": value + 0.05, "draws": draws,
                        }
                    )  # fmt: skip
    each = {"prompts": "".join(TOKENS), "tokens": TOKENS, "subject": [0, 1, 2], "answers": " Seattle", "clean": 0.9}
    each |= {"corrupted": 0.05, "total_effect": 0.85}
    facts = {name: [value] * prompts for name, value in each.items()}
    meta = {"study": "causal_tracing", "model": "toy", "noise": noise, "draws": draws, "window": {"mlp_output": 10}}
    return Table.from_rows(rows, meta={**facts, **meta})


def paths(pairs: int = 2) -> Table:
    """Head 1 of layer 2 sends 3, the MLP of layer 0 sends -2."""
    rows = []
    for layer in range(3):
        for head in (0, 1, None):
            for pair in range(pairs):
                effect = {(2, 1): 3.0, (0, None): -2.0}.get((layer, head), 0.0) + 0.25 * pair
                sender = f"m{layer}" if head is None else f"a{layer}.h{head}"
                component = "mlp_output" if head is None else "head_attention_value_output"
                rows.append(
                    {"sender": sender, "component": component, "layer": layer, "head": head, "position": None,
                     "pair": pair, "metric": 1.0, "effect": effect, "recovered": effect / 4}
                )  # fmt: skip
    meta = {"study": "path_patching", "model": "toy", "metric": "d", "freeze": "all", "receivers": ["logits"]}
    return Table.from_rows(rows, meta={**meta, "through": [], "pairs": pairs, "base": "a", "source": "b"})


def scrubbing(recovered: float = 0.5, low: float | None = 0.25) -> Table:
    """A hypothesis that recovers half of the loss."""
    rows = [
        {"prompt": prompt, "draw": draw, "drawn": [0], "unclaimed": [1], "scrubbed": 2.0 + draw / 4, "random": 4.0,
         "model": 1.0}
        for prompt in range(2) for draw in range(3)
    ]  # fmt: skip
    meta = {"study": "causal_scrubbing", "model": "toy", "draws": 3, "recovered": recovered, "low": low, "high": 0.75}
    return Table.from_rows(rows, meta={**meta, "itself": [0.5]})


def lens(prompts: int = 1) -> Table:
    """Only the last layer says the answer at the last token."""
    rows = []
    for layer in range(3):
        for prompt in range(prompts):
            for place, token in enumerate(TOKENS):
                said = layer == 2 and place == 3
                best = [" Seattle" if said else "\n", " b"]
                rows.append(
                    {"component": "block_output", "layer": layer, "position": place, "token": token, "prompt": prompt,
                     "probability": (0.5 if said else 0.125) + prompt / 8, "logit": 2.0, "rank": 0 if said else 9,
                     "top_tokens": best, "top_probabilities": [0.5, 0.25]}
                )  # fmt: skip
    meta = {"study": "logit_lens", "model": "toy", "prompts": ["".join(TOKENS)] * prompts}
    return Table.from_rows(rows, meta={**meta, "tokens": [TOKENS] * prompts, "answers": [" Seattle"] * prompts})


def attribution(prompts: int = 2) -> Table:
    """Head 0 of layer 1 adds 4, the MLP of layer 0 takes 1, the embeddings add 0.5."""
    rows = []
    for prompt in range(prompts):
        rows.append({"component": "block_input", "layer": 0, "head": None, "prompt": prompt, "contribution": 0.5})
        for layer in range(2):
            for head in range(2):
                value = 4.0 * (layer == 1 and head == 0)
                rows.append(
                    {"component": "head_contribution", "layer": layer, "head": head, "prompt": prompt,
                     "contribution": value}
                )  # fmt: skip
            rows.append(
                {"component": "mlp_contribution", "layer": layer, "head": None, "prompt": prompt,
                 "contribution": -1.0 * (layer == 0)}
            )  # fmt: skip
        rows.append({"component": "constant", "layer": None, "head": None, "prompt": prompt, "contribution": 0.25})
    meta = {"study": "direct_logit_attribution", "model": "toy", "prompts": ["a"] * prompts}
    return Table.from_rows(rows, meta={**meta, "answers": [" x"] * prompts, "against": None})


def attention(heads: int = 1, layers: int = 1) -> Table:
    """Every query looks at the token before it; the first at itself."""
    rows = [
        {"layer": layer, "head": head, "prompt": 0, "query": query, "key": key,
         "attention": float(key == max(0, query - 1))}
        for layer in range(layers) for head in range(heads) for query in range(4) for key in range(4)
    ]  # fmt: skip
    meta = {"study": "attention_patterns", "model": "toy", "tokens": [TOKENS], "key_tokens": [TOKENS]}
    return Table.from_rows(rows, meta=meta)


def probe(positions: int = 2) -> Table:
    """Read everywhere at position 0, used in layer 1 alone."""
    rows = []
    for layer in range(3):
        for position in range(positions):
            effect = 2.0 * (layer == 1 and position == 0)
            row = {"component": "block_output", "layer": layer, "position": position}
            numbers = {"accuracy": 0.75 + layer / 16 if position == 0 else 0.5, "control_accuracy": 0.5}
            numbers |= {"selectivity": 0.25, "swap_effect": effect, "erase_effect": -effect / 2}
            numbers |= {"whole_swap_effect": effect, "random_swap_effect": 0.0}
            for name, value in numbers.items():
                row |= {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}
            rows.append({**row, "n": 20})
    return Table.from_rows(rows, meta={"study": "probe", "model": "toy", "prompts": ["a b"], "seed": 0})


def steer(layers: tuple[int, ...] = (3,)) -> Table:
    """The effect is twice the dose, that of random directions nothing."""
    doses = (-1.0, 0.0, 1.0)
    curve = [
        {"layer": layer, "dose": dose, "effect": 2 * dose, "low": 2 * dose - 0.5, "high": 2 * dose + 0.5,
         "wrong_way": 0.25, "perplexity": 10.0, "distinct_2": 0.5, "control_effect": 0.0, "control_effect_low": -0.1,
         "control_effect_high": 0.1, "n": 2}
        for layer in layers for dose in doses
    ]  # fmt: skip
    rows = [
        {"layer": layer, "dose": dose, "prompt": prompt, "text": f" text at {dose}", "metric": 1.0, "effect": 2 * dose,
         "perplexity": 10.0, "distinct_2": 0.5}
        for layer in layers for dose in doses for prompt in range(2)
    ]  # fmt: skip
    meta = {"study": "steer", "model": "toy", "metric": "d", "prompts": ["a", "b"], "curve": curve}
    return Table.from_rows(rows, meta=meta)


def score(prompts: int = 3) -> Table:
    """The model is right on all prompts but the first."""
    rows = [
        {"prompt": n, "text": f"The capital of country number {n} is", "right": float(n > 0), "margin": 2.0 * n - 1}
        for n in range(prompts)
    ]  # fmt: skip
    meta = {"study": "score", "model": "toy", "prompts": [row["text"] for row in rows]}
    return Table.from_rows(rows, meta={**meta, "metrics": {"right": "accuracy", "margin": "logit difference"}})


def swaps(pairs: int = 2) -> Table:
    """Layer 1 brings half of the answer over at the third token, in each of several pairs."""
    rows = [
        {"component": "block_output", "layer": layer, "position": place, "token": token, "pair": pair,
         "effect": 2.0, "recovered": 0.5 * (layer == 1 and place == 2) + pair / 8}
        for layer in range(3) for place, token in enumerate(TOKENS) for pair in range(pairs)
    ]  # fmt: skip
    meta = {"study": "grid", "model": "toy", "metric": "d", "pairs": pairs}
    return Table.from_rows(rows, meta={**meta, "base": ["a"] * pairs, "source": ["b"] * pairs})


def hypothesis(variables: str, layer: int | None, place: object = "last", **changes: object) -> dict[str, object]:
    """A row of `align`: 0.25 on test pairs and on new weights, where chance is 0.125."""
    row: dict[str, object] = {"variables": variables, "component": "block_output", "layer": layer, "head": None}
    row |= {"place": place, "method": "das", "rank": 4, "seed": 0, "train": 0.5, "validation": 0.3, "iia": 0.25}
    row |= {"low": 0.15, "high": 0.35, "n": 400, "full": 0.2, "random": 0.125, "random_high": 0.2, "p": 0.01}
    row |= {"p_corrected": 0.02, "permuted": 0.125, "reinitialised": 0.25, "reinitialised_train": 0.6}
    return {**row, "dimensions": 4, "flags": "", "chosen": False, "status": "fitted", **changes}


def alignment(layers: int = 3) -> Table:
    """Layer 1 carries `var_x` at the last token, nothing `var_y`; layer 0 is dropped; a joint set at one site."""
    good = {"train": 0.99, "validation": 0.98, "iia": 0.97, "low": 0.95, "high": 0.99, "full": 0.98}
    unknown = dict.fromkeys(("train", "validation", "iia", "low", "high", "full", "random", "permuted"))
    rows = []
    for name in ("var_x", "var_y"):
        for layer in range(layers):
            for place in ("last of {a}", "last"):
                for seed in (0, 1):
                    row = hypothesis(name, layer, place, seed=seed)
                    if name == "var_x" and (layer, place) == (1, "last"):
                        row |= good if seed == 1 else {"validation": 0.9, "iia": 1.0}
                        row["chosen"] = seed == 1
                    if layer == 0:
                        row |= unknown | {"status": "dropped"}
                    if name == "var_y" and (layer, place, seed) == (1, "last", 0):
                        row |= {"chosen": True, "flags": "memorised", "train": 1.0}
                    rows.append(row)
    rows.append(hypothesis("var_x, c", 1, **good, method="swap", rank=None, dimensions=None, chosen=True))
    parents = {"a": [], "b": [], "c": [], "var_x": ["a", "b"], "sum": ["var_x", "c"]}
    model = {"variables": {name: {"parents": of, "values": 4} for name, of in parents.items()}}
    data = {"train": {"pairs": 1200, "entities": 60}, "test": {"pairs": 400, "entities": 20}, "trivial_left_out": 31}
    flag = {"variables": "var_y", "flag": "memorised", "explanation": "far above unseen ones", "train": 1.0}
    flag |= {"hypothesis": "var_y: ...", "chosen": True, "raised": True}
    calm = {**flag, "variables": "var_x", "flag": "off manifold", "raised": False, "explanation": "as far out"}
    shared = {"bucket": "badly", "side": "base", "variable": "a", "value": 3, "inside": 4, "of_inside": 5}
    shared |= {"outside": 1, "of_outside": 20, "p": 0.01}
    well = {"bases": 12, "sources": 20, "n": 350, "iia": 0.99}
    meta = {
        "study": "align", "model": "toy",
        "causal_model": {**model, "inputs": ["a", "b", "c"], "outputs": ["sum"], "text": "sum = a + b + c <b>"},
        "data": {**data, "trivial": 0.07, "base_accuracy": 0.99, "kept": 0.98, "chance": 0.125},
        "examples": [{"base": "1+2+3=", "sources": {"var_x": "2+2+0="}, "label": 7, "base_label": 6}],
        "settings": {"ranks": [4], "methods": ["das", "swap"]},
        "self_swap": {"var_x": 1.0}, "search": {"hypotheses": 25},
        "flags": [calm, flag, {**flag, "chosen": False}],
        "selection": [{"variables": "var_x", "validation": 0.98, "test": 0.97, "drop": 0.01, "of": 12}],
        "buckets": [
            {"variables": "var_x", "well": well, "badly": {**well, "iia": 0.4, "n": 50}, "found": True, "ratio": 3.5,
             "null_ratio": 1.1, "common": [shared]}
        ],
        "identity": {"weights": "abc"}, "versions": {"torch": "2"}, "passes": {"full": 3}, "seconds": 1.5,
    }  # fmt: skip
    return Table.from_rows(rows, meta=meta)


_MADE = (tracing, paths, scrubbing, lens, attribution, attention, probe, steer, score, swaps, alignment)
STUDIES = {made.__name__: made for made in _MADE}
