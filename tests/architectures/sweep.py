"""`python -m tests.architectures.sweep`: every architecture, resolved and checked (`make arch`).

Prints the counts, writes `docs/architectures.md`, and compares the picks with `chosen.json`. Exit status 1 when a
check fails, when a pick has changed, or when the counts are below the goals.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import torch

from . import chosen, table
from .record import COMPLETE, NOT_BUILT, REFUSED, VERDICTS, WRONG, Record, examine, is_refusal
from .tiny import MAPPINGS, entries

Job = tuple[str, tuple[str, ...]]
_PROCESSES = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep; return the exit status."""
    options = _options(arguments)
    start = time.perf_counter()
    mappings = options.mapping or MAPPINGS
    records = _examine_all(_jobs(mappings, options.only), options.processes)
    for line in _report(records, options.verbose):
        _say(line)
    if options.json:
        with open(options.json, "w") as file:
            json.dump([asdict(record) for record in records], file, indent=1)
    whole = not options.only and not options.mapping
    changed = [] if options.write else chosen.differences(records, _gone() if whole else ())
    for text in changed:
        _say(text)
    if options.write:
        chosen.write(records)
    if whole:
        table.FILE.parent.mkdir(exist_ok=True)
        table.FILE.write_text(table.render(records))
    low = _below_goals(records) if whole else []
    wrong = [record for record in records if record.verdict == WRONG]
    seconds = time.perf_counter() - start
    busy = sum(record.seconds for record in records)
    _say(f"{len(records)} entries in {seconds:.0f} s ({busy:.0f} s of processor time)")
    _say(f"{len(wrong)} wrong, {len(changed)} changed picks")
    for line in low:
        _say(line)
    return int(bool(wrong or changed or low))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.architectures.sweep", description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="MODEL_TYPE", help="these architectures, in every mapping")
    parser.add_argument("--mapping", nargs="+", choices=MAPPINGS, help="these mappings")
    parser.add_argument("--write", action="store_true", help="freeze the picks: review the diff of chosen.json")
    parser.add_argument("--json", metavar="FILE", help="write the records too")
    parser.add_argument("--verbose", action="store_true", help="say why each entry is not complete")
    parser.add_argument("--processes", type=int, default=_PROCESSES)
    return parser.parse_args(arguments)


def _jobs(mappings: Sequence[str], only: Sequence[str] | None) -> list[Job]:
    """Return the work, one architecture with all its mappings a job: its module is imported once."""
    jobs: dict[str, list[str]] = {}
    for mapping in mappings:
        for model_type in entries(mapping):
            if not only or model_type in only:
                jobs.setdefault(model_type, []).append(mapping)
    return [(model_type, tuple(names)) for model_type, names in jobs.items()]


def _examine_all(jobs: Sequence[Job], processes: int) -> list[Record]:
    if processes < 2 or len(jobs) < 4:
        _prepare()
        records = [record for job in jobs for record in _examine(job)]
    else:
        with multiprocessing.get_context("spawn").Pool(processes, _prepare) as pool:
            records = [record for found in pool.imap_unordered(_examine, jobs) for record in found]
    return sorted(records, key=lambda record: (MAPPINGS.index(record.mapping), record.model_type))


def _prepare() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers  # the variable above is read when it is imported

    torch.set_num_threads(1)
    transformers.logging.set_verbosity(50)


def _examine(job: Job) -> list[Record]:
    model_type, mappings = job
    return [examine(mapping, model_type) for mapping in mappings]


def _gone() -> list[str]:
    known = {f"{mapping}:{model_type}" for mapping in MAPPINGS for model_type in entries(mapping)}
    return sorted(set(chosen.load()) - known)


def _report(records: Sequence[Record], verbose: bool) -> Iterable[str]:
    for record in records:
        for failure in record.failures:
            yield f"wrong: {record.name} {failure}"
        if record.verdict in (NOT_BUILT, REFUSED) or (verbose and record.verdict != COMPLETE):
            reasons = sorted(
                {f"{n}: {why}" for k in record.kinds for n, why in k.missing.items() if is_refusal(n, why)}
            )
            yield f"{record.verdict}: {record.name} {record.reason[:300]} {'; '.join(reasons)[:600]}".rstrip()
    width = max(len(mapping) for mapping in MAPPINGS)
    yield " " * width + "".join(f"{verdict:>11}" for verdict in VERDICTS) + f"{'goal':>7}"
    for mapping, row in table.counts(records):
        numbers = "".join(f"{row[verdict]:>11}" for verdict in VERDICTS)
        yield f"{mapping:{width}}{numbers}{table.GOALS.get(mapping, ''):>7}"
    heads = {key: sum(r.heads_checked.get(key, 0) for r in records) for key in ("agree", "differ", "unchecked")}
    yield "head maps by finite differences: " + ", ".join(f"{number} {key}" for key, number in heads.items())


def _below_goals(records: Sequence[Record]) -> list[str]:
    return [
        f"{mapping}: {row[COMPLETE]} complete, the goal is {table.GOALS[mapping]}"
        for mapping, row in table.counts(records)
        if row[COMPLETE] < table.GOALS.get(mapping, 0)
    ]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
