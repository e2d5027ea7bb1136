"""The method `sae`: latents of a given dictionary, against networks and dictionaries of which all is known."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import new_model
from tests.studies.abstraction.kit import add, adder, tokens_of, vector, words

from align_transformers import CounterfactualDataset, IntervenableModel, Site, align
from align_transformers._errors import SpecError
from align_transformers.studies.abstraction.latents import LatentChoice
from align_transformers.subspaces import Dictionary

HIDDEN = Site("0.output")
FIT = {"max_steps": 20, "draws": 9}


def along(rotation, order):
    """Return a dictionary whose latents are coordinates along columns of a rotation; none is cut off."""
    columns = rotation[:, order]
    return Dictionary.from_state_dict(
        {
            "W_enc": columns,
            "b_enc": torch.full((len(order),), 20.0),
            "W_dec": columns.T.contiguous(),
            "b_dec": torch.zeros(len(rotation)),
        }
    )


@pytest.fixture(scope="module")
def pairs():
    return CounterfactualDataset.sample(add, 1200, variables=["x", "c"], seed=0)


@pytest.fixture(scope="module")
def found(pairs):
    network, rotation = adder()
    dictionary = along(rotation, [5, 2, 1, 0, 4])  # a + b is latent 3, c is latent 2, a - b is latent 1
    before = {name: value.clone() for name, value in dictionary.state_dict().items()}
    result = align(network, add, pairs, encode=vector, sites=HIDDEN, methods="sae", dictionaries=dictionary, **FIT)
    assert all(torch.equal(value, before[name]) for name, value in dictionary.state_dict().items())
    return network, result


@pytest.mark.parametrize(("variable", "latent"), [("x", 3), ("c", 2)])
def test_the_latent_that_is_the_variable_is_found(found, variable, latent):
    row = found[1].best(variable)
    assert (row["method"], row["rank"], row["dimensions"], row["iia"], row["low"]) == ("sae", 1, 1, 1.0, 1.0)
    assert found[1].intervenable(variable).representations[0].intervention.coordinates == [latent]
    assert row["soft"] < 0.5  # all latents carry the other variable, too
    assert row["random"] < 0.5
    assert row["p"] == 1 / 10
    assert row["permuted"] < 0.5  # the choice is made of labels: other labels choose other latents
    assert row["reinitialised"] < 0.5
    assert "exceeds container" in row["flags"]


def test_what_is_saved_is_an_ordinary_intervention_with_the_dictionary(found, tmp_path):
    network, result = found
    folder = result.save(tmp_path / "search")
    again = IntervenableModel.load(folder / "x", model=network)
    base, source = torch.tensor([vector({"a": 4, "b": 0, "c": 2})]), torch.tensor([vector({"a": 1, "b": 2, "c": 0})])
    assert again(base, source)[1].argmax().item() == 1 + 2 + 2


def test_a_dictionary_in_which_the_variable_is_spread_does_not_carry_it_in_one_latent(pairs):
    network, rotation = adder()
    mixed = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).Q
    dictionary = along(rotation @ mixed, list(range(6)))
    asked = {"encode": vector, "sites": HIDDEN, "methods": "sae", "variables": ["x"], "dictionaries": dictionary}
    result = align(network, add, pairs, **asked, **FIT)
    assert result.best()["iia"] < 0.6


def test_the_worth_of_latents_is_what_their_swap_takes_off_the_loss():
    """Integrated gradients are complete: together they are the loss of none swapped less that of all."""
    model, data = new_model("gpt2"), CounterfactualDataset.sample(words(), 200, variables="middle", seed=0)
    torch.manual_seed(0)
    dictionary, site = Dictionary(32, 64), Site("block_output", 1)
    steps = 33
    result = align(
        model, data.causal_model, data, encode=tokens_of, sites=[site], methods="sae", ranks=5,
        dictionaries={site: dictionary}, only_solved=False, label=lambda value: value, controls=(),
        batch_size=1000, epochs=steps,
    )  # fmt: skip
    choice = result.findings[0].candidate.intervention
    task, pairs = result.search.task, result.search.task.parts["train"]
    states = task.states(result.findings[0].hypothesis.container)

    def loss(share):
        change = dictionary.encode(states[pairs.sources["middle"]]) - dictionary.encode(states[pairs.base])
        losses = []
        for row, moved in enumerate(share * change @ dictionary.W_dec):
            ids = torch.tensor([tokens_of(task.settings[pairs.base[row]])])
            block = model.transformer.h[1]

            def edit(_module, _given, output, moved=moved):
                state = output[0] if isinstance(output, tuple) else output
                state = torch.cat([state[:, :-1], state[:, -1:] + moved], 1)
                return (state, *output[1:]) if isinstance(output, tuple) else state

            with block.register_forward_hook(edit), torch.no_grad():
                losses.append(torch.nn.functional.cross_entropy(model(ids).logits[:, -1], pairs.labels[row : row + 1]))
        return torch.stack(losses).mean()

    none, some, most, every = (loss(share) for share in (0, 0.01, 0.99, 1))
    ends = ((some - none) + (every - most)) / 0.01 / 2  # the first and the last step count in full
    torch.testing.assert_close(choice.worth.sum(), (steps - 1) * (none - every) - ends, atol=1e-2, rtol=1e-2)
    assert choice.best == sorted(choice.worth.topk(5).indices.tolist())


def test_latents_that_do_harm_are_left_out():
    choice = LatentChoice(Dictionary(4, 6), 3)
    choice.worth += torch.tensor([-1.0, 2.0, 0.0, 1.0, -3.0, 0.0])
    assert choice.best == [1, 3]
    choice.worth -= 5
    assert choice.best == [1]  # one at least


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"methods": "sae"}, r"dictionaries: the method 'sae' needs one for 0.output; none is given"),
        (
            {"dictionaries": {Site("2.output"): Dictionary(13, 20)}},
            "needs one for 0.output; given are those for 2.output",
        ),
        ({"dictionaries": Dictionary(5, 20)}, r"that for 0.output is for vectors of 5; they have 6 there"),
        ({"dictionaries": {HIDDEN: "folder"}}, "dictionaries"),
        ({"dictionaries": Dictionary(6, 20, inputs=6)}, "is a transcoder"),
        ({"dictionaries": Dictionary(6, 2), "ranks": 3}, "3 latents of 2 that the dictionary has"),
        ({"methods": "das", "dictionaries": Dictionary(6, 20)}, "dictionaries are for the method 'sae'"),
        ({"variables": [("x", "c")], "dictionaries": Dictionary(6, 20)}, "no hypothesis is left"),
    ],
)
def test_dictionaries_that_do_not_fit_are_refused_before_any_pass(pairs, asked, text):
    network, _ = adder()
    passes = []
    network.register_forward_hook(lambda *_: passes.append(1))
    with pytest.raises(SpecError, match=text):
        align(network, add, pairs, **{"encode": vector, "sites": HIDDEN, "methods": ["sae"], **FIT, **asked})
    assert not passes
