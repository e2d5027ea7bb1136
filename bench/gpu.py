"""The sections of the benchmark on a GPU, with random weights in the shapes of known models; no hub is asked.

    python bench/gpu.py [--models NAME ...] [--dtypes DTYPE ...] [--sections NAME ...] [--rounds N] [--out FOLDER]
    python bench/gpu.py --dry-run

Contestants are hand-written hooks and the library, in one process, taking turns; the first round does not count, and
figures are medians. A GPU is waited for before and after each work; the time is that between two events on it. Values
must equal those of the hooks: in float32 to 0.001, in bfloat16 to four times what batching alone changes in a sample of
cells (a matrix product of other rows is rounded otherwise), at least four roundings of the largest value; generated
tokens exactly. A model that does not fit into the free memory is skipped, and the result says so. Writes
results-gpu.json and results-gpu.md; ends with status 1 where values differ or a section fails.

`--dry-run` does all of it on the CPU with tiny models of the same families, to see that the program works.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ours
import sections
import torch
import work
from driver import FOLDER, Bench
from peers import hooks
from sections import Case, Row, cells
from server import Contestant
from work import Shape, Task

import report
import studies

MODELS = {
    "GPT-2 small": Shape("gpt2", layers=12, width=768, heads=12, kv_heads=12, mlp=3072, vocab=50257),
    "GPT-2 XL": Shape("gpt2", layers=48, width=1600, heads=25, kv_heads=25, mlp=6400, vocab=50257),
    "Qwen2.5-1.5B": Shape("qwen2", layers=28, width=1536, heads=12, kv_heads=2, mlp=8960, vocab=151936),
    "Llama-3-8B": Shape("llama", 32, width=4096, heads=32, kv_heads=8, mlp=14336, vocab=128256, tied=False),
}
TINY = {
    "GPT-2 small": Shape("gpt2", layers=2, width=32, heads=4, kv_heads=4, mlp=64, vocab=96),
    "GPT-2 XL": Shape("gpt2", layers=3, width=40, heads=5, kv_heads=5, mlp=80, vocab=96),
    "Qwen2.5-1.5B": Shape("qwen2", layers=3, width=48, heads=6, kv_heads=2, mlp=96, vocab=96),
    "Llama-3-8B": Shape("llama", layers=3, width=64, heads=8, kv_heads=2, mlp=96, vocab=96, tied=False),
}
HOOKS = {"block": {"hooks": ("hooks", "block_grid")}, "head": {"hooks": ("hooks", "head_grid")}}


@dataclass(frozen=True)
class Size:
    """How much is measured of every model."""

    positions: int
    pairs: int
    batch: int
    rank: int
    tokens: int


FULL, DRY = Size(32, 32, 16, 16, 64), Size(8, 3, 2, 4, 4)


class Local:
    """A contestant in this process; looks like one of `driver.py`."""

    def __init__(self, works: Mapping[str, Callable[[Task], Callable[..., Any]]], task: Task) -> None:
        self.contestant = Contestant(works, task)

    def ask(self, name: str, **request: Any) -> dict[str, Any]:
        """Have a work done once.

        Raises:
            RuntimeError: it failed.
        """
        answer = self.contestant.answer({"work": name, **request})
        if "pending" in answer:
            raise work.Pending(answer["pending"])
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


def training(bench: Bench, case: Case) -> Iterator[Row]:
    """Training steps at two depths."""
    deep = case.shape.layers - 1 - case.shape.layers // 10
    yield sections.training(bench, case, "das", case.middle)
    yield sections.training(bench, case, "das", deep)
    yield sections.training(bench, case, "rotation", case.middle)
    yield sections.training(bench, case, "boundless", case.middle)


def memory(bench: Bench, case: Case) -> Iterator[Row]:
    """The most memory that is allocated above the model; nothing on a CPU."""
    row = Row(f"{case.label}peak memory of the block grid", "MiB above the loaded model")
    device = bench.running["ours"].contestant.tasks[""].device
    works = {"one pass": ("hooks", "one_pass", {"layer": case.middle}), "ours": ("ours", "block_grid", {})}
    for name, (who, what, args) in works.items():
        peak = peak_of(device, lambda who=who, what=what, args=args: bench.ask(who, what, **args))
        if peak is not None:
            row.figures[name] = peak / 2**20
    row.note = "" if row.figures else "measured on a GPU only"
    print(report.line(asdict(row)), flush=True)
    yield row


def peak_of(device: str, function: Callable[[], Any]) -> int | None:
    """Return how much more memory than before a call has at its height."""
    if torch.device(device).type != "cuda":
        function()
        return None
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    work.synchronise(device)
    return torch.cuda.max_memory_allocated(device) - before


SECTIONS: dict[str, Callable[[Bench, Case], Iterator[Row]]] = {
    "blocks": lambda bench, case: iter([sections.blocks(bench, case, HOOKS["block"])]),
    "heads": lambda bench, case: iter([sections.heads(bench, case, HOOKS["head"])]),
    "training": training,
    "interchange": lambda bench, case: iter([sections.interchange(bench, case)]),
    "generation": lambda bench, case: iter([sections.generation(bench, case)]),
    "pairs": lambda bench, case: iter([sections.pairs(bench, case)]),
    "memory": memory,
    "studies": lambda bench, case: iter(studies.without_goals(bench, case)),
}


def parameters(shape: Shape) -> int:
    """Return about how many parameters a model has."""
    kv = shape.width * shape.kv_heads // shape.heads
    attention = 2 * shape.width * (shape.width + kv)
    mlp = (2 if shape.family == "gpt2" else 3) * shape.width * shape.mlp
    return shape.layers * (attention + mlp) + (1 if shape.tied else 2) * shape.vocab * shape.width


def why_not(shape: Shape, dtype: str, size: Size, device: str) -> str:
    """Return why a model is skipped; empty if it fits.

    Needed are the weights, a float32 copy of the largest matrix while they are made, and what a training step by hand
    keeps: about 12 activations of the width and 4 of the MLP for every token and block, and logits four times.
    """
    if torch.device(device).type != "cuda":
        return ""
    one, tokens = torch.finfo(getattr(torch, dtype)).bits // 8, size.batch * size.positions
    kept = tokens * (shape.layers * (12 * shape.width + 4 * shape.mlp) * one + 4 * shape.vocab * 4)
    needed = parameters(shape) * one + 2 * 4 * shape.vocab * shape.width + kept
    free = torch.cuda.mem_get_info(device)[0]
    text = f"needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    return text if needed * 1.1 > free else ""


def measured(name: str, shape: Shape, dtype: str, options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Return the rows of one model, and what went wrong."""
    size = DRY if options.dry_run else FULL
    place = size.positions * 5 // 8
    facts = {"positions": size.positions, "pairs": max(size.pairs, size.batch), "device": options.device}
    task = work.random_task(shape, dtype=dtype, batch=size.batch, place=place, rank=size.rank, **facts)
    running: dict[str, Any] = {"hooks": Local(hooks.WORKS, task), "ours": Local(ours.WORKS, task)}
    bench = Bench(options.rounds, False, ExitStack(), running)
    places = range(size.positions)
    chosen = sorted({0, shape.layers // 2, shape.layers - 1})
    batching = bench.ask("hooks", "batching", cells=cells(chosen, places))["values"]
    case = Case(f"{name}, {dtype}: ", shape, size.positions, batch=size.batch, places=places, sample=chosen)
    case = replace(case, sample_places=[1, place, size.positions - 1], pairs=size.pairs, pair_places=places)
    case = replace(case, rank=size.rank, tokens=size.tokens, allowed=work.allowed(dtype, batching))
    rows, wrong = [], []
    for section in options.sections:
        if section in SECTIONS:
            try:
                rows.extend(SECTIONS[section](bench, case))
            except (SystemExit, Exception) as error:
                traceback.print_exc()
                wrong.append(f"{case.label}{section}: {type(error).__name__}: {error}")
    return rows, wrong


def overhead(dtype: str, options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Return the rows of the tiny model."""
    task = work.random_task(ours.TINY, positions=4, device=options.device, dtype=dtype)
    bench = Bench(options.rounds, False, ExitStack(), {"ours": Local(ours.WORKS, task)})
    try:
        return sections.overhead(bench, f"{dtype}: ", repeat=2 if options.dry_run else 30), []
    except Exception as error:
        traceback.print_exc()
        return [], [f"{dtype}: overhead: {type(error).__name__}: {error}"]


def page(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as a page."""
    parts = ["# Benchmark on a GPU\n", f"Made by `make bench-gpu`: {facts['device']}, torch {facts['torch']}.\n"]
    parts.append(EXPLAINED)
    parts += [f"- not measured: {text}" for text in facts["skipped"]] + [f"- WRONG: {text}" for text in facts["wrong"]]
    parts += [
        "\n| work | unit | others | ours | hooks / ours | limit | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures, limit = row["figures"], row["limit"]
        others = ", ".join(f"{name} {value:.3g}" for name, value in figures.items() if name != "ours")
        mine = f"{figures['ours']:.3g}" if "ours" in figures else ""
        same_kind = {"hooks", "ours"} <= set(figures) and "allowed" not in figures
        ratio = f"{figures['hooks'] / figures['ours']:.3g}" if same_kind else ""
        shown = [others, mine, ratio, "" if limit is None else f"{limit:.3g}", row["agreement"].get("ours", "")]
        name = row["work"] + (f" ({row['note']})" if row["note"] else "")
        parts.append(f"| {name} | {row['unit']} | {' | '.join(shown)} |")
    return "\n".join(parts) + "\n"


def main() -> None:
    """Measure and write."""
    every = [*SECTIONS, "overhead"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--sections", nargs="+", choices=every, default=every)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--out", type=Path, help="folder of the results; default: bench, of a dry run bench/logs")
    options = parser.parse_args()
    if options.dry_run:
        options.device, options.rounds = "cpu", 1
    elif torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here, or this torch cannot use it; --dry-run tries the program on the CPU")
    out = options.out or (FOLDER / "logs" if options.dry_run else FOLDER)
    out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    on_gpu = torch.device(options.device).type == "cuda"
    facts: dict[str, Any] = {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(options.device) if on_gpu else "a CPU",
        "torch": torch.__version__,
        "dry run": options.dry_run,
        "rounds": options.rounds,
        "skipped": [],
        "wrong": [],
    }
    rows: list[dict[str, Any]] = []

    def keep(found: tuple[list[Row], list[str]]) -> None:
        rows.extend(asdict(row) for row in found[0])
        facts["wrong"] += found[1]
        text = json.dumps({**facts, "rows": rows}, indent=1) + "\n"
        (out / "results-gpu.json").write_text(text, encoding="utf-8")
        (out / "results-gpu.md").write_text(page(facts, rows), encoding="utf-8")

    for dtype in options.dtypes:
        if "overhead" in options.sections:
            keep(overhead(dtype, options))
        for name in options.models:
            shape = (TINY if options.dry_run else MODELS)[name]
            reason = why_not(shape, dtype, DRY if options.dry_run else FULL, options.device)
            if reason:
                facts["skipped"].append(f"{name} in {dtype}: {reason}")
                print(f"skipped: {facts['skipped'][-1]}", flush=True)
            keep(([], []) if reason else measured(name, shape, dtype, options))
            forget(on_gpu)
    print(
        f"written: {out}/results-gpu.json, results-gpu.md; {len(facts['wrong'])} wrong, {len(facts['skipped'])} skipped"
    )
    sys.exit(bool(facts["wrong"]))


def forget(on_gpu: bool) -> None:
    """Let go of the models."""
    work.forget()
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()


EXPLAINED = """
Random weights in the shapes of the models. Hand-written hooks and the library in one process, taking turns; figures are
medians after a round that does not count, by events on the GPU. `limit`: what the work cannot avoid, at the cost of a
token in a block at full batch. Values must equal those of the hooks: in float32 to 0.001, in bfloat16 to four times
what batching alone changes, at least four roundings of the largest value; generated tokens exactly. TF32 is off.
"""


if __name__ == "__main__":
    main()
