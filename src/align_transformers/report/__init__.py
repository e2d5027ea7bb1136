"""Pictures of studies' tables: in the terminal, as a file, and as a web page.

`picture` makes data of a table, by the function of its study; the terminal, the figure and the page draw that. In all
of them rows of a map are layers with **the deepest on top** and columns are tokens from left to right, as the residual
stream is usually drawn: information enters at the bottom and the prediction leaves at the top right. (Libraries that
draw a matrix as it is stored have layer 0 on top.) Numbers with a sign are blue above 0 and orange below it. Numbers
that were drawn or averaged have their 95 % intervals beside them, or are not drawn.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
