"""Time steps: modules that are called once a step, and fused ones run by their cells. The oracles are plain loops."""

from __future__ import annotations

import json

import pytest
import torch
from tests.helpers import hook_counts
from torch import nn

from align_transformers import (
    AdditionIntervention,
    CollectIntervention,
    Edit,
    IntervenableModel,
    NeverFiredError,
    Plan,
    PlanError,
    PositionError,
    Positions,
    Read,
    Run,
    Site,
    SiteError,
    VanillaIntervention,
    ZeroIntervention,
    bind,
    execute,
)
from align_transformers.zoo import GRUConfig, create_gru, create_gru_classifier, create_gru_lm

STEPS, WIDTH = 10, 4


class Loop(nn.Module):
    """A network with one cell of PyTorch's, called once a step, and a readout of all its states."""

    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.cell = cell(WIDTH, WIDTH)

    def forward(self, inputs_embeds):
        state, out = None, []
        for x in inputs_embeds.unbind(1):
            state = self.cell(x, state)
            out.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(out, 1)


def by_hand(cell, inputs, new=None, side="output"):
    """Return the states `(batch, steps, width)` of a GRU cell; `new(step, value)` replaces what is at its side."""
    new = new or (lambda step, value: value)
    state, out = torch.zeros(len(inputs), WIDTH), []
    for step in range(inputs.shape[1]):
        x = inputs[:, step]
        x = new(step, x) if side == "input" else x
        state = cell(x, state)
        state = new(step, state) if side == "output" else state
        out.append(state)
    return torch.stack(out, 1)


def written(values, rows):
    """Return a `new` for `by_hand`: at step `rows[b][u]` of example b stands `values[b, u]`."""

    def new(step, value):
        value = value.clone()
        for example, row in enumerate(rows):
            if step in row:
                value[example] = values[example, row.index(step)]
        return value

    return new


def face_of(model, intervention, units=5, component="cell.output", **more):
    spec = {"component": component, "unit": "t", "max_number_of_units": units, **more}
    return IntervenableModel({**spec, "intervention_type": intervention}, model)


@pytest.fixture
def loop():
    return Loop(nn.GRUCell)


@pytest.fixture
def base():
    return torch.randn(3, STEPS, WIDTH)


@pytest.fixture
def source():
    return torch.randn(3, STEPS + 2, WIDTH)


# --- The steps of a cell ---------------------------------------------------------------------------------------------

READ = [[0, 2, 4], [1], [9, 9, 11]]
WRITE = [[0, 5, 7], [3], [9, 0, 4]]


@pytest.mark.parametrize("side", ["output", "input"])
def test_a_swap_at_ragged_steps_changes_exactly_these(loop, base, source, side):
    values = by_hand(loop.cell, source) if side == "output" else source
    picked = torch.zeros(3, 3, WIDTH)
    for example, row in enumerate(READ):
        picked[example, : len(row)] = values[example, row]
    want = by_hand(loop.cell, base, written(picked, WRITE), side)
    face = face_of(loop, VanillaIntervention, component=f"cell.{side}")
    got = face(base, source, {"sources->base": ([READ], [WRITE])}, return_dict=True)
    assert torch.equal(got.intervened_outputs, want)
    assert got.effects[0].positions == 7
    assert not any(hook_counts(loop).values())


def test_steps_that_are_not_selected_keep_their_values(loop, base):
    got = face_of(loop, ZeroIntervention)(base, unit_locations={"base": [[[4], [6, 8], []]]})[1]
    plain = by_hand(loop.cell, base)
    assert torch.equal(got[0, :4], plain[0, :4])
    assert torch.equal(got[1, :6], plain[1, :6])
    assert torch.equal(got[2], plain[2])
    zeros = torch.zeros(3, 2, WIDTH)
    assert torch.equal(got, by_hand(loop.cell, base, written(zeros, [[4], [6, 8], []])))


def test_negative_steps_count_from_the_end(loop, base, source):
    got = face_of(loop, VanillaIntervention)(base, source, {"sources->base": (-1, -1)})[1]
    want = by_hand(loop.cell, base)
    want[:, -1] = by_hand(loop.cell, source)[:, -1]
    assert torch.equal(got, want)


