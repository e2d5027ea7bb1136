"""Compile the RASP programs of `compiled.py` and write their weights to `weights/`.

Not a part of the tests: it needs the compiler of Lindner et al. 2023 (arXiv:2301.05062) and JAX, and no torch. In an
environment of its own:

    python -m venv out/tracr && out/tracr/bin/pip install tracr-pypi==1.0.0 dm-haiku==0.0.17 jax==0.10.2
    out/tracr/bin/python tests/truth/make_compiled.py
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import numpy as np
from tracr.compiler import compiling, lib
from tracr.rasp import rasp

HERE = Path(__file__).parent / "weights"
LENGTH, CHECKED = 6, 8
PROGRAMS = {
    "frac_prevs": (lambda: lib.make_frac_prevs(rasp.tokens == "x"), "abcx"),
    "reverse": (lambda: lib.make_reverse(rasp.tokens), "abcd"),
    "hist": (lib.make_hist, "abcd"),
    "sort": (lambda: lib.make_sort(rasp.tokens, rasp.tokens, max_seq_len=LENGTH, min_key=1), "12345"),
}
"""By name the program and its tokens; digits are numbers."""


def weights(model) -> dict[str, np.ndarray]:
    """Return the weights by the names that `TransformerLMHeadModel` has for them."""
    said, width = model.params, len(model.residual_labels)
    found = {
        "tokens.weight": said["token_embed"]["embeddings"],
        "positions.weight": said["pos_embed"]["embeddings"],
        "final_norm.weight": np.ones(width),
        "unembedding.weight": unembedding(model),
    }
    names = {"attn/query": "attention.q_proj", "attn/key": "attention.k_proj", "attn/value": "attention.v_proj"}
    names |= {"attn/linear": "attention.o_proj", "mlp/linear_1": "mlp.up", "mlp/linear_2": "mlp.down"}
    for layer in range(model.model_config.num_layers):
        for theirs, ours in names.items():
            one = said[f"transformer/layer_{layer}/{theirs}"]
            found[f"blocks.{layer}.{ours}.weight"] = np.asarray(one["w"]).T
            found[f"blocks.{layer}.{ours}.bias"] = one["b"]
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


def unembedding(model) -> np.ndarray:
    """Return which coordinates of the stream are the outputs: they have the name that the last part has."""
    rows = np.eye(len(model.residual_labels))
    return rows[[model.residual_labels.index(label) for label in outputs(model)]]


def outputs(model) -> list[str]:
    """Return the coordinates that hold the result: one for each token, or one number."""
    return [label for label in model.residual_labels if model.sink in (label, label.rpartition(":")[0])]


def compiled(name: str):
    """Return a compiled program, with the name that its result has in the residual stream."""
    make, letters = PROGRAMS[name]
    vocabulary = {int(one) if one.isdigit() else one for one in letters}
    model = compiling.compile_rasp_to_model(make(), vocab=vocabulary, max_seq_len=LENGTH, compiler_bos="BOS")
    stems = {label.rpartition(":")[0] or label for label in model.residual_labels}
    (model.sink,) = (stem for stem in stems if re.fullmatch(rf"{name}_\d+", stem))
    return model


def checked(model, letters: str) -> tuple[np.ndarray, np.ndarray]:
    """Return some inputs, and the residual stream behind the last block that JAX makes of them."""
    draw, rows, streams = random.Random(0), [], []
    for _ in range(CHECKED):
        text = draw.choices(letters, k=LENGTH - 1)
        text = ["BOS", *(int(one) if one.isdigit() else one for one in text)]
        rows.append(model.input_encoder.encode(text))
        streams.append(np.asarray(model.apply(text).transformer_output)[0])
    return np.array(rows), np.array(streams, np.float32)


def main() -> None:
    """Write all programs."""
    HERE.mkdir(exist_ok=True)
    for name, (_, letters) in PROGRAMS.items():
        model = compiled(name)
        vocabulary = sorted(model.input_encoder.encoding_map, key=model.input_encoder.encoding_map.get)
        sizes = model.model_config
        facts = {
            "labels": model.residual_labels,
            "vocabulary": list(map(str, vocabulary)),
            "outputs": outputs(model),
            "config": {
                "vocab_size": len(vocabulary),
                "n_positions": len(model.params["pos_embed"]["embeddings"]),
                "h_dim": len(model.residual_labels),
                "n_layer": sizes.num_layers,
                "n_head": sizes.num_heads,
                "head_dim": sizes.key_size,
                "mlp_dim": sizes.mlp_hidden_size,
                "n_outputs": len(outputs(model)),
                "causal": sizes.causal,
                "norm": False,
            },
        }
        inputs, streams = checked(model, letters)
        arrays = {"facts": np.array(json.dumps(facts)), "inputs": inputs, "streams": streams}
        np.savez_compressed(HERE / f"{name}.npz", **arrays, **weights(model))
        sys.stdout.write(f"{name}: {facts['config']}, {(HERE / f'{name}.npz').stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
