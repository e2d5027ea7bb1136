"""Interventions on the internals of neural networks. What there is, is listed in `__init__.pyi`.

Names are loaded when they are first used, so that importing the package costs next to nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