def test_a_constant_is_added_at_its_steps_only(loop, base):
    values = torch.randn(3, 2, WIDTH)
    face = face_of(loop, AdditionIntervention)
    got = face(base, unit_locations={"base": [2, 6]}, source_representations=values)[1]

    def new(step, value):
        return value + values[:, [2, 6].index(step)] if step in (2, 6) else value

    assert torch.equal(got, by_hand(loop.cell, base, new))
    got = face(base, unit_locations={"base": [2, 6]}, source_representations=values[0])[1]  # for every example
    assert torch.equal(got[0, :7], by_hand(loop.cell, base, new)[0, :7])


def test_the_same_step_is_read_for_many(loop, base, source):
    got = face_of(loop, VanillaIntervention)(base, source[:1], {"sources->base": ([3], [1, 2])})[1]
    value = by_hand(loop.cell, source[:1])[0, 3].expand(3, 2, WIDTH)
    assert torch.equal(got, by_hand(loop.cell, base, written(value, [[1, 2]] * 3)))


def test_collected_steps_stand_in_the_order_they_were_named(loop, base):
    got = face_of(loop, CollectIntervention)(base, unit_locations={"base": [[[7, 0], [3], []]]}, return_dict=True)
    values, mask = got.collected_activations[0], got.collected_masks[0]
    plain = by_hand(loop.cell, base)
    assert mask.tolist() == [[True, True], [True, False], [False, False]]
    assert torch.equal(values[0], plain[0, [7, 0]])
    assert torch.equal(values[1], torch.stack([plain[1, 3], torch.zeros(WIDTH)]))
    assert torch.equal(values[2], torch.zeros(2, WIDTH))
    assert torch.equal(got.intervened_outputs, plain)


def test_without_locations_every_step_is_meant(loop, base):
    got = face_of(loop, CollectIntervention)(base, return_dict=True)
    assert torch.equal(got.collected_activations[0], by_hand(loop.cell, base))
    assert got.collected_masks[0].shape == (3, STEPS)
    other = torch.randn(3, STEPS, WIDTH)
    got = face_of(loop, VanillaIntervention)(base, other)[1]
    assert torch.equal(got, by_hand(loop.cell, other))
    got = face_of(loop, VanillaIntervention)(base, other, {"sources->base": (4, None)})[1]
    assert torch.equal(got, by_hand(loop.cell, other)[:, 4:5].expand(3, STEPS, WIDTH))


def test_no_step_named_anywhere_changes_nothing(loop, base, source):
    face = face_of(loop, VanillaIntervention)
    got = face(base, source, {"sources->base": ([[[]] * 3], [[[]] * 3])}, return_dict=True)
    assert torch.equal(got.intervened_outputs, by_hand(loop.cell, base))
    assert (got.effects[0].rows, got.effects[0].change) == (0, 0.0)


def test_a_gradient_reaches_what_was_written(loop, base):
    value = torch.randn(WIDTH, requires_grad=True)
    face = face_of(loop, VanillaIntervention)
    face(base, unit_locations={"base": 5}, source_representations=value)[1][:, -1].sum().backward()
    at_five = value.detach().clone().requires_grad_()
    by_hand(loop.cell, base, lambda t, old: at_five.expand_as(old) if t == 5 else old)[:, -1].sum().backward()
    torch.testing.assert_close(value.grad, at_five.grad)


def test_an_lstm_cells_hidden_state(base):
    loop = Loop(nn.LSTMCell)
    got = face_of(loop, ZeroIntervention)(base, unit_locations={"base": 4})[1]
    state, want = (torch.zeros(3, WIDTH), torch.zeros(3, WIDTH)), []
    for step in range(STEPS):
        state = loop.cell(base[:, step], state)
        state = (torch.zeros(3, WIDTH), state[1]) if step == 4 else state
        want.append(state[0])
    assert torch.equal(got, torch.stack(want, 1))


