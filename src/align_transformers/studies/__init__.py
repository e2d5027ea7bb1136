"""Studies: whole experiments, each written with the public names of the layers below.

`grid` is one. `Sweep` and what goes with it is what the next one is written with: `docs/new_study.md`.
"""

from ._cell_run import CellRun
from ._scan_result import Scan
from ._sweep import Clean, Measurement, Scorer, Sweep
from .abstraction import AlignmentResult, align
from .attention_patterns import attention_patterns
from .attribution import attribution
from .causal_scrubbing import Claim, causal_scrubbing
from .causal_tracing import causal_tracing
from .circuit_graph import CircuitGraph, GraphNode
from .circuits import Circuit, evaluate_circuit
from .circuits.discovery import circuit
from .direct_attribution import direct_logit_attribution
from .edge_attribution import edge_attribution
from .graph import graph
from .grid import grid
from .lens import logit_lens
from .path_patching import path_patching
from .probe import probe
from .scan import scan
from .score import score
from .steer import steer

__all__ = [
    "AlignmentResult",
    "CellRun",
    "Circuit",
    "CircuitGraph",
    "Claim",
    "Clean",
    "GraphNode",
    "Measurement",
    "Scan",
    "Scorer",
    "Sweep",
    "align",
    "attention_patterns",
    "attribution",
    "causal_scrubbing",
    "causal_tracing",
    "circuit",
    "direct_logit_attribution",
    "edge_attribution",
    "evaluate_circuit",
    "graph",
    "grid",
    "logit_lens",
    "path_patching",
    "probe",
    "scan",
    "score",
    "steer",
]
