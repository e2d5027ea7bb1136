"""Facts about the model families that are known by hand: which module of a block is which component."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..sites import Side


@dataclass(frozen=True)
class Place:
    """One component in a block: a module's input or output, or one of several equal parts of it.

    Args:
        path: dotted path from the block; empty for the block itself.
        side: input or output.
        part: which of `parts` equal slices of the last axis.
        parts: into how many slices the last axis is cut.
    """

    path: str
    side: Side
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Family:
    """Models whose blocks are built alike.

    Args:
        name: for messages.
        stack: dotted path from the model that holds the blocks to the list of blocks.
        attention: dotted path from a block to its attention module, which knows its `head_dim`.
        places: component name -> place.
    """

    name: str
    stack: str
    attention: str
    places: dict[str, Place]


GPT2 = Family(
    name="GPT-2",
    stack="h",
    attention="attn",
    places={
        "block_input": Place("", "input"),
        "block_output": Place("", "output"),
        "mlp_input": Place("mlp", "input"),
        "mlp_activation": Place("mlp.c_proj", "input"),
        "mlp_output": Place("mlp", "output"),
        "attention_input": Place("attn", "input"),
        "attention_output": Place("attn.c_proj", "output"),
        "attention_value_output": Place("attn.c_proj", "input"),
        "query_output": Place("attn.c_attn", "output", 0, 3),
        "key_output": Place("attn.c_attn", "output", 1, 3),
        "value_output": Place("attn.c_attn", "output", 2, 3),
    },
)

LLAMA = Family(
    name="Llama",
    stack="layers",
    attention="self_attn",
    places={
        "block_input": Place("", "input"),
        "block_output": Place("", "output"),
        "mlp_input": Place("mlp", "input"),
        "mlp_activation": Place("mlp.down_proj", "input"),
        "mlp_output": Place("mlp", "output"),
        "attention_input": Place("self_attn", "input"),
        "attention_output": Place("self_attn.o_proj", "output"),
        "attention_value_output": Place("self_attn.o_proj", "input"),
        "query_output": Place("self_attn.q_proj", "output"),
        "key_output": Place("self_attn.k_proj", "output"),
        "value_output": Place("self_attn.v_proj", "output"),
    },
)

FAMILIES = (GPT2, LLAMA)


def submodule(root: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a dotted path below `root`, or `None`; the empty path is `root` itself."""
    module: nn.Module | None = root
    for name in path.split(".") if path else ():
        module = module._modules.get(name) if module is not None else None
    return module


def find_family(model: nn.Module) -> tuple[Family, str, nn.ModuleList] | None:
    """Find the blocks of a model by their structure: a list of blocks in which every place of a family exists.

    Returns:
        The family, the dotted path of the list, and the list; `None` if there is none.
    """
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 0:
            for family in FAMILIES:
                named = path == family.stack or path.endswith("." + family.stack)
                if named and all(submodule(module[0], place.path) is not None for place in family.places.values()):
                    return family, path, module
    return None