def test_a_time_axis_is_used_where_there_is_one(base):
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
    got = face_of(model, ZeroIntervention, component="1.output")(base, unit_locations={"base": [1, 3]})[1]
    want = model(base).clone()
    want[:, [1, 3]] = 0
    assert torch.equal(got, want)


def test_a_plan_of_steps_survives_json(loop, base, source):
    site = Site("cell.output")
    swap = Edit("swap", site, "v", Positions(((1, 2),) * 3), source=Read("source", site, Positions(((4, 0),) * 3)))
    plan = Plan((Run("base", "base", (swap,)), Run("source", "source")), ("base",))
    plan = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    bound = bind(loop, plan, {"base": base, "source": source}, {"v": VanillaIntervention()})
    want = by_hand(loop.cell, base, written(by_hand(loop.cell, source)[:, [4, 0]], [[1, 2]] * 3))
    for _ in range(2):
        assert torch.equal(execute(bound).outputs["base"], want)


def test_what_cannot_work_is_refused(loop, base, source):
    hidden = {"inputs_embeds": base}
    with pytest.raises(PositionError, match=r"position 10 at cell\.output is outside"):
        face_of(loop, ZeroIntervention)(hidden, unit_locations={"base": STEPS})

    class Half(Loop):
        def forward(self, inputs_embeds):
            return super().forward(inputs_embeds[:, :5])

    with pytest.raises(PositionError, match=r"time step 6 is outside cell\.output: its module was called 5 times"):
        face_of(Half(nn.GRUCell), VanillaIntervention)(base, source, {"sources->base": (1, 6)})
    with pytest.raises(PositionError, match=r"time step 6 is outside cell\.output: its module was called 5 times"):
        face_of(Half(nn.GRUCell), VanillaIntervention)(base, source, {"sources->base": (6, 1)})

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(WIDTH, WIDTH)

        def forward(self, inputs_embeds):
            return self.head(inputs_embeds.mean(1))

    with pytest.raises(PositionError, match="called once in a pass over 10 positions, not once a step"):
        face_of(Pooled(), ZeroIntervention, component="head.output")(base, unit_locations={"base": 0})
    with pytest.raises(PositionError, match="no sequence axis"):
        face_of(loop, ZeroIntervention, call=3)(base, unit_locations={"base": 3})
    flat = AdditionIntervention()
    flat.keep_last_dim = False
    face = IntervenableModel(
        {"component": "cell.output", "unit": "t", "max_number_of_units": 2, "intervention": flat}, loop
    )
    with pytest.raises(PlanError, match="called once a step, so an intervention with keep_last_dim=False"):
        face(base, source, {"sources->base": ([0, 1], [0, 1])})
    assert torch.equal(face(base, base, {"sources->base": 9})[1][:, :9], by_hand(loop.cell, base)[:, :9])
    assert not any(hook_counts(loop).values())


# --- The tutorial's equalities ---------------------------------------------------------------------------------------


def test_a_recurrent_network_is_a_bottleneck():
    _, _, model = create_gru_classifier(GRUConfig(h_dim=2))
    base, source = ({"inputs_embeds": torch.randn(10, 10, 2)} for _ in range(2))
    face = face_of(model, VanillaIntervention, component="gru.cells[0].output")
    _, three = face(base, source, {"sources->base": ([0, 2, 4], [0, 5, 7])})
    _, one = face(base, source, {"sources->base": (4, 7)})
    assert torch.equal(three.logits, one.logits)
    assert torch.equal(one.last_hidden_state[:, :7], model(**base).last_hidden_state[:, :7])
    assert torch.equal(three.last_hidden_state[:, 7:], one.last_hidden_state[:, 7:])
    assert torch.equal(three.last_hidden_state[:, 1:5], by_first(model, base, source)[:, 1:5])
    assert not torch.equal(one.logits, model(**base).logits)


def by_first(model, base, source):
    """Return the states when step 0's is the source's: the same as starting from it."""
    start = model(**source).last_hidden_state[:, :1]
    rest = model.gru(base["inputs_embeds"][:, 1:], start.transpose(0, 1))
    return torch.cat([start, rest.last_hidden_state], 1)


