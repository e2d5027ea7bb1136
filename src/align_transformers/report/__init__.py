"""Reports: a table of a layer x position sweep as a heat map in the terminal, as a picture and as a web page.

In all three, rows are layers with **the deepest on top** and columns are tokens from left to right, as the residual
stream is usually drawn: information enters at the bottom and the prediction leaves at the top right. (Libraries that
draw a matrix as it is stored have layer 0 on top.) A cell shows `recovered`: 0 is the base's behaviour, 1 is the
source's; blue leads towards the source, orange away from it.
"""

from .figure import save_heat_map
from .page import save_page
from .summary import facts, summary
from .terminal import HeatMap, heat_map

__all__ = ["HeatMap", "facts", "heat_map", "save_heat_map", "save_page", "summary"]
