"""Table: the frozen result of a study: tidy rows (one a cell of the sweep), and what they were made from.

A table of `grid` has these columns, one row a swap; other studies add their own:

| column | type | meaning |
|---|---|---|
| component, layer | str, int | where the swap was made; no layer for a module's path or an end of the model |
| head | int | which head; only there if heads were asked for |
| neuron | int | the first neuron of the block that was swapped; only there if blocks were asked for |
| position | int | the place in the base, from 0 over its real tokens; none where several were swapped at once |
| place | str | the name of the place; only there if places were named |
| source_position | int | the place in the source; another one where the prompts' lengths differ |
| token, source_token | str | the text of the base's and of the source's token there |
| pair | int | number of the pair of prompts |
| direction | str | `denoise`: the source's value into the base's run; `noise`: the base's value into the source's run |
| metric | float | the metric after the swap |
| effect | float | the metric after the swap minus the metric of the clean run that was edited |
| recovered | float | effect / (the other clean run's metric - the edited one's): 0 as if unedited, 1 as the other |
| change | float | the norm of the change of the activation |
| fired | int | how often the edit of the cell's run fired |
| top_tokens, top_probabilities | list | the most probable tokens after the swap, best first; only there if asked for |

Where several metrics were asked for by name, each has columns of its own instead: `iia`, `iia_effect`, `iia_recovered`.
Columns that were not asked for are left out; all rows have the same. Missing values are `None` in rows and JSON, and
NaN in frames.
"""

from .table import Table
from .values import TAKEN

__all__ = ["TAKEN", "Table"]