def test_linked_halves_at_one_step_are_the_source():
    _, _, model = create_gru_classifier(GRUConfig(h_dim=2))
    base, source = ({"inputs_embeds": torch.randn(5, 1, 2)} for _ in range(2))
    half = {"component": "gru.cells[0].output", "unit": "t", "subspace_partition": [[0, 1], [1, 2]]}
    half |= {"intervention_link_key": 0, "intervention_type": VanillaIntervention}
    face = IntervenableModel([half, half], model)
    _, got = face(base, [source, source], {"sources->base": (0, 0)}, subspaces=[[[0]] * 5, [[1]] * 5])
    assert torch.equal(got.logits, model(**source).logits)


@pytest.mark.parametrize("component", ["reset_gate.output", "new_h2h.output", "x2h.output", "input"])
def test_gates_at_a_step_of_the_second_layer(component):
    _, _, model = create_gru_lm(GRUConfig(h_dim=4, n_layer=2, vocab_size=9))
    base = {"input_ids": torch.randint(9, (2, 6))}
    path = f"gru.cells[1].{component}"
    _, got = face_of(model, ZeroIntervention, component=path)(base, unit_locations={"base": [[[3], [-1]]]})
    calls = []

    def zero(value):
        step = len(calls)
        calls.append(step)
        value = value.clone()
        for example, at in enumerate((3, 5)):
            if step == at:
                value[example] = 0
        return value

    name, _, side = component.rpartition(".")
    module = model.gru.cells[1].get_submodule(name)
    if side == "output":
        handle = module.register_forward_hook(lambda _m, _a, out: zero(out))
    else:
        handle = module.register_forward_pre_hook(lambda _m, args: (zero(args[0]), *args[1:]))
    want = model(**base)
    handle.remove()
    assert torch.equal(got.logits, want.logits)
    assert torch.equal(got.logits[0, :3], model(**base).logits[0, :3])
    assert not torch.equal(got.logits, model(**base).logits)


# --- Fused modules ---------------------------------------------------------------------------------------------------


class Fused(nn.Module):
    """A network around one of PyTorch's fused modules; the batch always comes first."""

    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(3, WIDTH, 2, **options)

    def forward(self, inputs_embeds, hx=None):
        if self.rnn.batch_first:
            return self.rnn(inputs_embeds, hx)
        output, state = self.rnn(inputs_embeds.transpose(0, 1), hx)
        return output.transpose(0, 1), state


def layers_by_hand(rnn, inputs, edit=lambda layer, step, h, c: (h, c), start=None):
    """Return all layers' hidden states `[layer](batch, steps, width)`, computed by PyTorch's own cells."""
    lstm, found = isinstance(rnn, nn.LSTM), []
    for layer in range(rnn.num_layers):
        cell = (nn.LSTMCell if lstm else nn.GRUCell)(inputs.shape[-1], rnn.hidden_size, bias=rnn.bias)
        for name in dict(cell.named_parameters()):
            setattr(cell, name, getattr(rnn, f"{name}_l{layer}"))
        h = torch.zeros(len(inputs), rnn.hidden_size) if start is None else start[layer]
        c, out = torch.zeros_like(h), []
        for step in range(inputs.shape[1]):
            h, c = cell(inputs[:, step], (h, c)) if lstm else (cell(inputs[:, step], h), c)
            h, c = edit(layer, step, h, c)
            out.append(h)
        inputs = torch.stack(out, 1)
        found.append(inputs)
    return found


def edited(model, base, component, rows, intervention=None):
    """Return the outcome of one edit without a source at steps of a fused module."""
    edit = Edit("edit", Site(component), "it", Positions(rows))
    plan = Plan((Run("base", "base", (edit,)),), ("base",))
    return execute(bind(model, plan, {"base": base}, {"it": intervention or ZeroIntervention()}))


