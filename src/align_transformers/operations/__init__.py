"""Operations: what becomes of the coordinates in a subspace."""

from .base import Operation, SourceKind
from .collect import Collect
from .constant import Clamp, Mean, Scale, Shift, Zero
from .function import Function
from .learned import Learned
from .noise import Noise
from .source import Add, Subtract, Swap

__all__ = [
    "Add",
    "Clamp",
    "Collect",
    "Function",
    "Learned",
    "Mean",
    "Noise",
    "Operation",
    "Scale",
    "Shift",
    "SourceKind",
    "Subtract",
    "Swap",
    "Zero",
]
