"""Hashes of pairs of prompts, so that a circuit knows on which it was found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from .._pairs import Pairs


def pair_hashes(pairs: Pairs) -> list[str]:
    """Return a sha256 of the token ids of base and source of each pair; padding does not count.

    Args:
        pairs: of prompts.
    """
    base, source = pairs.sides("")
    sides = zip(base.ids, source.ids, strict=True)
    return [_hash([list(map(int, ids)) for ids in both]) for both in sides]


def data_hash(hashes: Sequence[str]) -> str:
    """Return one hash of all pairs, in their order.

    Args:
        hashes: of each pair.
    """
    return _hash(list(hashes))


def _hash(data: object) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()