KINDS = [
    (nn.GRU, {"batch_first": True}),
    (nn.GRU, {"batch_first": False, "bias": False}),
    (nn.LSTM, {"batch_first": True, "bias": False}),
    (nn.LSTM, {"batch_first": False}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_cells_give_what_the_fused_module_gives(kind, options):
    model, base = Fused(kind, **options), torch.randn(3, 6, 3)
    start = torch.randn(2, 3, WIDTH)
    for hx in (None, start if kind is nn.GRU else (start, start + 1)):
        inputs = {"inputs_embeds": base} if hx is None else {"inputs_embeds": base, "hx": hx}
        output, state = model(**inputs)
        got = edited(model, inputs, "rnn.step[1].output", None, CollectIntervention())
        run_output, run_state = got.outputs["base"]
        torch.testing.assert_close(run_output, output, atol=1e-6, rtol=0)
        torch.testing.assert_close(run_state, state, atol=1e-6, rtol=0)
        torch.testing.assert_close(torch.cat(got.collected["edit"].values, 1), output, atol=1e-6, rtol=0)
        assert "forward" not in vars(model.rnn)


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("layer", [0, 1])
def test_a_hidden_state_is_zeroed_at_its_step(kind, options, layer):
    model, base = Fused(kind, **options), torch.randn(2, 6, 3)

    def edit(at, step, h, c):
        zero = torch.tensor([step == 2, step == 4]).unsqueeze(1) & (at == layer)
        return h.masked_fill(zero, 0), c

    got = edited(model, base, f"rnn.step[{layer}].output", ((2,), (4,))).outputs["base"][0]
    torch.testing.assert_close(got, layers_by_hand(model.rnn, base, edit)[-1], atol=1e-6, rtol=0)


def test_an_lstms_cell_state_and_gates():
    model, base = Fused(nn.LSTM, batch_first=True), torch.randn(2, 6, 3)
    width = WIDTH
    got = edited(model, base, "rnn.step[0].forget_gate.output", ((3,), (3,))).outputs["base"][0]
    rnn, hs = model.rnn, [torch.zeros(2, width)]
    c = torch.zeros(2, width)
    for step in range(6):
        sums = base[:, step] @ rnn.weight_ih_l0.T + rnn.bias_ih_l0 + hs[-1] @ rnn.weight_hh_l0.T + rnn.bias_hh_l0
        i, f, g, o = sums.chunk(4, -1)
        c = (0 if step == 3 else torch.sigmoid(f)) * c + torch.sigmoid(i) * torch.tanh(g)
        hs.append(torch.sigmoid(o) * torch.tanh(c))
    top = nn.LSTM(WIDTH, WIDTH, batch_first=True)
    for name in ("weight_ih_l", "weight_hh_l", "bias_ih_l", "bias_hh_l"):
        getattr(top, f"{name}0").data = getattr(rnn, f"{name}1").data
    torch.testing.assert_close(got, top(torch.stack(hs[1:], 1))[0], atol=1e-6, rtol=0)


def test_an_lstms_cell_state_is_zeroed_for_the_steps_after():
    model, base = Fused(nn.LSTM, batch_first=True), torch.randn(2, 6, 3)
    got = edited(model, base, "rnn.step[1].cell.output", ((3,), (3,))).outputs["base"][0]
    _, (h, c) = nn.LSTM.forward(model.rnn, base[:, :4])
    h[1], c[1] = 0, 0  # an output gate times tanh(0)
    after = nn.LSTM.forward(model.rnn, base[:, 4:], (h, c))[0]
    torch.testing.assert_close(got[:, :3], model(base)[0][:, :3], atol=1e-6, rtol=0)
    torch.testing.assert_close(got[:, 3], torch.zeros(2, WIDTH))
    torch.testing.assert_close(got[:, 4:], after, atol=1e-6, rtol=0)


def test_the_states_of_a_fused_module_are_swapped_from_other_steps():
    model, base, source = Fused(nn.GRU, batch_first=True), torch.randn(2, 6, 3), torch.randn(2, 8, 3)
    site = Site("rnn.step[0].output")
    swap = Edit("swap", site, "v", Positions(((1, 4), (2,))), source=Read("source", site, Positions(((7, 0), (5,)))))
    plan = Plan((Run("base", "base", (swap,)), Run("source", "source")), ("base", "source"))
    outputs = execute(bind(model, plan, {"base": base, "source": source}, {"v": VanillaIntervention()})).outputs
    states = layers_by_hand(model.rnn, source)[0]

    def edit(layer, step, h, c):
        h = h.clone()
        for example, pairs in enumerate(({1: 7, 4: 0}, {2: 5})):
            if layer == 0 and step in pairs:
                h[example] = states[example, pairs[step]]
        return h, c

    torch.testing.assert_close(outputs["base"][0], layers_by_hand(model.rnn, base, edit)[-1], atol=1e-6, rtol=0)
    torch.testing.assert_close(outputs["source"][0], model(source)[0], atol=1e-6, rtol=0)


def test_only_passes_that_ask_run_by_cells(monkeypatch):
    model, base = Fused(nn.GRU, batch_first=True), torch.randn(2, 6, 3)
    fused = []
    plain = nn.GRU.forward
    monkeypatch.setattr(nn.GRU, "forward", lambda self, *args: fused.append(1) or plain(self, *args))
    edit = Edit("edit", Site("rnn.step[0].output"), "zero", Positions(((1,), (1,))))
    plan = Plan((Run("base", "base", (edit,)), Run("plain", "base")), ("base", "plain"))
    outputs = execute(bind(model, plan, {"base": base}, {"zero": ZeroIntervention()})).outputs
    assert fused == [1]
    assert torch.equal(outputs["plain"][0], plain(model.rnn, base)[0])


def test_a_fused_module_is_as_before_on_every_exit():
    model, base = Fused(nn.GRU, batch_first=True), torch.randn(2, 6, 3)

    class Fails(ZeroIntervention):
        def forward(self, base, source=None, subspaces=None):
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        edited(model, base, "rnn.step[0].output", ((1,), (1,)), Fails())
    assert "forward" not in vars(model.rnn)
    assert not any(hook_counts(model).values())
    own = model.rnn.forward
    model.rnn.forward = own  # somebody else's replacement, as accelerate makes them
    edited(model, base, "rnn.step[0].output", ((1,), (1,)))
    assert vars(model.rnn)["forward"] is own


@pytest.mark.parametrize(
    ("rnn", "component", "message"),
    [
        (nn.GRU(3, 4, bidirectional=True), "rnn.step[0].output", "bidirectional"),
        (nn.LSTM(3, 4, proj_size=2), "rnn.step[0].output", "proj_size=2"),
        (nn.RNN(3, 4), "rnn.step[0].output", "only GRU, LSTM can be run by their cells"),
        (nn.GRU(3, 4), "rnn.step[1].output", "layer 1 does not exist, 'rnn' has 1, from 0"),
        (nn.GRU(3, 4), "rnn.step[0].cell.output", "a step has no 'cell'"),
    ],
)
def test_what_has_no_steps_is_refused_with_the_reason(rnn, component, message):
    model = nn.ModuleDict({"rnn": rnn})
    with pytest.raises(SiteError, match=message):
        edited(model, torch.zeros(2, 6, 3), component, ((1,), (1,)))


def test_inputs_that_have_no_steps_are_refused():
    class Packs(Fused):
        def forward(self, inputs_embeds):
            return self.rnn(nn.utils.rnn.pack_padded_sequence(inputs_embeds, [6, 6], batch_first=True))

    class Single(Fused):
        def forward(self, inputs_embeds):
            return self.rnn(inputs_embeds[0])

    for kind, found in ((Packs, "PackedSequence"), (Single, r"shape \(6, 3\)")):
        with pytest.raises(SiteError, match=f"one tensor with three axes; found {found}"):
            edited(kind(nn.GRU, batch_first=True), torch.zeros(2, 6, 3), "rnn.step[0].output", ((1,), (1,)))


def test_a_cell_that_is_never_called_is_an_error():
    class Idle(Fused):
        def forward(self, inputs_embeds):
            return inputs_embeds

    with pytest.raises(NeverFiredError, match=r"rnn\.step"):
        edited(Idle(nn.GRU, batch_first=True), torch.zeros(2, 6, 3), "rnn.step[0].output", ((1,), (1,)))


def test_create_gru_without_a_configuration():
    assert create_gru()[0] == GRUConfig()
