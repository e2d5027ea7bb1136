"""Studies: whole experiments, each written with the public names of the layers below."""

from .grid import grid

__all__ = ["grid"]
