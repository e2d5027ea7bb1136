"""`python -m tests.fast.sweep_trials`: partial passes of every architecture against plain hooks on full passes.

For a tiny model of each architecture: what its trials say, and whether a merged pass over a padded batch of three
prompts, longer than any dummy, gives what full passes under hand-written hooks give. Exit status 1 where it does not.
"""

from __future__ import annotations

import argparse
import collections
import inspect
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from tests.architectures.tiny import NotBuiltError, entries, output_of, tiny_model
from torch import Tensor, nn

from align_transformers import Edit, Plan, Positions, Run, Site, bind, execute
from align_transformers.fast.trial import WAYS, Measured, trials_of
from align_transformers.interventions import FunctionIntervention
from align_transformers.models import find_leaf, replace_leaf, resolve
from align_transformers.plan import Logits

LENGTH, WINDOW, ENCODER = 12, 9, 10
SHORT = (LENGTH, 8, 5)
TOLERANCE = 2e-4
TOKENS = (7, 30, 12)
Record = tuple[str, str, str, str, float, str, str]
"""Mapping, model type, attention and padding, way taken, worst difference over the logits' scale, why, what failed."""


def change(base: Tensor) -> Tensor:
    """Return something else than the base."""
    return base.roll(3, -1) * 1.3 + 0.5


def prompts(padding: str, decoder: bool, seed: int = 5) -> dict[str, Tensor]:
    """Return three prompts of `LENGTH` columns; with a short encoder's text where there is one."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, 150, (len(SHORT), LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate(SHORT if padding != "none" else ()):
        mask[row, slice(0, LENGTH - length) if padding == "left" else slice(length, None)] = 0
    if padding == "unsaid":
        mask = torch.ones_like(ids)
    if not decoder:
        return {"input_ids": ids} if padding == "unsaid" else {"input_ids": ids, "attention_mask": mask}
    text = torch.randint(6, 150, (len(SHORT), ENCODER), generator=generator)
    seen = torch.ones_like(text)
    if padding != "none":
        seen[1, slice(0, 3) if padding == "left" else slice(7, None)] = 0
    return {"input_ids": text, "attention_mask": seen, "decoder_input_ids": ids}


def real(inputs: Mapping[str, Tensor], example: int) -> list[int]:
    """Return the columns of an example's real tokens."""
    if "decoder_input_ids" in inputs or "attention_mask" not in inputs:
        return list(range(LENGTH))
    return inputs["attention_mask"][example].nonzero().flatten().tolist()


