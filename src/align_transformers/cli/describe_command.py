"""`align-transformers describe`: what a model has, and where."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .options import ModelArgument


def describe(
    model: ModelArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the tree.")] = False,
) -> None:
    """Which components does a model have, where are they, and what is not to be had and why?

    **Examples**

    `align-transformers describe smollm2-135m`

    `align-transformers describe ./my-model --json | jq .stacks`
    """
    from ..models import describe as description_of
    from ..models import load_model

    loaded, _ = load_model(model)
    found = description_of(loaded)
    if as_json:
        print(json.dumps(found.to_dict()))
        return
    from rich.console import Console

    Console().print(found)
