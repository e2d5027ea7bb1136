"""Causal models: what a network is supposed to compute, as variables and the functions between them.

Geiger et al. 2021, arXiv:2106.02997. Nothing here knows of networks or of torch.

`CausalModel` is the model; `causal_model` reads one from a Python function; `graph` and `draw` show it.
`CounterfactualDataset` holds pairs of inputs, and what the model says after interchanges.
"""

from .causal_model import CausalModel
from .dataset import CounterfactualDataset
from .declaration import causal_model
from .diagram import draw, graph
from .domain import OnArrays

__all__ = ["CausalModel", "CounterfactualDataset", "OnArrays", "causal_model", "draw", "graph"]
