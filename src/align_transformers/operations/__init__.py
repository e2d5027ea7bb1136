"""Operations: what becomes of the coordinates in a subspace."""

from .collect import Collect
from .constant import Clamp, Mean, Scale, Shift, Zero
from .function import Function
from .learned import Learned
from .noise import Noise
from .operation import Operation, SourceKind
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
