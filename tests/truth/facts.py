"""What is known to be true, and must be found."""

from __future__ import annotations

from . import capitals, equality, modular, planted, programs, swaps

FACTS = [*swaps.FACTS, *equality.FACTS, *planted.FACTS, *modular.FACTS, *programs.FACTS, *capitals.FACTS]
TABLES = [equality.table, programs.table, capitals.table]
"""What the numbers are made of, as text."""
