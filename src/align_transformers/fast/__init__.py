"""What a pass can leave out: a planner that gives what `one_by_one` gives, with less work."""

from .cache import ActivationCache, Memory, Remembered, remembered
from .planned import planned
from .states import States
from .ways import Trials

__all__ = ["ActivationCache", "Memory", "Remembered", "States", "Trials", "planned", "remembered"]
