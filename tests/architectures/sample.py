"""A random sample of the causal language models that the sweep calls complete: another one with another seed."""

from __future__ import annotations

import json
import os
import random

from .chosen import FILE
from .record import COMPLETE

VARIABLE, SIZE = "ALIGN_SAMPLE_SEED", 20
UNFIT = {
    "blt": "works on bytes, in groups; transformers cannot make it a cache",
    "cpmant": "puts a prompt of its own in front of the input",
    "gemma3n": "its blocks carry four streams, (streams, batch, length, width): positions are refused there",
    "gemma3n_text": "likewise",
    "hrm_text": "calls its blocks several times, and fails by itself with a cache in the tiny configuration",
    "musicgen": "its input has a row for each codebook of an example",
    "musicgen_melody": "likewise",
    "prophetnet": "its blocks carry the sequence several times, once for each token that is predicted ahead",
    "rwkv": "generating without a cache, its blocks see other columns than its input has, and edits are refused",
    "xlstm": "fails by itself with a state in the tiny configuration",
}
"""Complete ones that the tests of the sample cannot use as they are, each with the reason."""


def seed() -> int:
    """Return the seed of the sample: `$ALIGN_SAMPLE_SEED`, or 0."""
    return int(os.environ.get(VARIABLE, "0"))


def complete() -> tuple[str, ...]:
    """Return the model types of all complete causal language models, as `chosen.json` has them."""
    models = json.loads(FILE.read_text())["models"]
    found = (name.partition(":") for name, model in models.items() if model["verdict"] == COMPLETE)
    return tuple(sorted(model_type for mapping, _, model_type in found if mapping == "CAUSAL_LM"))


def sample() -> tuple[str, ...]:
    """Return the sample of this seed."""
    fit = [name for name in complete() if name not in UNFIT]
    return tuple(sorted(random.Random(seed()).sample(fit, SIZE)))
