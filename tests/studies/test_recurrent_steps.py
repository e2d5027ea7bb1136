"""grid over the time steps of a fused recurrent module: each cell against a loop over an `nn.GRUCell`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from align_transformers import Metric, SiteError, grid

DIFFERENCE = Metric("difference", lambda logits: logits[:, 0] - logits[:, 1])


class Recurrent(nn.Module):
    """A language model of one GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.out = nn.Embedding(30, 8), nn.GRU(8, 6, batch_first=True), nn.Linear(6, 30)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(input_ids))[0])


def states(model: Recurrent, ids: Tensor, place: int | None = None, written: Tensor | None = None) -> Tensor:
    """Return the hidden state after each step, `(steps, 6)`; `written` in the place of that at step `place`."""
    cell = nn.GRUCell(8, 6)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in model.rnn.state_dict().items()})
    state, seen = torch.zeros(1, 6), []
    for step, x in enumerate(model.embed(ids[0])):
        state = cell(x[None], state)
        state = written[None] if step == place and written is not None else state
        seen.append(state[0])
    return torch.stack(seen)


@torch.no_grad()
def test_every_step_is_a_cell() -> None:
    model = Recurrent().eval()
    base, source = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[7, 8, 9, 10]])
    component = "rnn.step[0].output"
    table = grid(model, {"input_ids": base}, {"input_ids": source}, components=[component], metric=DIFFERENCE)
    assert table.columns["position"] == (0, 1, 2, 3)
    others = states(model, source)
    for row in table.rows():
        place = row["position"]
        last = states(model, base, place, others[place])[-1:]
        assert row["metric"] == pytest.approx(DIFFERENCE(model.out(last)).item(), abs=1e-5)


def test_what_a_step_lacks_is_refused_before_anything_runs() -> None:
    model, prompt = Recurrent().eval(), {"input_ids": torch.tensor([[3, 4]])}
    with pytest.raises(SiteError, match="layer 1 does not exist"):
        grid(model, prompt, prompt, components=["rnn.step[1].output"], metric=DIFFERENCE)
