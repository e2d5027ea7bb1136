"""Every operation in every subspace in the engine's hands: examples that name different numbers of units."""

from __future__ import annotations

import pytest
import torch
from tests.contracts.pairs import PAIRS
from tests.helpers import grab, hook_counts, hooked, locus, tiny, tokens

from align_transformers import IntervenableModel

SITE, WRITE, READ = ("mlp_output", 1), [[1, 4], [3]], [[2, 5], [1]]


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_it_does_at_its_places_what_it_does_by_hand(pair):
    model, base, source = tiny("gpt2"), tokens(2, 6), tokens(2, 6, 1)
    place, hooks, one = locus(model, *SITE), hook_counts(model), pair.make(32)
    (plain,), (other,) = grab(model, base, place), grab(model, source, place)
    face = IntervenableModel(
        {"layer": 1, "component": "mlp_output", "max_number_of_units": 2, "intervention": one}, model
    )
    choice = None if pair.space.choice is None else [[list(parts) for parts in pair.space.choice]]
    seen = []
    with torch.no_grad(), hooked((place.module, place.side, lambda t: seen.append(t.clone()))):
        result = face(base, source, {"sources->base": ([READ], [WRITE])}, subspaces=choice, return_dict=True)
    for n, (columns, others) in enumerate(zip(WRITE, READ, strict=True)):
        # Both examples are asked for: a stack's members are told by the number of the example.
        rows, given = plain[:, columns], other[n : n + 1, others].expand(2, -1, -1)
        new = one(rows, given, pair.space.choice)[n]
        if one.writes and pair.space.choice is None:
            new = one(rows[n : n + 1], given[:1])[0]
        got = seen[-1][n, columns] if one.writes else result.collected_activations[0][n, : len(columns)]
        torch.testing.assert_close(got, new, rtol=1e-4, atol=1e-4)
        kept = [column for column in range(6) if column not in columns or not one.writes]
        assert torch.equal(seen[-1][n, kept], plain[n, kept])
    assert hook_counts(model) == hooks
    assert result.effects[0].positions == 3
