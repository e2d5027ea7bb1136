"""The contestant `lens`: TransformerLens's own activation patching, one forward pass a cell."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pandas as pd
import torch
import work
from torch import Tensor
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer
from work import POSITIONS, Task


@cache
def load(checkpoint: str) -> Any:
    """Return the bridge around the plain checkpoint; no hub is asked."""
    model = work.settled(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    bridge = TransformerBridge.boot_transformers(checkpoint, hf_model=model, tokenizer=tokenizer, dtype=torch.float32)
    return bridge.eval()


def grid(name: str, setter: Callable[..., Any], columns: list[str]) -> Callable[[Task], Callable[..., Tensor]]:
    """Return the work of patching one kind of activation, cell by cell."""

    def prepare(task: Task) -> Callable[..., Tensor]:
        model = load(task.checkpoint)

        @torch.no_grad()
        def once(cells: list[list[int]]) -> Tensor:
            _, cache = model.run_with_cache(task.sources[:1], names_filter=lambda hook: hook.endswith(name))
            if not cells:
                return torch.empty(0)
            return patching.generic_activation_patch(
                model,
                task.bases[:1],
                cache,
                lambda logits: task.difference(logits).squeeze(),
                setter,
                name,
                index_df=pd.DataFrame(cells, columns=columns),
            )

        return once

    return prepare


def last_token(once: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the work on cells (layer, head), all at the last token."""
    return lambda cells: once([[layer, POSITIONS - 1, head] for layer, head in cells])


_heads = grid("z", patching.layer_pos_head_vector_patch_setter, ["layer", "pos", "head"])
WORKS = {
    "block_grid": grid("resid_post", patching.layer_pos_patch_setter, ["layer", "pos"]),
    "head_grid": lambda task: last_token(_heads(task)),
}