def cells(inputs: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """Return (example, position) of every copy of a run."""
    found = []
    for example in range(len(SHORT)):
        columns = real(inputs, example)
        found += [(example, columns[n]) for n in (0, 1, len(columns) // 2, -1, -1)]
    return found


def by_hand(model: nn.Module, inputs: Mapping[str, Tensor], places: Sequence[tuple[int, int]], slot: Any) -> Tensor:
    """Return the logits at the last real token of each copy, edited by a plain hook; full passes."""
    rows, calls = [example for example, _ in places], []
    batch = {name: value[rows] if isinstance(value, Tensor) else value for name, value in inputs.items()}

    def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        calls.append(slot.path)
        if slot.call is not None and len(calls) != slot.call + 1:
            return None
        leaf, hidden = find_leaf(output, slot.leaf, slot.path)
        new = hidden.clone()
        for row, (_, position) in enumerate(places):
            channels = slice(None) if slot.channels is None else slot.channels
            new[row, position, channels] = change(new[row, position, channels])
        return replace_leaf(output, leaf, new)

    with slot.module.register_forward_hook(hook, with_kwargs=True), torch.no_grad():
        logits = output_of(model(**batch))
    ends = torch.tensor([real(inputs, row)[-1] for row in rows])
    return logits[torch.arange(len(rows)), ends]


def windowed(model: nn.Module) -> bool:
    """Make every window and chunk of attention longer than a dummy and shorter than the prompts."""
    config, found = getattr(model, "config", None), False
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("sliding_window", "attention_chunk_size"):
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, WINDOW)
            found = True
    for module in model.modules():
        if isinstance(getattr(module, "sliding_window", None), int):
            module.sliding_window = WINDOW
    return found


def examine(mapping: str, model_type: str) -> Iterator[Record]:
    """Yield what came of one architecture."""
    for kind in ("eager", "sdpa"):
        try:
            model = tiny_model(mapping, model_type).model
            if kind == "sdpa":
                model.set_attn_implementation("sdpa")
                if model.config._attn_implementation != "sdpa":
                    return
        except (NotBuiltError, ValueError, NotImplementedError) as error:
            if kind == "eager":
                yield mapping, model_type, kind, "not built", 0.0, "", str(error)[:100]
            return
        window = windowed(model)
        found = resolve(model)
        able = trials_of(model)
        reasons = " | ".join(able.why_not(way) for way in WAYS) if isinstance(able, Measured) else "no map"
        yield mapping, model_type, kind, "abilities", 0.0, reasons, str(able.tokens())
        stack = "" if "" in found.stacks else "decoder"
        if stack not in found.stacks:
            continue
        for padding in ("unsaid", "left", "right") if kind == "eager" else ("left",):
            label = f"{kind} {padding}{' windowed' if window else ''}"
            yield (mapping, model_type, label, *compare(model, found, stack, padding))


def _plain(slot: Any) -> bool:
    """Whether a plain hook sees `(batch, length, channels)` there."""
    return slot.side == "output" and slot.via == "module" and slot.around is None


def compare(model: nn.Module, found: Any, stack: str, padding: str) -> tuple[str, float, str, str]:
    """Return the way taken, the worst difference, why not more, and what failed."""
    inputs: Any = prompts(padding, stack == "decoder")
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs["use_cache"] = False
    blocks = found.stacks[stack]
    where = [(layer, "block_output") for layer in range(len(blocks))]
    where += [(len(blocks) // 2, name) for name in ("mlp_output", "attention_output", "mixer_output")]
    where = [(layer, name) for layer, name in where if name in blocks[layer].slots]
    where = [(layer, name) for layer, name in where if _plain(blocks[layer].slots[name])]
    places = cells(inputs)
    try:
        with torch.no_grad():
            whole = output_of(model(**inputs))
            if whole.shape[:2] != (len(SHORT), LENGTH):
                return "no logits by token", 0.0, "", str(tuple(whole.shape))
            expected = [by_hand(model, inputs, places, blocks[layer].slots[name]) for layer, name in where]
    except Exception as error:  # the model does not take such an input
        return "does not run", 0.0, "", f"{type(error).__name__}: {error}"[:150]
    prefix = f"{stack}." if stack else ""
    rows = tuple(example for example, _ in places)
    at = Positions(tuple((position,) for _, position in places))
    worst, ways, why = 0.0, collections.Counter(), set()
    try:
        for tokens in (None, TOKENS):
            runs = [Run("clean", "x")]
            for n, (layer, name) in enumerate(where):
                runs.append(Run(f"run {n}", "x", (Edit(f"e{n}", Site(prefix + name, layer), "f", at),), rows))
            plan = Plan(tuple(runs), tuple(run.name for run in runs), Logits(tokens))
            with torch.no_grad():
                outcome = execute(bind(model, plan, {"x": inputs}, {"f": FunctionIntervention(change)}))
            ends = torch.tensor([real(inputs, row)[-1] for row in range(len(SHORT))])
            clean = whole[torch.arange(len(SHORT)), ends]
            scale = float(torch.cat([clean, *expected]).abs().max())
            for name, value in [("clean", clean), *((f"run {n}", value) for n, value in enumerate(expected))]:
                value = value if tokens is None else value[:, list(tokens)]
                got = outcome.outputs[name]
                gap = float("inf") if got.shape != value.shape else float((got - value).abs().max()) / scale
                worst = max(worst, gap if gap == gap else float("inf"))
            ways.update(one.way for one in outcome.passes)
            why.update(one.why for one in outcome.passes if one.why)
    except Exception as error:  # every failure of the library is a result of this script
        line = traceback.extract_tb(error.__traceback__)[-1]
        return "failed", 0.0, "", f"{type(error).__name__}: {error} ({line.filename[-40:]}:{line.lineno})"[:300]
    best = next(way for way in ("packed", "together", "partial", "full") if ways[way])
    return best, worst, "; ".join(sorted(why)), ""


def _prepare() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity(50)


def _job(job: tuple[str, str]) -> list[Record]:
    try:
        return list(examine(*job))
    except Exception as error:  # one architecture must not end the sweep
        return [(*job, "", "crashed", 0.0, "", f"{type(error).__name__}: {error}"[:300])]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep; return the exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", default=())
    parser.add_argument("--mapping", nargs="+", default=("CAUSAL_LM",))
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    jobs = [(m, t) for m in options.mapping for t in entries(m) if not options.only or t in options.only]
    begun, bad = time.perf_counter(), 0
    counts: collections.Counter[str] = collections.Counter()
    with multiprocessing.get_context("spawn").Pool(options.processes, _prepare) as pool:
        for records in pool.imap_unordered(_job, jobs):
            for mapping, model_type, label, way, gap, why, failure in records:
                wrong = gap > TOLERANCE or way in ("failed", "crashed")
                bad += wrong
                counts[f"{label.split()[0] if label else ''} {way}"] += 1
                mark = "WRONG " if wrong else ""
                sys.stdout.write(f"{mark}{mapping} {model_type} [{label}] {way} {gap:.1e} {why} {failure}\n")
            sys.stdout.flush()
    for name, count in sorted(counts.items()):
        sys.stdout.write(f"{count:5} {name}\n")
    sys.stdout.write(f"{bad} wrong, {time.perf_counter() - begun:.0f} s\n")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
