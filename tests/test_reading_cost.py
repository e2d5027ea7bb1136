"""What a reader has to hold who follows one interchange: the files it comes by, and the types that it makes.

The counts are printed at the end of a test run, not asserted; the aim is at most 16 files and 20 types. Run
`pytest tests/test_reading_cost.py` to see them with all names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import align_transformers
from align_transformers import IntervenableModel, VanillaIntervention, one_by_one, resolve

PACKAGE = Path(align_transformers.__file__).parent
NAME = align_transformers.__name__


@dataclass
class Cost:
    """What a call came by.

    Args:
        files: of the package, by the functions that ran in them.
        types: of the package, of which an object was made. One made without `__init__` or `__new__` is not seen.
        functions: how many different ones of the package ran, and `calls` how often one did.
    """

    files: set[str] = field(default_factory=set)
    types: set[str] = field(default_factory=set)
    functions: set[tuple[str, int]] = field(default_factory=set)
    calls: int = 0

    def see(self, frame: FrameType) -> None:
        """Count the function that a frame is of."""
        code = frame.f_code
        path = Path(code.co_filename)
        if path.is_relative_to(PACKAGE):
            self.files.add(path.relative_to(PACKAGE).as_posix())
            self.functions.add((code.co_filename, code.co_firstlineno))
            self.calls += 1
        if code.co_name in ("__init__", "__new__") and code.co_varnames:
            first = frame.f_locals.get(code.co_varnames[0])
            made = type(first) if code.co_name == "__init__" else first
            if isinstance(made, type) and made.__module__.partition(".")[0] == NAME:
                self.types.add(f"{made.__module__.removeprefix(f'{NAME}.')}.{made.__qualname__}")

    def __str__(self) -> str:
        files, types = sorted(self.files), sorted(self.types)
        counts = f"{len(files)} files, {len(types)} types, {len(self.functions)} functions, {self.calls} calls"
        return "\n".join([counts, f"  files: {', '.join(files)}", f"  types: {', '.join(types)}"])


def cost_of(call: Callable[[], Any]) -> Cost:
    """Return what a call comes by."""
    cost = Cost()
    before = sys.getprofile()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            cost.see(frame)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return cost


@torch.no_grad()
def test_what_one_interchange_makes_a_reader_hold(record_property: Callable[[str, Any], None]) -> None:
    config = GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=60, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    resolve(model)
    representation = {"layer": 1, "component": "block_output", "intervention_type": VanillaIntervention}
    face, naive = (IntervenableModel(representation, model, planner=planner) for planner in (None, one_by_one))
    base, source = ({"input_ids": torch.arange(first, first + 5)[None]} for first in (3, 20))
    outputs: list[Any] = []

    def interchange(of: IntervenableModel) -> Callable[[], None]:
        return lambda: outputs.append(of(base, source, {"sources->base": 2})[1].logits)

    costs = {"first": cost_of(interchange(face)), "second": cost_of(interchange(face))}
    interchange(naive)()
    costs["second (run by run)"] = cost_of(interchange(naive))
    for which, cost in costs.items():
        assert {"intervenable.py", "engine/hooks.py"} <= cost.files  # it looks, and sees something
        assert cost.types
        record_property("printed", f"the {which} interchange: {cost}")
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    assert not torch.equal(outputs[0], model(**base).logits)
