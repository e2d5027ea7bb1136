"""The benchmark for a GPU works: all sections, families and dtypes, on the CPU with tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "bench" / "gpu.py"
MODELS = ["GPT-2 small", "GPT-2 XL", "Qwen2.5-1.5B", "Llama-3-8B"]
WORKS = [
    "block_output grid, ",
    "head grid",
    "DAS step",
    "full rotation step",
    "Boundless DAS step",
    "one interchange",
    "tokens with an addition",
    "prompt pairs",
    "peak memory",
    "causal tracing",
    "path patching",
    "logit lens",
    "direct attribution",
    "causal scrubbing",
]


@pytest.mark.slow
@pytest.mark.skipif(not PROGRAM.exists(), reason="the benchmark is not part of this distribution")
def test_the_benchmark_for_a_gpu_passes_its_dry_run(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    results = json.loads((tmp_path / "results-gpu.json").read_text(encoding="utf-8"))
    assert results["wrong"] == results["skipped"] == []
    rows = {row["work"]: row for row in results["rows"]}
    for dtype in ("float32", "bfloat16"):
        assert f"{dtype}: a call with 100 edits at one site, tiny model" in rows
        for model in MODELS:
            own = {work: row for work, row in rows.items() if work.startswith(f"{model}, {dtype}: ")}
            for part in WORKS:
                found = [row for work, row in own.items() if part in work]
                assert found, f"{model}, {dtype}: no {part}"
                assert all(row["agreement"].get("ours") for row in found) or part == "peak memory"
    assert "| GPT-2 XL, bfloat16: head grid" in (tmp_path / "results-gpu.md").read_text(encoding="utf-8")
